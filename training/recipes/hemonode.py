"""Our own recipe: what the winners of the RSNA 2019 challenge, RADnet and later work have in common, each switchable.

1. The trunk learns on slices, each between its neighbours. Where a slice's bleeding is outlined, light segmentation
   heads, which are thrown away, say at four depths which pixels bleed (Grewal et al. 2018, section 2.2.2).
2. The tail learns on the descriptors of whole scans: as they are, and as they are of changed images, read in either
   order. Slices teach it by their labels; studies by theirs, which is all that a report says.

What is judged and kept is the moving average of the weights (Polyak and Juditsky 1992).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from inference.decision import ScanRule
from inference.models.hemonode import Hemonode, HemonodeConfig, Weighed
from inference.preprocess import Preprocessing
from inference.result import LABELS, SUBTYPES, Json
from training.augment import Ranges, draw, grid_of, perturb, warp
from training.average import Averaged
from training.batches import Batch, Sampling
from training.course import SEEDS, Course, follow, named, sampled
from training.dataset import Scan
from training.folds import patient_folds
from training.loop import Budget, Run, autocast, fit, without_decay
from training.losses import attention_loss, weighted_log_loss
from training.recipe import Recipe
from training.schedules import warmup_cosine
from training.stages import CHUNK
from training.trunk import stage_maps

STAGE_1_SHARE = 0.9
"""Of the minutes, where they end the run."""

RIDGE = 0.01

VIEWS = 7919
"""Apart from one another lie the random numbers of two views of the scans."""


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


class Helped(nn.Module):
    """The trunk and its linear classifier, beside the average of both, with segmentation heads."""

    def __init__(self, model: Hemonode, *, average: float) -> None:
        super().__init__()
        self.both = Averaged(nn.ModuleList([model.trunk, model.tail.describe]), decay=average)
        features = model.descriptor_size
        widths = (64, 128, 256, 512) if features == 512 else (256, 512, 1024, 2048)
        self.masks = nn.ModuleList(nn.Conv2d(width, len(SUBTYPES), 1) for width in widths)

    def forward(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Logits (n, labels), and mask logits (n, 5, h, w) of each of the four stages."""
        trunk, describe = self.both.trained.children()
        maps = stage_maps(trunk, images)
        masks = [head(each) for head, each in zip(self.masks, maps, strict=True)]
        return describe(maps[-1].mean((2, 3))), masks


def loss(model: Helped, batch: Batch, recipe: HemonodeRecipe, *, reach: int, generator: torch.Generator) -> Tensor:
    """Weighted log loss of the slices, and the segmentation losses of those whose bleeding is outlined."""
    images, labels = batch.images.flatten(0, 1), batch.labels.flatten(0, 1)
    turned = torch.rand(len(images), generator=generator) < recipe.flip
    images = _turned(images, turned.to(images.device), reach)
    logits, maps = model(images.contiguous(memory_format=torch.channels_last))
    total = weighted_log_loss(logits, labels)
    outlined = batch.outlined.flatten()
    if recipe.segmentation and bool(outlined.any()):
        masks, maps = batch.masks.flatten(0, 1)[outlined], [logits[outlined] for logits in maps]
        total = total + attention_loss(maps, masks, weight=recipe.segmentation, overlap=0.3)
    return total


def _turned(images: Tensor, which: Tensor, reach: int) -> Tensor:
    """Images (n, seen, …) with the neighbours of some, `which` (n,), in the opposite order: the scan upside down."""
    if not reach:
        return images
    own, beside = images[:, : -2 * reach], images[:, -2 * reach :]
    return torch.cat((own, beside.flip(1).where(which[:, None, None, None], beside)), 1)


def train(model: Hemonode, scans: Sequence[Scan], *, recipe: HemonodeRecipe, run: Run) -> int:
    """Train both stages of `model` on `scans` and return the number of steps."""
    beginning = copy.deepcopy(model) if recipe.folds > 1 else model
    done = train_trunk(model, scans, recipe=recipe, run=run)
    if recipe.folds == 1:
        views = views_of(model, scans, recipe=recipe, run=run)
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
        theirs, ours = (view(one, fold.learn, recipe, number=0, run=run) for one in (other, model))
        to_ours = fitted_map(torch.cat(theirs), torch.cat(ours))
        for number, of in enumerate(views_of(other, fold.left_out, recipe=recipe, run=run)):
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
    stage = Helped(model, average=recipe.average).to(run.device).to(memory_format=torch.channels_last)
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


