"""Builds the Comprehensive 3D SR document (PS3.3 A.35.13) around the content tree; the same input, the same bytes.

The content comes from highdicom's templates. The document around it is made here and not by highdicom's own class:
that one reads the clock, and it knows neither private SOP classes nor the values real scanners put into Patient's Sex.
"""

from __future__ import annotations

import datetime as dt
import io
from collections.abc import Sequence
from dataclasses import dataclass

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import Comprehensive3DSRStorage, ExplicitVRLittleEndian

from inference.result import Outcome, StudyResult
from node.report.codes import CT_HEAD, private_scheme
from node.report.content import DEMONSTRATION, MANUFACTURER, Device, content_tree
from node.report.identifiers import IMPLEMENTATION_CLASS_UID, report_uid, series_uid
from node.report.subject import subject_of

SERIES_NUMBER = 9001
IMPLEMENTATION_VERSION_NAME = "HEMONODE"

_WORDS = {Outcome.POSITIVE: "suspected", Outcome.NEGATIVE: "not found", Outcome.NOT_ANALYSED: "not analysed"}


@dataclass(frozen=True, kw_only=True)
class Predecessor:
    """The report that this one supersedes."""

    study_uid: str
    series_uid: str
    sop_instance_uid: str

    @classmethod
    def of(cls, *, study_uid: str, revision: int) -> Predecessor:
        """The report on this revision of this study."""
        return cls(
            study_uid=study_uid,
            series_uid=series_uid(study_uid=study_uid, revision=revision),
            sop_instance_uid=report_uid(study_uid=study_uid, revision=revision),
        )


def build(
    result: StudyResult,
    *,
    evidence: Sequence[Dataset],
    made_at: dt.datetime,
    device: Device,
    predecessor: Predecessor | None = None,
) -> Dataset:
    """The report on `result`: complete, preliminary, unverified, in the same study and a series of its own.

    Parameters
    ----------
    evidence : sequence of Dataset
        At least one instance of the study, without pixels; the first gives the patient and the study. Key slices are
        referenced by the findings that stand on them.
    made_at : datetime
        When the result was made; its wall clock becomes every date and time of the report.
    predecessor : Predecessor, optional
        The report on the revision before this one (PS3.3 C.17.2, Predecessor Documents Sequence).

    Raises
    ------
    ValueError
        `evidence` is empty.
    """
    if not evidence:
        raise ValueError("a report needs at least one instance of its study")
    document = subject_of(evidence[0])
    _series_and_equipment(document, result, device=device)
    _sop_common(document, result, made_at=made_at)
    _document_general(document, evidence, predecessor)
    # TID 1500 takes the procedure reported from CID 100, which has no code for CT of the head; this attribute may.
    document.PerformedProcedureCodeSequence = [CT_HEAD.coded()] if result.read_series_uids else []
    document.update(content_tree(result, evidence=evidence, device=device))
    document.file_meta = _file_meta(document)
    return document


def to_bytes(document: Dataset) -> bytes:
    """The document as a PS3.10 file."""
    file = io.BytesIO()
    document.save_as(file, enforce_file_format=True)
    return file.getvalue()


def series_description(result: StudyResult) -> str:
    """What a PACS shows beside the series, in at most 64 characters (LO): the outcome, and how far to trust it."""
    said = _WORDS[result.outcome]
    if result.demonstration:
        return f"{DEMONSTRATION} - AI: {said}"
    return f"AI: intracranial hemorrhage {said} - not for diagnosis"


def _series_and_equipment(document: Dataset, result: StudyResult, *, device: Device) -> None:
    """SR Document Series, General Equipment and Enhanced General Equipment (PS3.3 C.17.1, C.7.5.1, C.7.5.2)."""
    document.Modality = "SR"
    document.SeriesInstanceUID = series_uid(study_uid=result.study_uid, revision=result.revision)
    document.SeriesNumber = SERIES_NUMBER
    document.SeriesDescription = series_description(result)
    document.ReferencedPerformedProcedureStepSequence = []
    document.Manufacturer = MANUFACTURER
    document.ManufacturerModelName = MANUFACTURER
    document.DeviceSerialNumber = device.ae_title
    document.SoftwareVersions = device.version
    if device.institution:
        document.InstitutionName = device.institution
    if device.department:
        document.InstitutionalDepartmentName = device.department


def _sop_common(document: Dataset, result: StudyResult, *, made_at: dt.datetime) -> None:
    document.SOPClassUID = Comprehensive3DSRStorage
    document.SOPInstanceUID = report_uid(study_uid=result.study_uid, revision=result.revision)
    document.InstanceNumber = result.revision
    document.CodingSchemeIdentificationSequence = [private_scheme()]
    document.InstanceCreationDate = document.ContentDate = document.SeriesDate = made_at.strftime("%Y%m%d")
    document.InstanceCreationTime = document.ContentTime = document.SeriesTime = made_at.strftime("%H%M%S.%f")


def _document_general(document: Dataset, evidence: Sequence[Dataset], predecessor: Predecessor | None) -> None:
    """SR Document General (PS3.3 C.17.2)."""
    document.CompletionFlag = "COMPLETE"
    document.PreliminaryFlag = "PRELIMINARY"
    document.VerificationFlag = "UNVERIFIED"
    document.CurrentRequestedProcedureEvidenceSequence = [_reference(*evidence)]
    if predecessor is not None:
        before = Dataset()
        before.StudyInstanceUID = predecessor.study_uid
        before.SeriesInstanceUID = predecessor.series_uid
        before.SOPClassUID = Comprehensive3DSRStorage
        before.SOPInstanceUID = predecessor.sop_instance_uid
        document.PredecessorDocumentsSequence = [_reference(before)]


def _reference(*instances: Dataset) -> Dataset:
    """An item of the Hierarchical SOP Instance Reference Macro (PS3.3 table C.17-3) for instances of one study."""
    study = Dataset()
    study.StudyInstanceUID = instances[0].StudyInstanceUID
    study.ReferencedSeriesSequence = []
    by_series: dict[str, dict[str, str]] = {}
    for instance in instances:
        by_series.setdefault(instance.SeriesInstanceUID, {})[instance.SOPInstanceUID] = instance.SOPClassUID
    for series, members in by_series.items():
        item = Dataset()
        item.SeriesInstanceUID = series
        item.ReferencedSOPSequence = [_sop(uid, sop_class) for uid, sop_class in members.items()]
        study.ReferencedSeriesSequence.append(item)
    return study


def _sop(sop_instance_uid: str, sop_class_uid: str) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID = sop_class_uid
    item.ReferencedSOPInstanceUID = sop_instance_uid
    return item


def _file_meta(document: Dataset) -> FileMetaDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = document.SOPClassUID
    meta.MediaStorageSOPInstanceUID = document.SOPInstanceUID
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = IMPLEMENTATION_CLASS_UID
    meta.ImplementationVersionName = IMPLEMENTATION_VERSION_NAME
    return meta
