"""Our own recipe: what the winners of the RSNA 2019 challenge, RADnet and later work have in common, each switchable.

1. The trunk learns on slices, each between its neighbours. Where a slice's bleeding is outlined, light segmentation
   heads, which are thrown away, say at four depths which pixels bleed (Grewal et al. 2018, section 2.2.2).
2. The tail learns on the descriptors of whole scans: as they are, and as they are of changed images, read in either
   order. Slices teach it by their labels; studies by theirs, which is all that a report says.

What is judged and kept is the moving average of the weights (Polyak and Juditsky 1992).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from inference.decision import ScanRule
from inference.models.hemonode import Hemonode, HemonodeConfig, Weighed
from inference.preprocess import Preprocessing
from inference.result import LABELS, Json
from training.augment import Ranges, turned
from training.average import Averaged
from training.batches import Batch, Sampling
from training.course import SEEDS, Course, fitted, follow, sampled
from training.dataset import Scan
from training.folds import patient_folds
from training.loop import Run, without_decay
from training.losses import weighted_log_loss
from training.recipe import Recipe
from training.schedules import warmup_cosine
from training.trunk import Helped, helped_loss
from training.views import drawn, view, views_of

STAGE_1_SHARE = 0.9
"""Of the minutes, where they end the run."""

RIDGE = 0.01


@dataclass(frozen=True, kw_only=True)
class HemonodeRecipe(Json):
    """The values. Nought switches an ingredient off; those of the network are switched in its architecture."""

    epochs: int = 30
    rate: float = 1e-3
    batch: int = 32
    """slices"""
    accumulate: int = 1
    """batches a step; at least as many as processes train together"""
    warmup: float = 0.05
    decay: float = 0.02
    """of weights, decoupled, on matrices and filters only"""
    average: float = 0.999
    """of the weights' moving average; 0 for none"""
    segmentation: float = 0.5
    """weight of each of the four segmentation losses beside the slice's"""
    positive: float = 0.5
    """share of the slices that bleed, all subtypes alike often"""
    rotation: float = 20.0
    flip: float = 0.5
    """chance of a mirror image, and of neighbours that have changed places"""
    scale: float = 0.1
    shift: float = 0.03
    """share of the side"""
    gain: float = 0.06
    offset: float = 0.08
    """in normalised units, some 1.5 HU of the brain window"""
    kernel: float = 0.5
    """how far images are smoothed or sharpened"""
    noise: float = 0.15
    """largest standard deviation, in normalised units"""
    views: int = 3
    """descriptors of changed images of each scan, beside those of its own"""
    folds: int = 1
    """of patients, each described by a trunk that learnt from the others alone; costs as many trainings again less one,
    and 1 is none of it"""
    tail_epochs: int = 40
    tail_rate: float = 1e-3
    tail_batch: int = 8
    """scans"""
    tail_average: float = 0.99
    study: float = 0.1
    """weight of the studies' loss beside that of their slices"""

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
            kernel=self.kernel,
            noise=self.noise,
        )


def loss(model: Helped, batch: Batch, recipe: HemonodeRecipe, *, reach: int, generator: torch.Generator) -> Tensor:
    """Weighted log loss of the slices, and the segmentation losses of those whose bleeding is outlined."""
    images = batch.images.flatten(0, 1)
    upside_down = torch.rand(len(images), generator=generator) < recipe.flip
    images = turned(images, upside_down.to(images.device), reach)
    return helped_loss(model, images.contiguous(memory_format=torch.channels_last), batch, weight=recipe.segmentation)


def train(model: Hemonode, scans: Sequence[Scan], *, recipe: HemonodeRecipe, run: Run) -> int:
    """Train both stages of `model` on `scans` and return the number of steps."""
    beginning = copy.deepcopy(model) if recipe.folds > 1 else model
    done = train_trunk(model, scans, recipe=recipe, run=run)
    if recipe.folds == 1:
        views = views_of(model, scans, recipe.ranges, count=recipe.views, run=run)
    else:
        views, done = views_left_out(model, beginning, scans, recipe=recipe, run=run, done=done)
    return train_tail(model, scans, views, recipe=recipe, run=run, done=done)


def views_left_out(
    model: Hemonode, beginning: Hemonode, scans: Sequence[Scan], *, recipe: HemonodeRecipe, run: Run, done: int
) -> tuple[list[list[Tensor]], int]:
    """Views of every scan by a trunk that has not learnt from its patient, and the steps after that.

    Each of these trunks begins as `beginning`, learns as the model's own did, and has a checkpoint of its own. No two
    trunks have the same features: those of each are brought to the model's by the linear map that does so best on the
    scans from which both have learnt.
    """
    found: list[dict[int, Tensor]] = [{} for _ in range(1 + recipe.views)]
    for fold in patient_folds(scans, count=recipe.folds, seed=run.seed):
        other = copy.deepcopy(beginning)
        done = train_trunk(other, fold.learn, recipe=recipe, run=run, name=f"trunk-fold{fold.number}", done=done)
        theirs, ours = (view(one, fold.learn, None, number=0, run=run) for one in (other, model))
        to_ours = fitted_map(torch.cat(theirs), torch.cat(ours))
        for number, of in enumerate(views_of(other, fold.left_out, recipe.ranges, count=recipe.views, run=run)):
            found[number] |= {id(scan): to_ours(rows) for scan, rows in zip(fold.left_out, of, strict=True)}
    return [[of[id(scan)] for scan in scans] for of in found], done


