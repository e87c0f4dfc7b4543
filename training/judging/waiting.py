"""How long studies wait to be read: first in, first out, against flagged first. A simulated single reader.

Studies arrive by a Poisson process and are read one after another, the one under way always to its end: M/G/1, without
and with two priorities, for both of which the mean waits are known (`first_come`, `flagged_first`).
"""

from __future__ import annotations

import csv
import heapq
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from inference.result import Json
from training.errors import DataError
from training.judging.intervals import Interval

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

GROUPS = ("all", "bleeding", "bleeding, flagged", "bleeding, not flagged", "clean, flagged", "clean, not flagged")
WARM_UP = 0.2
"""The first studies of every simulated day find an empty list and are not counted."""


@dataclass(frozen=True, kw_only=True)
class Site(Json):
    """A reading room.

    Attributes
    ----------
    prevalence : float
        Share of the studies that bleed.
    per_hour : float
        Studies that arrive in an hour, on average.
    reading_minutes : tuple of float
        Measured times of reading one study, drawn from with replacement.
    """

    prevalence: float
    per_hour: float
    reading_minutes: tuple[float, ...]

    def __post_init__(self) -> None:
        """Refuses a room in which the list only grows, or nothing can be drawn, with ``DataError``."""
        if not 0 <= self.prevalence <= 1:
            raise DataError(f"a prevalence of {self.prevalence} is none")
        if not self.reading_minutes or not all(0 < minutes < math.inf for minutes in self.reading_minutes):
            raise DataError("reading times must be a list of positive minutes")
        if not 0 < self.utilisation < 1:
            raise DataError(f"the reader is asked to work {self.utilisation:.2f} of the time; the list would only grow")

    @property
    def utilisation(self) -> float:
        """Share of the time that the reader reads."""
        return self.per_hour / 60 * float(np.mean(self.reading_minutes))

    @property
    def residual_minutes(self) -> float:
        """What is left of the reading under way when a study arrives, on average: λ E[S²] / 2."""
        return self.per_hour / 60 * float(np.mean(np.square(self.reading_minutes))) / 2


@dataclass(frozen=True, kw_only=True)
class Waits(Json):
    """Minutes that the studies of one group wait, in both orders, and what flags save; means with 95 % intervals."""

    share: float
    first_come: Interval
    flagged_first: Interval
    saved: Interval


@dataclass(frozen=True, kw_only=True)
class Queue(Json):
    """What flags do to waiting: simulated, and by formula.

    Attributes
    ----------
    waits : dict
        By group of studies; a group that hardly occurs is left out.
    flagged : float
        Share of all studies that are flagged.
    expected_first_come, expected_flagged, expected_unflagged : float
        Mean waits in minutes by the formulas.
    """

    site: dict[str, float]
    replications: int
    studies: int
    flagged: float
    expected_first_come: float
    expected_flagged: float
    expected_unflagged: float
    waits: dict[str, Waits]


def first_come(site: Site) -> float:
    """Mean wait in minutes, first in, first out: ``λ E[S²] / 2 (1 − ρ)`` (Pollaczek 1930, Khinchine 1932)."""
    return site.residual_minutes / (1 - site.utilisation)


def flagged_first(site: Site, *, flagged: float) -> tuple[float, float]:
    """Mean waits in minutes of flagged studies and of the others, without interruption (Cobham 1954).

    ``W₀ / (1 − ρ₁)`` and ``W₀ / (1 − ρ₁)(1 − ρ)``, where ρ₁ is the part of the time spent on flagged studies.
    """
    above = 1 - site.utilisation * flagged
    return site.residual_minutes / above, site.residual_minutes / (above * (1 - site.utilisation))


def flagged_share(site: Site, *, sensitivity: float, specificity: float) -> float:
    """Share of the studies that are flagged: ``π s + (1 − π)(1 − c)``."""
    return site.prevalence * sensitivity + (1 - site.prevalence) * (1 - specificity)


