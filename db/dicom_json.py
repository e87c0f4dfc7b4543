"""Data sets in the DICOM JSON Model (PS3.18 F.2): single elements read and written, and the way to the wire."""

from __future__ import annotations

import base64
import datetime as dt
from typing import Any

from pydicom import Dataset
from pydicom.config import IGNORE
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import DataElement, empty_value_for_VR

Attributes = dict[str, Any]
"""A data set: eight hexadecimal digits of the tag → {"vr": …, "Value": [...]}."""


def element(vr: str, *values: Any) -> dict[str, Any]:
    """One element; without values it is empty (type 2)."""
    return {"vr": vr, "Value": list(values)} if values else {"vr": vr}


def data_set(**keywords: Any) -> Attributes:
    """A data set from keywords, with the VRs of the data dictionary.

    A value may be one value, a list of values or items, None or an empty list for an empty element, or an element of
    another data set as it is.
    """
    return {tag_of(keyword): _element_of(keyword, value) for keyword, value in keywords.items()}


def tag_of(keyword: str) -> str:
    """The tag of a keyword as eight hexadecimal digits. Raises ``ValueError`` for an unknown keyword."""
    tag = tag_for_keyword(keyword)
    if tag is None:
        raise ValueError(f"{keyword} is not in the data dictionary")
    return f"{tag:08X}"


def part(attributes: Attributes, keyword: str) -> dict[str, Any]:
    """The element of this keyword, empty where the data set does not have it."""
    return attributes.get(tag_of(keyword)) or _element_of(keyword, None)


def _element_of(keyword: str, value: Any) -> dict[str, Any]:
    if isinstance(value, dict) and "vr" in value:
        return value
    many = value if isinstance(value, list | tuple) else [] if value is None else [value]
    return element(dictionary_VR(tag_of(keyword)), *many)


def values(attributes: Attributes, tag: str) -> list[Any]:
    """The values of an element that are not empty; an absent element has none."""
    return [value for value in attributes.get(tag, {}).get("Value", []) if value not in (None, "", {})]


def first(attributes: Attributes, tag: str) -> Any | None:
    """The first value of an element, or None."""
    return next(iter(values(attributes, tag)), None)


def items(attributes: Attributes, tag: str) -> list[Attributes]:
    """The items of a sequence, empty ones included."""
    return [item for item in attributes.get(tag, {}).get("Value", []) if isinstance(item, dict)]


def date_time(at: dt.datetime) -> str:
    """An aware time as a value of VR DT, in UTC with its offset spelled out (PS3.5 table 6.2-1)."""
    return at.astimezone(dt.UTC).strftime("%Y%m%d%H%M%S.%f+0000")


def dataset_of(attributes: Attributes) -> Dataset:
    """The data set as it is sent, its text in UTF-8.

    Values are taken as they are. pydicom's own reading of the model warns of odd ones, and a warning quotes a value
    that may be a patient's.
    """
    dataset = _unchecked(attributes)
    dataset.SpecificCharacterSet = "ISO_IR 192"
    return dataset


def _unchecked(attributes: Attributes) -> Dataset:
    dataset = Dataset()
    for tag, held in attributes.items():
        dataset.add(DataElement(int(tag, 16), held["vr"], _plain(held), validation_mode=IGNORE))
    return dataset


def _plain(held: dict[str, Any]) -> Any:
    vr = held["vr"]
    if "InlineBinary" in held:
        return base64.b64decode(held["InlineBinary"])
    if vr == "SQ":
        return [_unchecked(item or {}) for item in held.get("Value", [])]
    plain = [_single(vr, value) for value in held.get("Value", [])]
    if not any(value not in (None, "") for value in plain):
        return empty_value_for_VR(vr)
    return plain[0] if len(plain) == 1 else plain


def _single(vr: str, value: Any) -> Any:
    if vr == "PN" and isinstance(value, dict):
        groups = [value.get(group, "") for group in ("Alphabetic", "Ideographic", "Phonetic")]
        return "=".join(groups).rstrip("=")
    if vr == "AT":
        return int(value, 16)
    return "" if value is None else value
