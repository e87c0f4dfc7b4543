"""Khandelwal and Ganguli's recipes: what is frozen, in which sizes, from which slices; and a kill in any cycle."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from inference.models import Classifier, ClassifierConfig
from inference.models.classifiers import TRUNKS
from tests.square_scans import square_scans
from training.augment import Ranges, draw, perturb
from training.batches import Batch, Sampler, Sampling
from training.dataset import Scan
from training.errors import TrainingError
from training.loop import Keep, Progress, Run
from training.recipes import subtypes
from training.recipes.subtypes import BleedingRecipe, SubtypesRecipe, cycles, equalised, freeze

pytestmark = pytest.mark.usefixtures("one_thread")

QUICK = BleedingRecipe(sizes=(32, 48), epochs=1, batch=4, finder_steps=12)


def network(trunk: str = "resnet18", *, labels: int = 1, size: int = 48) -> Classifier:
    torch.manual_seed(0)
    return Classifier(ClassifierConfig(trunk=trunk, labels=labels, size=size))


def changed(model: nn.Module, before: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_of_a_trunk_from_a_file_batch_normalisation_alone_learns_and_then_all_of_it() -> None:
    scans = square_scans(2, channels=3, side=48)
    model = network()
    convolutions = {n for n, m in model.trunk.named_modules() if isinstance(m, nn.Conv2d)}
    before = state(model)
    run = Run(seed=0, pretrained=True)
    subtypes.train(model, scans, recipe=replace(QUICK, rate=1e-3), run=run)
    moved = changed(model, before)
    assert not any(f"trunk.{name}.weight" in moved for name in convolutions)
    assert {"trunk.bn1.weight", "trunk.bn1.running_mean", "head.2.weight", "classify.weight"} <= moved
    subtypes.train(model, scans, recipe=replace(QUICK, rate=1e-3, unfrozen_epochs=1), run=run)
    assert all(f"trunk.{name}.weight" in changed(model, before) for name in convolutions)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_trunk_of_random_weights_is_trained_from_the_first_step_on() -> None:
    plan = [(cycle.size, cycle.epochs, cycle.state) for cycle in cycles(BleedingRecipe(), pretrained=False)]
    assert plan == [(64, 5, "whole"), (128, 5, "whole"), (256, 5, "whole")]
    both = replace(BleedingRecipe(), sizes=(64, 256), unfrozen_epochs=2)
    plan = [(cycle.size, cycle.epochs, cycle.state) for cycle in cycles(both, pretrained=True)]
    assert plan == [(64, 5, "frozen"), (64, 2, "whole"), (256, 5, "frozen"), (256, 2, "whole")]


@pytest.mark.parametrize("trunk", list(TRUNKS))
def test_every_trunk_of_the_paper_takes_steps_frozen_and_whole_in_every_size(trunk: str) -> None:
    model = network(trunk, labels=5, size=64)
    batch = Sampler(square_scans(2, channels=3, side=64), Sampling(runs=2, slices=1, side=64, positive=1)).numbered(
        0, seed=0
    )
    for frozen in (True, False):
        freeze(model, trunk=frozen)
        optimizer = subtypes.optimizer(model, 1e-3, recipe=BleedingRecipe())
        learning = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        for size in (64, 64 if trunk == "alexnet" else 32):
            model.zero_grad()
            subtypes.loss(model, batch, size=size).backward()  # type: ignore[no-untyped-call]
            assert all(parameter.grad is not None for parameter in learning)
        assert (len(learning) < len(list(model.parameters()))) == frozen


def test_a_run_that_was_killed_in_any_cycle_ends_as_one_that_was_not(tmp_path: Path) -> None:
    scans = square_scans(2, channels=3, side=66)
    recipe = replace(QUICK, unfrozen_epochs=1, sizes=(64, 66))

    def run(folder: str, *, until: int = 99) -> tuple[dict[str, torch.Tensor], int]:
        def killed(now: Progress) -> None:
            if now.step == until:
                raise KeyboardInterrupt

        model = network("alexnet", size=66)
        keep = Keep(path=tmp_path / folder / "checkpoint.safetensors", every=1)
        how = Run(seed=0, keep=keep, report=killed, report_every=1, pretrained=True)
        steps = subtypes.train(model, scans, recipe=recipe, run=how)
        return state(model), steps

    whole, steps = run("whole")
    assert steps == 12
    for until in (2, 4, 12):
        with pytest.raises(KeyboardInterrupt):
            run("killed", until=until)
    again, counted = run("killed")
    assert counted == steps
    assert all(torch.equal(value, whole[name]) for name, value in again.items())
    for name in ("frozen", "whole"):
        first, second = (tmp_path / folder / f"finder-{name}.csv" for folder in ("whole", "killed"))
        assert first.read_bytes() == second.read_bytes()


def test_sizes_that_do_not_rise_to_the_networks_own_are_refused() -> None:
    for sizes in ((32,), (48, 32, 48), (64, 48), (16, 48), (48, 48)):
        with pytest.raises(TrainingError, match="expected sizes that rise from at least 32 to the network's 48"):
            subtypes.train(
                network(), square_scans(2, channels=3, side=48), recipe=replace(QUICK, sizes=sizes), run=Run(seed=0)
            )


def drawn(scans: list[Scan], **how: Any) -> Batch:
    return Sampler(scans, Sampling(runs=64, slices=1, side=48, **how)).numbered(0, seed=0)


def test_the_second_recipe_sees_slices_that_bleed_and_no_others() -> None:
    scans = square_scans(2, channels=3, side=48)
    assert bool((drawn(scans, positive=SubtypesRecipe().positive).labels[..., 0] == 1).all())
    half = float(drawn(scans, positive=BleedingRecipe().positive).labels[..., 0].mean())
    assert 0.3 < half < 0.7


def test_no_slice_is_drawn_that_is_blank_or_of_which_nobody_said_whether_it_bleeds() -> None:
    scan, other = square_scans(2, channels=3, side=48)
    labels = scan.labels.copy()
    labels[[0, 2]] = np.nan
    blank = np.array([False, False, False, True, False, True])
    known = [replace(scan, labels=labels, blank=blank), replace(other, labels=np.full_like(labels, np.nan))]
    sampler = Sampler(known, Sampling(runs=64, slices=1, side=48))
    assert sampler.positives == 1
    seen = sampler.numbered(0, seed=0).labels[:, 0]
    assert not seen.isnan().any()
    assert {tuple(row.tolist()) for row in seen} == {(1, 0, 0, 0, 1, 0), (0,) * 6}


def test_slices_that_bleed_are_drawn_as_they_come_or_all_kinds_alike_often() -> None:
    scan, rare = square_scans(2, channels=3, side=48)
    swapped = rare.labels[:, [0, 1, 2, 3, 5, 4]]
    swapped[3:5] = 0
    known = [scan, replace(scan), replace(rare, labels=swapped)]  # six slices subdural, one epidural
    share = {alike: float(drawn(known, positive=1.0, alike=alike).labels[..., 5].mean()) for alike in (True, False)}
    assert share[False] < 0.3 < 0.35 < share[True]


def test_intensities_are_equalised_over_the_slices_that_are_not_blank() -> None:
    brain = torch.arange(64 * 64, dtype=torch.int16).reshape(1, 64, 64) % 60 + 10
    air = torch.full((3, 64, 64), -1000, dtype=torch.int16)
    made = equalised(32, BleedingRecipe(), [torch.cat([air, brain]), brain + 5])
    assert made.quantiles[0] >= 10
    assert made.quantiles[-1] <= 74
    assert (made.size, made.blank_below) == (32, 0.02)


def test_images_are_turned_and_blurred_as_often_as_asked() -> None:
    ranges = Ranges(flip=0, rotation=15, rotation_chance=0.25, blur=1.5, blur_chance=0.3)
    changes = draw(ranges, 400, generator=torch.Generator().manual_seed(0))
    assert 60 < int((changes.maps[:, 0, 1] != 0).sum()) < 140
    image = torch.zeros(400, 1, 1, 9, 9)
    image[..., 4, 4] = 1
    blurred = perturb(image, changes)
    peaks = [float(one.max()) for one in blurred]
    assert 60 < sum(peak < 0.99 for peak in peaks) < 160
    assert min(peaks) > 0.05
    assert all(float(one.sum()) == pytest.approx(1, abs=0.05) for one in blurred)