def simulate(
    site: Site,
    *,
    scores: Floats,
    bleeding: Bools,
    threshold: float,
    studies: int = 2000,
    replications: int = 40,
    seed: int = 0,
) -> Queue:
    """Waits of studies whose scores are drawn from measured ones, bleeding and clean apart, in the site's proportion.

    Both orders meet the same arrivals, reading times and scores, so that what flags save is not drowned in chance.

    Raises ``DataError`` where scores of one kind are missing though such studies arrive.
    """
    kinds = {True: scores[bleeding], False: scores[~bleeding]}
    if (site.prevalence > 0 and not len(kinds[True])) or (site.prevalence < 1 and not len(kinds[False])):
        raise DataError("the queue needs measured scores of scans that bleed and of scans that do not")
    called = {kind: float((found >= threshold).mean()) if len(found) else 0.0 for kind, found in kinds.items()}
    rng = np.random.default_rng(seed)
    days = [_day(site, called, studies, rng) for _ in range(replications)]
    share = flagged_share(site, sensitivity=called[True], specificity=1 - called[False])
    high, low = flagged_first(site, flagged=share)
    return Queue(
        site={
            "prevalence": site.prevalence,
            "per_hour": site.per_hour,
            "utilisation": site.utilisation,
            "mean_reading_minutes": float(np.mean(site.reading_minutes)),
        },
        replications=replications,
        studies=studies,
        flagged=share,
        expected_first_come=first_come(site),
        expected_flagged=high,
        expected_unflagged=low,
        waits={group: found for group in GROUPS if (found := _summary([day[group] for day in days])) is not None},
    )


def _day(site: Site, called: Mapping[bool, float], studies: int, rng: np.random.Generator) -> dict[str, Floats]:
    """For each group: its share of the studies, and its mean waits in both orders."""
    arrivals = np.cumsum(rng.exponential(60 / site.per_hour, studies))
    minutes = rng.choice(np.asarray(site.reading_minutes), studies)
    bleeding = rng.random(studies) < site.prevalence
    # To draw one of the measured scores and to hold it against the threshold is to flag with its measured frequency.
    flagged = rng.random(studies) < np.where(bleeding, called[True], called[False])
    orders = (wait_first_come(arrivals, minutes), wait_flagged_first(arrivals, minutes, flagged))
    members = (
        np.ones(studies, bool), bleeding, bleeding & flagged, bleeding & ~flagged, ~bleeding & flagged,
        ~bleeding & ~flagged,
    )  # fmt: skip
    settled = np.arange(studies) >= WARM_UP * studies
    found = {}
    for group, mine in zip(GROUPS, members, strict=True):
        counted = mine & settled
        means = [float(waits[counted].mean()) if counted.any() else math.nan for waits in orders]
        found[group] = np.array([mine.mean(), *means])
    return found


def wait_first_come(arrivals: Floats, minutes: Floats) -> Floats:
    """Minutes that each study waits, read in the order of arrival (Lindley 1952)."""
    steps = np.concatenate([[0.0], np.cumsum(minutes[:-1] - np.diff(arrivals))])
    return steps - np.minimum.accumulate(steps)


def wait_flagged_first(arrivals: Floats, minutes: Floats, flagged: Bools) -> Floats:
    """Minutes that each study waits when the reader takes the oldest flagged study, and else the oldest one."""
    waits = np.empty(len(arrivals))
    waiting: list[tuple[bool, int]] = []
    free, coming = 0.0, 0
    for _ in range(len(arrivals)):
        if not waiting:
            free = max(free, float(arrivals[coming]))
        while coming < len(arrivals) and arrivals[coming] <= free:
            heapq.heappush(waiting, (not flagged[coming], coming))
            coming += 1
        _, taken = heapq.heappop(waiting)
        waits[taken] = free - arrivals[taken]
        free += float(minutes[taken])
    return waits


def _summary(days: list[Floats]) -> Waits | None:
    table = np.array([day for day in days if not np.isnan(day).any()])
    if len(table) < max(2, len(days) / 2):
        return None
    return Waits(
        share=float(np.mean([day[0] for day in days])),
        first_come=_mean(table[:, 1]),
        flagged_first=_mean(table[:, 2]),
        saved=_mean(table[:, 1] - table[:, 2]),
    )


def _mean(values: Floats) -> Interval:
    """The mean of independent replications with Student's interval."""
    half = float(stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values)))
    mean = float(values.mean())
    return Interval(value=mean, low=mean - half, high=mean + half)


def reading_times(path: Path) -> tuple[float, ...]:
    """Measured minutes, one in each line's first column; a first line that is no number is a heading."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            cells = [row[0].strip() for row in csv.reader(file) if row and row[0].strip()]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if cells and not _is_number(cells[0]):
        cells = cells[1:]
    wrong = [cell for cell in cells if not _is_number(cell)]
    if wrong or not cells:
        raise DataError(f"{path}: expected minutes in the first column, found {wrong[0] if wrong else 'nothing'!r}")
    return tuple(map(float, cells))


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def assumed_times(*, mean: float, spread: float, count: int = 2001) -> tuple[float, ...]:
    """Reading times where none were measured: quantiles of a lognormal distribution, scaled to this mean exactly."""
    sigma = math.sqrt(math.log1p((spread / mean) ** 2)) if spread else 0.0
    places = (np.arange(count) + 0.5) / count
    drawn = np.exp(sigma * stats.norm.ppf(places))
    return tuple((drawn * mean / drawn.mean()).tolist())
