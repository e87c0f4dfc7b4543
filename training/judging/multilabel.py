"""Figures of several labels at once, as the papers define them: `(cases, labels)` in, one value out.

All are counted over the whole set, never averaged over batches. Calls are made by ``score >= threshold``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from inference.result import Json

Bools = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Multilabel(Json):
    """How well cases get all their labels; None where there is no case, or no label with a denominator.

    Attributes
    ----------
    strict_accuracy : float
        Cases with every label right (Vultur 2021, section 5.1).
    hamming_score : float
        Mean of ``|y ∩ ŷ| / |y ∪ ŷ|`` over the cases, 1 where both are empty (the same section).
    hamming_loss : float
        Share of the labels that are wrong (the same section).
    precision, recall, f1, specificity : float or None
        Means over those labels whose denominator is not zero (the same section).
    accuracy_multi : float or None
        Share of the subtypes that are right on slices that bleed (Khandelwal & Ganguli, "Multilabel Classification",
        which leaves *any* and clean slices out).
    accuracy_multi_of_none : float or None
        The same for who answers that nothing bleeds: what `accuracy_multi` must beat.
    """

    cases: int
    strict_accuracy: float | None
    hamming_score: float | None
    hamming_loss: float | None
    precision: float | None
    recall: float | None
    f1: float | None
    specificity: float | None
    accuracy_multi: float | None
    accuracy_multi_of_none: float | None


def multilabel(called: Bools, truth: Bools, *, any_first: bool) -> Multilabel:
    """Judge calls ``(cases, labels)`` against the truth; `any_first` when the first label is *any*, no subtype."""
    if called.shape != truth.shape:
        raise ValueError(f"calls {called.shape} and truth {truth.shape} differ in shape")
    both, either = (called & truth).sum(1), (called | truth).sum(1)
    hits, missed = (called & truth).sum(0), (~called & truth).sum(0)
    wrong, rejected = (called & ~truth).sum(0), (~called & ~truth).sum(0)
    subtypes = slice(1, None) if any_first else slice(None)
    bleeding = truth.any(1)
    right = (called == truth)[bleeding, subtypes]
    return Multilabel(
        cases=len(truth),
        strict_accuracy=_mean((called == truth).all(1)),
        hamming_score=_mean(np.where(either == 0, 1.0, both / np.maximum(either, 1))),
        hamming_loss=_mean(called != truth),
        precision=_macro(hits, hits + wrong),
        recall=_macro(hits, hits + missed),
        f1=_macro(2 * hits, 2 * hits + wrong + missed),
        specificity=_macro(rejected, rejected + wrong),
        accuracy_multi=_mean(right),
        accuracy_multi_of_none=_mean(~truth[bleeding, subtypes]),
    )


def _mean(values: NDArray[np.generic]) -> float | None:
    return float(values.astype(np.float64).mean()) if values.size else None


def _macro(above: NDArray[np.int64], below: NDArray[np.int64]) -> float | None:
    defined = below > 0
    return float((above[defined] / below[defined]).mean()) if defined.any() else None
