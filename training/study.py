"""A labelled study: the one value that every source yields, whatever its files look like."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inference.result import LABELS, SUBTYPES, Json

Arrays = Mapping[str, NDArray[Any]]
"""A decoded volume by name.

hu : int16 (slices, rows, columns), from feet to head
spacing : float64 (2,), distance of rows and of columns in mm
positions : float64 (slices,), mm along the normal
uids : str (slices,), what `LabelledStudy.slice_labels` calls each slice
digests : uint8 (slices, 32), SHA-256 of each slice's pixels
thickness : float64 (slices,), mm, NaN where the file does not say; absent where the source does not
labels : float32 (slices, 6), only where making the volume makes its labels
masks : uint8 (slices, rows, columns), one bit for each subtype; only where there are outlines
"""

Labels = tuple[float | None, ...]
"""Six labels in the order of `inference.result.LABELS`: 1, 0, or None where nobody said."""

UNKNOWN: Labels = (None,) * len(LABELS)
NEGATIVE: Labels = (0.0,) * len(LABELS)


@dataclass(frozen=True, kw_only=True)
class CohortFacts(Json):
    """What figures are broken down by (21 CFR 892.2080 asks for such tables); None where the source does not say."""

    manufacturer: str | None = None
    model: str | None = None
    kernel: str | None = None
    thickness_mm: float | None = None
    spacing_mm: float | None = None
    pixel_mm: float | None = None
    slices: int | None = None
    age_years: float | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelledStudy:
    """One series of one study with what is known to bleed in it. Nothing is decoded until `decode` is called.

    Attributes
    ----------
    source : str
        rsna, cq500, physionet, archive or phantom.
    patient : str
        The same for all studies of a patient in every source, and no patient's name: see `patient_key`.
    study_uid, series_uid : str
        As the source has them; they need not be legal UIDs.
    group : str
        What figures are also given separately for, such as a phantom's preset.
    key : str
        Digest (hex) of all that the decoded volume depends on: files, or seed and specification.
    decode : callable
        Makes the volume; can be sent to another process.
    headers : callable or None
        What the headers say of the slices, without their pixels: *header*, float32 (slices, d) in the order of
        `inference.metadata.FACTS`, with *uids* and *labels* as `Arrays` has them, in any order of slices. None where
        the source has no DICOM headers.
    labels : six of 0, 1, None
        Of the whole study.
    slice_labels : mapping or None
        The name of each labelled slice → its six labels. None where only the study is labelled.
    readers : mapping
        Each reader's own six labels of the study, where several read it.
    revision : int
        Of the node's study; 0 elsewhere.
    """

    source: str
    patient: str
    study_uid: str
    series_uid: str = ""
    group: str = ""
    key: str
    decode: Callable[[], Arrays]
    headers: Callable[[], Arrays] | None = None
    labels: Labels = UNKNOWN
    slice_labels: Mapping[str, Labels] | None = None
    readers: Mapping[str, Labels] = field(default_factory=dict)
    facts: CohortFacts = field(default_factory=CohortFacts)
    revision: int = 0

    def label_slices(self, volume: Arrays) -> NDArray[np.float32]:
        """Labels (slices, 6) of the decoded `volume`, NaN where nobody said.

        A study that is negative for a label is so in each of its slices.
        """
        if "labels" in volume:
            return np.array(volume["labels"], np.float32)
        known = self.slice_labels or {}
        found = _floats([known.get(str(uid), UNKNOWN) for uid in volume["uids"]])
        absent = _floats([self.labels])[0] == 0
        found[:, absent] = np.where(np.isnan(found[:, absent]), 0, found[:, absent])
        return found

    def label_study(self, slices: NDArray[np.float32]) -> NDArray[np.float32]:
        """Labels (6,) of the study: its own, else those of its labelled `slices`; NaN where nobody said."""
        own = _floats([self.labels])[0]
        positive, all_known = (slices == 1).any(0), ~np.isnan(slices).any(0)
        seen = np.where(positive, 1, np.where(all_known, 0, np.nan)).astype(np.float32)
        return np.where(np.isnan(own), seen, own).astype(np.float32)


def patient_key(patient_id: str) -> str:
    """A name for a patient that says nothing about who it is, and is the same in every source that has this ID."""
    return hashlib.sha256(patient_id.strip().encode()).hexdigest()[:32]


def volume_key(*parts: Any) -> str:
    """Digest (hex) of JSON values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def slice_digests(hu: NDArray[np.int16]) -> NDArray[np.uint8]:
    """SHA-256 of the pixels of each slice, (slices, 32); zeros for a slice of one value, which anybody may have."""
    found = np.zeros((len(hu), 32), np.uint8)
    for place, pixels in enumerate(hu):
        if pixels.min() != pixels.max():
            found[place] = np.frombuffer(hashlib.sha256(pixels.tobytes()).digest(), np.uint8)
    return found


def with_any(subtypes: Mapping[str, float | None], *, bleeding: float | None = None) -> Labels:
    """Six labels from some subtypes; *any* is `bleeding`, or else follows from them where it can."""
    known = [subtypes.get(name) for name in SUBTYPES]
    if bleeding is None and 1 in known:
        bleeding = 1.0
    elif bleeding is None and None not in known:
        bleeding = 0.0
    return NEGATIVE if bleeding == 0 and 1 not in known else (bleeding, *known)


def majority(votes: Sequence[Labels]) -> Labels:
    """What most of those who said something say; None for a tie and where nobody did."""
    decided: list[float | None] = []
    for column in zip(*votes, strict=True):
        given = [vote for vote in column if vote is not None]
        share = sum(given) / len(given) if given else 0.5
        decided.append(None if share == 0.5 else float(share > 0.5))
    return tuple(decided) or UNKNOWN


def _floats(rows: Sequence[Labels]) -> NDArray[np.float32]:
    return np.array([[np.nan if v is None else v for v in row] for row in rows], np.float32).reshape(-1, len(LABELS))
