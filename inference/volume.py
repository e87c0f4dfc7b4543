"""From DICOM files to Hounsfield units: int16 slices with their geometry, and the stack they make."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian

from inference.errors import UnreadablePixels, WrappedPixels
from inference.facts import InstanceFacts, Orientation, Position, facts
from inference.geometry import StackGeometry, analyse
from inference.header import PARSER_ERRORS, integer, items, number, text, uid
from inference.pixels import Frame, Layout, frames_of, layout_of

AIR_HU = -1024
"""What padding and anything below the Hounsfield scale becomes."""
LEFT_IN_FILE = 8 << 20
"""Bytes: larger pixel data stay in the file, and are read frame by frame. No single slice of a CT has as many."""
_TISSUE_HU = (-900.0, 3000.0)
_PADDING_WORDS = 0xF000
"""Unsigned words from here up are negative numbers (a padding of −1500, −2000 …) that wrapped: no CT goes so high."""
_T = TypeVar("_T", Position, Orientation)
_UNITS = ("HU", "US", "HU_MOD")


@dataclass(frozen=True, kw_only=True, eq=False)
class Slice:
    """One image plane in Hounsfield units.

    `hu` is int16 (rows, columns), padding and everything outside the scan at −1024. `frame` is 1-based, None for a
    single-frame image. `position` and `orientation` are mm and direction cosines in the patient's system,
    `pixel_spacing` the distance between rows, then between columns, `thickness` in mm where the header has it.
    """

    sop_instance_uid: str
    frame: int | None = None
    instance_number: int | None = None
    hu: NDArray[np.int16]
    position: Position
    orientation: Orientation
    pixel_spacing: tuple[float, float]
    thickness: float | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Volume:
    """Slices of one stack from feet to head, one for each position, and the geometry they had before."""

    slices: tuple[Slice, ...]
    positions_mm: tuple[float, ...]
    geometry: StackGeometry

    def stacked(self) -> NDArray[np.int16]:
        """The volume as one array, int16 (slices, rows, columns); raises `UnreadablePixels` for slices of two sizes."""
        if len({s.hu.shape for s in self.slices}) > 1:
            raise UnreadablePixels("the slices of the stack have different numbers of rows or columns")
        return np.stack([s.hu for s in self.slices]) if self.slices else np.empty((0, 0, 0), np.int16)


@dataclass(frozen=True, kw_only=True)
class _Scale:
    """How stored values become Hounsfield units (PS3.3 C.11.1), and which of them are padding (C.7.5.1.1.2)."""

    slope: float
    intercept: float
    padding: tuple[int, int] | None = None
    wrapped: bool = False


def read_slices(path: Path | str, *, repair_wrapped: bool = False) -> tuple[Slice, ...]:
    """The slices in a DICOM file, one for each frame, all in memory: see `each_slice`."""
    return tuple(each_slice(path, repair_wrapped=repair_wrapped))


def each_slice(
    path: Path | str, *, only: Collection[int | None] | None = None, repair_wrapped: bool = False
) -> Iterator[Slice]:
    """The slices in a DICOM file, one for each frame, decoded one after the other: memory is that of one slice.

    Parameters
    ----------
    path : a DICOM file in any transfer syntax that can be decoded. It must stay until the last slice is read; only a
        deflated data set is held in memory as a whole.
    only : the frames to decode, as `Slice.frame` numbers them; None decodes all.
    repair_wrapped : unwrap twelve-bit unsigned values whose intercept shows that they are signed values wrapped
        around (seen in public data sets); otherwise they raise `WrappedPixels`.

    Raises
    ------
    UnreadablePixels
        with a sentence that says what is wrong; also after some slices, where a later one is damaged.
    """
    try:
        dataset = pydicom.dcmread(path, force=True, defer_size=LEFT_IN_FILE)
        if uid(dataset.file_meta, "TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
            dataset = pydicom.dcmread(path, force=True)  # there is no such place in the file
    except PARSER_ERRORS as error:
        raise UnreadablePixels("the file cannot be read as DICOM") from error
    yield from _slices(dataset, repair_wrapped, only)


def slices_of(dataset: Dataset, *, repair_wrapped: bool = False) -> tuple[Slice, ...]:
    """As `read_slices`, for a data set in memory."""
    return tuple(_slices(dataset, repair_wrapped))


def _slices(dataset: Dataset, repair_wrapped: bool, only: Collection[int | None] | None = None) -> Iterator[Slice]:
    layout = layout_of(dataset)
    header = facts(dataset)
    if header.pixel_spacing is None:
        raise UnreadablePixels("Pixel Spacing is missing or malformed: the size of the image is not known")
    numbered = header.number_of_frames is not None and layout.frames > 1
    numbers = [index + 1 if numbered else None for index in range(layout.frames)]
    wanted = {index for index, number in enumerate(numbers) if only is None or number in only}
    for index, frame in frames_of(dataset, layout, only=wanted):
        yield Slice(
            sop_instance_uid=header.sop_instance_uid,
            frame=numbers[index],
            instance_number=header.instance_number,
            hu=_hounsfield(frame, layout, _scale(dataset, header, layout, index, frame, repair_wrapped)),
            position=_placed(header.positions, index, "Image Position (Patient)"),
            orientation=_placed(header.orientations, index, "Image Orientation (Patient)"),
            pixel_spacing=header.pixel_spacing,
            thickness=header.thickness,
        )


def order(slices: Sequence[Slice]) -> Volume:
    """The slices as one stack: sorted along the normal, one for each position, foreign planes left out."""
    geometry = analyse(
        positions=[s.position for s in slices],
        orientations=[s.orientation for s in slices],
        thicknesses=[s.thickness for s in slices],
        instance_numbers=[s.frame or s.instance_number for s in slices],
    )
    return Volume(
        slices=tuple(slices[i] for i in geometry.order), positions_mm=geometry.positions_mm, geometry=geometry
    )


def _placed(values: Sequence[_T | None], index: int, name: str) -> _T:
    value = values[index] if index < len(values) else None
    if value is None:
        raise UnreadablePixels(f"{name} is missing or malformed in frame {index + 1}")
    return value


def _scale(
    dataset: Dataset, header: InstanceFacts, layout: Layout, index: int, frame: Frame, repair_wrapped: bool
) -> _Scale:
    """The rescale of one frame: its own, else the shared one, else the header's."""
    if items(dataset, "ModalityLUTSequence"):
        raise UnreadablePixels("values go through a Modality LUT, not a linear rescale")
    place = _rescale_of_frame(dataset, index)
    slope, intercept = header.rescale_slope, header.rescale_intercept
    kind = text(place or dataset, "RescaleType")
    if place is not None:
        slope, intercept = number(place, "RescaleSlope"), number(place, "RescaleIntercept")
    if kind is not None and kind.upper() not in _UNITS:
        raise UnreadablePixels(f"values are {kind}, not Hounsfield units")
    if slope == 0:
        raise UnreadablePixels("Rescale Slope is zero")
    padding = _padding(dataset, layout)
    if _is_wrapped(frame, layout, intercept):
        if not repair_wrapped:
            raise WrappedPixels(_wrapped(layout, intercept))
        return _Scale(slope=1.0, intercept=0.0, padding=None, wrapped=True)
    if not layout.signed and intercept is None:
        raise UnreadablePixels("unsigned values without Rescale Intercept: Hounsfield units are not known")
    return _Scale(slope=slope or 1.0, intercept=intercept or 0.0, padding=padding)