def fitted_map(before: Tensor, after: Tensor) -> Callable[[Tensor], Tensor]:
    """The affine map from rows (n, d) to others (n, e) with the least squares, held small by a hundredth (ridge)."""
    x, y = before.double(), after.double()
    middle, target = x.mean(0), y.mean(0)
    gram = (x - middle).T @ (x - middle)
    gram += RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    weights = torch.linalg.solve(gram, (x - middle).T @ (y - target))
    return lambda rows: ((rows.double() - middle) @ weights + target).half()


def train_trunk(
    model: Hemonode, scans: Sequence[Scan], *, recipe: HemonodeRecipe, run: Run, name: str = "trunk", done: int = 0
) -> int:
    """Stage 1: trunk and linear classifier. The rest of the tail says nothing yet, so nothing is validated.

    Returns the steps so far, with those `done` before.
    """
    sampling = Sampling(
        runs=recipe.batch,
        slices=1,
        side=model.size,
        positive=recipe.positive,
        reach=model.reach,
        outlines=recipe.segmentation > 0,
        ranges=recipe.ranges,
    )
    model.to(run.device).train()
    torch.manual_seed(run.seed)  # of the segmentation heads: the same in every process
    stage = Helped(model.trunk, model.tail.describe, average=recipe.average).to(run.device)
    optimizer = torch.optim.AdamW(without_decay([stage], decay=recipe.decay), lr=recipe.rate, fused=True)
    stage.both.after(optimizer)
    course = Course(
        epochs=recipe.epochs,
        slices=recipe.batch,
        schedule=warmup_cosine(recipe.warmup),
        accumulate=recipe.accumulate,
        name=name,
        share=STAGE_1_SHARE / (1 if recipe.folds == 1 else recipe.folds + 1),
        done=done,
    )
    done = follow(
        course,
        stage,
        optimizer,
        lambda batch, generator: loss(stage, batch, recipe, reach=model.reach, generator=generator),
        sampled(scans, sampling, run=run),
        count=sum(map(len, scans)),
        run=run.unjudged(),
    )
    model.requires_grad_(True)
    return done


def train_tail(
    model: Hemonode,
    scans: Sequence[Scan],
    views: Sequence[Sequence[Tensor]],
    *,
    recipe: HemonodeRecipe,
    run: Run,
    done: int = 0,
) -> int:
    """Stage 2: the tail on the descriptors of whole scans, of all `views` of them."""
    averaged = Averaged(model.tail, decay=recipe.tail_average).to(run.device)
    averaged.trained.train()
    parameters = without_decay([averaged.trained], decay=recipe.decay)
    optimizer = torch.optim.AdamW(parameters, lr=recipe.tail_rate, fused=True)
    averaged.after(optimizer)

    def loss_at(number: int) -> Tensor:
        generator = torch.Generator().manual_seed(run.seed * SEEDS + number)
        batch = drawn(scans, views, count=recipe.tail_batch, flip=recipe.flip, generator=generator)
        return tail_loss(averaged.trained, *(part.to(run.device) for part in batch), weight=recipe.study)

    course = Course(
        epochs=recipe.tail_epochs,
        slices=recipe.tail_batch,
        schedule=warmup_cosine(recipe.warmup),
        accumulate=recipe.accumulate,
        name="tail",
        share=1 - STAGE_1_SHARE,
        done=done,
    )
    done = fitted(course, averaged, optimizer, loss_at, count=len(scans), run=run)
    model.requires_grad_(True)
    return done


def tail_loss(tail: nn.Module, descriptors: Tensor, labels: Tensor, study: Tensor, *, weight: float) -> Tensor:
    """Weighted log loss of all slices of which something is known, and `weight` times that of the studies."""
    weighed: Weighed = tail(descriptors)
    known = ~labels.isnan().all(-1)
    total: Tensor = weighed.slices.sum() * 0
    if bool(known.any()):
        total = total + weighted_log_loss(weighed.slices[known], labels[known])
    if weight:
        total = total + weight * weighted_log_loss(weighed.study, study)
    return total


RECIPE = Recipe(
    name="hemonode",
    paper="our own",
    values=HemonodeRecipe,
    family="hemonode",
    architecture=HemonodeConfig().to_json(),
    preprocessing=lambda size: Preprocessing.three_windows(size=size),
    labels=LABELS,
    rule=ScanRule(max=True),
    train=train,
)
