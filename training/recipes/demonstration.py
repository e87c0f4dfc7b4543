"""The demonstration weights, made on phantoms in an hour or two of two processor cores: not for clinical use.

``python -m training.recipes.demonstration --out inference/weights --heads 480 --minutes 45`` draws the heads, trains
both networks, chooses their operating points on validation heads, judges them on test heads and writes the cards.
Everything is resumed where it stopped. It departs from the papers' recipes to be quick:

RADnet
    1. the network on single slices, first on crops of 128 and 192 pixels, more than half of them around bleeding, then
    whole; 2. its LSTM and last layer on the descriptors of whole scans. AdamW and a cosine in place of SGD in steps; a
    Dice term beside the pixel cross-entropy; no dropout in the trunk.
CNN-LSTM
    1. a ResNet-18 on single slices at 128 and then 256 pixels, helped by a linear classifier and by segmentation heads
    that are thrown away; 2. a narrow LSTM on the descriptors of whole scans. No CutMix, no ImageNet weights.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from inference.decision import ScanRule
from inference.models import CnnLstm, CnnLstmConfig, RADnet, RadnetConfig, ScanModel
from inference.preprocess import Preprocessing
from inference.result import ANY, LABELS
from training import heads
from training.augment import Ranges
from training.batches import Batch, Sampling
from training.cache import VolumeCache
from training.dataset import Scan, prepare_all, split
from training.export import INTENDED_USE, Description, export, round_as_stored
from training.guard import refuse_overlap
from training.heads import Heads
from training.loop import Progress, Report, keep_memory, load_weights
from training.losses import attention_loss, weighted_log_loss
from training.recipes import radnet
from training.recipes.radnet import RadnetRecipe
from training.stages import Stage, describe, train_sequence, train_stage
from training.trunk import stage_maps

SEED = 1
VERSION = "demonstration-1"
SHARES = (0.72, 0.16, 0.12)
"""Training, validation, test: by patient."""
RADNET = RadnetConfig(dropout=0.0)
CNN_LSTM = CnnLstmConfig(trunk="resnet18", hidden=128, size=256)
PREPROCESSING = {"radnet": Preprocessing.radnet(), "cnn_lstm": Preprocessing.three_windows(size=CNN_LSTM.size)}
RANGES = Ranges(rotation=15, flip=0.5, scale=0.1, shift=0.02, noise=0.05, gain=0.06, offset=0.03)
DESCRIBED = {"radnet": 50, "cnn_lstm": 200}
"""Training heads on whose descriptors the LSTM is trained."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Split:
    """The prepared heads of one model."""

    training: list[Scan]
    validation: list[Scan]
    test: list[Scan]


def load_split(cache: VolumeCache, model: str, population: Heads, *, workers: int) -> Split:
    """The heads of `population`, dealt by patient; an overlap is refused."""
    studies = list(heads.studies(population))
    scans = prepare_all(studies, cache=cache, preprocessing=PREPROCESSING[model], workers=workers)
    dealt = [heads.of(scans, group) for group in split([s.facts.patient for s in scans], shares=SHARES, seed=SEED)]
    refuse_overlap(dict(zip(("training", "validation", "test"), dealt, strict=True)))
    return Split(training=dealt[0], validation=dealt[1], test=dealt[2])