def _is_wrapped(frame: Frame, layout: Layout, intercept: float | None) -> bool:
    """Whether unsigned values with an intercept near zero, which cannot hold air, hold signed ones."""
    if layout.signed or not (intercept is None or intercept > -100):
        return False
    return layout.stored == 12 or (layout.stored == 16 and bool((frame.stored >= _PADDING_WORDS).any()))


def _unwrapped(frame: Frame, layout: Layout) -> NDArray[np.int32]:
    """The signed values: of twelve bits those from −1000, so that dense bone keeps its own."""
    lowest = 1000 if layout.stored == 12 else 1 << (layout.stored - 1)
    return ((frame.stored + np.int32(lowest)) & np.int32((1 << layout.stored) - 1)) - np.int32(lowest)


def _wrapped(layout: Layout, intercept: float | None) -> str:
    if intercept is None:
        return f"unsigned values of {layout.stored} bits without Rescale Intercept: Hounsfield units are not known"
    return (
        f"unsigned values of {layout.stored} bits with a Rescale Intercept of {intercept:g} cannot hold air: "
        "signed values that wrapped around"
    )


def _rescale_of_frame(dataset: Dataset, index: int) -> Dataset | None:
    frames, shared = (
        items(dataset, "PerFrameFunctionalGroupsSequence"),
        items(dataset, "SharedFunctionalGroupsSequence"),
    )
    for group in (*frames[index : index + 1], *shared[:1]):
        for place in items(group, "PixelValueTransformationSequence")[:1]:
            return place
    return None


