"""What a model reaches at a fixed specificity or sensitivity, and how far its scores are from being probabilities."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from inference.result import Json, Rate
from training.metrics import rate

SPECIFICITIES = (0.8, 0.9, 0.95, 0.99)


def sensitivity_at(scores: NDArray[np.float64], truth: NDArray[np.generic], *, specificity: float) -> Rate:
    """The greatest sensitivity at a threshold whose specificity is at least so great, on these very cases.

    Without negative cases there is no specificity to keep, and the answer has no cases.
    """
    bearing = np.asarray(truth, bool)
    negative = np.sort(scores[~bearing])
    if not len(negative):
        return rate(0, 0)
    kept = int(np.ceil(specificity * len(negative) - 1e-9))
    # `kept` negatives must lie below the threshold: the first score above the last of them calls as much as may be.
    hits = int((scores[bearing] > negative[kept - 1]).sum()) if kept else int(bearing.sum())
    return rate(hits, int(bearing.sum()))


@dataclass(frozen=True, kw_only=True)
class Bin(Json):
    """Cases whose values lie close together: the mean of the values, and how often the label is borne."""

    mean: float
    share: Rate


def reliability_table(values: NDArray[np.float64], truth: NDArray[np.generic], *, bins: int = 10) -> tuple[Bin, ...]:
    """The reliability diagram in numbers: groups of equally many cases, the least values first."""
    bearing = np.asarray(truth, bool)
    groups = np.array_split(np.argsort(values, kind="stable"), min(bins, len(values))) if len(values) else []
    return tuple(
        Bin(mean=float(values[group].mean()), share=rate(int(bearing[group].sum()), len(group))) for group in groups
    )
