"""Descriptors of adjacent slices as their paper trains them (Ngo et al., section II), one stage after the other."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from inference.decision import ScanRule
from inference.models.adjacent import BLOCK, REACH, Adjacent, AdjacentConfig
from inference.preprocess import Preprocessing
from inference.result import LABELS, Json
from training.augment import Ranges, cutmix
from training.batches import Batch, Sampling
from training.course import SEEDS, Course, fitted, follow, sampled
from training.dataset import Scan
from training.described import Described, describe
from training.folds import Fold, out_of_fold
from training.loop import Run
from training.losses import weighted_log_loss
from training.recipe import Recipe
from training.schedules import cosine, warmup_cosine


@dataclass(frozen=True, kw_only=True)
class AdjacentRecipe(Json):
    """The values of the paper. Those marked † are not in it.

    Stage 1 trains trunk and descriptor on blocks of seven slices: Adam at 5·10⁻⁴ with half a cosine, 20 epochs, 16
    blocks a batch. Stage 2 trains the fusion network on the descriptors of all slices; the paper says nothing of how.
    It names cropping, resizing, flips, rotation, distortion, noise and CutMix without values: those of the same
    authors' CNN-LSTM stand here.
    """

    epochs: int = 20
    rate: float = 5e-4
    blocks: int = 16
    accumulate: int = 1
    """† batches a step; at least as many as processes train together"""
    warmup: float = 0.05
    """† share of stage 1, one epoch: the procedure of He et al. 2019, which the paper follows"""
    cutmix_alpha: float = 1.0
    rotation: float = 30.0
    """†"""
    flip: float = 0.5
    """† chance of each flip"""
    crop: float = 0.2
    """† share of the area that is left out at most"""
    distortion: float = 0.2
    """† optical and of a grid"""
    noise: float = 0.1
    """† largest standard deviation, in normalised units"""
    positive: float = 0.5
    """† share of the blocks around a positive slice"""
    folds: int = 5
    """† of patients: stage 2 learns from descriptors by networks that do not know the patient, for which stage 1 costs
    so many times as much; 1: from descriptors by the one network of stage 1, of slices that it has learnt"""
    fusion_epochs: int = 10
    """†"""
    fusion_rate: float = 1e-3
    """†"""
    fusion_batch: int = 1024
    """† slices"""

    @property
    def ranges(self) -> Ranges:
        """What images are changed by; one draw for a block."""
        return Ranges(
            rotation=self.rotation,
            flip=self.flip,
            upside_down=self.flip,
            crop=self.crop,
            optical=self.distortion,
            grid=self.distortion,
            noise=self.noise,
        )


log = logging.getLogger(__name__)

STAGE_1_SHARE = 0.95
"""Of the minutes, where they end the run."""


def loss(model: Adjacent, batch: Batch, recipe: AdjacentRecipe, *, generator: torch.Generator) -> Tensor:
    """Weighted log loss of every slice of the blocks by itself, after CutMix over all of them (section II-A)."""
    images, labels = batch.images.flatten(0, 1), batch.labels.flatten(0, 1)
    if recipe.cutmix_alpha:
        images, labels = cutmix(images, labels, alpha=recipe.cutmix_alpha, generator=generator)
    return weighted_log_loss(model.describe_logits(images), labels)


def train(model: Adjacent, scans: Sequence[Scan], *, recipe: AdjacentRecipe, run: Run) -> int:
    """Train both stages of `model` on `scans` and return the number of steps."""
    if recipe.folds == 1:
        done = train_descriptors(model, scans, recipe=recipe, run=run)
        described = describe(model, scans)
    else:
        described, done = describe_left_out(model, scans, recipe=recipe, run=run)
        done = train_descriptors(model, scans, recipe=recipe, run=run, done=done)
    return train_fusion(model, described, recipe=recipe, run=run, done=done)


def describe_left_out(
    model: Adjacent, scans: Sequence[Scan], *, recipe: AdjacentRecipe, run: Run
) -> tuple[list[Described], int]:
    """Every scan described by a network of stage 1 that has not learnt from its patient; and the steps that took.

    Each of these networks begins as `model` does, which is left as it is, and has a checkpoint of its own.
    """
    done = 0

    def trained(fold: Fold) -> Adjacent:
        nonlocal done
        log.info(
            "stage 1 on %d scans, to describe %d others (fold %d)", len(fold.learn), len(fold.left_out), fold.number
        )
        other = copy.deepcopy(model)
        done = train_descriptors(other, fold.learn, recipe=recipe, run=run, name=f"fold{fold.number}", done=done)
        return other

    return out_of_fold(scans, count=recipe.folds, seed=run.seed, trained=trained), done


def train_descriptors(
    model: Adjacent,
    scans: Sequence[Scan],
    *,
    recipe: AdjacentRecipe,
    run: Run,
    name: str = "descriptors",
    done: int = 0,
) -> int:
    """Stage 1: trunk and descriptors. The fusion network says nothing yet, so nothing is validated.

    Returns the steps so far, with those `done` before.
    """
    sampling = Sampling(
        runs=recipe.blocks,
        slices=BLOCK,
        side=model.size,
        positive=recipe.positive,
        ranges=recipe.ranges,
        centred=True,
    )
    model.to(run.device).train()
    stage = nn.ModuleList([model.trunk, model.describe])
    course = Course(
        epochs=recipe.epochs,
        slices=recipe.blocks * BLOCK,
        schedule=warmup_cosine(recipe.warmup),
        accumulate=recipe.accumulate,
        name=name,
        share=STAGE_1_SHARE / (1 if recipe.folds == 1 else recipe.folds + 1),
        done=done,
    )
    return follow(
        course,
        stage,
        torch.optim.Adam(stage.parameters(), lr=recipe.rate, fused=True),
        lambda batch, generator: loss(model, batch, recipe, generator=generator),
        sampled(scans, sampling, run=run),
        count=sum(map(len, scans)),
        run=run.unjudged(),
    )


def train_fusion(
    model: Adjacent, described: Sequence[Described], *, recipe: AdjacentRecipe, run: Run, done: int = 0
) -> int:
    """Stage 2: the fusion network on the descriptors of all slices, a slice and its six neighbours at a time.

    Returns the steps so far, with those `done` before.
    """
    blocks, labels = (part.to(run.device) for part in neighbourhoods(described))
    stage = nn.ModuleList([model.fuse, model.classify])

    def loss_at(number: int) -> Tensor:
        generator = torch.Generator().manual_seed(run.seed * SEEDS + number)
        chosen = torch.randint(0, len(blocks), (recipe.fusion_batch,), generator=generator).to(run.device)
        return weighted_log_loss(model.decide(blocks[chosen])[:, REACH], labels[chosen])

    course = Course(
        epochs=recipe.fusion_epochs,
        slices=recipe.fusion_batch,
        schedule=cosine,
        accumulate=recipe.accumulate,
        name="fusion",
        share=1 - STAGE_1_SHARE,
        done=done,
    )
    optimizer = torch.optim.Adam(stage.parameters(), lr=recipe.fusion_rate, fused=True)
    return fitted(course, stage, optimizer, loss_at, count=len(blocks), run=run)


def neighbourhoods(described: Sequence[Described]) -> tuple[Tensor, Tensor]:
    """Descriptors (n, 7, 6) around every slice, the scan's last one repeated beyond its ends, and its labels (n, 6)."""
    blocks = []
    for one in described:
        padded = torch.cat([one.descriptors[:1]] * REACH + [one.descriptors] + [one.descriptors[-1:]] * REACH)
        blocks.append(padded.unfold(0, BLOCK, 1).transpose(1, 2))
    labels = [one.labels(len(LABELS)) for one in described]
    return torch.cat(blocks), torch.cat(labels)


RECIPE = Recipe(
    name="adjacent",
    paper="Ngo et al. 2022",
    values=AdjacentRecipe,
    family="adjacent",
    architecture=AdjacentConfig().to_json(),
    preprocessing=lambda size: Preprocessing.three_windows(size=size),
    labels=LABELS,
    rule=ScanRule(max=True),
    train=train,
)
