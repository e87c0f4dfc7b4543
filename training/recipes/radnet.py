"""RADnet as its paper trains it (Grewal et al., ISBI 2018, section 2.2.3); where it is silent, the choice is named."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from inference.decision import ScanRule
from inference.models.radnet import RADnet, RadnetConfig
from inference.preprocess import Preprocessing
from inference.result import ANY, Json
from training.augment import Ranges
from training.batches import Batch, Sampling
from training.course import Course, follow, sampled
from training.dataset import Scan
from training.loop import Run
from training.losses import attention_loss, weighted_log_loss
from training.recipe import Recipe
from training.schedules import thirds


@dataclass(frozen=True, kw_only=True)
class RadnetRecipe(Json):
    """The values of the paper. Those marked † are not in it.

    Stochastic gradient descent with momentum 0.9 for 60 epochs, a tenth of the learning rate after each third,
    He-normal weights (the network's own), rotation and horizontal flips, positives and negatives balanced.
    """

    epochs: int = 60
    momentum: float = 0.9
    flip: float = 0.5
    rotation: float = 15.0
    """† degrees to either side"""
    slices: int = 32
    """† one run of so many neighbouring slices is a batch"""
    accumulate: int = 1
    """† batches a step; at least as many as processes train together"""
    rate: float = 0.05
    """† 0.1 at 64 images a step in the DenseNet paper, in proportion"""
    decay: float = 1e-4
    """† the DenseNet paper's, with its Nesterov momentum"""
    positive: float = 0.5
    """share of the runs that hold bleeding; † drawn so, where the paper balances by augmentation"""
    attention_weight: float = 1 / 3
    """† of each of the three segmentation losses"""
    pixel_weight: float = 5.0
    """† of a bleeding pixel; about 0.2 % of the pixels are"""


def loss(model: RADnet, batch: Batch, recipe: RadnetRecipe, *, overlap: float = 0.0) -> Tensor:
    """Cross-entropy of the slices plus the weighted losses of the three auxiliary tasks (section 2.2.2)."""
    logits, maps = model(batch.images)
    total = weighted_log_loss(logits, batch.labels[..., : logits.shape[-1]])
    if maps is None:
        return total
    outlined = batch.outlined.flatten()
    if not bool(outlined.any()):  # a slice that nobody outlined has only its label to learn from
        return total
    masks = batch.masks.amax(2, keepdim=True).flatten(0, 1)[outlined]
    levels = torch.split(maps.flatten(0, 1)[outlined], 1, dim=1)
    return total + attention_loss(
        levels, masks, weight=recipe.attention_weight, positive_weight=recipe.pixel_weight, overlap=overlap
    )


def train(model: RADnet, scans: Sequence[Scan], *, recipe: RadnetRecipe, run: Run) -> int:
    """Train `model` on `scans` as the paper does and return the number of steps."""
    ranges = Ranges(rotation=recipe.rotation, flip=recipe.flip)
    sampling = Sampling(
        runs=1,
        slices=recipe.slices,
        side=model.size,
        positive=recipe.positive,
        outlines=model.draws_masks,
        ranges=ranges,
    )
    model.to(run.device).train()
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=recipe.rate,
        momentum=recipe.momentum,
        weight_decay=recipe.decay,
        nesterov=True,
        fused=True,
    )
    course = Course(epochs=recipe.epochs, slices=recipe.slices, schedule=thirds, accumulate=recipe.accumulate)
    return follow(
        course,
        model,
        optimizer,
        lambda batch, _: loss(model, batch, recipe),
        sampled(scans, sampling, run=run),
        count=sum(map(len, scans)),
        run=run,
    )


RECIPE = Recipe(
    name="radnet",
    paper="Grewal et al., ISBI 2018",
    values=RadnetRecipe,
    family="radnet",
    architecture=RadnetConfig().to_json(),
    preprocessing=lambda size: Preprocessing.radnet(size=size, pixel_mm=250 / size),
    labels=(ANY,),
    rule=ScanRule(run=3),
    train=train,
)
RECIPES = (
    RECIPE,
    replace(RECIPE, name="densenet_a", architecture=RadnetConfig(recurrent=False).to_json()),
    replace(RECIPE, name="densenet", architecture=RadnetConfig(attention=False, recurrent=False).to_json()),
)
"""RADnet and the two networks it is compared with (section 3, table 1), all by the same recipe."""
