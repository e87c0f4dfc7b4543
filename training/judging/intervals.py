"""Areas under ROC curves with intervals, and the comparison of two models on the same scans."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from inference.result import Json
from training.metrics import auc

Floats = NDArray[np.float64]
Z = NormalDist().inv_cdf(0.975)
RESAMPLED = 2000


@dataclass(frozen=True, kw_only=True)
class Interval(Json):
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Difference(Json):
    """What the second model gains over the first on the same cases, with its 95 % interval and two-sided p."""

    value: float
    low: float
    high: float
    p: float


@dataclass(frozen=True, kw_only=True)
class Discordance(Json):
    """McNemar's test: cases that only one of two models calls rightly, and the exact two-sided p."""

    only_first: int
    only_second: int
    p: float


def delong(scores: Floats, truth: NDArray[np.generic]) -> Interval | None:
    """The AUC with the interval of DeLong et al. 1988, on the logit scale, which keeps it inside 0…1.

    The variance is zero, and the interval a point, where the classes do not overlap: `bootstrap` says no more then.
    None where one class is missing or has a single case.
    """
    found = _placements([scores], truth)
    if found is None:
        return None
    (area,), covariance = found
    spread = math.sqrt(max(0.0, float(covariance[0, 0])))
    if not 0 < area < 1:
        return Interval(value=float(area), low=float(area), high=float(area))
    logit, half = math.log(area / (1 - area)), Z * spread / (area * (1 - area))
    return Interval(value=float(area), low=_sigmoid(logit - half), high=_sigmoid(logit + half))


def delong_difference(first: Floats, second: Floats, truth: NDArray[np.generic]) -> Difference | None:
    """How much greater the AUC of `second` is than that of `first`, both of the same cases (DeLong et al. 1988)."""
    found = _placements([first, second], truth)
    if found is None:
        return None
    areas, covariance = found
    return _difference(float(areas[1] - areas[0]), float(np.array([-1, 1]) @ covariance @ np.array([-1, 1])))


def _placements(columns: Sequence[Floats], truth: NDArray[np.generic]) -> tuple[Floats, Floats] | None:
    """The areas (models,) and their covariance (models, models), by ranks (Sun & Xu 2014)."""
    bearing = np.asarray(truth, bool)
    m, n = int(bearing.sum()), int((~bearing).sum())
    if min(m, n) < 2:
        return None
    above, below = [], []
    for scores in columns:
        ranks, positive, negative = _midranks(scores), _midranks(scores[bearing]), _midranks(scores[~bearing])
        above.append((ranks[bearing] - positive) / n)
        below.append(1 - (ranks[~bearing] - negative) / m)
    covariance = np.atleast_2d(np.cov(above)) / m + np.atleast_2d(np.cov(below)) / n
    return np.array([values.mean() for values in above]), covariance


def _midranks(values: Floats) -> Floats:
    _, place, counts = np.unique(np.asarray(values, np.float64), return_inverse=True, return_counts=True)
    found: Floats = (np.cumsum(counts) - (counts - 1) / 2)[place]
    return found


def _difference(value: float, variance: float) -> Difference:
    spread = math.sqrt(max(0.0, variance))
    p = 2 * (1 - NormalDist().cdf(abs(value) / spread)) if spread else float(value == 0)
    return Difference(value=value, low=value - Z * spread, high=value + Z * spread, p=p)


def _sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value)) if value >= 0 else math.exp(value) / (1 + math.exp(value))


def bootstrap(
    scores: Floats, truth: NDArray[np.generic], *, patients: Sequence[str], seed: int = 0, times: int = RESAMPLED
) -> Interval | None:
    """The AUC with the percentile interval over patients drawn anew: all cases of one patient stay together.

    Draws in which one class is missing are left out; None where that is so for the cases themselves.
    """
    value = auc(scores, truth)
    if value is None:
        return None
    bearing = np.asarray(truth, bool)
    _, owner = np.unique(np.asarray(patients), return_inverse=True)
    drawn = np.random.default_rng(seed)
    count = int(owner.max()) + 1
    # How often each patient is drawn is how often each of the cases counts: no case is copied.
    order = np.argsort(scores, kind="stable")
    ties = np.unique(scores[order], return_inverse=True)[1]
    areas = [
        area
        for _ in range(times)
        if (area := weighted_auc(bearing[order], drawn.multinomial(count, [1 / count] * count)[owner][order], ties))
        is not None
    ]
    low, high = np.quantile(areas, [0.025, 0.975]) if areas else (0.0, 1.0)
    return Interval(value=value, low=float(min(low, value)), high=float(max(high, value)))


def weighted_auc(
    bearing: NDArray[np.bool_], weight: NDArray[np.int64] | Floats, ties: NDArray[np.intp]
) -> float | None:
    """The AUC of cases, each counted `weight` times; None when one class has no weight.

    `ties` are the places of their scores among the different ones, as of ``np.unique(scores, return_inverse=True)``.
    """
    positive = np.bincount(ties, weight * bearing)
    negative = np.bincount(ties, weight * ~bearing)
    if not positive.sum() or not negative.sum():
        return None
    below = np.cumsum(negative) - negative / 2
    return float(positive @ below / (positive.sum() * negative.sum()))


def mcnemar(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> Discordance:
    """Whether two models are right equally often, from which cases each is right on (McNemar 1947, exact binomial)."""
    only_first, only_second = int((first & ~second).sum()), int((~first & second).sum())
    total, fewer = only_first + only_second, min(only_first, only_second)
    tail = sum(math.comb(total, k) for k in range(fewer + 1))
    return Discordance(only_first=only_first, only_second=only_second, p=min(1.0, 2 * tail / 2**total))


def paired_difference(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> Difference | None:
    """How much more often `second` is right than `first` on the same cases; None where there is no case.

    The interval is that of Agresti & Min 2005: half a case is added to each of the four cells, which keeps it honest
    where the models agree throughout; its p is McNemar's.
    """
    if not len(first):
        return None
    found, cases = mcnemar(first, second), len(first) + 2
    gained, lost = (found.only_second + 0.5) / cases, (found.only_first + 0.5) / cases
    half = Z * math.sqrt((gained + lost - (gained - lost) ** 2) / cases)
    value = (found.only_second - found.only_first) / len(first)
    return Difference(
        value=value, low=min(value, gained - lost - half), high=max(value, gained - lost + half), p=found.p
    )
