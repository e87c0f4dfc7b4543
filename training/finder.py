"""The learning-rate finder: a mock training whose rate rises, on a copy of the network that is thrown away.

Smith 2018, as Khandelwal and Ganguli use it (section III-D i): the rate goes from very low to 10, and the best one is
that at which the loss falls fastest. The curve stands in ``finder-NAME.csv``, and as a picture beside it, in the
folder of the run. A run that was killed reads it there; one that was killed during the search makes it again, and as
everything in the search depends on the seed, it comes out the same.
"""

from __future__ import annotations

import copy
import csv
import importlib.util
import logging
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer

from training.batches import Ahead, Batch
from training.course import Course, follow
from training.errors import DivergedError
from training.loop import Progress, Run
from training.schedules import ramp

SMOOTHING = 0.95
"""Of the losses' moving mean, in which a single batch does not count for much."""
FAR = 4.0
"""So many times its least value the loss may grow before the search ends, as in fast.ai."""
FIRST = 0.1
"""Share of the curve that is not looked at: the mean has hardly begun there."""
LAST = 5
"""Points of the curve's end that are not looked at: there the loss explodes."""
FEWEST = 10
LEAST_FALL = 0.01
"""Share of the loss that is no fall."""
AROUND = 0.5
"""Decades of the rate on either side over which a slope is taken: single batches are too noisy."""
ABOVE_BOTTOM = 2.0
"""Decades below the rate of the least mean among which the steepest fall is looked for: elsewhere it is noise."""
COLUMNS = ("rate", "loss")

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Search:
    """How a rate is looked for: `steps` steps from the `low` to the `high` rate.

    `otherwise` is the rate where the curve suggests none.
    """

    name: str
    otherwise: float
    steps: int = 300
    low: float = 1e-7
    high: float = 10.0

    def file(self, folder: Path) -> Path:
        """Where its curve stands."""
        return folder / f"finder-{self.name}.csv"


@dataclass(frozen=True, kw_only=True)
class Curve:
    """The loss of each step of a search, and the rate it was taken with."""

    rates: tuple[float, ...]
    losses: tuple[float, ...]

    @property
    def smooth(self) -> NDArray[np.float64]:
        """The moving mean of the losses, every weight counted from the first step on."""
        means, mean = [], 0.0
        for number, loss in enumerate(self.losses, start=1):
            mean = SMOOTHING * mean + (1 - SMOOTHING) * loss
            means.append(mean / (1 - SMOOTHING**number))
        return np.array(means)

    def steepest(self) -> float | None:
        """The rate at which the loss falls fastest over the logarithm of the rate; None where it does not fall.

        Slopes are lines through the losses of a decade.
        """
        if len(self.rates) < FEWEST:
            return None
        kept = slice(int(FIRST * len(self.rates)), len(self.rates) - LAST)
        places, losses, means = np.log10(self.rates)[kept], np.array(self.losses)[kept], self.smooth[kept]
        bottom = int(means.argmin())
        if means[0] - means[bottom] <= LEAST_FALL * abs(means[0]):
            return None
        slope = losses * 0
        for number, place in enumerate(places):
            near = abs(places - place) <= max(AROUND, 1.01 * (places[1] - places[0]))
            slope[number] = np.polyfit(places[near], losses[near], 1)[0]
        falling = (places >= places[bottom] - ABOVE_BOTTOM) & (places <= places[bottom])
        return float(10 ** places[falling][slope[falling].argmin()])


def find_rate(
    search: Search,
    course: Course,
    model: nn.Module,
    optimizer: Callable[[nn.Module, float], Optimizer],
    loss: Callable[[nn.Module], Callable[[Batch, torch.Generator], Tensor]],
    batches: Callable[[], Ahead],
    *,
    run: Run,
) -> float:
    """The rate to train `model` with, as the `search` finds it; `model` itself is left as it is.

    Parameters
    ----------
    course : Course
        As of the training that follows; of it count slices and batches of a step, precision and share of the minutes.
    optimizer : callable
        Makes the optimiser of a network with this rate.
    loss : callable
        Makes the loss of a network, as `follow` takes it.
    """
    path = search.file(run.keep.path.parent) if run.keep else None
    if path and path.exists():
        curve = read(path)
    else:
        log.info("looking for the learning rate (%s): %d steps", search.name, search.steps)
        curve = _curve(search, course, copy.deepcopy(model), optimizer, loss, batches(), run=run)
        if path and run.team.leads:
            write(path, curve)
    found = curve.steepest()
    if found is None:
        log.warning("the learning-rate finder suggests nothing (%s); taking %.3g", search.name, search.otherwise)
        return search.otherwise
    log.info("the learning rate (%s) is %.3g", search.name, found)
    return found


class _Enough(Exception):
    """The loss is far above its least value."""


def _curve(
    search: Search,
    course: Course,
    model: nn.Module,
    optimizer: Callable[[nn.Module, float], Optimizer],
    loss: Callable[[nn.Module], Callable[[Batch, torch.Generator], Tensor]],
    batches: Ahead,
    *,
    run: Run,
) -> Curve:
    rates: list[float] = []
    losses: list[float] = []

    def note(now: Progress) -> None:
        rates.append(now.rate)
        losses.append(now.loss)
        means = Curve(rates=tuple(rates), losses=tuple(losses)).smooth
        if len(rates) > FIRST * search.steps and means[-1] > FAR * means.min():
            raise _Enough

    rising = replace(course, epochs=1, schedule=ramp(search.low / search.high), momentum=None, name="", done=0)
    count = search.steps * course.slices * course.accumulate
    with suppress(_Enough, DivergedError):  # in every process alike: each sees the loss of all
        follow(
            rising,
            model,
            optimizer(model, search.high),
            loss(model),
            batches,
            count=count,
            run=replace(run, keep=None, report=note, report_every=1),
        )
    return Curve(rates=tuple(rates), losses=tuple(losses))


def found(folder: Path) -> dict[str, float | None]:
    """What the searches of the run in `folder` suggest, by name."""
    return {path.stem.removeprefix("finder-"): read(path).steepest() for path in sorted(folder.glob("finder-*.csv"))}


def write(path: Path, curve: Curve) -> None:
    """The curve stands in `path`, whole or not at all, and as a picture beside it where matplotlib is installed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    with partial.open("w", newline="", encoding="utf-8") as file:
        rows = zip(curve.rates, curve.losses, strict=True)
        csv.writer(file).writerows([COLUMNS, *((repr(rate), repr(loss)) for rate, loss in rows)])
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
    if importlib.util.find_spec("matplotlib"):
        draw(curve, path.with_suffix(".png"))


def read(path: Path) -> Curve:
    """The curve that `write` wrote."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = [(float(row["rate"]), float(row["loss"])) for row in csv.DictReader(file)]
    return Curve(rates=tuple(rate for rate, _ in rows), losses=tuple(loss for _, loss in rows))


def draw(curve: Curve, picture: Path) -> None:
    """The losses over the rate as a PNG, with their moving mean and the rate that it suggests."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(curve.rates, curve.losses, linewidth=0.5, label="loss")
    axes.plot(curve.rates, curve.smooth, linewidth=1, label="moving mean")
    rate = curve.steepest()
    if rate is not None:
        axes.axvline(rate, linestyle="--", linewidth=1, color="grey", label=f"{rate:.3g}")
    axes.set_xscale("log")
    axes.set_xlabel("learning rate")
    axes.legend(fontsize="small")
    figure.savefig(picture, dpi=120)