def _padding(dataset: Dataset, layout: Layout) -> tuple[int, int] | None:
    """The range of padding values, as the stored values' own kind of number (the tag's VR may differ)."""
    first = integer(dataset, "PixelPaddingValue")
    if first is None:
        return None
    limit = integer(dataset, "PixelPaddingRangeLimit")
    low, high = sorted(_as_stored(v, layout) for v in (first, first if limit is None else limit))
    return low, high


def _as_stored(value: int, layout: Layout) -> int:
    word = value & ((1 << layout.allocated) - 1)
    return word - (1 << layout.allocated) if layout.signed and word >> (layout.allocated - 1) else word


def _hounsfield(frame: Frame, layout: Layout, scale: _Scale) -> NDArray[np.int16]:
    """Hounsfield units, int16 (rows, columns), clipped to −1024 … 32767."""
    hu: NDArray[np.int16]
    stored = _unwrapped(frame, layout) if scale.wrapped else frame.stored
    if scale.slope == 1.0 and scale.intercept.is_integer():
        hu = np.clip(stored + np.int32(scale.intercept), AIR_HU, 32767).astype(np.int16)
    else:
        hu = np.clip(np.rint(stored * scale.slope + scale.intercept), AIR_HU, 32767).astype(np.int16)
    if not layout.signed and layout.stored == 16 and not scale.wrapped:
        hu[frame.stored >= _PADDING_WORDS] = AIR_HU
    if scale.padding is not None:
        hu[_padded(frame, layout, scale, scale.padding)] = AIR_HU
    return hu


def _padded(frame: Frame, layout: Layout, scale: _Scale, padding: tuple[int, int]) -> NDArray[np.bool_]:
    """Which pixels are padding. A padding value that is also a tissue's counts only outside the scanned circle."""
    low, high = padding
    # Words show a padding that does not fit into Bits Stored; the stored values show it in compressed pixels.
    values = frame.stored if frame.words is None else frame.words.view(np.int16 if layout.signed else np.uint16)
    found: NDArray[np.bool_] = (values >= low) & (values <= high)
    if frame.words is not None and layout.stored < layout.allocated:
        found |= (frame.stored >= low) & (frame.stored <= high)
    hounsfield = sorted((low * scale.slope + scale.intercept, high * scale.slope + scale.intercept))
    if hounsfield[1] > _TISSUE_HU[0] and hounsfield[0] < _TISSUE_HU[1]:
        found &= _outside_circle(layout)
    return found


def _outside_circle(layout: Layout) -> NDArray[np.bool_]:
    """Pixels outside the largest circle in the image, where a scanner reconstructs nothing."""
    y = np.arange(layout.rows)[:, None] - (layout.rows - 1) / 2
    x = np.arange(layout.columns)[None, :] - (layout.columns - 1) / 2
    outside: NDArray[np.bool_] = np.hypot(y, x) > min(layout.rows, layout.columns) / 2
    return outside
