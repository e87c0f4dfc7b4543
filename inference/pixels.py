"""The stored values of an instance's frames, whatever the transfer syntax: integers as the header means them."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import SEEK_END, BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.pixels.decoders.base import Decoder, get_decoder
from pydicom.uid import (
    UID,
    ImplicitVRLittleEndian,
    JPEG2000TransferSyntaxes,
    JPEGLSTransferSyntaxes,
    RLELossless,
)

from inference.errors import UnreadablePixels
from inference.header import PARSER_ERRORS, integer, text, uid

PIXEL_DATA = 0x7FE00010
_END_OF_IMAGE = b"\xff\xd9"
_IMAGE_PIXEL = (
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "PlanarConfiguration",
    "Rows",
    "Columns",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
)
_INT32 = (-(2**31), 2**31 - 1)


@dataclass(frozen=True, kw_only=True)
class Frame:
    """One frame's stored values: int32 (rows, columns), and the whole words they lay in where they were not compressed.

    A padding value may use bits above Bits Stored; only the words show it.
    """

    stored: NDArray[np.int32]
    words: NDArray[np.uint16] | None = None


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The Image Pixel module (PS3.3 C.7.6.3) of a grey-scale image."""

    rows: int
    columns: int
    frames: int
    allocated: int
    stored: int
    high: int
    signed: bool

    @property
    def words(self) -> int:
        """Pixels of all frames."""
        return self.frames * self.rows * self.columns


def layout_of(dataset: Dataset) -> Layout:
    """The pixel layout; raises `UnreadablePixels` for an object that is no grey-scale integer image."""
    rows, columns = integer(dataset, "Rows"), integer(dataset, "Columns")
    if PIXEL_DATA not in dataset or not rows or not columns:
        raise UnreadablePixels("the object holds no pixels")
    samples, colours = integer(dataset, "SamplesPerPixel") or 1, text(dataset, "PhotometricInterpretation")
    if samples != 1 or (colours or "MONOCHROME2") not in ("MONOCHROME1", "MONOCHROME2"):
        raise UnreadablePixels(f"a colour image ({colours}), not Hounsfield units")
    allocated = integer(dataset, "BitsAllocated") or 16
    stored = integer(dataset, "BitsStored") or allocated
    high = integer(dataset, "HighBit")
    if allocated not in (8, 16, 32) or not 1 <= stored <= allocated:
        raise UnreadablePixels(f"pixels of {stored} bits in {allocated} cannot be read")
    return Layout(
        rows=rows,
        columns=columns,
        frames=max(1, integer(dataset, "NumberOfFrames") or 1),
        allocated=allocated,
        stored=stored,
        high=high if high is not None and stored <= high + 1 <= allocated else stored - 1,
        signed=integer(dataset, "PixelRepresentation") == 1,
    )


def frames_of(dataset: Dataset, layout: Layout, *, only: Collection[int]) -> Iterator[tuple[int, Frame]]:
    """Those frames of `dataset` whose index is among `only`, in order, one at a time, each with its index from 0.

    Raises `UnreadablePixels` where they cannot be decoded.
    """
    meta = getattr(dataset, "file_meta", None)
    syntax = UID((uid(meta, "TransferSyntaxUID") if meta is not None else "") or ImplicitVRLittleEndian)
    if syntax.is_private or not syntax.is_transfer_syntax:
        raise UnreadablePixels(f"the transfer syntax {syntax} is not known")
    if syntax.is_compressed and not syntax.is_deflated:
        return _compressed(dataset, layout, syntax, only)
    return _native(dataset, layout, only, little=syntax.is_little_endian)


def _native(dataset: Dataset, layout: Layout, only: Collection[int], *, little: bool) -> Iterator[tuple[int, Frame]]:
    """Uncompressed frames, without a copy of the words."""
    size = layout.allocated // 8
    with _pixel_data(dataset) as data:
        needed = layout.words * size
        if data.length < needed:
            raise UnreadablePixels(f"short pixel data: {data.length} bytes where {needed} are needed")
        if size == 1 and not little:  # 8-bit pixels in big-endian words, also across frames: PS3.5 8.1.1
            words = np.frombuffer(data.stream.read(needed + needed % 2), ">u2").astype("<u2")
            data = _PixelData(stream=BytesIO(words.tobytes()), length=needed)
        begin = data.stream.tell()
        wanted = layout.rows * layout.columns * size
        for index in range(layout.frames):
            if index not in only:
                continue
            data.stream.seek(begin + index * wanted)
            raw = np.frombuffer(data.stream.read(wanted), f"{'<' if little else '>'}u{size}")
            host = raw.astype(raw.dtype.newbyteorder("="), copy=False).reshape(layout.rows, layout.columns)
            yield index, Frame(stored=_unpacked(host, layout), words=host if layout.allocated == 16 else None)


@dataclass(frozen=True, kw_only=True)
class _PixelData:
    """The value of Pixel Data: a stream that stands at its beginning, and how many bytes follow."""

    stream: BinaryIO
    length: int


