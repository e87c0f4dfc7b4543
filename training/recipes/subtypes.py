"""Bleed or not, and which kind, as their paper trains them (Khandelwal and Ganguli, sections III and IV).

``bleeding`` tells slices with a bleed from others with a ResNet-18 on a balanced set (section III-D i). ``subtypes``
tells the five kinds with a ResNet-50, trained on slices that bleed and nothing else (section III-D ii); ResNet-101,
DenseNet-121 and AlexNet (section IV-A) are ``--architecture '{"trunk": "densenet121"}'``. Either begins with ImageNet's
weights where ``--start-from`` names them; ``subtypes`` may begin with those of ``bleeding`` on the same trunk.

Marked † are the values of the public notebooks that the text follows, and of their library, fast.ai.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer

from inference.decision import ScanRule
from inference.models.classifiers import Classifier, ClassifierConfig
from inference.preprocess import Preprocessing, brain_fraction, equalising_quantiles
from inference.result import ANY, SUBTYPES, Json
from training.augment import Ranges
from training.batches import Batch, Sampler, Sampling
from training.course import Course, follow, made_ahead
from training.dataset import Scan
from training.errors import DataError, TrainingError
from training.finder import Search, find_rate
from training.loop import Run, without_decay
from training.losses import weighted_log_loss
from training.recipe import FromSlices, Recipe
from training.schedules import one_cycle, one_cycle_momentum

log = logging.getLogger(__name__)

NORMALISATION = (nn.BatchNorm1d, nn.BatchNorm2d)
SEARCH_SHARE = 0.05
"""Of the minutes, where they end the run: for each search of a learning rate."""
LEAST_SIZE = 32
"""A trunk's last maps are a thirty-second of it, and of less than a pixel gradients are wild numbers (oneDNN)."""
THINNED = 4
"""Quantiles are those of every fourth pixel of every fourth row."""
SEEDS_APART = 101
"""No cycle sees the batches of another."""

Loss = Callable[[Batch, torch.Generator], Tensor]


@dataclass(frozen=True, kw_only=True)
class BleedingRecipe(Json):
    """One cycle for each size of the image, with the learning rate that the finder suggests.

    A trunk that came from a file is frozen, but for its batch normalisation (section III-D i), and `unfrozen_epochs`
    more follow with all of it. A trunk of random weights has learnt nothing that could be frozen: it is trained from
    the first step on.
    """

    sizes: tuple[int, ...] = (64, 128, 256)
    """rows and columns of the images, one cycle each (section IV-D); the last are the network's"""
    epochs: int = 5
    """of each size (section III-D i)"""
    unfrozen_epochs: int = 0
    """† of each size, after those with a frozen trunk"""
    frozen: bool = True
    batch: int = 0
    """slices; 0: 256, and 128 for DenseNet-121 (sections III-D i and IV-A ii)"""
    accumulate: int = 1
    """† batches a step; at least as many as processes train together"""
    rate: float = 0.0
    """0: what the finder suggests, and 10⁻³ · batch / 64 where it suggests nothing"""
    finder_steps: int = 300
    """†"""
    decay: float = 0.01
    """decoupled (section IV-B); † not of biases and normalisation"""
    division: float = 25.0
    """† by which the rate of the cycle begins lower"""
    rising: float = 0.25
    """† share of the cycle"""
    most_momentum: float = 0.95
    """†"""
    least_momentum: float = 0.85
    """†"""
    squared_momentum: float = 0.99
    """† Adam's second"""
    epsilon: float = 1e-5
    """† Adam's"""
    flip: float = 0.5
    """† chance of a left-right flip (section III-C)"""
    rotation: float = 15.0
    """degrees (section III-C)"""
    rotation_chance: float = 0.75
    """†"""
    blur: float = 1.5
    """† largest standard deviation in pixels of the prepared image (section III-C)"""
    blur_chance: float = 0.3
    """†"""
    blank_below: float = 0.02
    """† least part of brain in a slice; 0.2 in the text (section III-A)"""
    positive: float = 0.5
    """share of the slices that bleed (section III-B)"""
    alike: bool = False
    """whether all kinds are drawn alike often"""

    @property
    def ranges(self) -> Ranges:
        """What images are changed by (section III-C)."""
        return Ranges(
            flip=self.flip,
            rotation=self.rotation,
            rotation_chance=self.rotation_chance,
            blur=self.blur,
            blur_chance=self.blur_chance,
        )


@dataclass(frozen=True, kw_only=True)
class SubtypesRecipe(BleedingRecipe):
    """The same on slices that bleed alone (section III-D ii)."""

    positive: float = 1.0


def equalised(size: int, values: BleedingRecipe, volumes: Sequence[Tensor]) -> Preprocessing:
    """Intensities equalised over the slices that are no blank ones: no window (section III-B)."""
    pixels = [hu[brain_fraction(hu) >= values.blank_below, ::THINNED, ::THINNED].flatten() for hu in volumes]
    together = torch.cat(pixels)
    if not len(together):
        raise DataError(f"none of the training slices has {values.blank_below:.0%} of brain")
    return Preprocessing.equalised(equalising_quantiles(together), size=size, blank_below=values.blank_below)


@dataclass(frozen=True, kw_only=True)
class Cycle:
    """One cycle of the training: its images' size, and what of the network is trained."""

    size: int
    epochs: int
    frozen: bool

    @property
    def state(self) -> str:
        """Of the trunk, in a word."""
        return "frozen" if self.frozen else "whole"


