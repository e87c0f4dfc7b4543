"""What a received data set says about itself: identity, patient and study level; without decoding any pixel."""

from __future__ import annotations

import functools
import mmap
import struct
import zlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from typing import Any, BinaryIO, cast

from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filereader import data_element_generator, read_dataset
from pydicom.tag import BaseTag, Tag
from pydicom.uid import UID

from node.errors import CannotUnderstand
from node.receive.uids import is_uid

HEADER_KEYWORDS = (
    "SpecificCharacterSet",
    "StudyDate",
    "StudyTime",
    "AccessionNumber",
    "ReferringPhysicianName",
    "StudyDescription",
    "PatientName",
    "PatientID",
    "IssuerOfPatientID",
    "PatientBirthDate",
    "PatientSex",
    "PatientAge",
    "StudyInstanceUID",
    "StudyID",
)
"""The patient and study level that is kept with the study, in the order of the tags."""

Facts = Callable[[Dataset], dict[str, Any]]
"""What the index keeps about one instance, from its header (a data set that ends before the pixels)."""

LARGEST_INFLATED = 1 << 28
"""Bytes. Deflate shrinks zeros a thousandfold, so a small data set could otherwise fill the memory."""

Elements = dict[int, Any]

_HEADER_TAGS = tuple(int(Tag(keyword)) for keyword in HEADER_KEYWORDS)
_UID_TAGS = {
    keyword: int(Tag(keyword)) for keyword in ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
}
_PIXELS = frozenset({0x7FE00008, 0x7FE00009, 0x7FE00010})  # Float, Double Float and plain Pixel Data
_UNDEFINED = 0xFFFFFFFF
_ITEM, _DELIMITER = 0xFFFEE000, 0xFFFEE0DD


@dataclass(frozen=True, kw_only=True)
class Described:
    """A data set that could be read.

    `header` is its patient and study level in the DICOM JSON Model (PS3.18 F), in Unicode; nobody changes it, for other
    slices may have the same. It names the character set as it was sent, so that what is made from it can be sent back
    in the same one. `facts` is what `Facts` made of it.
    """

    sop_class_uid: str
    sop_instance_uid: str
    study_uid: str
    series_uid: str
    header: dict[str, Any]
    facts: dict[str, Any]


Source = BytesIO | mmap.mmap
"""An encoded data set, in memory or in a file; neither is copied."""


def view_of(source: Source) -> memoryview:
    """All bytes of the source, not copied."""
    return source.getbuffer() if isinstance(source, BytesIO) else memoryview(source)


def describe(data: Source, *, transfer_syntax_uid: str, facts: Facts, start: int = 0) -> Described:
    """What the data set says about itself that begins at `start` of `data`.

    Real scanners' headers are read as tolerantly as pydicom can. Refused is only what could not be stored or found
    again: bytes that are not a data set, one that breaks off in the middle, a missing UID or one that is not a UID.

    Raises
    ------
    CannotUnderstand
        The message says what is wrong, without quoting any value.
    """
    try:
        dataset = _header(data, start, _syntax(transfer_syntax_uid))
        # As plain numbers: comparing pydicom's own type takes longer than finding it.
        elements: Elements = dict(zip(map(int, dataset.keys()), dataset.values(), strict=True))
        return Described(
            sop_class_uid=_uid(elements, "SOPClassUID"),
            sop_instance_uid=_uid(elements, "SOPInstanceUID"),
            study_uid=_uid(elements, "StudyInstanceUID"),
            series_uid=_uid(elements, "SeriesInstanceUID"),
            header=_patient_and_study(dataset, elements),
            facts=facts(dataset),
        )
    except CannotUnderstand:
        raise
    except Exception as error:
        # Whatever pydicom meets in foreign bytes: struct.error, EOFError, RecursionError, ValueError, LookupError …
        raise CannotUnderstand("the data set cannot be read") from error


_syntax = functools.lru_cache(maxsize=64)(UID)


