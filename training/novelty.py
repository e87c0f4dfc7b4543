"""Fitting the out-of-distribution guard: what the scans of training were like, and how unlike held-out ones get."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.covariance import LedoitWolf

from inference.novelty import Features, Guard, Watch, pooled
from training.described import Described
from training.errors import DataError
from training.metrics import rate

Floats = NDArray[np.float64]

FALSE_ALARMS = 0.01
"""Part of the scans like those of training that each of the two distances takes for unlike."""

FOLDS = 5
FEWEST = 10
"""Scans from which a guard can be fitted."""

AXES = 32
"""Directions of the features' covariance that are kept apart; along all others the variance is taken as one."""

NARROWEST = 0.1
"""A range is at least this part of its middle wide: what hardly varies must not raise the alarm for nothing."""


def fit(scans: Sequence[Described], *, features: bool, data: str) -> Watch:
    """The guard from scans of training or validation.

    Each distance's limit is the quantile ``1 - FALSE_ALARMS`` of scans held out in turn from the fit (`FOLDS` of
    them): those a guard was fitted on lie closer to themselves than any new scan does.

    Raises ``DataError`` for too few scans, or scans without measures.
    """
    if len(scans) < FEWEST or not all(scan.scan.facts.measures for scan in scans):
        raise DataError(f"a guard needs at least {FEWEST} scans with measures")
    measures = [scan.scan.facts.measures for scan in scans]
    rows = np.stack([_descriptor(scan) for scan in scans]) if features else None
    seen, felt = np.zeros(len(scans)), np.zeros(len(scans))
    for fold in range(FOLDS):
        inside = [i for i in range(len(scans)) if i % FOLDS != fold]
        guard = Guard(ranges=fit_ranges([measures[i] for i in inside]), input_limit=1.0, data=data, scans=len(inside))
        fitted = fit_features(rows[inside]) if rows is not None else None
        for i in range(fold, len(scans), FOLDS):
            seen[i] = guard.input_distance(measures[i])
            felt[i] = fitted.distance(rows[i]) if fitted is not None and rows is not None else 0.0
    guard = Guard(
        ranges=fit_ranges(measures),
        input_limit=max(limit_of(seen), 1e-3),
        feature_limit=limit_of(felt) if rows is not None else None,
        data=data,
        scans=len(scans),
    )
    return Watch(guard=guard, features=fit_features(rows) if rows is not None else None)


def tried(watch: Watch, scans: Sequence[Described]) -> Watch:
    """The guard with how many of these scans, which it was not fitted on, it takes for unlike those it was."""
    over = sum(unlike(watch, scan) for scan in scans)
    return replace(watch, guard=replace(watch.guard, over=rate(over, len(scans))))


def unlike(watch: Watch, scan: Described) -> bool:
    """Whether the guard takes the scan for unlike those it was fitted on."""
    return watch.judge(scan.scan.facts.measures, scan.shown.numpy(), blank_marked=False).unlike


def limit_of(distances: NDArray[np.floating[Any]]) -> float:
    """The distance that a further scan of the kind exceeds with a probability of at most `FALSE_ALARMS`.

    That is the ⌈(n + 1)(1 - α)⌉-th smallest (Vovk et al. 2005, the conformal quantile); the largest where there are
    too few to tell.
    """
    place = min(len(distances), math.ceil((len(distances) + 1) * (1 - FALSE_ALARMS)))
    return float(np.sort(distances)[place - 1])


def fit_ranges(measures: Sequence[Mapping[str, float]]) -> dict[str, tuple[float, float]]:
    """From the least to the greatest value of each measure that every scan has."""
    names = set.intersection(*(set(found) for found in measures))
    ranges = {}
    for name in (name for name in measures[0] if name in names):
        low, high = (end(found[name] for found in measures) for end in (min, max))
        widen = max(0.0, NARROWEST * max(abs(low + high) / 2, 1.0) - (high - low)) / 2
        ranges[name] = (round(low - widen, 4), round(high + widen, 4))
    return ranges


def fit_features(rows: Floats) -> Features:
    """Mean and shrunk covariance of pooled descriptors (n, d), by its `AXES` largest axes and one variance beyond."""
    fitted = LedoitWolf().fit(rows)
    variances, axes = np.linalg.eigh(fitted.covariance_)
    kept = min(AXES, len(variances) - 1)
    return Features(
        mean=np.asarray(fitted.location_, np.float64),
        axes=axes[:, ::-1][:, :kept].T.copy(),
        variances=variances[::-1][:kept].copy(),
        rest=np.array([variances[: len(variances) - kept].mean()]),
    )


def _descriptor(scan: Described) -> Floats:
    return pooled(scan.shown.numpy(), blank_marked=False)
