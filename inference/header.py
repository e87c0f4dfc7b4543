"""Tolerant values from a DICOM header: a missing or malformed element is None, never an exception or a warning.

Headers of real scanners hold empty decimal strings, text in integer strings, several values where one belongs and
numbers beyond any range. pydicom answers those with exceptions or warnings when a value is *converted*; so the
elements are read here as they came (`pydicom.dataelem.RawDataElement`) and converted with forgiving rules.
"""

from __future__ import annotations

import codecs
import functools
import math
import struct
import zlib
from typing import Any

from pydicom.charset import python_encoding
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.sequence import Sequence
from pydicom.tag import BaseTag

PARSER_ERRORS = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
    InvalidDicomError,
    BytesLengthException,
)
"""What pydicom and the decoders raise on damaged input, each in its own way."""
LONGEST_TEXT = 256
_BLANK = " \0\t\r\n"
LARGEST_INTEGER = 2**31 - 1
"""IS is limited to 32 bits (PS3.5 6.2)."""


class Header:
    """A data set's elements as they came, looked up much faster than pydicom does: reception asks for fifty of each.

    Takes the place of the data set in every function of this module.
    """

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset
        self._elements: dict[int, Any] = dict(zip(map(int, dataset.keys()), dataset.values(), strict=True))

    def get_item(self, key: int) -> Any:
        """The element, not converted, or None; what was left unread stays unread."""
        return self._elements.get(key)

    def __getitem__(self, key: BaseTag) -> Any:
        return self._dataset[key]


Readable = Dataset | Header


def texts(dataset: Readable, keyword: str) -> tuple[str, ...]:
    """All non-empty values of a text element, stripped and cut to a sane length; empty where there is none."""
    value = _value(dataset, keyword)
    if value is None:
        return ()
    if isinstance(value, bytes):
        value = value.decode(_encoding(dataset), errors="replace").split("\\")
    elif isinstance(value, str) or not hasattr(value, "__iter__"):
        value = str(value).split("\\")
    stripped = [str(item).strip(_BLANK)[:LONGEST_TEXT] for item in value]
    return tuple([item for item in stripped if item])


def text(dataset: Readable, keyword: str) -> str | None:
    """The text of an element, several values joined by a backslash; None where it is absent or empty."""
    return "\\".join(texts(dataset, keyword))[:LONGEST_TEXT] or None


def uid(dataset: Readable, keyword: str) -> str:
    """A UID, or an empty string."""
    values = texts(dataset, keyword)
    return values[0][:64] if values else ""


def numbers(dataset: Readable, keyword: str, count: int) -> tuple[float, ...] | None:
    """Exactly `count` finite numbers from a decimal or integer string; None for anything else."""
    parsed = [_number(item) for item in texts(dataset, keyword)]
    return tuple(x for x in parsed if x is not None) if len(parsed) == count and None not in parsed else None


def number(dataset: Readable, keyword: str) -> float | None:
    """The first value of an element as a finite number; None where it is none."""
    value = _value(dataset, keyword)
    if isinstance(value, bytes) and (binary := _binary(dataset, keyword, value)) is not None:
        return float(binary)
    values = texts(dataset, keyword)
    return _number(values[0]) if values else None


def integer(dataset: Readable, keyword: str) -> int | None:
    """The first value of an element as a whole number within 32 bits; None where it is none."""
    value = number(dataset, keyword)
    if value is None or value != math.floor(value) or abs(value) > LARGEST_INTEGER:
        return None
    return int(value)


def items(dataset: Readable, keyword: str) -> tuple[Dataset, ...]:
    """The items of a sequence; empty where it is absent or cannot be read."""
    if _element(dataset, keyword) is None:
        return ()
    try:
        sequence = dataset[tag(keyword)].value
    except PARSER_ERRORS:
        return ()
    return tuple(sequence) if isinstance(sequence, Sequence) else ()


@functools.cache
def _key(keyword: str) -> int:
    return int(tag(keyword))  # comparing pydicom's own type takes longer than finding it


@functools.cache
def tag(keyword: str) -> BaseTag:
    """The element's tag, for a keyword of the Standard's dictionary; as pydicom's own type, which it takes as it is."""
    known = tag_for_keyword(keyword)
    if known is None:
        raise KeyError(keyword)
    return BaseTag(known)


def _element(dataset: Readable, keyword: str) -> Any:
    # Left unread where it has no bytes: pydicom would convert it, and raise.
    if isinstance(dataset, Header):
        return dataset.get_item(_key(keyword))
    return dataset.get_item(tag(keyword), keep_deferred=True)


def _value(dataset: Readable, keyword: str) -> Any:
    element = _element(dataset, keyword)
    return None if element is None else element.value


def _binary(dataset: Readable, keyword: str, value: bytes) -> int | None:
    """A 16-bit integer as it lies in the file (US, SS: PS3.5 6.2); None where the element is text."""
    element: Any = _element(dataset, keyword)
    vr = element.VR or dictionary_VR(tag(keyword))  # implicit VR: the dictionary's
    if not isinstance(element, RawDataElement) or vr not in ("US", "SS", "US or SS") or len(value) < 2:
        return None
    return int.from_bytes(value[:2], "little" if element.is_little_endian else "big", signed=vr == "SS")


def _number(value: str) -> float | None:
    try:
        parsed = float(value.strip().replace(",", "."))
    except ValueError:
        return None
    return parsed if math.isfinite(parsed) else None


def _encoding(dataset: Readable) -> str:
    """The Python codec of the data set's (last) character set; Latin-1, which reads any byte, where unknown."""
    value = _value(dataset, "SpecificCharacterSet")
    if not isinstance(value, bytes):
        names = [value] if isinstance(value, str) else [str(name) for name in value or ()]
        value = "\\".join(names).encode("ascii", errors="replace")
    return _codec(value[:LONGEST_TEXT])


@functools.lru_cache(maxsize=64)
def _codec(charset: bytes) -> str:
    names = [name.strip() for name in charset.decode("ascii", errors="replace").split("\\")]
    known = [python_encoding[name] for name in names if name in python_encoding]
    try:
        return codecs.lookup(known[-1]).name if known else "iso8859-1"
    except LookupError:
        return "iso8859-1"
