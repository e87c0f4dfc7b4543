"""Which slice it is and where it lies in the head: all that must be kept of a slice besides its descriptors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from inference.card import ModelError
from inference.result import Json


class ScanSlice(Protocol):
    """What must be known of one slice to encode it and to place it."""

    @property
    def sop_instance_uid(self) -> str:
        """The instance the slice came from."""

    @property
    def frame(self) -> int | None:
        """Frame number from 1; None for single-frame images."""

    @property
    def hu(self) -> NDArray[np.int16]:
        """Hounsfield units (rows, columns)."""

    @property
    def position(self) -> Any:
        """Centre of the first pixel: x, y, z in mm."""

    @property
    def orientation(self) -> Any:
        """Direction cosines of the rows, then of the columns: six numbers."""

    @property
    def pixel_spacing(self) -> Any:
        """Distance between rows, then between columns, in mm."""

    @property
    def thickness(self) -> float | None:
        """Slice thickness in mm."""


@dataclass(frozen=True, kw_only=True)
class SlicePlace(Json):
    """Which slice it is and where it lies: its position projected on the normal that points to the top of the head."""

    sop_instance_uid: str
    frame: int | None = None
    position_mm: float
    thickness_mm: float | None = None


def place_of(scan_slice: ScanSlice) -> SlicePlace:
    """Where the slice lies. Raises ``ModelError`` for an orientation without a normal."""
    rows, columns = np.asarray(scan_slice.orientation, dtype=np.float64).reshape(2, 3)
    normal = np.cross(rows, columns)
    length = float(np.linalg.norm(normal))
    if not length > 0:
        raise ModelError(f"slice {scan_slice.sop_instance_uid} has the orientation {list(scan_slice.orientation)}")
    # Of a patient lying prone or feet first the normal may point down; the networks have learnt scans that go up.
    upwards = -1.0 if normal[2] < 0 else 1.0
    position = upwards * float(np.dot(np.asarray(scan_slice.position, dtype=np.float64), normal)) / length
    return SlicePlace(
        sop_instance_uid=scan_slice.sop_instance_uid,
        frame=scan_slice.frame,
        position_mm=position,
        thickness_mm=scan_slice.thickness,
    )