@contextmanager
def _pixel_data(dataset: Any) -> Iterator[_PixelData]:
    """Pixel Data from memory, or from the file in which pydicom left it (`dcmread` with ``defer_size``)."""
    try:
        element = dataset.get_item(PIXEL_DATA, keep_deferred=True)
    except PARSER_ERRORS as error:
        raise UnreadablePixels("Pixel Data cannot be read") from error
    if not isinstance(element, RawDataElement) or element.value is not None:
        value = element.value if isinstance(element.value, bytes) else b""
        yield _PixelData(stream=BytesIO(value), length=len(value))
        return
    try:
        with Path(dataset.filename).open("rb") as stream:
            end = stream.seek(0, SEEK_END)
            stream.seek(element.value_tell)
            yield _PixelData(stream=stream, length=min(element.length, end - element.value_tell))
    except OSError as error:
        raise UnreadablePixels("Pixel Data cannot be read") from error


def _unpacked(words: NDArray[np.unsignedinteger], layout: Layout) -> NDArray[np.int32]:
    """The values in the bits that count; overlays and garbage around them are dropped, the sign is extended."""
    if layout.stored == layout.allocated:
        values = words.view(f"{'i' if layout.signed else 'u'}{layout.allocated // 8}")
        return values.astype(np.int32) if layout.allocated < 32 else np.clip(values, *_INT32).astype(np.int32)
    wide: NDArray[np.signedinteger] = words.astype(np.int32 if layout.allocated < 32 else np.int64)
    bits = (wide >> (layout.high + 1 - layout.stored)) & ((1 << layout.stored) - 1)
    sign = 1 << (layout.stored - 1)
    return ((bits ^ sign) - sign if layout.signed else bits).astype(np.int32)


def _compressed(dataset: Dataset, layout: Layout, syntax: UID, only: Collection[int]) -> Iterator[tuple[int, Frame]]:
    """Compressed frames, each an object of its own for the decoder, so that no more than one is held."""
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError as error:
        raise UnreadablePixels(f"the transfer syntax {syntax.name} cannot be decoded") from error
    with _pixel_data(dataset) as data:
        frames = _encapsulated(dataset, data, layout)
        for index in range(layout.frames):
            try:
                frame = next(frames)
            except (*PARSER_ERRORS, StopIteration) as error:
                raise UnreadablePixels(
                    f"the {syntax.name} pixels cannot be decoded: frame {index + 1} is not found"
                ) from error
            if index not in only:
                continue
            if syntax in JPEGLSTransferSyntaxes and not frame.rstrip(b"\0").endswith(_END_OF_IMAGE):
                # CharLS reads on behind a stream that was cut off.
                raise UnreadablePixels(f"the {syntax.name} pixels cannot be decoded: they are cut off")
            yield index, _decoded(decoder, dataset, frame, layout, syntax, index)


def _encapsulated(dataset: Dataset, data: _PixelData, layout: Layout) -> Iterator[bytes]:
    """The frames as they are stored, found by the Extended Offset Table (PS3.3 C.7.6.3.1.8) where there is one."""
    table, lengths = (dataset.get(keyword) for keyword in ("ExtendedOffsetTable", "ExtendedOffsetTableLengths"))
    offsets = (table, lengths) if isinstance(table, bytes) and isinstance(lengths, bytes) else None
    yield from generate_frames(data.stream, number_of_frames=layout.frames, extended_offsets=offsets)


def _alone(dataset: Dataset, frame: bytes) -> Dataset:
    """An image of this one compressed frame, otherwise as `dataset` has it."""
    alone = Dataset()
    alone.file_meta = dataset.file_meta
    for keyword in _IMAGE_PIXEL:
        if keyword in dataset:
            alone[keyword] = dataset[keyword]
    alone.PixelData = encapsulate([frame], has_bot=False)
    alone["PixelData"].VR = "OB"
    return alone


def _decoded(decoder: Decoder, dataset: Dataset, frame: bytes, layout: Layout, syntax: UID, index: int) -> Frame:
    """A compressed frame, by the one decoder trusted with its transfer syntax.

    Damaged frames are not handed on from one decoder to the next: some end the process instead of raising.
    """
    try:
        pixels, _ = decoder.as_array(_alone(dataset, frame), raw=True, decoding_plugin=plugin_of(syntax))
    except PARSER_ERRORS as error:
        raise UnreadablePixels(f"the {syntax.name} pixels cannot be decoded") from error
    except BaseException as error:
        # A panic of a decoder written in Rust is no Exception (pylibjpeg-rle, on segments that are too long).
        if type(error).__name__ != "PanicException":
            raise
        raise UnreadablePixels(f"the {syntax.name} pixels cannot be decoded") from error
    if pixels.shape != (layout.rows, layout.columns):
        raise UnreadablePixels(f"frame {index + 1} is not of {layout.rows} rows and {layout.columns} columns")
    return Frame(stored=pixels.astype(np.int32))


def plugin_of(syntax: UID) -> str:
    """The one decoder that is trusted with a compressed transfer syntax, by pydicom's name for it."""
    if syntax in JPEGLSTransferSyntaxes:
        return "pyjpegls"
    return "pylibjpeg" if syntax == RLELossless or syntax in JPEG2000TransferSyntaxes else "gdcm"