RADNET_STAGES = ((128, 32, 0.5, 3e-3), (192, 24, 0.25, 1.5e-3), (RADNET.size, 16, 0.25, 1e-3))
CNN_LSTM_STAGES = ((CNN_LSTM.size // 2, 48, 0.4, 2e-3), (CNN_LSTM.size, 24, 0.6, 1e-3))
"""Pixels of a side, slices a step, share of the time, learning rate."""
Stages = Sequence[tuple[int, int, float, float]]


def train_radnet(data: Split, *, minutes: float, folder: Path, begin: Path | None) -> RADnet:
    """A RADnet of the paper's size, trained as the module says, or from `begin` on."""
    recipe = RadnetRecipe()
    torch.manual_seed(SEED)
    model = RADnet(RADNET)
    for side, runs, share, rate in _stages(RADNET_STAGES, "radnet", model, begin):
        sized = RADnet(replace(RADNET, size=side))
        sized.load_state_dict(model.state_dict())
        crop = side / RADNET.size
        sampling = Sampling(runs=runs, slices=1, side=side, crop=crop, positive=0.6, outlines=True, ranges=RANGES)
        stage = Stage(name=f"radnet-{side}", sampling=sampling, minutes=minutes * share, rate=rate)
        train_stage(
            sized,
            data.training,
            stage,
            partial(_radnet_loss, sized, recipe),
            seed=SEED,
            folder=folder,
            report=_report(stage.name),
        )
        model.load_state_dict(sized.state_dict())
    return model


def _radnet_loss(model: RADnet, recipe: RadnetRecipe, batch: Batch) -> Tensor:
    return radnet.loss(model, batch, recipe, overlap=0.5)


class HelpedTrunk(nn.Module):
    """A ResNet trunk with a linear classifier and segmentation heads that are only there while it is trained."""

    def __init__(self, trunk: nn.Module, *, widths: Sequence[int] = (64, 128, 256, 512), labels: int = 6) -> None:
        super().__init__()
        self.trunk = trunk
        self.classify = nn.Linear(widths[-1], labels)
        self.masks = nn.ModuleList(nn.Conv2d(width, labels - 1, 1) for width in widths)

    def forward(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Logits (n, labels), and mask logits (n, 5, h, w) of each of the four stages."""
        maps = stage_maps(self.trunk, images)
        masks = [head(each) for head, each in zip(self.masks, maps, strict=True)]
        return self.classify(maps[-1].mean((2, 3))), masks


def _stages(stages: Stages, name: str, model: nn.Module, begin: Path | None) -> Stages:
    """The stages to run: all, or all but the first after `model` has got the weights that `begin` ended with."""
    if begin is None:
        return stages
    load_weights(begin / f"{name}-{stages[-1][0]}.safetensors", model)
    time = 1 - stages[0][2]
    return [(side, runs, share / time, rate) for side, runs, share, rate in stages[1:]]


def train_cnn_lstm(data: Split, *, minutes: float, folder: Path, begin: Path | None) -> CnnLstm:
    """A small CNN-LSTM, trained as the module says, or from `begin` on."""
    torch.manual_seed(SEED)
    model = CnnLstm(CNN_LSTM)
    helped = HelpedTrunk(model.trunk)

    def loss(batch: Batch) -> Tensor:
        logits, maps = helped(batch.images.flatten(0, 1))
        masks = batch.masks.flatten(0, 1)
        help_ = attention_loss(maps, masks, weight=0.5, positive_weight=5.0, overlap=0.3)
        return weighted_log_loss(logits, batch.labels.flatten(0, 1)) + help_

    ranges = replace(RANGES, noise=0.15, gain=0.06, offset=0.08)
    for side, runs, share, rate in _stages(CNN_LSTM_STAGES, "cnn_lstm", helped, begin):
        sampling = Sampling(runs=runs, slices=1, side=side, positive=0.6, outlines=True, ranges=ranges)
        stage = Stage(name=f"cnn_lstm-{side}", sampling=sampling, minutes=minutes * share, rate=rate)
        train_stage(helped, data.training, stage, loss, seed=SEED, folder=folder, report=_report(stage.name))
    return model


def main(argv: Sequence[str] | None = None) -> None:
    """Make the demonstration weights as the command line says."""
    parser = argparse.ArgumentParser(prog="python -m training.recipes.demonstration", description=main.__doc__)
    parser.add_argument("--out", type=Path, required=True, help="where demo-radnet and demo-cnn-lstm are written")
    parser.add_argument("--work", type=Path, default=Path("runs/demonstration"), help="heads and checkpoints")
    parser.add_argument("--heads", type=int, default=480, help="phantom heads, training to test")
    parser.add_argument("--first", type=int, default=1000, help="seed of the first head")
    parser.add_argument("--begin", type=Path, help="an earlier --work: training goes on from its weights")
    parser.add_argument("--minutes", type=float, default=45, help="training of each network, in minutes")
    parser.add_argument("--models", nargs="+", choices=list(PREPROCESSING), default=list(PREPROCESSING))
    parser.add_argument("--workers", type=int, default=2, help="processes that draw heads")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads that train")
    asked = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    keep_memory()
    torch.set_num_threads(asked.threads)
    population = Heads(first=asked.first, count=asked.heads)
    cache = VolumeCache(asked.work / "cache")
    for name in asked.models:
        data = load_split(cache, name, population, workers=asked.workers)
        model = TRAIN[name](data, minutes=asked.minutes, folder=asked.work, begin=asked.begin)
        how = f"--first {asked.first} --heads {asked.heads} --minutes {asked.minutes:g}"
        how += f" --begin {asked.begin.name}" if asked.begin else ""
        finish(model, data, asked.out / f"demo-{name.replace('_', '-')}", describe_model(name, population, how))


def finish(model: ScanModel, data: Split, directory: Path, description: Description) -> None:
    """Train what stands behind the descriptors, choose the operating points, judge, and write the model."""
    round_as_stored(model)
    few = data.training[: DESCRIBED[description.family]]
    training, validation, test = (describe(model, scans) for scans in (few, data.validation, data.test))
    best = train_sequence(model, training, validation, seed=SEED)
    log.info("%s: log loss %.4f on validation", description.family, best)
    export(model, directory, description, training=data.training, validation=validation, test=test)


TRAIN: dict[str, Callable[..., ScanModel]] = {"radnet": train_radnet, "cnn_lstm": train_cnn_lstm}


def describe_model(name: str, population: Heads, how: str) -> Description:
    """What the card says beside the figures."""
    shared: dict[str, Any] = {
        "family": name,
        "version": VERSION,
        "preprocessing": PREPROCESSING[name],
        "recipe": f"python -m training.recipes.demonstration {how}",
        "data": f"phantoms, seeds {population.first} to {population.first + population.count - 1}, "
        f"presets {', '.join(population.presets)}, dealt by patient {SHARES}",
        "figures": {"seeds": [population.first, population.first + population.count]},
        "demonstration": True,
        "intended_use": INTENDED_USE,
        "seed": SEED,
    }
    if name == "radnet":
        return Description(
            name="RADnet (demonstration)",
            architecture=RADNET.to_json(),
            labels=(ANY,),
            rule=ScanRule(run=3),
            **shared,
        )
    return Description(
        name="CNN-LSTM (demonstration)",
        architecture=CNN_LSTM.to_json(),
        labels=LABELS,
        rule=ScanRule(max=True),
        **shared,
    )


def _report(name: str) -> Report:
    def report(now: Progress) -> None:
        log.info("%s: step %d, loss %.4f, %.0f %% of the budget", name, now.step, now.loss, 100 * now.share)

    return report


if __name__ == "__main__":
    main()
