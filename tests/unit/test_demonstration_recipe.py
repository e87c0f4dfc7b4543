"""The recipes of the demonstration weights: single slices of growing size, then whole scans on their descriptors."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from inference.models import CnnLstm, CnnLstmConfig, RADnet, RadnetConfig
from tests.square_scans import square_scans
from training.errors import TrainingError
from training.loop import Keep, Progress, Run
from training.recipes import demonstration
from training.recipes.demonstration import DemonstrationCnnLstm, DemonstrationRadnet, DemonstrationRecipe
from training.trunk import Helped

pytestmark = pytest.mark.usefixtures("one_thread")

RADNET = RadnetConfig(growth=4, layers=2, stem=6, dropout=0.0, hidden=8, size=32)
SHORT: dict[str, Any] = {"epochs": (2, 1), "batches": (4, 4), "rates": (1e-3, 1e-3), "sizes": (20, 32)}
SHORT |= {"views": 1, "tail_epochs": 4, "tail_batch": 2}


def case(family: str) -> tuple[RADnet | CnnLstm, DemonstrationRecipe]:
    """A small network of the family and values for it."""
    torch.manual_seed(0)
    if family == "radnet":
        return RADnet(RADNET), DemonstrationRadnet(**SHORT)
    return CnnLstm(CnnLstmConfig(trunk="resnet18", hidden=4, size=32)), DemonstrationCnnLstm(**SHORT)


TRAIN = {"radnet": demonstration.train_radnet, "cnn_lstm": demonstration.train_cnn_lstm}
CHANNELS = {"radnet": 1, "cnn_lstm": 3}


def trained(family: str, run: Run, **changes: Any) -> tuple[RADnet | CnnLstm, int]:
    """The network after `run`, and the number of steps."""
    model, recipe = case(family)
    scans = square_scans(3, channels=CHANNELS[family], slices=7)
    return model, TRAIN[family](model, scans, recipe=replace(recipe, **changes), run=run)  # type: ignore[operator]


def test_a_network_of_masks_takes_images_of_any_side_as_one_of_that_side_would() -> None:
    model, other = RADnet(RADNET).eval(), RADnet(replace(RADNET, size=20)).eval()
    other.load_state_dict(model.state_dict())
    crops = torch.rand(2, 3, 1, 20, 20)
    with torch.inference_mode():
        for found, expected in zip(model(crops), other(crops), strict=True):
            torch.testing.assert_close(found, expected)
        assert model(crops)[1].shape == (2, 3, 3, 20, 20)


@pytest.mark.parametrize("features", [512, 2048])
def test_the_helped_trunk_gives_a_mask_for_each_subtype_at_each_of_its_stages(features: int) -> None:
    trunk = CnnLstm(CnnLstmConfig(trunk="resnet18" if features == 512 else "resnet50", hidden=4, size=64)).trunk
    assert isinstance(trunk, nn.Module)
    logits, masks = Helped(trunk, nn.Linear(features, 6), average=0.0)(torch.zeros(2, 3, 64, 64))
    assert logits.shape == (2, 6)
    assert [tuple(m.shape) for m in masks] == [(2, 5, 16, 16), (2, 5, 8, 8), (2, 5, 4, 4), (2, 5, 2, 2)]


@pytest.mark.parametrize("family", TRAIN)
def test_every_part_learns_and_steps_are_counted_through_all_of_them(family: str) -> None:
    before, _ = case(family)
    model, steps = trained(family, Run(seed=0))
    assert steps == 2 * 5 + 5 + 4
    moved = {
        name.split(".")[0]
        for name, value in model.state_dict().items()
        if not torch.equal(value, before.state_dict()[name])
    }
    assert moved == {name for name, part in model.named_children() if any(True for _ in part.parameters())}
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("family", TRAIN)
def test_the_second_part_leaves_what_describes_slices_alone(family: str) -> None:
    model, recipe = case(family)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    scans = square_scans(3, channels=CHANNELS[family], slices=7)
    demonstration.train_behind(model, scans, recipe=recipe, run=Run(seed=0), done=0)
    moved = {name.split(".")[0] for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {"recurrent", "classify"}


class Killed(Exception):
    """Stands in for the signal."""


def states(family: str, folder: Path | None, kill_at: int = 0) -> dict[str, Tensor]:
    """The network after the run in `folder`, which is killed at the report of a step."""

    def report(now: Progress) -> None:
        if now.step == kill_at:
            raise Killed

    keep = Keep(path=folder / "checkpoint.safetensors", every=2) if folder else None
    model, _ = trained(family, Run(seed=0, keep=keep, report=report, report_every=1))
    return model.state_dict()


@pytest.mark.parametrize("family", TRAIN)
@pytest.mark.parametrize("kill_at", [5, 13, 18])
def test_killed_in_any_part_it_ends_as_if_it_had_not_been(family: str, kill_at: int, tmp_path: Path) -> None:
    expected = states(family, None)
    with pytest.raises(Killed):
        states(family, tmp_path, kill_at)
    found = states(family, tmp_path)
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def test_a_size_without_epochs_is_left_out() -> None:
    _, steps = trained("radnet", Run(seed=0), epochs=(0, 1))
    assert steps == 5 + 4


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"rates": (1e-3,)}, "rates: expected one for each"), ({"epochs": (0, 0)}, "nothing would be learnt")],
)
def test_lists_that_do_not_fit_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(TrainingError, match=said):
        trained("cnn_lstm", Run(seed=0), **changes)


def test_sizes_that_do_not_end_with_the_networks_own_are_refused() -> None:
    with pytest.raises(TrainingError, match="32"):
        trained("radnet", Run(seed=0), sizes=(20, 24))
