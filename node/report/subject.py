"""Whose report it is: the patient and study attributes of the images, re-encoded as UTF-8 and otherwise unchanged."""

from __future__ import annotations

from typing import Any

from pydicom.config import IGNORE
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.valuerep import PersonName

# Type 2 of the Patient and General Study modules (PS3.3 C.7.1.1, C.7.2.1): present in the report, empty when unknown.
_ALWAYS = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex",
    "StudyDate", "StudyTime", "ReferringPhysicianName", "StudyID", "AccessionNumber",
)  # fmt: skip
# What else names the patient, the study or the order; carried over where it has a value.
_WHERE_KNOWN = (
    "IssuerOfPatientID", "IssuerOfPatientIDQualifiersSequence", "TypeOfPatientID", "OtherPatientIDsSequence",
    "PatientBirthTime", "PatientAge", "StudyDescription", "IssuerOfAccessionNumberSequence", "TimezoneOffsetFromUTC",
)  # fmt: skip
_DEIDENTIFIED = ("DeidentificationMethod", "DeidentificationMethodCodeSequence")


def subject_of(image: Dataset) -> Dataset:
    """The patient and study attributes of `image`, ready to be written in ISO_IR 192.

    Values are not judged: one study whose objects disagree about the patient would be worse than a value that is
    too long or not in its format.
    """
    subject = Dataset()
    subject.SpecificCharacterSet = "ISO_IR 192"
    subject.StudyInstanceUID = image.StudyInstanceUID
    for keyword in _ALWAYS:
        subject.add(_element(image, keyword) or _empty(keyword))
    for keyword in (*_WHERE_KNOWN, *_deidentification(image)):
        element = _element(image, keyword)
        if element is not None and not element.is_empty:
            subject.add(element)
    return subject


def _deidentification(image: Dataset) -> tuple[str, ...]:
    # Patient Identity Removed demands a method beside it (PS3.3 C.7.1.1), which some de-identifiers leave out.
    told = any(keyword in image and not image[keyword].is_empty for keyword in _DEIDENTIFIED)
    return ("PatientIdentityRemoved", *_DEIDENTIFIED) if told else ()


def _empty(keyword: str) -> DataElement:
    return DataElement(keyword, dictionary_VR(keyword), "")


def _element(image: Dataset, keyword: str) -> DataElement | None:
    tag = tag_for_keyword(keyword)
    return _decoded(image[tag]) if tag is not None and tag in image else None


def _decoded(element: DataElement) -> DataElement:
    """The same element with text that no longer remembers the character set it came in."""
    return DataElement(element.tag, element.VR, _plain(element.VR, element.value), validation_mode=IGNORE)


def _plain(vr: str, value: Any) -> Any:
    if vr == "SQ":
        return [_item(item) for item in value]
    if isinstance(value, MultiValue | list):
        return [_plain(vr, part) for part in value]
    if isinstance(value, PersonName):
        return PersonName(str(value), validation_mode=IGNORE)
    return str(value) if isinstance(value, str) else value


def _item(item: Dataset) -> Dataset:
    copy = Dataset()
    for element in item:
        if element.keyword != "SpecificCharacterSet":
            copy.add(_decoded(element))
    return copy
