"""The stored values of an instance's frames, whatever the transfer syntax: integers as the header means them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.encaps import get_frame
from pydicom.pixels.decoders.base import get_decoder
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


def frames_of(dataset: Dataset, layout: Layout) -> Iterator[Frame]:
    """The frames of `dataset` in order; raises `UnreadablePixels` where they cannot be decoded."""
    meta = getattr(dataset, "file_meta", None)
    syntax = UID((uid(meta, "TransferSyntaxUID") if meta is not None else "") or ImplicitVRLittleEndian)
    if syntax.is_private or not syntax.is_transfer_syntax:
        raise UnreadablePixels(f"the transfer syntax {syntax} is not known")
    if syntax.is_compressed and not syntax.is_deflated:
        return (_decoded(dataset, layout, syntax, index) for index in range(layout.frames))
    return _native(dataset, layout, little=syntax.is_little_endian)


def _native(dataset: Dataset, layout: Layout, *, little: bool) -> Iterator[Frame]:
    """Uncompressed frames, without a copy of the words."""
    data = _pixel_data(dataset)
    size = layout.allocated // 8
    needed = layout.words * size
    if len(data) < needed:
        raise UnreadablePixels(f"short pixel data: {len(data)} bytes where {needed} are needed")
    swapped = size == 1 and not little  # 8-bit pixels in big-endian words: PS3.5 8.1.1
    order = "<" if little else ">"
    raw = np.frombuffer(data, f"{order}u{2 if swapped else size}", needed // (2 if swapped else size))
    if swapped:
        raw = raw.astype("<u2").view(np.uint8)
    for words in raw.reshape(layout.frames, layout.rows, layout.columns):
        host = words.astype(words.dtype.newbyteorder("="), copy=False)
        yield Frame(stored=_unpacked(host, layout), words=host if layout.allocated == 16 else None)


def _pixel_data(dataset: Dataset) -> bytes:
    try:
        data = dataset.get_item(PIXEL_DATA).value
    except PARSER_ERRORS as error:
        raise UnreadablePixels("Pixel Data cannot be read") from error
    return data if isinstance(data, bytes) else b""


def _unpacked(words: NDArray[np.unsignedinteger], layout: Layout) -> NDArray[np.int32]:
    """The values in the bits that count; overlays and garbage around them are dropped, the sign is extended."""
    if layout.stored == layout.allocated:
        values = words.view(f"{'i' if layout.signed else 'u'}{layout.allocated // 8}")
        return values.astype(np.int32) if layout.allocated < 32 else np.clip(values, *_INT32).astype(np.int32)
    bits = words.astype(np.int64) >> (layout.high + 1 - layout.stored)
    bits = bits & ((1 << layout.stored) - 1)
    sign = 1 << (layout.stored - 1)
    return ((bits ^ sign) - sign if layout.signed else bits).astype(np.int32)


def _decoded(dataset: Dataset, layout: Layout, syntax: UID, index: int) -> Frame:
    """One compressed frame, by the one decoder trusted with its transfer syntax.

    Damaged frames are not handed on from one decoder to the next: some end the process instead of raising.
    """
    if syntax in JPEGLSTransferSyntaxes:
        _refuse_open_ended(dataset, layout, syntax, index)
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError as error:
        raise UnreadablePixels(f"the transfer syntax {syntax.name} cannot be decoded") from error
    try:
        pixels, _ = decoder.as_array(dataset, index=index, raw=True, decoding_plugin=plugin_of(syntax))
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


def _refuse_open_ended(dataset: Dataset, layout: Layout, syntax: UID, index: int) -> None:
    """Refuse a JPEG-LS stream without its end-of-image marker: CharLS reads on behind a stream that was cut off."""
    try:
        frame = get_frame(_pixel_data(dataset), index, number_of_frames=layout.frames)
    except PARSER_ERRORS as error:
        raise UnreadablePixels(f"the {syntax.name} pixels cannot be decoded: the frame is not found") from error
    if not frame.rstrip(b"\0").endswith(_END_OF_IMAGE):
        raise UnreadablePixels(f"the {syntax.name} pixels cannot be decoded: they are cut off")


def plugin_of(syntax: UID) -> str:
    """The one decoder that is trusted with a compressed transfer syntax, by pydicom's name for it."""
    if syntax in JPEGLSTransferSyntaxes:
        return "pyjpegls"
    return "pylibjpeg" if syntax == RLELossless or syntax in JPEG2000TransferSyntaxes else "gdcm"
