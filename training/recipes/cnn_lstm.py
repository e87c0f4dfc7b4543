"""The CNN-LSTM as its paper trains it (Nguyen et al., MIDL 2020, section 3.1), with every choice it leaves open."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from inference.decision import ScanRule
from inference.models.cnn_lstm import CnnLstm, CnnLstmConfig
from inference.preprocess import Preprocessing
from inference.result import LABELS, Json
from training.augment import Ranges, cutmix
from training.batches import Batch, Sampling
from training.course import Course, follow, sampled
from training.dataset import Scan
from training.loop import Run, without_decay
from training.losses import weighted_log_loss
from training.recipe import Recipe
from training.schedules import warmup_cosine


@dataclass(frozen=True, kw_only=True)
class CnnLstmRecipe(Json):
    """The values of the paper. Those marked † are not in it but in the code its authors published later.

    End to end, Adam at 10⁻³ for 30 epochs with a linear warm-up and half a cosine, crops and resizing, flips, rotation,
    optical and grid distortion, noise and CutMix. The published code draws each change anew for every slice; here a
    run of slices is changed as one, as the network reads it.
    """

    epochs: int = 30
    rate: float = 1e-3
    rotation: float = 30.0
    flip: float = 0.5
    cutmix_alpha: float = 1.0
    upside_down: float = 0.5
    crop: float = 0.2
    """† share of the area that a crop leaves out at most, before it is resized"""
    scale: float = 0.1
    """†"""
    shift: float = 0.0625
    """† share of the side"""
    optical: float = 0.2
    """†"""
    grid: float = 0.2
    """†"""
    noise: float = 0.1
    """largest standard deviation, in normalised units; † not given"""
    studies: int = 5
    """† runs a batch"""
    slices: int = 10
    """† neighbouring slices a run"""
    accumulate: int = 2
    """† batches a step"""
    warmup: float = 0.1
    """† share of the training, 3 of 30 epochs"""
    decay: float = 0.01
    """† decoupled, on matrices and filters only; 0 is plain Adam"""
    positive: float = 0.5
    """† share of the runs around a positive slice"""

    @property
    def ranges(self) -> Ranges:
        """What images are changed by (section 3.1)."""
        return Ranges(
            rotation=self.rotation,
            flip=self.flip,
            upside_down=self.upside_down,
            crop=self.crop,
            scale=self.scale,
            shift=self.shift,
            optical=self.optical,
            grid=self.grid,
            noise=self.noise,
        )


def loss(model: CnnLstm, batch: Batch, recipe: CnnLstmRecipe, *, generator: torch.Generator) -> Tensor:
    """Weighted log loss of the slices after CutMix over all slices of the batch."""
    images, labels = batch.images.flatten(0, 1), batch.labels.flatten(0, 1)
    if recipe.cutmix_alpha:
        images, labels = cutmix(images, labels, alpha=recipe.cutmix_alpha, generator=generator)
    logits, _ = model(images.reshape(batch.images.shape))
    return weighted_log_loss(logits.flatten(0, 1), labels)


def train(model: CnnLstm, scans: Sequence[Scan], *, recipe: CnnLstmRecipe, run: Run) -> int:
    """Train `model` on `scans` as the paper does and return the number of steps."""
    sampling = Sampling(
        runs=recipe.studies,
        slices=recipe.slices,
        side=model.size,
        positive=recipe.positive,
        ranges=recipe.ranges,
    )
    model.to(run.device).train()
    optimizer = torch.optim.AdamW(without_decay([model], decay=recipe.decay), lr=recipe.rate, fused=True)
    course = Course(
        epochs=recipe.epochs,
        slices=recipe.studies * recipe.slices,
        schedule=warmup_cosine(recipe.warmup),
        accumulate=recipe.accumulate,
    )
    return follow(
        course,
        model,
        optimizer,
        lambda batch, generator: loss(model, batch, recipe, generator=generator),
        sampled(scans, sampling, run=run),
        count=sum(map(len, scans)),
        run=run,
    )


RECIPE = Recipe(
    name="cnn_lstm",
    paper="Nguyen et al., MIDL 2020",
    values=CnnLstmRecipe,
    family="cnn_lstm",
    architecture=CnnLstmConfig().to_json(),
    preprocessing=lambda size: Preprocessing.three_windows(size=size),
    labels=LABELS,
    rule=ScanRule(max=True),
    train=train,
)