def views_of(model: Hemonode, scans: Sequence[Scan], *, recipe: HemonodeRecipe, run: Run) -> list[list[Tensor]]:
    """Every view of the scans by the model's own trunk."""
    return [view(model, scans, recipe, number=number, run=run) for number in range(1 + recipe.views)]


@torch.inference_mode()
def view(model: Hemonode, scans: Sequence[Scan], recipe: HemonodeRecipe, *, number: int, run: Run) -> list[Tensor]:
    """Descriptors (slices, d) of each scan, float16, on the CPU: of view 0 as serving makes them, of others changed.

    A scan is changed as a whole. What is drawn depends on seed and number alone.
    """
    model.eval()
    found = []
    for place, scan in enumerate(scans):
        generator = torch.Generator().manual_seed((run.seed * VIEWS + number) * SEEDS + place)
        parts = []
        for images in _chunks(scan, recipe.ranges if number else None, model, generator, run.device):
            with autocast(run.device):
                parts.append(model.encode(images).half())
        found.append(torch.cat(parts).cpu())
    return found


def _chunks(
    scan: Scan, ranges: Ranges | None, model: Hemonode, generator: torch.Generator, device: torch.device
) -> Iterator[Tensor]:
    """What the trunk sees of the scan, a few slices at a time."""
    changes = draw(ranges, 1, generator=generator).to(device) if ranges else None  # the whole scan is changed alike
    turned = torch.rand(1, generator=generator).to(device) < (ranges.flip if ranges else 0)
    for first in range(0, len(scan), CHUNK):
        here = slice(first, min(first + CHUNK, len(scan)))
        images = torch.tensor(scan.among(here, reach=model.reach)).to(device).float()
        if changes:
            grid, fill = grid_of(changes, side=images.shape[-1]), images.amin((0, 2, 3), keepdim=True)
            images = perturb(warp(images[None], grid, fill=fill), changes)[0]
            images = _turned(images, turned, model.reach)
        yield images


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
        batch = [part.to(run.device) for part in drawn(scans, views, recipe, generator)]
        return tail_loss(averaged.trained, *batch, weight=recipe.study)

    course = Course(
        epochs=recipe.tail_epochs,
        slices=recipe.tail_batch,
        schedule=warmup_cosine(recipe.warmup),
        accumulate=recipe.accumulate,
    )
    done += fit(
        averaged,
        optimizer,
        loss_at,
        budget=Budget(steps=course.steps(len(scans)), minutes=run.minutes * (1 - STAGE_1_SHARE)),
        schedule=course.schedule,
        seed=run.seed,
        accumulate=course.accumulate,
        keep=named(run.keep, "tail"),
        report=run.report,
        report_every=run.report_every,
        done=done,
        team=run.team,
    )
    model.requires_grad_(True)
    return done


def drawn(
    scans: Sequence[Scan], views: Sequence[Sequence[Tensor]], recipe: HemonodeRecipe, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Descriptors (b, s, d), labels (b, s, 6) and study labels (b, 6) of some scans, each in one view and one order.

    Behind shorter scans their last slice stands again, of which nothing is known.
    """
    chosen = torch.randint(0, len(scans), (recipe.tail_batch,), generator=generator).tolist()
    seen = torch.randint(0, len(views), (recipe.tail_batch,), generator=generator).tolist()
    turned = torch.rand(recipe.tail_batch, generator=generator) < recipe.flip
    length = max(len(scans[place]) for place in chosen)
    descriptors, labels = [], []
    for place, number, upside_down in zip(chosen, seen, turned.tolist(), strict=True):
        rows, truth = views[number][place].float(), torch.from_numpy(scans[place].labels)
        if upside_down:
            rows, truth = rows.flip(0), truth.flip(0)
        missing = length - len(rows)
        descriptors.append(torch.cat((rows, rows[-1:].expand(missing, -1))))
        labels.append(torch.cat((truth, torch.full((missing, truth.shape[1]), torch.nan))))
    study = torch.from_numpy(np.stack([scans[place].study_labels for place in chosen]))
    return torch.stack(descriptors), torch.stack(labels), study


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
