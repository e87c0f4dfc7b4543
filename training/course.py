"""One stretch of a recipe: sampled batches, made ahead, through a loss and an optimiser, for so many epochs.

A recipe of several stretches names each. Every stretch has a checkpoint of its own, so that a run which was stopped
finds the finished ones finished; steps are counted on through all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from training.batches import Ahead, Batch, Sampler, Sampling
from training.dataset import Scan
from training.loop import Budget, Keep, Run, autocast, fit
from training.schedules import Schedule

SEEDS = 1_000_003
"""Apart from one another lie the random numbers of two seeds."""


@dataclass(frozen=True, kw_only=True)
class Course:
    """How long and in which steps.

    Attributes
    ----------
    slices : int
        Of one batch, all runs together.
    accumulate : int
        Batches a step; at least as many as processes train together.
    momentum : callable
        From the share that is done to the optimiser's momentum, where that changes.
    name : str
        Of this stretch, where a recipe has several.
    share : float
        Of the run's minutes.
    done : int
        Steps of the stretches before.
    mixed : bool
        In bfloat16 where the device computes in it.
    """

    epochs: int
    slices: int
    schedule: Schedule
    accumulate: int = 1
    momentum: Schedule | None = None
    name: str = ""
    share: float = 1.0
    done: int = 0
    mixed: bool = True

    def steps(self, count: int) -> int:
        """How many there are with `count` slices to learn from."""
        return self.epochs * max(1, count // (self.slices * self.accumulate))


def sampled(scans: Sequence[Scan], sampling: Sampling, *, run: Run) -> Ahead:
    """Batches of `scans`, numbered and made ahead."""
    return made_ahead(Sampler(scans, sampling), run=run)


def made_ahead(sampler: Sampler, *, run: Run) -> Ahead:
    """The batches of `sampler`, numbered and made ahead."""
    make = partial(sampler.loadable, seed=run.seed, device=run.device)
    return Ahead(make, workers=run.workers, stride=run.team.size)


def follow(
    course: Course,
    model: nn.Module,
    optimizer: Optimizer,
    loss: Callable[[Batch, torch.Generator], Tensor],
    batches: Ahead,
    *,
    count: int,
    run: Run,
) -> int:
    """Train `model` through `course`; returns the steps so far, those of the stretches before included.

    Parameters
    ----------
    loss : callable
        Of a batch, with random numbers that depend on its number alone.
    count : int
        Slices to learn from: what an epoch is counted by.
    """

    if all(parameter.ndim < 5 for parameter in model.parameters()):
        model.to(memory_format=torch.channels_last)  # 10 to 30 % of a step, on CPU and GPU alike

    def loss_at(number: int) -> Tensor:
        generator = torch.Generator().manual_seed(run.seed * SEEDS + number)
        batch = batches(number).to(run.device)  # changed in float32, hence before
        with autocast(run.device) if course.mixed else nullcontext():
            return loss(batch, generator)

    with batches, _fastest_kernels():
        return fitted(course, model, optimizer, loss_at, count=count, run=run)


def fitted(
    course: Course,
    model: nn.Module,
    optimizer: Optimizer,
    loss_at: Callable[[int], Tensor],
    *,
    count: int,
    run: Run,
) -> int:
    """The same by the loss of each batch, which depends on nothing but its number and the network."""
    return course.done + fit(
        model,
        optimizer,
        loss_at,
        budget=Budget(steps=course.steps(count), minutes=run.minutes * course.share),
        schedule=course.schedule,
        momentum=course.momentum,
        seed=run.seed,
        accumulate=course.accumulate,
        keep=named(run.keep, course.name),
        report=run.report,
        report_every=run.report_every,
        done=course.done,
        team=run.team,
    )


@contextmanager
def _fastest_kernels() -> Iterator[None]:
    """A GPU tries what is fastest: worth it where the same shapes come again and again."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def named(keep: Keep | None, name: str) -> Keep | None:
    """Where the stretch `name` keeps its checkpoint: beside the run's, or as the run's where it has no name."""
    return replace(keep, path=keep.path.with_stem(f"{keep.path.stem}-{name}")) if keep and name else keep
