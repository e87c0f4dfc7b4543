"""Scans beside what a model said of them for one label: what every table of scans is counted from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from inference.card import ModelCard
from inference.decision import ScanRule
from inference.result import LABELS
from training.dataset import Scan
from training.metrics import ScanFigures, scan_figures
from training.reading import Read, labelled, scan_scores, truth

Key = tuple[str, str, int]
"""Source, study and revision: the same scan for every model."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Judged:
    """Scans of which somebody said whether they bear the label, with their scores (scans,)."""

    label: str
    threshold: float
    readings: Sequence[Read]
    scores: NDArray[np.float64]
    bearing: NDArray[np.bool_]

    @property
    def called(self) -> NDArray[np.bool_]:
        """Whether each scan is called positive."""
        return np.asarray(self.scores >= self.threshold, bool)

    @property
    def right(self) -> NDArray[np.bool_]:
        """Whether each scan is called as it is."""
        return np.asarray(self.called == self.bearing, bool)

    @property
    def patients(self) -> list[str]:
        """Whose scan each is."""
        return [one.scan.facts.patient for one in self.readings]

    def of(self, chosen: NDArray[np.bool_]) -> Judged:
        """These scans alone."""
        return Judged(
            label=self.label,
            threshold=self.threshold,
            readings=[one for one, wanted in zip(self.readings, chosen, strict=True) if wanted],
            scores=self.scores[chosen],
            bearing=self.bearing[chosen],
        )

    def figures(self) -> ScanFigures:
        """Sensitivity, specificity and the rest."""
        return scan_figures(self.scores, self.bearing, threshold=self.threshold)


def judged(readings: Sequence[Read], *, label: str, labels: Sequence[str], rule: ScanRule, threshold: float) -> Judged:
    """`readings` for one of the `labels` under a rule; scans of which nobody said whether they bear it are left out."""
    known = labelled(readings, label=LABELS.index(label))
    return Judged(
        label=label,
        threshold=threshold,
        readings=known,
        scores=scan_scores(known, label=list(labels).index(label), rule=rule),
        bearing=truth(known, label=LABELS.index(label)),
    )


def by_card(card: ModelCard, readings: Sequence[Read], label: str) -> Judged:
    """`readings` for one label, as the card decides."""
    return judged(readings, label=label, labels=card.labels, rule=card.rule, threshold=card.thresholds[label])


def key_of(scan: Scan) -> Key:
    """What names the scan in every model's readings."""
    return scan.facts.source, scan.facts.study_uid, scan.facts.revision


def digest(scans: Sequence[Scan]) -> str:
    """SHA-256 (hex) of a test set: studies, patients, labels and decoded pixels, in whatever order they come."""
    entries = sorted(_entry(scan) for scan in scans)
    return hashlib.sha256(json.dumps(entries).encode()).hexdigest()


def _entry(scan: Scan) -> list[str]:
    labels = hashlib.sha256(scan.labels.tobytes() + scan.study_labels.tobytes()).hexdigest()
    pixels = hashlib.sha256(np.ascontiguousarray(scan.digests).tobytes()).hexdigest()
    return [*map(str, key_of(scan)), scan.facts.patient, labels, pixels]


def paired(first: Judged, second: Judged) -> tuple[Judged, Judged]:
    """The scans that both models read, in the same order."""
    places = {key_of(one.scan): place for place, one in enumerate(second.readings)}
    common = [place for place, one in enumerate(first.readings) if key_of(one.scan) in places]
    there = [places[key_of(first.readings[place].scan)] for place in common]
    return _at(first, common), _at(second, there)


def _at(found: Judged, places: Sequence[int]) -> Judged:
    return Judged(
        label=found.label,
        threshold=found.threshold,
        readings=[found.readings[place] for place in places],
        scores=found.scores[list(places)],
        bearing=found.bearing[list(places)],
    )
