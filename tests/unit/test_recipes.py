"""Every recipe learns a handful of scans by heart, and does what its paper says beside."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from inference.models import FAMILIES, Adjacent, ScanModel
from inference.result import LABELS
from tests.square_scans import square_scans
from training.dataset import Scan
from training.described import describe
from training.folds import patient_folds
from training.loop import Keep, Progress, Run
from training.losses import weighted_log_loss
from training.recipes import RECIPES, adjacent, resnet_3d

STILL = {"flip": 0.0, "rotation": 0.0}
PLAIN = STILL | {"cutmix_alpha": 0.0, "crop": 0.0, "noise": 0.0, "upside_down": 0.0, "optical": 0.0, "grid": 0.0}


pytestmark = pytest.mark.usefixtures("one_thread")


@dataclass(frozen=True, kw_only=True)
class Small:
    """A recipe's network and values at a size that learns in seconds."""

    architecture: dict[str, Any]
    values: dict[str, Any]
    channels: int = 3
    slices: int = 7
    kinds: bool = False
    """Whether the squares of the last scan are of another kind, rather than none"""

    @property
    def scans(self) -> list[Scan]:
        """Two scans, one with a square in some of its slices."""
        scans = square_scans(2, channels=self.channels, slices=self.slices, side=self.architecture["size"])
        return of_two_kinds(scans) if self.kinds else mixed(scans)


DENSE = {"growth": 4, "layers": 2, "stem": 6, "dropout": 0.0, "hidden": 8, "size": 32}
RADNET = Small(architecture=DENSE, values=STILL | {"epochs": 40, "slices": 7, "rate": 0.1}, channels=1)
RESNET = {"trunk": "resnet18", "size": 32}
WHOLE = STILL | {"sizes": [32], "batches": [14], "scale": 0.0, "shift": 0.0, "gain": 0.0, "offset": 0.0, "noise": 0.0}
WHOLE |= {"average": 0.9, "views": 0, "tail_epochs": 60, "tail_batch": 2, "tail_rate": 0.01, "tail_dropout": 0.0}
SMALL = {
    "hemonode": Small(
        architecture=RESNET | {"hidden": 16, "dropout": 0.0},
        values=STILL
        | {"epochs": 25, "rate": 3e-3, "batch": 14, "scale": 0.0, "shift": 0.0, "gain": 0.0, "offset": 0.0}
        | {"noise": 0.0, "kernel": 0.0, "views": 0, "average": 0.9, "tail_epochs": 60, "tail_batch": 2}
        | {"tail_rate": 0.01, "tail_average": 0.9},
    ),
    "demo_radnet": Small(architecture=DENSE, values=WHOLE | {"epochs": [40], "rates": [0.01]}, channels=1),
    "demo_cnn_lstm": Small(architecture=RESNET | {"hidden": 16}, values=WHOLE | {"epochs": [25], "rates": [3e-3]}),
    "radnet": RADNET,
    "densenet_a": RADNET,
    "densenet": RADNET,
    "cnn_lstm": Small(
        architecture=RESNET | {"hidden": 16},
        values=PLAIN
        | {"epochs": 40, "rate": 1e-2, "studies": 2, "slices": 7, "accumulate": 1, "scale": 0.0, "shift": 0.0},
    ),
    "adjacent": Small(
        architecture=RESNET,
        values=STILL
        | {"cutmix_alpha": 0.0, "crop": 0.0, "noise": 0.0, "distortion": 0.0, "epochs": 12, "blocks": 2}
        | {"folds": 1, "fusion_epochs": 60, "fusion_batch": 14, "fusion_rate": 0.01},
    ),
    "resnet_2d": Small(
        architecture=RESNET | {"dropout": 0.0},
        values=STILL
        | {"epochs": 12, "rate": 1e-3, "batch": 14, "scale": 0.0, "shift": 0.0, "contrast": 0.0, "brightness": 0.0},
    ),
    "bleeding": Small(
        architecture=RESNET | {"dropout": 0.0},
        values=STILL | {"blur": 0.0, "sizes": [32], "epochs": 20, "batch": 14, "finder_steps": 40},
    ),
    "subtypes": Small(
        architecture=RESNET | {"dropout": 0.0},
        values=STILL | {"blur": 0.0, "sizes": [32], "epochs": 30, "batch": 14, "rate": 0.01},
        kinds=True,
    ),
    "resnet_3d": Small(architecture={"size": 16, "depth": 8, "dropout": 0.0}, values={"epochs": 8}, channels=1),
    "resnet_3d_five": Small(
        architecture={"size": 16, "depth": 5, "per_slice": True, "dropout": 0.0},
        values={"epochs": 8, "batch": 14},
        channels=1,
    ),
}


