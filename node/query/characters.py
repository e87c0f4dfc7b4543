"""In which Specific Character Set an answer goes out: in the asker's own where it can say everything, else in UTF-8."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

from pydicom import Dataset
from pydicom.charset import convert_encodings, decode_bytes, encode_string

UTF_8 = "ISO_IR 192"
_DELIMITERS = {0x0A, 0x0C, 0x0D}
"""Line feed, form feed and carriage return end a code extension (PS3.5 6.1.2.5.3)."""


def speak(dataset: Dataset, *, asked_in: list[str]) -> Dataset:
    """The data set, its text to be encoded in `asked_in` (PS3.3 C.12.1.1.2), or in UTF-8 where that would lose any."""
    plain = [text for text in _texts(dataset) if not text.isascii()]
    if plain and not all(_survives(text, asked_in) for text in plain):
        dataset.SpecificCharacterSet = UTF_8
    elif any(asked_in):
        dataset.SpecificCharacterSet = asked_in
    else:
        del dataset.SpecificCharacterSet
    return dataset


def _survives(text: str, character_sets: list[str]) -> bool:
    if not any(character_sets):
        return False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # pydicom writes a question mark, and warns
            encodings = convert_encodings(character_sets)
            return decode_bytes(encode_string(text, encodings), encodings, _DELIMITERS) == text
    except (UnicodeError, LookupError, UserWarning):
        return False


def _texts(dataset: Dataset) -> Iterator[str]:
    for element in dataset:
        if element.VR == "SQ":
            for item in element.value:
                yield from _texts(item)
        elif element.VR in ("PN", "LO", "SH", "ST", "LT", "UC", "UT"):
            many = element.value if element.VM > 1 else [element.value]
            yield from (part for value in many if value for part in str(value).split("="))
