"""The information models of Query/Retrieve (PS3.4 C.6) over the archive: levels, attributes, identifiers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pydicom.uid import UID
from pynetdicom.association import Association

from db.dicom_json import Attributes, data_set, first, tag_of, values
from db.holdings import SeriesHeld, StudyHeld
from db.instances import Instance
from node.errors import QueryRefused

LEVEL = tag_of("QueryRetrieveLevel")
DOES_NOT_MATCH = 0xA900
"""Identifier does not match SOP Class (PS3.4 tables C.4-1 to C.4-3)."""

UNIQUE = {
    "PATIENT": tag_of("PatientID"),
    "STUDY": tag_of("StudyInstanceUID"),
    "SERIES": tag_of("SeriesInstanceUID"),
    "IMAGE": tag_of("SOPInstanceUID"),
}
"""The unique key of each level."""

_OF_SERIES = {
    "SeriesDate": "series_date",
    "SeriesTime": "series_time",
    "Modality": "modality",
    "Manufacturer": "manufacturer",
    "StationName": "station_name",
    "SeriesDescription": "series_description",
    "ManufacturerModelName": "model_name",
    "BodyPartExamined": "body_part",
    "ProtocolName": "protocol_name",
    "PatientPosition": "patient_position",
    "SeriesNumber": "series_number",
    "FrameOfReferenceUID": "frame_of_reference_uid",
}
_OF_IMAGE = {
    "ImageType": "image_type",
    "ContentDate": "content_date",
    "ContentTime": "content_time",
    "AcquisitionNumber": "acquisition_number",
    "InstanceNumber": "instance_number",
    "NumberOfFrames": "number_of_frames",
    "Rows": "rows",
    "Columns": "columns",
    "BitsAllocated": "bits_allocated",
}
"""From keywords to `inference.facts.InstanceFacts`."""

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "PATIENT": (
        "PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex",
        "NumberOfPatientRelatedStudies", "NumberOfPatientRelatedSeries", "NumberOfPatientRelatedInstances",
    ),
    "STUDY": (
        "StudyDate", "StudyTime", "AccessionNumber", "ModalitiesInStudy", "ReferringPhysicianName", "StudyDescription",
        "PatientAge", "StudyInstanceUID", "StudyID", "NumberOfStudyRelatedSeries", "NumberOfStudyRelatedInstances",
    ),
    "SERIES": (*_OF_SERIES, "SeriesInstanceUID", "NumberOfSeriesRelatedInstances"),
    "IMAGE": (*_OF_IMAGE, "SOPClassUID", "SOPInstanceUID", "AvailableTransferSyntaxUID"),
}  # fmt: skip
"""What is kept, for matching and for answers, on each level."""

DATE_WITH_TIME = tuple((tag_of(f"{what}Date"), tag_of(f"{what}Time")) for what in ("Study", "Series", "Content"))


@dataclass(frozen=True, kw_only=True)
class Model:
    """An information model: its SOP classes and its levels from the top."""

    find: str
    move: str
    get: str
    levels: tuple[str, ...]


PATIENT_ROOT = Model(
    find="1.2.840.10008.5.1.4.1.2.1.1",
    move="1.2.840.10008.5.1.4.1.2.1.2",
    get="1.2.840.10008.5.1.4.1.2.1.3",
    levels=("PATIENT", "STUDY", "SERIES", "IMAGE"),
)
STUDY_ROOT = Model(
    find="1.2.840.10008.5.1.4.1.2.2.1",
    move="1.2.840.10008.5.1.4.1.2.2.2",
    get="1.2.840.10008.5.1.4.1.2.2.3",
    levels=("STUDY", "SERIES", "IMAGE"),
)
MODELS = {uid: model for model in (PATIENT_ROOT, STUDY_ROOT) for uid in (model.find, model.move, model.get)}
FINDS = (PATIENT_ROOT.find, STUDY_ROOT.find)


@dataclass(frozen=True, kw_only=True)
class Negotiated:
    """What both sides agreed on for a SOP class (SOP Class Extended Negotiation, PS3.4 C.5.1.1, C.5.2.1)."""

    relational: bool
    combined_date_time: bool


def agreed(sop_class_uid: str, wanted: bytes) -> bytes:
    """The answer to a proposal: relational queries and combined dates and times yes, fuzzy names and the rest no."""
    granted = 2 if sop_class_uid in FINDS else 1
    return bytes(int(byte == 1 and place < granted) for place, byte in enumerate(wanted))


def negotiated(association: Association, sop_class_uid: str) -> Negotiated:
    """What was agreed on in this association."""
    wanted = association.requestor.sop_class_extended.get(UID(sop_class_uid), b"")
    granted = agreed(sop_class_uid, wanted).ljust(2, b"\0")
    return Negotiated(relational=bool(granted[0]), combined_date_time=bool(granted[1]))


def level_of(keys: Attributes, model: Model) -> str:
    """The level that is asked for. Raises ``QueryRefused`` for none, or one that the model does not have."""
    level = str(first(keys, LEVEL) or "").strip()
    if level not in model.levels:
        raise _mismatch(f"Query/Retrieve Level is one of {', '.join(model.levels)}", LEVEL)
    return level


def check_path(keys: Attributes, model: Model, *, level: str, relational: bool) -> None:
    """Every level above has its one unique key, where the hierarchy has to be kept to (PS3.4 C.4.1.2, C.4.2.1.4.1)."""
    for above in () if relational else model.levels[: model.levels.index(level)]:
        wanted = [str(value) for value in values(keys, UNIQUE[above])]
        if len(wanted) != 1 or set(wanted[0]) & {"*", "?"}:
            raise _mismatch(f"one {above} has to be named on the level {level}", UNIQUE[above])


def chosen(keys: Attributes, *, level: str) -> tuple[str, ...]:
    """What a retrieval names on its level. Raises ``QueryRefused`` where it names nothing, or by a wild card."""
    wanted = tuple(str(value).strip() for value in values(keys, UNIQUE[level]))
    if not wanted or any(set(value) & {"*", "?"} for value in wanted):
        raise _mismatch(f"the level {level} needs its unique key, without wild cards", UNIQUE[level])
    if level == "PATIENT" and len(wanted) > 1:
        raise _mismatch("one patient at a time", UNIQUE[level])
    return wanted


def _mismatch(why: str, tag: str) -> QueryRefused:
    return QueryRefused(why, status=DOES_NOT_MATCH, tag=int(tag, 16))


def known(model: Model, *, level: str) -> frozenset[str]:
    """The tags of the attributes that entities of a level have, those of the levels above included."""
    upper = (*{"PATIENT", *model.levels[: model.levels.index(level) + 1]},)
    return frozenset(tag_of(keyword) for each in upper for keyword in ATTRIBUTES[each])


def study_attributes(held: StudyHeld) -> Attributes:
    """A study, with its patient."""
    modalities = [modality for modality in dict.fromkeys(held.modalities) if modality]
    return held.header | data_set(
        StudyInstanceUID=held.study_uid,
        ModalitiesInStudy=modalities,
        NumberOfStudyRelatedSeries=len(held.modalities),
        NumberOfStudyRelatedInstances=held.instances,
    )


def patient_attributes(studies: Iterable[StudyHeld]) -> Attributes:
    """A patient, from the studies of it that the archive holds; the first of them describes it."""
    held = list(studies)
    return held[0].header | data_set(
        NumberOfPatientRelatedStudies=len(held),
        NumberOfPatientRelatedSeries=sum(len(study.modalities) for study in held),
        NumberOfPatientRelatedInstances=sum(study.instances for study in held),
    )


def series_attributes(held: SeriesHeld) -> Attributes:
    """A series, without its study."""
    return data_set(
        **_from_facts(held.facts, _OF_SERIES),
        SeriesInstanceUID=held.series_uid,
        NumberOfSeriesRelatedInstances=held.instances,
    )


def image_attributes(held: Instance) -> Attributes:
    """An instance, without its series."""
    return data_set(
        **_from_facts(held.facts, _OF_IMAGE),
        SOPClassUID=held.sop_class_uid,
        SOPInstanceUID=held.sop_instance_uid,
        AvailableTransferSyntaxUID=held.transfer_syntax_uid,
    )


def _from_facts(facts: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    return {keyword: facts.get(name) for keyword, name in names.items()}
