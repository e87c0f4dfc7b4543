"""The reading work item that a flag asks for: a complete Unified Procedure Step (PS3.4 table CC.2.5-3), and its UID."""

from __future__ import annotations

import datetime as dt
import uuid
from itertools import groupby

from pydicom import Dataset

from db.dicom_json import Attributes, data_set, dataset_of, date_time, part
from db.worklist import NewReading
from node.flag.flag import Flag

OWN = "."
"""The destination "this node's own worklist": no section of node.toml can have this name."""

DEMONSTRATION = "Demonstration weights, not for clinical use."
_NAMESPACE = uuid.UUID("7a1c7e0e-6f3e-5f6b-9d53-2f0c1a4b8e11")
_TEXT_LENGTH = 10240  # VR LT, PS3.5 table 6.2-1


def uid_of(*, ae_title: str, study_uid: str, destination: str, revision: int | None = None) -> str:
    """The SOP Instance UID of a reading work item: always the same for the same item, below 2.25 (PS3.5 B.2).

    Parameters
    ----------
    ae_title : str
        This node's own, so that two nodes that send to one worklist do not share items.
    destination : str
        The destination's name in node.toml, or `OWN`.
    revision : int, optional
        For an item beyond the study's first: the revision that needed it.
    """
    node = uuid.uuid5(_NAMESPACE, ae_title)
    further = "" if revision is None else f"/{revision}"
    return f"2.25.{uuid.uuid5(node, f'{destination}/{study_uid}{further}').int}"


def workitem(flag: Flag, *, at: dt.datetime, retrieve_ae_title: str) -> Dataset:
    """The attribute list of the N-CREATE that puts the flag's study on a worklist.

    Parameters
    ----------
    at : datetime
        Aware; when the item may be worked on, which is now.
    retrieve_ae_title : str
        Where the reader can retrieve the images.
    """
    begun = data_set(
        TransactionUID=None, ProcedureStepState="SCHEDULED", ScheduledProcedureStepPriority=str(flag.priority)
    )
    return dataset_of(_attributes(flag, at=at, retrieve_ae_title=retrieve_ae_title) | begun)


def changes(flag: Flag, *, priority: str) -> Dataset:
    """The modification list of the N-SET that makes an item that exists say what the flag says."""
    return dataset_of(
        data_set(
            ScheduledProcedureStepPriority=str(priority),
            ProcedureStepLabel=flag.label,
            CommentsOnTheScheduledProcedureStep=_comments(flag),
        )
    )


def reading(flag: Flag, *, ae_title: str, at: dt.datetime, retrieve_ae_title: str) -> NewReading:
    """What `db.worklist.put_reading` puts on this node's own worklist."""
    return NewReading(
        study_uid=flag.study_uid,
        revision=flag.revision,
        priority=flag.priority,
        raised=flag.raised,
        uid=uid_of(ae_title=ae_title, study_uid=flag.study_uid, destination=OWN),
        further_uid=uid_of(ae_title=ae_title, study_uid=flag.study_uid, destination=OWN, revision=flag.revision),
        dataset=_attributes(flag, at=at, retrieve_ae_title=retrieve_ae_title),
    )


def _attributes(flag: Flag, *, at: dt.datetime, retrieve_ae_title: str) -> Attributes:
    demonstration = " - demonstration, not for clinical use" if flag.demonstration else ""
    scheduled = data_set(
        ProcedureStepLabel=flag.label,
        WorklistLabel=f"Head CT reading{demonstration}",
        ScheduledProcessingParametersSequence=None,
        ScheduledStationNameCodeSequence=None,
        ScheduledStationClassCodeSequence=None,
        ScheduledStationGeographicLocationCodeSequence=None,
        ScheduledProcedureStepStartDateTime=date_time(at),
        # PS3.16 CID 9231 "General Purpose Workitem Definition"
        ScheduledWorkitemCodeSequence=data_set(
            CodeValue="110005", CodingSchemeDesignator="DCM", CodeMeaning="Interpretation"
        ),
        CommentsOnTheScheduledProcedureStep=_comments(flag),
        InputReadinessState="READY",
        InputInformationSequence=_input(flag, retrieve_ae_title),
        StudyInstanceUID=flag.study_uid,
        ProcedureStepProgressInformationSequence=None,
        UnifiedProcedureStepPerformedProcedureSequence=None,
    )
    return scheduled | _relationship(flag)


def _comments(flag: Flag) -> str:
    parts = [flag.reason, DEMONSTRATION if flag.demonstration else "", f"Study revision {flag.revision}."]
    sentences = (part if part.endswith(".") else f"{part}." for part in parts if part)
    return " ".join(sentences)[:_TEXT_LENGTH]


def _input(flag: Flag, retrieve_ae_title: str) -> list[Attributes]:
    """One item for each series (PS3.4 table CC.2.5-2c)."""
    ordered = sorted(flag.instances, key=lambda i: i.series_uid)
    return [
        data_set(
            TypeOfInstances="DICOM",
            StudyInstanceUID=flag.study_uid,
            SeriesInstanceUID=series_uid,
            ReferencedSOPSequence=[
                data_set(ReferencedSOPClassUID=i.sop_class_uid, ReferencedSOPInstanceUID=i.sop_instance_uid)
                for i in instances
            ],
            DICOMRetrievalSequence=data_set(RetrieveAETitle=retrieve_ae_title),
        )
        for series_uid, instances in groupby(ordered, key=lambda i: i.series_uid)
    ]


def _relationship(flag: Flag) -> Attributes:
    """Whose study it is and which request it answers; what the images do not say is there but empty (type 2)."""
    header = flag.header
    request = data_set(
        StudyInstanceUID=flag.study_uid,
        AccessionNumber=part(header, "AccessionNumber"),
        IssuerOfAccessionNumberSequence=part(header, "IssuerOfAccessionNumberSequence"),
        OrderPlacerIdentifierSequence=None,
        OrderFillerIdentifierSequence=None,
        RequestedProcedureID=part(header, "StudyID"),
        RequestedProcedureDescription=part(header, "StudyDescription"),
        RequestedProcedureCodeSequence=part(header, "ProcedureCodeSequence"),
        ReferringPhysicianName=part(header, "ReferringPhysicianName"),
    )
    same = (
        "PatientName", "PatientID", "IssuerOfPatientID", "IssuerOfPatientIDQualifiersSequence",
        "OtherPatientIDsSequence", "PatientBirthDate", "PatientSex", "AdmissionID", "IssuerOfAdmissionIDSequence",
        "AdmittingDiagnosesDescription", "AdmittingDiagnosesCodeSequence",
    )  # fmt: skip
    return data_set(**{keyword: part(header, keyword) for keyword in same}, ReferencedRequestSequence=request)
