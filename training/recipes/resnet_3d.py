"""The 3D ResNet-18 as its thesis trains it (Vultur, Bucharest 2021, sections 4.3, 5.2 and 6.3.2), on scans or slices.

``resnet_3d`` labels a whole scan (section 5.2.1), ``resnet_3d_five`` a slice between four neighbours (section 5.2.2).
Section 4.3 has a learning rate of 3·10⁻⁵ where section 5.2.1 has 3·10⁻⁴; the second is what was run. No augmentation:
the thesis' listing throws the changed slice away. MedicalNet's weights are taken with ``--start-from``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from inference.decision import ScanRule
from inference.models.resnet_3d import Resnet3d, Resnet3dConfig
from inference.preprocess import Preprocessing
from inference.result import LABELS, SUBTYPES, Json
from training.augment import Ranges
from training.batches import Ahead, Batch, Sampling
from training.course import SEEDS, Course, follow, sampled
from training.dataset import Scan
from training.errors import DataError
from training.loop import Run
from training.losses import weighted_log_loss
from training.recipe import Recipe
from training.schedules import constant

STILL = Ranges(rotation=0, flip=0)


@dataclass(frozen=True, kw_only=True)
class WholeScanRecipe(Json):
    """Adam at 3·10⁻⁴ throughout, five epochs, the plain mean of six cross-entropies; one scan a batch."""

    epochs: int = 5
    rate: float = 3e-4
    accumulate: int = 1
    """batches a step; at least as many as processes train together"""


@dataclass(frozen=True, kw_only=True)
class FiveSlicesRecipe(WholeScanRecipe):
    """The same for slices between their neighbours, sixteen a batch (section 6.3.2)."""

    batch: int = 16
    positive: float = 0.5
    """share of the slices around which bleeding is; not in the thesis, which takes slices as they come"""


def train_scans(model: Resnet3d, scans: Sequence[Scan], *, recipe: WholeScanRecipe, run: Run) -> int:
    """Train `model` on whole scans and return the number of steps."""
    labelled = [scan for scan in scans if not np.isnan(scan.study_labels).all()]
    if not labelled:
        raise DataError("training needs scans with a label of the whole")
    batches = Ahead(partial(whole_scan, labelled, seed=run.seed), workers=run.workers, stride=run.team.size)
    return _train(model, batches, _loss_of_scan, recipe=recipe, slices=1, count=len(labelled), run=run)


def train_slices(model: Resnet3d, scans: Sequence[Scan], *, recipe: FiveSlicesRecipe, run: Run) -> int:
    """Train `model` on slices between their neighbours and return the number of steps."""
    sampling = Sampling(
        runs=recipe.batch, slices=model.depth, side=model.size, positive=recipe.positive, ranges=STILL, centred=True
    )
    if any(len(scan) < model.depth for scan in scans):
        raise DataError(f"training needs scans of at least {model.depth} slices")
    batches, count = sampled(scans, sampling, run=run), sum(map(len, scans))
    return _train(model, batches, _loss_of_middle, recipe=recipe, slices=recipe.batch, count=count, run=run)


def whole_scan(scans: Sequence[Scan], number: int, *, seed: int) -> Batch:
    """Scan `number` of a run, each once an epoch, with the labels (1, 1, 6) of the whole."""
    epoch, place = divmod(number, len(scans))
    order = torch.randperm(len(scans), generator=torch.Generator().manual_seed(seed * SEEDS + epoch))
    scan = scans[int(order[place])]
    images = torch.tensor(scan.images, dtype=torch.float32)[None]
    masks = images.new_zeros(()).expand(1, len(scan), len(SUBTYPES), *images.shape[-2:])
    return Batch(
        images=images,
        masks=masks,
        labels=torch.from_numpy(scan.study_labels)[None, None],
        outlined=torch.full((1, len(scan)), False),
    )


def _train(
    model: Resnet3d,
    batches: Ahead,
    loss: Callable[[Resnet3d, Batch], Tensor],
    *,
    recipe: WholeScanRecipe,
    slices: int,
    count: int,
    run: Run,
) -> int:
    model.to(run.device).train()
    course = Course(
        epochs=recipe.epochs,
        slices=slices,
        schedule=constant,
        accumulate=recipe.accumulate,
        # Gradients of shallow 3D convolutions in bfloat16 are wild numbers on the CPU (oneDNN in torch 2.15).
        mixed=run.device.type == "cuda",
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=recipe.rate, fused=True)
    return follow(course, model, optimizer, lambda batch, _: loss(model, batch), batches, count=count, run=run)


def _loss_of_scan(model: Resnet3d, batch: Batch) -> Tensor:
    return weighted_log_loss(model(batch.images)[0], batch.labels, any_weight=1)


def _loss_of_middle(model: Resnet3d, batch: Batch) -> Tensor:
    """The first and last slices of a scan are never in the middle; the thesis has noughts beyond the ends."""
    logits = model.classified(batch.images.transpose(1, 2))
    return weighted_log_loss(logits, batch.labels[:, model.depth // 2], any_weight=1)


RECIPE = Recipe(
    name="resnet_3d",
    paper="Vultur 2021",
    values=WholeScanRecipe,
    family="resnet_3d",
    architecture=Resnet3dConfig().to_json(),
    preprocessing=lambda size: Preprocessing.full_range(size=size),
    labels=LABELS,
    rule=ScanRule(max=True),
    train=train_scans,
)
FIVE_SLICES = replace(
    RECIPE,
    name="resnet_3d_five",
    values=FiveSlicesRecipe,
    architecture=Resnet3dConfig(depth=5, per_slice=True).to_json(),
    train=train_slices,
)
RECIPES = (RECIPE, FIVE_SLICES)