def made(name: str, **changes: Any) -> tuple[ScanModel, Any, Small]:
    """The small network of a recipe and its values."""
    small, recipe = SMALL[name], RECIPES[name]
    torch.manual_seed(0)
    model = FAMILIES[recipe.family](recipe.architecture | small.architecture)
    return model, recipe.values.from_json(recipe.values().to_json() | small.values | changes), small


def loss_of(name: str, model: ScanModel, scans: list[Scan]) -> float:
    """Weighted log loss of what the network says of `scans`, each read whole as in serving."""
    columns = [LABELS.index(label) for label in RECIPES[name].labels]
    logits, labels = [], []
    with torch.inference_mode():
        for one in describe(model, scans):
            logits.append(model.decide(one.descriptors[None])[0])
            truth = one.scan.labels if model.per_slice else one.scan.study_labels[None]
            labels.append(torch.from_numpy(truth[:, columns]))
        return float(weighted_log_loss(torch.cat(logits), torch.cat(labels)))


def test_every_recipe_is_tried_here() -> None:
    assert set(SMALL) == set(RECIPES)


@pytest.mark.parametrize("name", list(RECIPES))
def test_a_recipe_learns_one_batch_by_heart(name: str) -> None:
    model, values, small = made(name)
    scans = small.scans
    before = loss_of(name, model, scans)
    reports: list[Progress] = []
    steps = RECIPES[name].train(model, scans, recipe=values, run=Run(seed=0, report=reports.append, report_every=5))
    assert reports[-1].step == steps
    assert reports[-1].loss < 0.4 * before, [round(now.loss, 3) for now in reports]


def mixed(scans: list[Scan]) -> list[Scan]:
    """The scans, the last of them without its squares."""
    last = scans[-1]
    images = (0.4 + 0.05 * np.random.default_rng(1).standard_normal(last.images.shape)).astype(np.float16)
    none = np.zeros_like(last.labels)
    arrays = {"images": images, "masks": np.zeros_like(last.opened()["masks"])}
    return [*scans[:-1], replace(last, labels=none, study_labels=none.max(0), opened=lambda: arrays)]


def of_two_kinds(scans: list[Scan]) -> list[Scan]:
    """The scans, the squares of the last one epidural and brighter by half."""
    last = scans[-1]
    labels = last.labels[:, [0, 1, 2, 3, 5, 4]]
    arrays = dict(last.opened()) | {"images": np.where(last.images > 0.7, 1.5, 1).astype(np.float16) * last.images}
    return [*scans[:-1], replace(last, labels=labels, study_labels=labels.max(0), opened=lambda: arrays)]


def test_the_papers_values_are_the_defaults() -> None:
    said: dict[str, dict[str, Any]] = {
        "radnet": {"epochs": 60, "momentum": 0.9},
        "cnn_lstm": {"epochs": 30, "rate": 1e-3, "rotation": 30.0, "cutmix_alpha": 1.0},
        "adjacent": {"epochs": 20, "rate": 5e-4, "blocks": 16},
        "resnet_2d": {"epochs": 6, "rate": 1e-5, "batch": 32},
        "resnet_3d": {"epochs": 5, "rate": 3e-4},
        "resnet_3d_five": {"epochs": 5, "rate": 3e-4, "batch": 16},
        "bleeding": {"sizes": [64, 128, 256], "epochs": 5, "rotation": 15.0, "decay": 0.01, "positive": 0.5},
        "subtypes": {"sizes": [64, 128, 256], "epochs": 5, "rotation": 15.0, "decay": 0.01, "positive": 1.0},
    }
    for name, values in said.items():
        assert RECIPES[name].values().to_json().items() >= values.items()
    assert RECIPES["resnet_2d"].architecture["dropout"] == RECIPES["resnet_3d"].architecture["dropout"] == 0.5
    assert [RECIPES[name].architecture["attention"] for name in ("radnet", "densenet_a", "densenet")] == [1, 1, 0]
    assert [RECIPES[name].architecture["recurrent"] for name in ("radnet", "densenet_a", "densenet")] == [1, 0, 0]


