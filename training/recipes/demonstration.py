"""The demonstration weights: RADnet and CNN-LSTM made on phantoms with two processor cores, not for clinical use.

They depart from the papers' recipes to be quick, and share what each does:

1. The network learns from single slices, of growing size. RADnet sees crops of the image, more than half of them
   around bleeding, then all of it; a Dice term stands beside the pixel cross-entropy of its masks. The CNN-LSTM's trunk
   sees small images, then large ones, helped by a linear layer and by segmentation heads that are thrown away.
2. What reads the whole scan, the LSTM and the layer behind it, learns on descriptors of scans in several views.

AdamW and a cosine stand in place of SGD in steps, and what is kept of the first part is the moving average of the
weights. There is no CutMix and no ImageNet.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn

from inference.decision import ScanRule
from inference.models import CnnLstm, CnnLstmConfig, RADnet, RadnetConfig
from inference.result import ANY, LABELS, Json
from training.augment import Ranges
from training.average import Averaged
from training.batches import Batch, Sampling
from training.course import SEEDS, Course, fitted, follow, sampled
from training.dataset import Scan
from training.errors import TrainingError
from training.loop import Run, without_decay
from training.losses import weighted_log_loss
from training.recipe import Recipe
from training.recipes import cnn_lstm, radnet
from training.recipes.radnet import RadnetRecipe
from training.schedules import warmup_cosine
from training.trunk import Helped, helped_loss
from training.views import drawn, views_of

SEEDS_APART = 31
"""Apart from one another lie the seeds of two runs, for each size draws its slices anew."""

SLICES_SHARE = 0.9
"""Of the minutes, where they end the run: what learning from single slices may take."""


@dataclass(frozen=True, kw_only=True)
class DemonstrationRecipe(Json):
    """The values. Those of the first part are lists: one of each for every size of the images."""

    sizes: tuple[int, ...]
    """pixels of a side; the last is the network's own"""
    epochs: tuple[int, ...]
    """0 leaves a size out: what begins with trained weights needs the last alone"""
    batches: tuple[int, ...]
    """slices"""
    rates: tuple[float, ...]
    accumulate: int = 1
    """batches a step; at least as many as processes train together"""
    warmup: float = 0.05
    decay: float = 0.02
    """of weights, decoupled, on matrices and filters only"""
    average: float = 0.999
    """of the weights' moving average; 0 for none"""
    segmentation: float = 0.5
    """weight of each of the CNN-LSTM's four segmentation losses; RADnet's have its paper's"""
    positive: float = 0.6
    """share of the slices that bleed, all subtypes alike often"""
    rotation: float = 15.0
    flip: float = 0.5
    scale: float = 0.1
    shift: float = 0.02
    """share of the side"""
    gain: float = 0.06
    offset: float
    """in normalised units"""
    noise: float
    """largest standard deviation, in normalised units"""
    views: int = 2
    """descriptors of changed images of each scan, beside those of its own"""
    tail_epochs: int = 40
    tail_rate: float = 1e-3
    tail_batch: int = 8
    """scans"""
    tail_dropout: float = 0.2
    """of descriptors"""

    @property
    def ranges(self) -> Ranges:
        """What images are changed by."""
        return Ranges(
            rotation=self.rotation,
            flip=self.flip,
            scale=self.scale,
            shift=self.shift,
            gain=self.gain,
            offset=self.offset,
            noise=self.noise,
        )


@dataclass(frozen=True, kw_only=True)
class DemonstrationRadnet(DemonstrationRecipe):
    """Crops of 128 and 192 pixels before all 250."""

    sizes: tuple[int, ...] = (128, 192, 250)
    epochs: tuple[int, ...] = (10, 3, 2)
    batches: tuple[int, ...] = (32, 24, 16)
    rates: tuple[float, ...] = (3e-3, 1.5e-3, 1e-3)
    offset: float = 0.03
    noise: float = 0.05


@dataclass(frozen=True, kw_only=True)
class DemonstrationCnnLstm(DemonstrationRecipe):
    """Images of 128 pixels before 256."""

    sizes: tuple[int, ...] = (128, 256)
    epochs: tuple[int, ...] = (12, 6)
    batches: tuple[int, ...] = (48, 24)
    rates: tuple[float, ...] = (2e-3, 1e-3)
    offset: float = 0.08
    noise: float = 0.15


def train_radnet(model: RADnet, scans: Sequence[Scan], *, recipe: DemonstrationRadnet, run: Run) -> int:
    """Train `model` on `scans` as the module says and return the number of steps."""
    model.to(run.device).train()
    both, values = Averaged(model, decay=recipe.average), RadnetRecipe()

    def loss(batch: Batch) -> Tensor:
        return radnet.loss(cast(RADnet, both.trained), batch, values, overlap=0.5)

    what = _Slices(network=both, average=both, loss=loss, crops=True)
    done = _train_slices(what, scans, size=model.size, recipe=recipe, run=run)
    model.requires_grad_(True)
    return train_behind(model, scans, recipe=recipe, run=run, done=done)


