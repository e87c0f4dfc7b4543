"""The pixels of one stored instance, frame by frame, read from its file without holding more than one frame."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, dcmwrite
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate, get_frame
from pydicom.filereader import read_partial
from pydicom.pixels.decoders.base import get_decoder
from pydicom.tag import BaseTag
from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian

from inference.errors import UnreadablePixels
from inference.pixels import plugin_of
from node.errors import RequestRefused
from node.query.transcode import PLAIN, outgoing
from node.web.metadata import PIXELS

_PIXEL_TAGS = frozenset(int(tag, 16) for tag in PIXELS)
_IMAGE_PIXEL = (
    "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "Rows", "Columns", "BitsAllocated",
    "BitsStored", "HighBit", "PixelRepresentation", "RedPaletteColorLookupTableDescriptor",
    "GreenPaletteColorLookupTableDescriptor", "BluePaletteColorLookupTableDescriptor",
    "RedPaletteColorLookupTableData", "GreenPaletteColorLookupTableData", "BluePaletteColorLookupTableData",
)  # fmt: skip


class Pixels:
    """The frames of an image whose file is open.

    `header` is everything before the pixels; `syntax` the transfer syntax in which the file is read.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._found: list[int] = []
        self._name = "PixelData"
        self.header: Any = read_partial(file, stop_when=self._at_pixels)
        self.syntax = UID(self.header.file_meta.TransferSyntaxUID)
        if not self._found or not self.header.get("Rows") or not self.header.get("Columns"):
            raise RequestRefused("this instance has no pixels", status=404)
        self._start = self._found[-1]
        self.frames = max(1, int(self.header.get("NumberOfFrames") or 1))

    def _at_pixels(self, tag: BaseTag, _vr: str | None, _length: int) -> bool:
        if int(tag) not in _PIXEL_TAGS:
            return False
        self._found.append(self._file.tell())
        self._name = {0x7FE00008: "FloatPixelData", 0x7FE00009: "DoubleFloatPixelData"}.get(int(tag), "PixelData")
        return True

    @property
    def is_compressed(self) -> bool:
        """Whether frames lie encapsulated (PS3.5 A.4)."""
        return self.syntax.is_encapsulated

    def stored(self, index: int) -> bytes:
        """The bytes of a frame as they are stored: a compressed stream, or plain pixels in little endian."""
        if self.is_compressed:
            return self._encapsulated(index)
        if self.syntax == ExplicitVRBigEndian:
            raise UnreadablePixels("big endian pixels are not converted")
        bits = self._bits_of_frame()
        if bits % 8:
            if self.frames > 1:
                raise UnreadablePixels("frames that begin within a byte cannot be told apart")
            bits += 8 - bits % 8
        self._file.seek(self._start + index * bits // 8)
        frame = self._file.read(bits // 8)
        if len(frame) < bits // 8:
            raise UnreadablePixels("short pixel data")
        return frame

    def plain(self, index: int) -> bytes:
        """The bytes of a frame as uncompressed pixels in little endian."""
        if not self.is_compressed:
            return self.stored(index)
        array = self._decoded(index, raw=True)
        if self.header.get("PlanarConfiguration") == 1 and array.ndim == 3:
            array = array.transpose(2, 0, 1)
        return np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()

    def values(self, index: int) -> NDArray[Any]:
        """The stored values of a frame: (rows, columns), or (rows, columns, 3) as RGB; palettes not applied."""
        return self._decoded(index, raw=False)

    def single(self, index: int) -> Dataset:
        """An image with no other frame than this one."""
        one = Dataset()
        for keyword in _IMAGE_PIXEL:
            if keyword in self.header:
                one[keyword] = self.header[keyword]
        frame = self.stored(index)
        setattr(one, self._name, encapsulate([frame]) if self.is_compressed else frame)
        one.file_meta = FileMetaDataset()
        one.file_meta.TransferSyntaxUID = self.syntax if self.is_compressed else ExplicitVRLittleEndian
        return one

    def whole(self) -> Iterator[bytes]:
        """Every frame behind the other, as stored."""
        return (self.stored(index) for index in range(self.frames))

    def _bits_of_frame(self) -> int:
        header = self.header
        bits = int(header.Rows) * int(header.Columns) * int(header.get("SamplesPerPixel") or 1)
        bits *= int(header.get("BitsAllocated") or 16)
        # PS3.3 C.7.6.3.1.2: two pixels share their colours.
        return bits * 2 // 3 if header.get("PhotometricInterpretation") == "YBR_FULL_422" else bits

    def _encapsulated(self, index: int) -> bytes:
        self._file.seek(self._start)
        table, lengths = (self.header.get(f"ExtendedOffsetTable{name}") for name in ("", "Lengths"))
        try:
            return get_frame(
                self._file,
                index,
                number_of_frames=self.frames,
                extended_offsets=(table, lengths) if table and lengths else None,
            )
        except Exception as error:
            raise UnreadablePixels("the frame is not found") from error

    def _decoded(self, index: int, *, raw: bool) -> NDArray[Any]:
        try:
            decoder = get_decoder(self.syntax if self.is_compressed else ExplicitVRLittleEndian)
            plugin = plugin_of(self.syntax) if self.is_compressed else ""
            return decoder.as_array(self.single(index), index=0, raw=raw, decoding_plugin=plugin)[0]
        except UnreadablePixels:
            raise
        except BaseException as error:
            # A panic of a decoder written in Rust is no Exception.
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            raise UnreadablePixels("the pixels cannot be decoded") from error


@contextmanager
def pixels_of(path: Path, *, stored_in: str) -> Iterator[Pixels]:
    """The pixels in a file while the block runs.

    Raises
    ------
    RequestRefused
        There are none (404), or they cannot be read (406).
    """
    try:
        with path.open("rb") as file:
            yield Pixels(_inflated(path, stored_in) if UID(stored_in).is_deflated else file)
    except UnreadablePixels as error:
        raise RequestRefused(str(error), status=406) from error


def _inflated(path: Path, stored_in: str) -> BinaryIO:
    plain = BytesIO()
    dcmwrite(plain, cast(Dataset, outgoing(path, stored_in=stored_in, accepted=PLAIN)), enforce_file_format=True)
    plain.seek(0)
    return plain
