"""The CNN-LSTM as its paper trains it (Nguyen et al., MIDL 2020, section 3.1), with every choice it leaves open."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from inference.decision import ScanRule
from inference.models.cnn_lstm import CnnLstm, CnnLstmConfig
from inference.preprocess import Preprocessing
from inference.result import LABELS, Json
from training.augment import Ranges, cutmix
from training.dataset import Ahead, Batch, Sampler, Sampling, Scan
from training.loop import Budget, Run, autocast, fit, without_decay
from training.losses import weighted_log_loss
from training.recipe import Recipe
from training.schedules import warmup_cosine


@dataclass(frozen=True, kw_only=True)
class CnnLstmRecipe(Json):
    """The values of the paper. Those marked † are not in it but in the code its authors published later.

    End to end, Adam at 10⁻³ for 30 epochs with a linear warm-up and half a cosine, crops and resizing, flips, rotation,
    noise and CutMix. Optical and grid distortion, which the paper also names, are not made here.
    """

    epochs: int = 30
    rate: float = 1e-3
    rotation: float = 30.0
    flip: float = 0.5
    cutmix_alpha: float = 1.0
    scale: float = 0.1
    """† crops of 0.8 to 1 of the area, resized"""
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
    """† decoupled, on matrices and filters only"""
    positive: float = 0.5
    """† share of the runs around a positive slice"""


def loss(model: CnnLstm, batch: Batch, recipe: CnnLstmRecipe, *, generator: torch.Generator) -> Tensor:
    """Weighted log loss of the slices after CutMix over all slices of the batch."""
    images, labels = batch.images.flatten(0, 1), batch.labels.flatten(0, 1)
    if recipe.cutmix_alpha:
        images, labels = cutmix(images, labels, alpha=recipe.cutmix_alpha, generator=generator)
    logits, _ = model(images.reshape(batch.images.shape))
    return weighted_log_loss(logits.flatten(0, 1), labels)


def train(model: CnnLstm, scans: Sequence[Scan], *, recipe: CnnLstmRecipe, run: Run) -> int:
    """Train `model` on `scans` as the paper does and return the number of steps."""
    ranges = Ranges(rotation=recipe.rotation, flip=recipe.flip, scale=recipe.scale, noise=recipe.noise)
    sampling = Sampling(
        runs=recipe.studies, slices=recipe.slices, side=model.size, positive=recipe.positive, ranges=ranges
    )
    sampler = Sampler(scans, sampling)
    model.to(run.device).train()
    optimizer = torch.optim.AdamW(without_decay([model], decay=recipe.decay), lr=recipe.rate)
    slices = recipe.studies * recipe.slices * recipe.accumulate
    with Ahead(partial(sampler.numbered, seed=run.seed), workers=run.workers, stride=run.team.size) as batches:

        def loss_at(number: int) -> Tensor:
            generator = torch.Generator().manual_seed(run.seed * 1_000_003 + number)
            with autocast(run.device):
                return loss(model, batches(number).to(run.device), recipe, generator=generator)

        return fit(
            model,
            optimizer,
            loss_at,
            budget=Budget(steps=recipe.epochs * max(1, sum(map(len, scans)) // slices), minutes=run.minutes),
            schedule=warmup_cosine(recipe.warmup),
            seed=run.seed,
            accumulate=recipe.accumulate,
            keep=run.keep,
            report=run.report,
            report_every=run.report_every,
            team=run.team,
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
