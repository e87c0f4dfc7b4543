"""Which studies went into a model, and on which side of its split: a file beside the weights, with a digest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from training.errors import DataError

DATASET_FILE = "dataset.json"


class Whose(Protocol):
    """Which study something is of."""

    @property
    def source(self) -> str: ...
    @property
    def study_uid(self) -> str: ...
    @property
    def revision(self) -> int: ...
    @property
    def patient(self) -> str: ...


class Labelled(Protocol):
    """A scan with its labels: `training.dataset.Scan`, or what is known of one without its pixels."""

    @property
    def facts(self) -> Whose: ...
    @property
    def labels(self) -> NDArray[np.float32]: ...
    @property
    def study_labels(self) -> NDArray[np.float32]: ...


def of(sides: Mapping[str, Sequence[Labelled]], *, said: Mapping[str, Any]) -> bytes:
    """The manifest of a split: each study with its patient, revision and the digest of its labels, side by side.

    `said` is what was asked for: source, seed, shares.
    """
    content = {
        **said,
        "sides": {side: [_entry(scan) for scan in scans] for side, scans in sides.items()},
    }
    return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()


def patients(path: Path, *, besides: Sequence[str] = ()) -> set[str]:
    """Every patient of the manifest in `path`, but those of the sides `besides`."""
    try:
        sides = json.loads(path.read_bytes())["sides"]
        return {entry["patient"] for side, entries in sides.items() if side not in besides for entry in entries}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is no list of the studies that a model was made from: {error}") from error


def _entry(scan: Labelled) -> dict[str, Any]:
    facts = scan.facts
    return {
        "source": facts.source,
        "study_uid": facts.study_uid,
        "revision": facts.revision,
        "patient": facts.patient,
        "slices": len(scan.labels),
        "labels": hashlib.sha256(scan.labels.tobytes() + scan.study_labels.tobytes()).hexdigest(),
    }
