"""The worst errors, sorted: scans called wrongly, and slices with the greatest loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from inference.result import ANY, LABELS, Json
from training.judging.cohorts import subtypes_of
from training.judging.scans import Judged
from training.metrics import CLIP
from training.reading import Read

MOST = 24


@dataclass(frozen=True, kw_only=True)
class Wrong(Json):
    """A scan that is called wrongly, or a slice of one; `slice` counts from 0 at the feet."""

    source: str
    study_uid: str
    score: float
    subtypes: tuple[str, ...]
    slice: int


@dataclass(frozen=True, kw_only=True)
class Errors(Json):
    """The worst of each kind, worst first, and how many there are in all."""

    missed_scans: int
    false_alarms: int
    missed: tuple[Wrong, ...]
    alarms: tuple[Wrong, ...]
    slices: tuple[Wrong, ...]


def errors(found: Judged, *, column: int, most: int = MOST) -> Errors:
    """Errors of the label that stands in this column of the scores.

    A missed scan is shown where it bleeds most, a false alarm where it was thought to.
    """
    missed = np.flatnonzero(~found.called & found.bearing).tolist()
    alarms = np.flatnonzero(found.called & ~found.bearing).tolist()
    return Errors(
        missed_scans=len(missed),
        false_alarms=len(alarms),
        missed=tuple(
            _wrong(found.readings[i], float(found.scores[i]), bleeding_slice(found.readings[i]))
            for i in sorted(missed, key=lambda i: found.scores[i])[:most]
        ),
        alarms=tuple(
            _wrong(found.readings[i], float(found.scores[i]), int(found.readings[i].scores[:, column].argmax()))
            for i in sorted(alarms, key=lambda i: -found.scores[i])[:most]
        ),
        slices=_slices(found.readings, LABELS.index(found.label), column, most),
    )


def _slices(readings: Sequence[Read], label: int, column: int, most: int) -> tuple[Wrong, ...]:
    """The slices with the greatest log loss, of each scan the worst one alone."""
    worst = []
    for reading in readings:
        truth, scores = reading.scan.labels[:, label], np.clip(reading.scores[:, column], CLIP, 1 - CLIP)
        loss = np.where(truth == 1, -np.log(scores), np.where(truth == 0, -np.log1p(-scores), 0.0))
        place = int(loss.argmax())
        if loss[place] > np.log(2):  # on the wrong side of one half
            worst.append((float(loss[place]), reading, place))
    worst.sort(key=lambda one: -one[0])
    return tuple(_wrong(reading, float(reading.scores[place, column]), place) for _, reading, place in worst[:most])


def bleeding_slice(reading: Read) -> int:
    """The slice with the largest outline; else the middle one of those labelled positive; else of all."""
    masks = reading.scan.array("masks")
    if masks is not None and np.any(masks):
        return int(np.argmax([np.count_nonzero(mask) for mask in masks]))
    positive = np.flatnonzero(reading.scan.labels[:, LABELS.index(ANY)] == 1)
    return int(positive[len(positive) // 2]) if len(positive) else len(reading.scan) // 2


def _wrong(reading: Read, score: float, place: int) -> Wrong:
    facts = reading.scan.facts
    return Wrong(
        source=facts.source,
        study_uid=facts.study_uid,
        score=score,
        subtypes=tuple(subtypes_of(reading.scan)),
        slice=place,
    )