def _header(data: Source, start: int, syntax: UID) -> Dataset:
    source: Source = data
    if syntax.is_deflated:
        source, start = _inflated(view_of(data)[start:]), 0
    pixels: list[tuple[int, int]] = []

    def at_pixels(tag: BaseTag, vr: str | None, length: int) -> bool:
        if tag not in _PIXELS:
            return False
        pixels.append((source.tell(), length))
        return True

    source.seek(start)
    dataset = read_dataset(cast(BinaryIO, source), syntax.is_implicit_VR, syntax.is_little_endian, stop_when=at_pixels)
    if pixels:
        _check_pixels_are_whole(source, *pixels[-1], little_endian=syntax.is_little_endian)
    else:
        _check_elements_are_whole(source, start, dataset)
    if not len(dataset):
        raise CannotUnderstand("the data set is empty")
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = syntax
    dataset.file_meta = meta
    return dataset


def _inflated(data: memoryview) -> BytesIO:
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)  # PS3.5 A.5: raw deflate, RFC 1951
    plain = inflate.decompress(data, LARGEST_INFLATED)
    if inflate.unconsumed_tail:
        raise CannotUnderstand("the deflated data set is too large")
    if not inflate.eof:
        raise CannotUnderstand("the deflated data set breaks off")
    return BytesIO(plain)


def _check_pixels_are_whole(source: Source, start: int, length: int, *, little_endian: bool) -> None:
    size = view_of(source).nbytes
    if length != _UNDEFINED:
        whole = start + length <= size
    else:
        whole = _fragments_end(view_of(source), start, little_endian=little_endian)
    if not whole:
        raise CannotUnderstand("the data set breaks off within its pixels")


def _fragments_end(data: memoryview, at: int, *, little_endian: bool) -> bool:
    # PS3.5 A.4: items of defined length, then a sequence delimiter.
    header = struct.Struct("<HHL" if little_endian else ">HHL")
    while at + header.size <= len(data):
        group, element, length = header.unpack_from(data, at)
        tag = group << 16 | element
        if tag == _DELIMITER:
            return True
        if tag != _ITEM or length == _UNDEFINED:
            return False
        at += header.size + length
    return False


def _check_elements_are_whole(source: Source, start: int, dataset: Dataset) -> None:
    # pydicom forgives a data set that breaks off: it warns of an open sequence and cuts the last value short. What
    # holds no pixels is small enough to be walked once more by its generator, which does raise EOFError.
    implicit, little_endian = dataset.original_encoding
    source.seek(start)
    for last in deque(data_element_generator(cast(BinaryIO, source), bool(implicit), bool(little_endian)), maxlen=1):
        if isinstance(last, RawDataElement) and len(last.value or b"") < last.length != _UNDEFINED:
            raise CannotUnderstand("the data set breaks off within an element")


def _uid(elements: Elements, keyword: str) -> str:
    element = elements.get(_UID_TAGS[keyword])
    value = None if element is None else element.value
    text = value.decode("ascii", errors="replace") if isinstance(value, bytes) else str(value or "")
    text = text.strip(" \0")
    if not text:
        raise CannotUnderstand(f"{keyword} is missing")
    if not is_uid(text):
        raise CannotUnderstand(f"{keyword} is not a UID")
    return text


def _patient_and_study(dataset: Dataset, all_elements: Elements) -> dict[str, Any]:
    elements = [element for tag in _HEADER_TAGS if (element := all_elements.get(tag)) is not None]
    raw = tuple([element._replace(value_tell=0) for element in elements if isinstance(element, RawDataElement)])
    charset = dataset.original_character_set
    names = (charset,) if isinstance(charset, str) else tuple(charset)
    if len(raw) == len(elements):
        return _as_json(raw, names)
    header = Dataset()
    for element in elements:
        header[element.tag] = dataset[element.tag]
    return header.to_json_dict()


@functools.lru_cache(maxsize=256)
def _as_json(elements: tuple[RawDataElement, ...], charset: tuple[str, ...]) -> dict[str, Any]:
    # The slices of a study agree in all of it, and taking values apart costs as much as finding all elements. What is
    # returned is theirs together.
    header = Dataset({element.tag: element for element in elements})
    first = elements[0] if elements else None
    header.set_original_encoding(
        first is not None and first.is_implicit_VR, first is None or first.is_little_endian, list(charset)
    )
    return header.to_json_dict()
