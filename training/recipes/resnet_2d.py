"""The 2D ResNet-18 as its thesis trains it (Vultur, Bucharest 2021, sections 4.3, 5.1 and 6.3.1).

Marked † are the values of the code that it follows (Burduja et al. 2020) and its library's defaults.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from inference.decision import ScanRule
from inference.models.resnet_2d import Resnet2d, Resnet2dConfig
from inference.preprocess import Preprocessing
from inference.result import LABELS, Json
from training.augment import Ranges
from training.batches import Sampling
from training.course import Course, follow, sampled
from training.dataset import Scan
from training.loop import Run
from training.losses import weighted_log_loss
from training.recipe import Recipe
from training.schedules import constant


@dataclass(frozen=True, kw_only=True)
class Resnet2dRecipe(Json):
    """Adam at 10⁻⁵ throughout, six epochs, batches of 32 slices, the plain mean of six cross-entropies.

    The thesis names flips, rotation, scaling, brightness and contrast as augmentation. It draws slices as they come;
    here half of them bleed, as everywhere in this house, unless `positive` is set to the share that the data have.
    """

    epochs: int = 6
    rate: float = 1e-5
    batch: int = 32
    accumulate: int = 1
    """batches a step; at least as many as processes train together"""
    flip: float = 0.5
    """† chance of each flip"""
    rotation: float = 45.0
    """†"""
    scale: float = 0.1
    """†"""
    shift: float = 0.0625
    """† share of the side"""
    contrast: float = 0.2
    """†"""
    brightness: float = 0.2
    """† of the window; a normalised image has three times as much"""
    positive: float = 0.5

    @property
    def ranges(self) -> Ranges:
        """What images are changed by (section 6.2.1)."""
        return Ranges(
            rotation=self.rotation,
            flip=self.flip,
            upside_down=self.flip,
            scale=self.scale,
            shift=self.shift,
            gain=self.contrast,
            offset=3 * self.brightness,
        )


def train(model: Resnet2d, scans: Sequence[Scan], *, recipe: Resnet2dRecipe, run: Run) -> int:
    """Train `model` on `scans` as the thesis does and return the number of steps."""
    sampling = Sampling(runs=recipe.batch, slices=1, side=model.size, positive=recipe.positive, ranges=recipe.ranges)
    model.to(run.device).train()
    return follow(
        Course(epochs=recipe.epochs, slices=recipe.batch, schedule=constant, accumulate=recipe.accumulate),
        model,
        torch.optim.Adam(model.parameters(), lr=recipe.rate, fused=True),
        lambda batch, _: weighted_log_loss(model(batch.images)[0], batch.labels, any_weight=1),
        sampled(scans, sampling, run=run),
        count=sum(map(len, scans)),
        run=run,
    )


RECIPE = Recipe(
    name="resnet_2d",
    paper="Vultur 2021",
    values=Resnet2dRecipe,
    family="resnet_2d",
    architecture=Resnet2dConfig().to_json(),
    preprocessing=lambda size: Preprocessing.soft_windows(size=size),
    labels=LABELS,
    rule=ScanRule(max=True),
    train=train,
)