def cycles(recipe: BleedingRecipe, *, pretrained: bool) -> Iterator[Cycle]:
    """The cycles in their order, those without an epoch left out."""
    frozen = recipe.frozen and pretrained
    for size in recipe.sizes:
        for cycle in (
            Cycle(size=size, epochs=recipe.epochs, frozen=frozen),
            Cycle(size=size, epochs=recipe.unfrozen_epochs if frozen else 0, frozen=False),
        ):
            if cycle.epochs:
                yield cycle


def train(model: Classifier, scans: Sequence[Scan], *, recipe: BleedingRecipe, run: Run) -> int:
    """Train `model` on `scans` as the paper does and return the number of steps."""
    if recipe.sizes[-1] != model.size or not _rising(recipe.sizes):
        raise TrainingError(
            f"sizes {list(recipe.sizes)}: expected sizes that rise from at least {LEAST_SIZE} to the network's "
            f"{model.size}"
        )
    if recipe.frozen and not run.pretrained:
        log.info("the trunk has random weights and is trained from the first step on")
    batch = recipe.batch or (128 if model.config.trunk == "densenet121" else 256)
    sampling = Sampling(
        runs=batch,
        slices=1,
        side=model.size,
        positive=recipe.positive,
        alike=recipe.alike,
        ranges=recipe.ranges,
    )
    sampler = Sampler(scans, sampling)
    model.to(run.device).train()
    planned = list(cycles(recipe, pretrained=run.pretrained))
    searches = 0 if recipe.rate else len({cycle.state for cycle in planned})
    rates: dict[str, float] = {}
    done = 0
    for number, cycle in enumerate(planned):
        own = replace(run, seed=run.seed * SEEDS_APART + number)
        course = Course(
            epochs=cycle.epochs,
            slices=batch,
            accumulate=recipe.accumulate,
            schedule=one_cycle(start=recipe.rising, division=recipe.division),
            momentum=one_cycle_momentum(start=recipe.rising, most=recipe.most_momentum, least=recipe.least_momentum),
            name=f"{cycle.state}-{cycle.size}",
            share=(1 - SEARCH_SHARE * searches) / len(planned),
            done=done,
        )
        freeze(model, trunk=cycle.frozen)
        if cycle.state not in rates:
            rates[cycle.state] = recipe.rate or _found(model, cycle, course, sampler, recipe=recipe, run=own)
        done = follow(
            course,
            model,
            optimizer(model, rates[cycle.state], recipe=recipe),
            _of(model, size=cycle.size),
            made_ahead(sampler, run=own),
            count=round(sampler.positives / recipe.positive),
            run=own,
        )
    freeze(model, trunk=False)
    return done


def _rising(sizes: Sequence[int]) -> bool:
    return sizes[0] >= LEAST_SIZE and all(one < other for one, other in pairwise(sizes))


def _found(
    model: Classifier, cycle: Cycle, course: Course, sampler: Sampler, *, recipe: BleedingRecipe, run: Run
) -> float:
    """The learning rate for this state of the trunk."""
    return find_rate(
        Search(name=cycle.state, otherwise=1e-3 * course.slices * course.accumulate / 64, steps=recipe.finder_steps),
        replace(course, share=SEARCH_SHARE),
        model,
        partial(optimizer, recipe=recipe),
        partial(_of, size=cycle.size),
        partial(made_ahead, sampler, run=run),
        run=run,
    )


def freeze(model: Classifier, *, trunk: bool) -> None:
    """Everything learns, or of the trunk batch normalisation alone (section III-D i)."""
    model.requires_grad_(True)
    if trunk:
        for module in model.trunk.modules():
            if not isinstance(module, NORMALISATION):
                for parameter in module.parameters(recurse=False):
                    parameter.requires_grad_(False)


def optimizer(model: nn.Module, rate: float, *, recipe: BleedingRecipe) -> Optimizer:
    """Adam with decoupled weight decay over all that learns (section IV-B)."""
    return torch.optim.AdamW(
        without_decay([model], decay=recipe.decay),
        lr=rate,
        betas=(recipe.most_momentum, recipe.squared_momentum),
        eps=recipe.epsilon,
        fused=True,
    )


def loss(model: nn.Module, batch: Batch, *, size: int) -> Tensor:
    """Cross-entropy of bleed or not, or the plain mean of the subtypes', at this size of the images."""
    images = batch.images
    if images.shape[-1] != size:
        flat = functional.interpolate(images.flatten(0, 1), size=(size, size), mode="bilinear", antialias=True)
        images = flat.reshape(*images.shape[:3], size, size)
    logits = model(images)[0]
    labels = batch.labels[..., :1] if logits.shape[-1] == 1 else batch.labels[..., 1:]
    return weighted_log_loss(logits, labels, any_weight=1)


def _of(model: nn.Module, *, size: int) -> Loss:
    return lambda batch, _: loss(model, batch, size=size)


BLEEDING = Recipe(
    name="bleeding",
    paper="Khandelwal and Ganguli",
    values=BleedingRecipe,
    family="classifiers",
    architecture=ClassifierConfig().to_json(),
    preprocessing=FromSlices(make=equalised),
    labels=(ANY,),
    rule=ScanRule(max=True),
    train=train,
)
KINDS = replace(
    BLEEDING,
    name="subtypes",
    values=SubtypesRecipe,
    architecture=ClassifierConfig(trunk="resnet50", labels=len(SUBTYPES)).to_json(),
    labels=SUBTYPES,
    bleeding_only=True,
)
RECIPES = (BLEEDING, KINDS)
