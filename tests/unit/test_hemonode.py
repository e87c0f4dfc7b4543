"""Our own network and recipe: each ingredient does what it says, and can be switched off."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from inference.models import Hemonode, HemonodeConfig
from tests.square_scans import square_scans
from training.augment import Ranges, draw, perturb
from training.average import Averaged
from training.batches import Sampler, Sampling
from training.dataset import Scan
from training.described import describe
from training.folds import patient_folds
from training.loop import Keep, Progress, Run
from training.recipes import hemonode
from training.recipes.hemonode import HemonodeRecipe, tail_loss, train_tail
from training.trunk import Helped
from training.views import drawn, view

pytestmark = pytest.mark.usefixtures("one_thread")

RECIPE = HemonodeRecipe(epochs=2, batch=4, views=1, tail_epochs=4, tail_batch=2)


def network(seed: int = 0, **changes: Any) -> Hemonode:
    torch.manual_seed(seed)
    return Hemonode(HemonodeConfig.from_json({"size": 32, "hidden": 8, "dropout": 0.0} | changes))


def scans(count: int = 3, slices: int = 7) -> list[Scan]:
    return square_scans(count, channels=3, slices=slices)


def changed(model: Hemonode, images: Tensor, place: int) -> set[int]:
    """The slices whose descriptors change with the brain window of the slice at `place`."""
    other = images.clone()
    other[place, 0] += 1
    with torch.inference_mode():
        before, after = (model.eval().encode(model.among(x)) for x in (images, other))
    return set((before != after).any(1).nonzero().flatten().tolist())


@pytest.mark.parametrize(("reach", "expected"), [(0, {3}), (1, {2, 3, 4}), (2, {1, 2, 3, 4, 5})])
def test_a_descriptor_depends_on_the_neighbours_within_reach(reach: int, expected: set[int]) -> None:
    images = torch.rand(7, 3, 32, 32)
    model = network(reach=reach)
    assert changed(model, images, 3) == expected
    assert model.costly_shape == (3 + 2 * reach, 32, 32)


def test_what_the_encoder_sees_is_the_slice_then_its_neighbours_from_below_and_at_the_ends_the_last_again() -> None:
    images = torch.arange(4.0)[:, None, None, None] + torch.tensor([0.0, 0.1, 0.2])[:, None, None].expand(3, 32, 32)
    seen = network(reach=1).among(images)[..., 0, 0]
    expected = [[0, 0.1, 0.2, 0, 1], [1, 1.1, 1.2, 0, 2], [2, 2.1, 2.2, 1, 3], [3, 3.1, 3.2, 2, 3]]
    torch.testing.assert_close(seen, torch.tensor(expected))
    scan = scans(1)[0]
    whole = network(reach=2).among(torch.from_numpy(scan.images.astype(np.float32)))
    np.testing.assert_array_equal(scan.among(slice(1, 7), reach=2), whole[1:7].numpy())


def test_batches_bring_each_slices_own_neighbours() -> None:
    scan = scans(1)[0]
    still = Ranges(rotation=0, flip=0)
    batch = Sampler([scan], Sampling(runs=8, slices=1, side=32, reach=1, ranges=still)).numbered(0, seed=0)
    every = scan.among(slice(0, 7), reach=1)
    for image, labels in zip(batch.images[:, 0].numpy(), batch.labels[:, 0].numpy(), strict=True):
        (place,) = [i for i in range(7) if np.allclose(every[i], image, atol=1e-3)]
        assert (labels == scan.labels[place]).all()


def test_read_in_both_orders_a_scan_upside_down_has_the_same_logits_upside_down() -> None:
    rows = torch.rand(2, 9, 512)
    for both, same in ((True, True), (False, False)):
        tail = network(both_orders=both).eval().tail
        with torch.inference_mode():
            logits, study = tail(rows)
            turned, study_turned = tail(rows.flip(1))
        assert torch.allclose(logits, turned.flip(1), atol=1e-5) is same
        assert torch.allclose(study, study_turned, atol=1e-5) is same


def test_mirrored_a_slice_and_its_mirror_image_have_one_descriptor() -> None:
    images = torch.rand(3, 5, 32, 32)
    for mirrored, same in ((True, True), (False, False)):
        model = network(mirrored=mirrored).eval()
        with torch.inference_mode():
            assert torch.allclose(model.encode(images), model.encode(images.flip(-1)), atol=1e-5) is same


def test_differences_are_those_to_the_slices_before_and_behind() -> None:
    tail = network().tail
    seen: list[Tensor] = []
    mix = tail.get_submodule("mix")
    mix.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0]))
    rows = torch.rand(1, 5, 512)
    tail(rows)
    own, below, above = seen[0][0].chunk(3, -1)
    torch.testing.assert_close(own, tail.get_submodule("norm")(rows[0]))
    torch.testing.assert_close(below[1:], own[1:] - own[:-1])
    torch.testing.assert_close(above[:-1], own[:-1] - own[1:])
    assert not below[0].any()
    assert not above[-1].any()
    assert network(differences=False).tail.get_submodule("mix").weight.shape == (16, 512)


def test_without_the_sequence_a_slices_logits_are_its_own() -> None:
    rows = torch.rand(1, 5, 512)
    for sequence in (True, False):
        tail = network(sequence=sequence, study=False).eval().tail
        with torch.inference_mode():
            alone = torch.cat([tail(rows[:, i : i + 1]).slices for i in range(5)], 1)
            assert torch.allclose(tail(rows).slices, alone, atol=1e-6) is not sequence
    assert network(sequence=False, study=False, reach=0).context == 0
    assert network(sequence=False, study=False).context is None


def test_a_study_is_pooled_from_its_slices_by_attention_and_each_slice_has_its_part_of_it() -> None:
    torch.manual_seed(1)
    rows = torch.rand(1, 6, 512)
    model = network(sequence=False).eval()
    with torch.inference_mode():
        logits, study = model.tail(rows)
        own, attention = (model.tail.get_submodule(name)(rows) for name in ("describe", "attend"))
    expected = ((own + attention).softmax(1) * own).sum(1)
    torch.testing.assert_close(study, expected)
    torch.testing.assert_close(logits, own + 0.1 * expected[:, None])


def test_reports_alone_teach_the_tail_which_slices_bleed() -> None:
    model = network()
    torch.manual_seed(2)
    rows, labels, study = torch.randn(16, 6, 512), torch.full((16, 6, 6), torch.nan), torch.zeros(16, 6)
    study[::2] = 1
    rows[::2, 2] += 1  # one slice of every study that bleeds
    optimizer = torch.optim.Adam(model.tail.parameters(), lr=1e-3)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = tail_loss(model.tail, rows, labels, study, weight=1.0)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.1 * losses[0]
    with torch.inference_mode():
        found = model.eval().decide(rows)[::2, :, 0].argmax(1)
    assert (found == 2).all()


def test_what_nobody_said_teaches_nothing() -> None:
    tail = network().tail
    rows, labels, study = torch.rand(2, 5, 512), torch.zeros(2, 5, 6), torch.full((2, 6), torch.nan)
    whole = float(tail_loss(tail, rows, labels, study, weight=1.0).detach())
    assert whole == pytest.approx(float(tail_loss(tail, rows, labels, study, weight=0.0).detach()))
    labels[0, :] = torch.nan
    alone = tail_loss(tail, rows[1:], labels[1:], study[1:], weight=0.0)
    assert float(tail_loss(tail, rows, labels, study, weight=0.0).detach()) == pytest.approx(float(alone.detach()))
    nothing = tail_loss(tail, rows, labels * torch.nan, study, weight=1.0)
    nothing.backward()  # type: ignore[no-untyped-call]
    assert float(nothing.detach()) == 0


def test_scans_of_unequal_length_stand_in_one_batch_with_nothing_known_behind_the_shorter() -> None:
    both = [*scans(1, slices=5), *scans(1, slices=9)]
    views = [[torch.rand(5, 4), torch.rand(9, 4)]]
    generator = torch.Generator().manual_seed(0)
    rows, labels, study = drawn(both, views, count=8, flip=0.0, generator=generator)
    assert rows.shape == (8, 9, 4)
    assert study.shape == (8, 6)
    short = labels[:, 5:].isnan().all((1, 2))
    assert 0 < int(short.sum()) < 8
    for i in short.nonzero().flatten().tolist():
        torch.testing.assert_close(rows[i, :5], views[0][0])
        assert (rows[i, 5:] == views[0][0][-1]).all()
    upside_down, labels, _ = drawn(both[:1], [[views[0][0]]], count=8, flip=1.0, generator=generator)
    torch.testing.assert_close(upside_down[0], views[0][0].flip(0))
    assert (labels[0].numpy() == both[0].labels[::-1]).all()


def test_the_average_follows_its_definition() -> None:
    torch.manual_seed(0)
    average = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    both = Averaged(average, decay=0.3)
    optimizer = torch.optim.SGD(both.trained.parameters(), lr=0.1)
    both.after(optimizer)
    expected = {name: value.clone() for name, value in average.state_dict().items()}
    for step in range(1, 6):
        optimizer.zero_grad()
        both.trained(torch.rand(4, 2)).square().sum().backward()
        optimizer.step()
        decay = min(0.3, (1 + step) / (10 + step))
        for name, value in both.trained.state_dict().items():
            new = decay * expected[name] + (1 - decay) * value if value.is_floating_point() else value
            expected[name] = new.clone()
    for name, value in average.state_dict().items():
        torch.testing.assert_close(value, expected[name])
    assert not torch.equal(average[0].weight, both.trained.get_submodule("0").weight)


def test_an_average_that_is_switched_off_is_the_network_itself() -> None:
    average = nn.Linear(2, 2)
    both = Averaged(average, decay=0.0)
    both.after(optimizer := torch.optim.SGD(both.trained.parameters(), lr=0.1))
    both.trained(torch.rand(4, 2)).sum().backward()
    optimizer.step()
    assert torch.equal(average.weight, both.trained.weight)


def test_segmentation_helps_where_bleeding_is_outlined_and_only_there() -> None:
    model = network()
    helped = Helped(model.trunk, model.tail.describe, average=0.0)
    sampling = Sampling(runs=4, slices=1, side=32, reach=1, outlines=True)
    batch = Sampler(scans(), sampling).numbered(0, seed=0)
    nowhere = replace(batch, outlined=torch.zeros_like(batch.outlined))

    def loss(given: Any, **changes: float) -> float:
        generator = torch.Generator().manual_seed(0)
        return float(hemonode.loss(helped, given, replace(RECIPE, **changes), reach=1, generator=generator).detach())

    assert loss(batch) > loss(nowhere) == pytest.approx(loss(batch, segmentation=0.0))


def test_images_are_smoothed_or_sharpened() -> None:
    images = torch.zeros(20, 1, 1, 5, 5)
    images[..., 2, 2] = 9
    changes = draw(Ranges(kernel=0.5), 20, generator=torch.Generator().manual_seed(0))
    peaks = perturb(images, changes)[..., 2, 2].flatten().tolist()
    assert min(peaks) < 8.5
    assert max(peaks) > 9.5
    assert all(5 <= peak <= 13 for peak in peaks)


def test_the_first_view_is_what_serving_sees_and_the_others_are_changed_alike_throughout_the_scan() -> None:
    model, some = network(), scans(1)
    run = Run(seed=0)
    (plain,) = view(model, some, None, number=0, run=run)
    torch.testing.assert_close(plain.float(), describe(model, some)[0].descriptors, atol=1e-2, rtol=1e-2)
    (first,), (again,), (second,) = (view(model, some, RECIPE.ranges, number=n, run=run) for n in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.allclose(first, second, atol=1e-2)
    uniform = [replace(some[0], opened=lambda: {"images": np.broadcast_to(some[0].images[3:4], some[0].images.shape)})]
    (rows,) = view(model, uniform, replace(RECIPE.ranges, noise=0.0), number=1, run=run)
    torch.testing.assert_close(rows, rows[:1].expand_as(rows), atol=2e-2, rtol=2e-2)


def test_in_folds_every_patient_is_described_by_a_trunk_that_does_not_know_it(tmp_path: Path) -> None:
    model, beginning, some, learnt = network(), network(), scans(4), []
    model.load_state_dict(beginning.state_dict())
    recipe = replace(RECIPE, folds=2, epochs=1)
    run = Run(seed=0, keep=Keep(path=tmp_path / "checkpoint.safetensors"))
    for fold in patient_folds(some, count=2, seed=0):
        learnt.append(copy.deepcopy(beginning))
        hemonode.train_trunk(learnt[-1], fold.learn, recipe=recipe, run=Run(seed=0))
    views, steps = hemonode.views_left_out(model, beginning, some, recipe=recipe, run=run, done=10)
    assert steps == 10 + 2 * (14 // 4)
    assert {path.name for path in tmp_path.iterdir()} == {f"checkpoint-trunk-fold{n}.safetensors" for n in (1, 2)}
    for number, of in enumerate(views):
        for fold, other in zip(patient_folds(some, count=2, seed=0), learnt, strict=True):
            known = [torch.cat(view(one, fold.learn, None, number=0, run=run)) for one in (other, model)]
            to_ours = hemonode.fitted_map(*known)
            changed = recipe.ranges if number else None
            described = view(other, fold.left_out, changed, number=number, run=run)
            for scan, rows in zip(fold.left_out, described, strict=True):
                torch.testing.assert_close(of[some.index(scan)], to_ours(rows))


def test_a_map_between_features_is_found_again() -> None:
    torch.manual_seed(0)
    before, weights = torch.randn(200, 4), torch.randn(4, 3)
    after = before @ weights + 5
    found = hemonode.fitted_map(before, after)(before)
    torch.testing.assert_close(found.float(), after, atol=0.1, rtol=0.02)


SWITCHES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"reach": 0}, {}),
    ({"differences": False}, {}),
    ({"sequence": False}, {}),
    ({"study": False}, {"study": 0.0}),
    ({"both_orders": False}, {}),
    ({"mirrored": True}, {}),
    ({}, {"segmentation": 0.0}),
    ({}, {"average": 0.0, "tail_average": 0.0}),
    ({}, {"views": 0}),
    ({}, {"folds": 3}),
]


@pytest.mark.parametrize(("architecture", "values"), SWITCHES, ids=str)
def test_without_any_one_ingredient_it_still_trains(architecture: dict[str, Any], values: dict[str, Any]) -> None:
    model = network(**architecture)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    steps = hemonode.train(model, scans(), recipe=replace(RECIPE, epochs=1, **values), run=Run(seed=0))
    assert steps == (5 + 3 * 3 if values.get("folds") else 5) + 4
    moved = {name.split(".")[0] for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {"trunk", "tail"}
    assert all(parameter.requires_grad for parameter in model.parameters())


class Killed(Exception):
    """Stands in for the signal."""


def trained(folder: Path | None, kill_at: int = 0) -> tuple[dict[str, Tensor], list[Progress]]:
    """The network after the run in `folder`, which is killed at the report of a step."""
    model, reports = network(), []

    def report(now: Progress) -> None:
        reports.append(now)
        if now.step == kill_at:
            raise Killed

    keep = Keep(path=folder / "checkpoint.safetensors", every=2) if folder else None
    run = Run(seed=0, keep=keep, report=report, report_every=1)
    hemonode.train(model, scans(), recipe=RECIPE, run=run)
    return model.state_dict(), reports


@pytest.mark.parametrize("kill_at", [5, 13])
def test_killed_in_either_stage_it_ends_as_if_it_had_not_been(tmp_path: Path, kill_at: int) -> None:
    expected, reports = trained(None)
    assert [now.judged for now in reports] == [False] * 10 + [True] * 4
    with pytest.raises(Killed):
        trained(tmp_path, kill_at)
    found, rest = trained(tmp_path)
    assert rest[0].step in (kill_at, kill_at - 1 + kill_at % 2)
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_stage_2_leaves_the_trunk_alone() -> None:
    model, some = network(), scans()
    before = {name: value.clone() for name, value in model.trunk.state_dict().items()}
    views: Sequence[Sequence[Tensor]] = [view(model, some, None, number=0, run=Run(seed=0))]
    train_tail(model, some, views, recipe=RECIPE, run=Run(seed=0))
    assert all(torch.equal(value, before[name]) for name, value in model.trunk.state_dict().items())
