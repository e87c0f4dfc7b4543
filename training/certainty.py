"""How sure a model is, fitted on validation scans and measured on others: calibration, operating points, guard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inference.calibration import Calibration, ScanCalibration
from inference.card import ModelCard
from inference.decision import ScanRule
from inference.models import ScanModel
from inference.novelty import Watch
from inference.result import LABELS, OperatingPoint
from training import novelty
from training.calibration import Reliability, fit_curve, fit_temperature, reliability
from training.described import Described
from training.metrics import operating_point, rate, sensitive_point
from training.reading import Read, labelled, labelled_throughout, logits, read, recalibrated, scan_scores, truth

FEWEST = 8
"""Scans on either side that an operating point or a calibration is fitted on."""

BALANCED = "balanced"
"""The greatest sum of sensitivity and specificity."""
HIGH_SENSITIVITY = "high sensitivity"
"""The highest threshold whose sensitivity is at least 0.95 by the lower end of its interval."""
UNTUNED = "untuned"
"""One half, where too few scans speak for another."""


@dataclass(frozen=True, kw_only=True)
class Certainty:
    """What was fitted, to be put into a card."""

    calibration: Calibration
    points: dict[str, dict[str, float]]
    """Label → name → threshold on the score of the scan; the first is in force."""
    watch: Watch | None

    @property
    def thresholds(self) -> dict[str, float]:
        """The threshold in force for each label."""
        return {label: next(iter(points.values())) for label, points in self.points.items()}


def fit(
    model: ScanModel,
    scans: Sequence[Described],
    *,
    labels: Sequence[str],
    rule: ScanRule,
    data: str,
    bleeding_only: bool = False,
) -> Certainty:
    """Everything that says how sure `model` is, from validation scans; `data` says which they are.

    With `bleeding_only`, as in the card, everything but the guard is fitted on the slices that bleed.

    First the temperatures of the slices, from scans that are labelled slice by slice; then, on the scores that these
    give, operating points and calibration of the scans. A label that fewer than `FEWEST` of these scans bear, or lack,
    is left uncalibrated at one half: so few say nothing. Fewer than `novelty.FEWEST` scans give no guard, nor do scans
    whose images were not measured.
    """
    raw = read(model, scans, bleeding_only=bleeding_only)
    temperature = {label: t for i, label in enumerate(labels) if (t := _temperature(raw, i, label)) is not None}
    readings = recalibrated(raw, Calibration(temperature=temperature), labels=labels)
    points: dict[str, dict[str, float]] = {}
    curves = {}
    for index, label in enumerate(labels):
        scores, bearing = _scores(readings, index, label, rule)
        points[label] = {UNTUNED: 0.5}
        if _enough(bearing):
            points[label] = _points(scores, bearing)
            curves[label] = ScanCalibration(
                curve=fit_curve(scores, bearing), prevalence=float(bearing.mean()), scans=len(bearing), data=data
            )
    measured = len(scans) >= novelty.FEWEST and all(scan.scan.facts.measures for scan in scans)
    return Certainty(
        calibration=Calibration(temperature=temperature, scan=curves),
        points=points,
        watch=novelty.fit(scans, features=model.describes, data=data) if measured else None,
    )


def put(card: ModelCard, fitted: Certainty, model: ScanModel, scans: Sequence[Described], *, on: str) -> ModelCard:
    """The card with what was fitted, and what it reaches on `scans`; `on` says which they are.

    The card claims to be calibrated where these scans do not refute it.
    """
    readings = read(model, scans, bleeding_only=card.bleeding_only)
    calibrated = recalibrated(readings, fitted.calibration, labels=card.labels)
    points = {
        label: tuple(
            _measured(name, threshold, *_scores(calibrated, index, label, card.rule), on=on)
            for name, threshold in fitted.points[label].items()
        )
        for index, label in enumerate(card.labels)
    }
    watch = novelty.tried(fitted.watch, scans) if fitted.watch and scans else fitted.watch
    found = before_and_after(readings, calibrated, card, fitted.calibration)
    return replace(
        card,
        thresholds=fitted.thresholds,
        operating_points=points,
        calibration=fitted.calibration,
        calibrated=_holds(found, card.labels),
        guard=watch.guard if watch else None,
        figures={**card.figures, "calibration": found},
    )


def _holds(found: Mapping[str, Any], labels: Sequence[str]) -> bool:
    """Whether scans of every label have probabilities that scans they were not fitted on do not refute."""
    after = {label: Reliability.from_json(both["after"]) for label, both in found["scans"].items()}
    return all(label in after and not after[label].refuted for label in labels)


def before_and_after(
    raw: Sequence[Read], calibrated: Sequence[Read], card: ModelCard, calibration: Calibration
) -> dict[str, Any]:
    """Brier score and expected calibration error, label by label, of slices and of scans, as plain JSON values.

    A label of which nobody said anything in these scans is left out.
    Of a scan, *before* is its score taken for a probability, which it is not.
    """
    slices, scans = {}, {}
    for index, label in enumerate(card.labels):
        found = _slices(raw, label)
        if (known := ~np.isnan(found)).any():
            before, after = (np.concatenate([one.scores[:, index] for one in of])[known] for of in (raw, calibrated))
            slices[label] = {
                "before": reliability(before, found[known]).to_json(),
                "after": reliability(after, found[known]).to_json(),
            }
        scores, bearing = _scores(calibrated, index, label, card.rule)
        if label in calibration.scan and len(scores):
            scans[label] = {
                "before": reliability(scores, bearing).to_json(),
                "after": reliability(calibration.scan[label].curve(scores), bearing).to_json(),
            }
    return {"slices": slices, "scans": scans}


def _enough(bearing: NDArray[np.bool_]) -> bool:
    return int(min(bearing.sum(), (~bearing).sum())) >= FEWEST


def _temperature(readings: Sequence[Read], index: int, label: str) -> float | None:
    """None from too few scans. One with unlabelled slices is none of them: only its clean ones are known as such."""
    shown = [one.of(one.scan.shown) for one in readings if one.scan.shown.any()]
    whole = labelled_throughout(shown, label=LABELS.index(label))
    if not _enough(np.array([_slices([one], label).any() for one in whole], bool)):
        return None
    return fit_temperature(logits(whole, label=index), _slices(whole, label))


def _slices(readings: Sequence[Read], label: str) -> NDArray[np.float32]:
    """The label of every slice, NaN where nobody said."""
    none = np.empty(0, np.float32)
    return np.concatenate([none, *(one.scan.labels[:, LABELS.index(label)] for one in readings)])


def _points(scores: NDArray[np.float64], bearing: NDArray[np.bool_]) -> dict[str, float]:
    points = {BALANCED: operating_point(scores, bearing)}
    sensitive = sensitive_point(scores, bearing)
    return points if sensitive is None else points | {HIGH_SENSITIVITY: sensitive}


def _scores(
    readings: Sequence[Read], index: int, label: str, rule: ScanRule
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Scores and truth of the scans of which somebody said whether they bear the label, column `index` of scores."""
    known = labelled(readings, label=LABELS.index(label))
    return scan_scores(known, label=index, rule=rule), truth(known, label=LABELS.index(label))


def _measured(
    name: str, threshold: float, scores: NDArray[np.float64], bearing: NDArray[np.bool_], *, on: str
) -> OperatingPoint:
    called = scores >= threshold
    return OperatingPoint(
        name=name,
        threshold=threshold,
        sensitivity=rate(int((called & bearing).sum()), int(bearing.sum())),
        specificity=rate(int((~called & ~bearing).sum()), int((~bearing).sum())),
        on=on,
    )
