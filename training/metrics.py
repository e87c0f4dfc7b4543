"""Figures by which a model is judged, for slices and for scans, in float64 numpy."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from inference.result import Json, Rate
from training.losses import ANY_WEIGHT

Floats = NDArray[np.float64]
CLIP = 1e-15
"""Probabilities are kept this far from 0 and 1, as the RSNA challenge does."""


def log_loss(
    probabilities: NDArray[np.floating], labels: NDArray[np.floating], *, any_weight: float = ANY_WEIGHT
) -> float:
    """Weighted log loss of ``(slices, labels)``, *any* first with double weight (Nguyen et al. 2020, section 3.2).

    With an `any_weight` of 1, for labels without *any*, it is the plain mean.
    """
    p = np.clip(np.asarray(probabilities, np.float64), CLIP, 1 - CLIP)
    y = np.asarray(labels, np.float64)
    losses = -(y * np.log(p) + (1 - y) * np.log1p(-p))
    weights = np.ones(p.shape[1])
    if p.shape[1] > 1:
        weights[0] = any_weight
    return float((losses @ weights).mean() / weights.sum())


def prior_log_loss(
    labels: NDArray[np.floating], prior: NDArray[np.floating] | None = None, *, any_weight: float = ANY_WEIGHT
) -> float:
    """Log loss of answering every slice with the labels' frequencies (`prior`; by default of `labels` themselves)."""
    rates = np.asarray(labels, np.float64).mean(0) if prior is None else np.asarray(prior, np.float64)
    return log_loss(np.broadcast_to(rates, labels.shape), labels, any_weight=any_weight)


def auc(scores: NDArray[np.floating], truth: NDArray[np.generic]) -> float | None:
    """Area under the ROC curve by ranks, ties counted half; None when one class is missing."""
    positive = np.asarray(truth, bool)
    n_positive, n_negative = int(positive.sum()), int((~positive).sum())
    if not n_positive or not n_negative:
        return None
    _, place, counts = np.unique(np.asarray(scores, np.float64), return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks = (last - (counts - 1) / 2)[place]
    return float((ranks[positive].sum() - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative))


def rate(hits: int, cases: int) -> Rate:
    """`hits` of `cases` with the Wilson score interval at 95 %; no value, and 0..1, when there are no cases."""
    if not cases:
        return Rate(hits=0, cases=0, value=None, low=0.0, high=1.0)
    z = 1.959963984540054
    share = hits / cases
    centre = (share + z * z / (2 * cases)) / (1 + z * z / cases)
    half = z / (1 + z * z / cases) * math.sqrt(share * (1 - share) / cases + z * z / (4 * cases * cases))
    # Rounding must not put a share of none or of all outside its own interval.
    low, high = min(share, max(0.0, centre - half)), max(share, min(1.0, centre + half))
    return Rate(hits=hits, cases=cases, value=share, low=low, high=high)


@dataclass(frozen=True, kw_only=True)
class ScanFigures(Json):
    """How well scans are called positive or negative."""

    sensitivity: Rate
    specificity: Rate
    accuracy: Rate
    precision: Rate
    f1: float | None
    auc: float | None


def scan_figures(scores: NDArray[np.floating], truth: NDArray[np.generic], *, threshold: float) -> ScanFigures:
    """Judge scans called positive where their score is at least `threshold`."""
    positive, called = np.asarray(truth, bool), np.asarray(scores, np.float64) >= threshold
    hits = int((called & positive).sum())
    rejected = int((~called & ~positive).sum())
    wrong = len(positive) - hits - rejected
    return ScanFigures(
        sensitivity=rate(hits, int(positive.sum())),
        specificity=rate(rejected, int((~positive).sum())),
        accuracy=rate(hits + rejected, len(positive)),
        precision=rate(hits, int(called.sum())),
        f1=2 * hits / (2 * hits + wrong) if hits + wrong else None,
        auc=auc(scores, truth),
    )


def operating_point(scores: NDArray[np.floating], truth: NDArray[np.generic]) -> float:
    """Threshold of the greatest sensitivity + specificity (Youden's J), in the middle of the gap between two scores.

    Among equals the widest gap wins, so that the threshold stands as far from any scan as the data allow.
    """
    positive = np.asarray(truth, bool)
    ordered = np.unique(np.asarray(scores, np.float64))
    edges = np.concatenate([[0.0], ordered, [1.0]])
    best, width, answer = -1.0, -1.0, 0.5
    for low, high in pairwise(edges):
        middle = (low + high) / 2
        called = scores >= middle
        youden = called[positive].mean() + (~called[~positive]).mean() if positive.any() and (~positive).any() else 0.0
        if youden > best + 1e-12 or (abs(youden - best) <= 1e-12 and high - low > width):
            best, width, answer = float(youden), float(high - low), float(middle)
    return answer


def sensitive_point(
    scores: NDArray[np.floating], truth: NDArray[np.generic], *, sensitivity: float = 0.95
) -> float | None:
    """The highest threshold whose sensitivity is at least so great by the lower end of its Wilson interval.

    It stands in the middle of the gap below the least score that it calls. None where there are too few positive scans
    to be so sure: with every one of them found, 0.95 needs 73.
    """
    positive = np.asarray(truth, bool)
    values = np.asarray(scores, np.float64)
    found, cases = np.sort(values[positive]), int(positive.sum())
    for missed in reversed(range(cases)):
        if rate(cases - missed, cases).low >= sensitivity:
            least = found[missed]
            return float((max(values[values < least], default=0.0) + least) / 2)
    return None
