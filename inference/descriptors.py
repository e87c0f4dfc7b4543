"""What remains of a slice once it is encoded: where it lay and its descriptors, kept until the scan is decided."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from inference.card import ModelError
from inference.result import Json

ENTRY_OVERHEAD = 1024
"""Bytes counted for an entry besides its descriptors: its key, its place, the containers."""


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


@dataclass(frozen=True, kw_only=True, eq=False)
class EncodedSlice:
    """A slice's place and its descriptor (d,) for each model by name."""

    place: SlicePlace
    descriptors: dict[str, NDArray[np.float32]]


def take_apart(descriptors: Mapping[str, NDArray[np.float32]], places: Sequence[SlicePlace]) -> list[EncodedSlice]:
    """One encoded slice for each of n places, from descriptors (n, d) by model."""
    return [
        EncodedSlice(place=place, descriptors={name: rows[i].copy() for name, rows in descriptors.items()})
        for i, place in enumerate(places)
    ]


def put_together(encoded: Sequence[EncodedSlice]) -> dict[str, NDArray[np.float32]]:
    """Descriptors (n, d) by model of n encoded slices, one at least, in their order."""
    return {name: np.stack([one.descriptors[name] for one in encoded]) for name in encoded[0].descriptors}


class SliceKey(NamedTuple):
    """What makes a slice the same slice: its identifiers, and the digest of its content as its source knows it."""

    sop_instance_uid: str
    frame: int | None
    digest: str


class DescriptorCache:
    """Encoded slices by key, the least recently used forgotten first, never more than `max_bytes` of them."""

    def __init__(self, *, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._entries: OrderedDict[SliceKey, EncodedSlice] = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def used_bytes(self) -> int:
        """Memory held, in bytes."""
        return self._bytes

    def get(self, key: SliceKey) -> EncodedSlice | None:
        """The slice under this key, None where it never was or is forgotten."""
        if key in self._entries:
            self._entries.move_to_end(key)
        return self._entries.get(key)

    def put(self, key: SliceKey, encoded: EncodedSlice) -> None:
        """Keeps the slice, and forgets others for it where needed. One too large for the cache is not kept."""
        self.forget(key)
        self._entries[key] = encoded
        self._bytes += _size(encoded)
        while self._bytes > self._max_bytes:
            self.forget(next(iter(self._entries)))

    def forget(self, key: SliceKey) -> None:
        """The slice is not in the cache."""
        if (encoded := self._entries.pop(key, None)) is not None:
            self._bytes -= _size(encoded)


def _size(encoded: EncodedSlice) -> int:
    return ENTRY_OVERHEAD + sum(rows.nbytes for rows in encoded.descriptors.values())
