"""Fitting calibration on validation scans: temperatures of slices, curves of scans; and how far off scores are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.isotonic import IsotonicRegression

from inference.calibration import Curve
from inference.result import Json

Floats = NDArray[np.floating]

BINS = 15
"""Of equal mass, for the expected calibration error."""

COLDEST, HOTTEST = 0.05, 20.0
"""Temperatures beyond these say that the logits tell nothing, or everything."""

NEWTON_STEPS = 50


def fit_temperature(logits: Floats, truth: Floats) -> float:
    """The temperature T that gives the logits (n,) divided by it the least log loss (Guo et al. 2017, section 4.2).

    The loss is convex in 1/T, so that Newton's steps, kept within bounds, find its one minimum.
    """
    z, y = np.asarray(logits, np.float64), np.asarray(truth, np.float64)
    inverse = 1.0
    for _ in range(NEWTON_STEPS):
        p = 1 / (1 + np.exp(-np.clip(inverse * z, -700, 700)))
        slope, bend = ((p - y) * z).sum(), (p * (1 - p) * z * z).sum()
        step = slope / bend if bend > 0 else np.sign(slope) * inverse
        # A step of Newton's may leave for where the loss is flat: at most halve or double.
        new = float(np.clip(inverse - step, max(inverse / 2, 1 / HOTTEST), min(inverse * 2, 1 / COLDEST)))
        if abs(new - inverse) < 1e-10 * inverse:
            break
        inverse = new
    return 1 / inverse


def fit_curve(scores: Floats, truth: NDArray[np.generic]) -> Curve:
    """Isotonic regression of the truth (n,) on the scores (n,).

    The truth counts as Platt's targets, (positives + 1) / (positives + 2) and 1 / (negatives + 2), in place of 1 and 0:
    from a finite number of scans nothing becomes certain (Platt 1999, section 2.2).
    """
    positive = np.asarray(truth, bool)
    targets = np.where(positive, (positive.sum() + 1) / (positive.sum() + 2), 1 / ((~positive).sum() + 2))
    fitted = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(np.asarray(scores, np.float64), targets)
    return Curve(scores=tuple(map(float, fitted.X_thresholds_)), probabilities=tuple(map(float, fitted.y_thresholds_)))


@dataclass(frozen=True, kw_only=True)
class Reliability(Json):
    """How far numbers are from being probabilities: Brier score, and expected calibration error over equal masses."""

    cases: int
    brier: float
    ece: float


def reliability(values: Floats, truth: NDArray[np.generic]) -> Reliability:
    """Of values (n,) in 0…1 beside the truth (n,); the error is taken over `BINS` groups of equally many cases."""
    p, y = np.asarray(values, np.float64), np.asarray(truth, np.float64)
    groups = np.array_split(np.argsort(p, kind="stable"), min(BINS, len(p)))
    ece = sum(len(group) * abs(float(p[group].mean() - y[group].mean())) for group in groups) / len(p)
    return Reliability(cases=len(p), brier=float(((p - y) ** 2).mean()), ece=ece)
