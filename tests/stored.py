"""Files as the archive hands them to who reads a study."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from pydicom import dcmread

from inference.decoding import Stored
from inference.series import facts


def stored(paths: Iterable[Path]) -> list[Stored]:
    """Each file with its header's facts and its digest."""
    return [
        Stored(
            facts=facts(dcmread(path, stop_before_pixels=True)),
            path=path,
            digest=hashlib.sha256(path.read_bytes()).hexdigest(),
        )
        for path in paths
    ]