def test_the_fusion_stage_leaves_the_descriptors_alone_and_counts_on() -> None:
    model, values, _ = made("adjacent", epochs=1, fusion_epochs=3)
    assert isinstance(model, Adjacent)
    scans = square_scans(2, channels=3, slices=7)
    reports: list[Progress] = []
    run = Run(seed=0, report=reports.append, report_every=1)
    adjacent.train_descriptors(model, scans, recipe=values, run=run)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    adjacent.train_fusion(model, describe(model, scans), recipe=values, run=run, done=1)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert {name.split(".")[0] for name in changed} == {"fuse", "classify"}
    assert [(now.step, now.judged) for now in reports] == [(1, False), (2, True), (3, True), (4, True)]


def test_stage_two_learns_from_descriptors_of_patients_that_the_describing_network_does_not_know() -> None:
    model, values, _ = made("adjacent", epochs=1, folds=2)
    assert isinstance(model, Adjacent)
    scans = square_scans(4, channels=3, slices=7)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    described, done = adjacent.describe_left_out(model, scans, recipe=values, run=Run(seed=0))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [one.scan for one in described] == scans
    assert done == 2, "one step for each half of the patients"
    fold = patient_folds(scans, count=2, seed=0)[0]
    alone = copy.deepcopy(model)
    adjacent.train_descriptors(alone, fold.learn, recipe=values, run=Run(seed=0))
    for one in describe(alone, fold.left_out):
        found = next(other for other in described if other.scan is one.scan)
        assert torch.equal(one.descriptors, found.descriptors)


def test_a_run_killed_in_any_fold_or_stage_ends_as_one_that_was_not(tmp_path: Path) -> None:
    scans = square_scans(4, channels=3, slices=7)

    def run(folder: str, *, until: int = 99) -> tuple[ScanModel, int]:
        model, values, _ = made("adjacent", epochs=1, folds=2, fusion_epochs=1)

        def killed(now: Progress) -> None:
            if now.step == until:
                raise KeyboardInterrupt

        keep = Keep(path=tmp_path / folder / "checkpoint.safetensors", every=1)
        steps = adjacent.train(model, scans, recipe=values, run=Run(seed=0, keep=keep, report=killed, report_every=1))
        return model, steps

    whole, steps = run("whole")
    assert steps == 6
    for until in (2, 3, 6):
        with pytest.raises(KeyboardInterrupt):
            run("killed", until=until)
    again, counted = run("killed")
    assert counted == steps
    assert all(torch.equal(value, whole.state_dict()[name]) for name, value in again.state_dict().items())


def test_the_blocks_of_the_fusion_stage_are_those_the_network_reads() -> None:
    model, _, _ = made("adjacent")
    described = describe(model, square_scans(1, channels=3, slices=9))
    blocks, labels = adjacent.neighbourhoods(described)
    assert labels.shape == (9, 6)
    with torch.inference_mode():
        read = model.decide(described[0].descriptors[None])[0]
        assert torch.allclose(model.decide(blocks)[:, 3], read, atol=1e-6)


def test_whole_scans_are_each_seen_once_an_epoch_in_an_order_of_its_own() -> None:
    scans = square_scans(5)
    first, second = (
        [float(resnet_3d.whole_scan(scans, number, seed=1).images.sum()) for number in epoch]
        for epoch in (range(5), range(5, 10))
    )
    assert len(set(first)) == 5
    assert sorted(first) == sorted(second)
    assert first != second
    assert resnet_3d.whole_scan(scans, 0, seed=1).labels.tolist() == [[[1, 0, 0, 0, 1, 0]]]
