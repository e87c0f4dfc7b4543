"""Fitting calibration on validation scans: temperatures of slices, curves of scans; and how far off scores are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from inference.calibration import Curve
from inference.result import Json

Floats = NDArray[np.floating]

BINS = 15
"""Of equal mass, for the expected calibration error."""

REFUTES = 2.576
"""Of a normal distribution, 1 % lies beyond so many standard deviations."""

CERTAIN = 1e6
"""In place of an infinite z, which JSON does not know: certain numbers, and one of them wrong."""

COLDEST, HOTTEST = 0.05, 20.0
"""Temperatures beyond these say that the logits tell nothing, or everything."""

NEWTON_STEPS = 50

MANY = 1000
"""Cases from which isotonic regression is the better choice."""

TABLE = 1 / (1 + np.exp(-np.linspace(-10, 10, 81)))
"""Scores at which a logistic curve is written down; a straight line between two is off by less than 0.01."""


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
    """Isotonic regression of the truth (n,) on the scores (n,); of fewer than `MANY` cases, logistic regression.

    Isotonic regression can follow any rising curve, and follows chance where cases are few (Niculescu-Mizil and
    Caruana, ICML 2005, section 5).
    """
    return fit_isotonic(scores, truth) if len(scores) >= MANY else fit_logistic(scores, truth)


def fit_isotonic(scores: Floats, truth: NDArray[np.generic]) -> Curve:
    """Isotonic regression of Platt's targets on the scores (n,)."""
    fitted = IsotonicRegression(out_of_bounds="clip").fit(np.asarray(scores, np.float64), _targets(truth))
    return Curve(scores=tuple(map(float, fitted.X_thresholds_)), probabilities=tuple(map(float, fitted.y_thresholds_)))


def fit_logistic(scores: Floats, truth: NDArray[np.generic]) -> Curve:
    """Logistic regression of Platt's targets on the scores' logits (n,), as a table; level where it would fall."""
    p = np.clip(np.asarray(scores, np.float64), *TABLE[[0, -1]])
    z, t = np.log(p) - np.log1p(-p), _targets(truth)
    # Every case counts as positive by its target, and as negative by the rest.
    twice, classes = np.concatenate([z, z])[:, None], np.repeat([1, 0], len(z))
    fitted = LogisticRegression(C=np.inf, tol=1e-8).fit(twice, classes, sample_weight=np.concatenate([t, 1 - t]))
    slope, offset = float(fitted.coef_[0, 0]), float(fitted.intercept_[0])
    if slope < 0:
        slope, offset = 0.0, float(np.log(t.mean()) - np.log1p(-t.mean()))
    probabilities = 1 / (1 + np.exp(-(slope * (np.log(TABLE) - np.log1p(-TABLE)) + offset)))
    return Curve(scores=tuple(TABLE.round(6).tolist()), probabilities=tuple(probabilities.round(6).tolist()))


def _targets(truth: NDArray[np.generic]) -> NDArray[np.float64]:
    """(positives + 1) / (positives + 2) for 1, 1 / (negatives + 2) for 0 (Platt 1999, section 2.2).

    From a finite number of scans nothing becomes certain.
    """
    positive = np.asarray(truth, bool)
    targets: NDArray[np.float64] = np.where(
        positive, (positive.sum() + 1) / (positive.sum() + 2), 1 / ((~positive).sum() + 2)
    )
    return targets


@dataclass(frozen=True, kw_only=True)
class Reliability(Json):
    """How far numbers are from being probabilities.

    Brier score; expected calibration error over equal masses, which chance alone keeps above 0 where cases are few; and
    Spiegelhalter's z (1986), normally distributed where the numbers are probabilities, so that a large one refutes it.
    """

    cases: int
    brier: float
    ece: float
    z: float

    @property
    def refuted(self) -> bool:
        """Whether probabilities would do this less than once in a hundred times."""
        return abs(self.z) > REFUTES


def reliability(values: Floats, truth: NDArray[np.generic]) -> Reliability:
    """Of values (n,) in 0…1 beside the truth (n,); the error is taken over `BINS` groups of equally many cases."""
    p, y = np.asarray(values, np.float64), np.asarray(truth, np.float64)
    groups = np.array_split(np.argsort(p, kind="stable"), min(BINS, len(p)))
    ece = sum(len(group) * abs(float(p[group].mean() - y[group].mean())) for group in groups) / len(p)
    spread = float(np.sqrt(((1 - 2 * p) ** 2 * p * (1 - p)).sum()))
    off = float(((y - p) * (1 - 2 * p)).sum())
    z = off / spread if spread else float(np.copysign(CERTAIN, off)) if off else 0.0
    return Reliability(cases=len(p), brier=float(((p - y) ** 2).mean()), ece=ece, z=z)