def train_cnn_lstm(model: CnnLstm, scans: Sequence[Scan], *, recipe: DemonstrationCnnLstm, run: Run) -> int:
    """Train `model` on `scans` as the module says and return the number of steps."""
    model.to(run.device).train()
    torch.manual_seed(run.seed)  # of what is thrown away: the same in every process
    classify = nn.Linear(model.descriptor_size, model.labels)
    helped = Helped(model.trunk, classify, average=recipe.average).to(run.device)

    def loss(batch: Batch) -> Tensor:
        return helped_loss(helped, batch.images.flatten(0, 1), batch, weight=recipe.segmentation)

    what = _Slices(network=helped, average=helped.both, loss=loss)
    done = _train_slices(what, scans, size=model.size, recipe=recipe, run=run)
    model.requires_grad_(True)
    return train_behind(model, scans, recipe=recipe, run=run, done=done)


@dataclass(frozen=True, kw_only=True)
class _Slices:
    """What learns from single slices: `network` with `average` in it; `crops`, from parts of images at full scale."""

    network: nn.Module
    average: Averaged
    loss: Callable[[Batch], Tensor]
    crops: bool = False


def _train_slices(what: _Slices, scans: Sequence[Scan], *, size: int, recipe: DemonstrationRecipe, run: Run) -> int:
    """The first part, one stretch for each size. The LSTM has seen no scan yet, so nothing is validated.

    Raises ``TrainingError``: the sizes do not end with the network's `size`, or a list does not say one thing for each.
    """
    if recipe.sizes[-1] != size:
        raise TrainingError(f"sizes {list(recipe.sizes)}: expected the network's {size} as the last")
    for name in ("epochs", "batches", "rates"):
        if len(getattr(recipe, name)) != len(recipe.sizes):
            raise TrainingError(f"{name}: expected one for each of the sizes {list(recipe.sizes)}")
    if not any(recipe.epochs):
        raise TrainingError("epochs: nothing would be learnt")
    work = [side * side * epochs for side, epochs in zip(recipe.sizes, recipe.epochs, strict=True)]
    done = 0
    for place, epochs in enumerate(recipe.epochs):
        if not epochs:
            continue
        side, batch = recipe.sizes[place], recipe.batches[place]
        sampling = Sampling(
            runs=batch,
            slices=1,
            side=side,
            crop=side / size if what.crops else 1.0,
            positive=recipe.positive,
            outlines=True,
            ranges=recipe.ranges,
        )
        course = Course(
            epochs=epochs,
            slices=batch,
            schedule=warmup_cosine(recipe.warmup),
            accumulate=recipe.accumulate,
            name=f"slices-{side}",
            share=SLICES_SHARE * work[place] / sum(work),
            done=done,
        )
        optimizer = torch.optim.AdamW(
            without_decay([what.network], decay=recipe.decay), lr=recipe.rates[place], fused=True
        )
        what.average.after(optimizer)
        own = replace(run.unjudged(), seed=run.seed * SEEDS_APART + place)
        done = follow(
            course,
            what.network,
            optimizer,
            lambda batch, _: what.loss(batch),
            sampled(scans, sampling, run=own),
            count=sum(map(len, scans)),
            run=own,
        )
    return done


def train_behind(
    model: RADnet | CnnLstm, scans: Sequence[Scan], *, recipe: DemonstrationRecipe, run: Run, done: int
) -> int:
    """The second part: what stands behind the descriptors. Returns the steps so far, with those `done` before."""
    views = views_of(model, scans, recipe.ranges, count=recipe.views, run=run)
    behind = nn.ModuleList([part for part in (model.recurrent, model.classify) if part is not None])
    model.train()

    def loss_at(number: int) -> Tensor:
        generator = torch.Generator().manual_seed(run.seed * SEEDS + number)
        batch = drawn(scans, views, count=recipe.tail_batch, flip=recipe.flip, generator=generator)
        descriptors, labels, _ = (part.to(run.device) for part in batch)
        logits = model.decide(nn.functional.dropout(descriptors, recipe.tail_dropout))
        known = ~labels.isnan().all(-1)
        return weighted_log_loss(logits[known], labels[known][..., : model.labels])

    course = Course(
        epochs=recipe.tail_epochs,
        slices=recipe.tail_batch,
        schedule=warmup_cosine(recipe.warmup),
        accumulate=recipe.accumulate,
        name="tail",
        share=1 - SLICES_SHARE,
        done=done,
    )
    optimizer = torch.optim.AdamW(without_decay([behind], decay=recipe.decay), lr=recipe.tail_rate, fused=True)
    return fitted(course, behind, optimizer, loss_at, count=len(scans), run=run)


RADNET = Recipe(
    name="demo_radnet",
    paper="after Grewal et al., ISBI 2018",
    values=DemonstrationRadnet,
    family="radnet",
    architecture=RadnetConfig(dropout=0.0).to_json(),
    preprocessing=radnet.RECIPE.preprocessing,
    labels=(ANY,),
    rule=ScanRule(run=3),
    train=train_radnet,
)
CNN_LSTM = Recipe(
    name="demo_cnn_lstm",
    paper="after Nguyen et al., MIDL 2020",
    values=DemonstrationCnnLstm,
    family="cnn_lstm",
    architecture=CnnLstmConfig(trunk="resnet18", hidden=128, size=256).to_json(),
    preprocessing=cnn_lstm.RECIPE.preprocessing,
    labels=LABELS,
    rule=ScanRule(max=True),
    train=train_cnn_lstm,
)
RECIPES = (RADNET, CNN_LSTM)
