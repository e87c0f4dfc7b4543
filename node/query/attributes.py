"""What PS3.4 table CC.2.5-3 demands of the attributes that others create or set."""

from __future__ import annotations

from db.dicom_json import Attributes, data_set, first, tag_of, values
from db.procedure_step import STATE, TRANSACTION_UID, Answer
from db.states import Priority, WorkItemState
from db.worklist import Reply

WORKLIST_LABEL = "Worklist"
"""For items whose creator names no worklist, which the SCP shall then do (Worklist Label, N-CREATE type 2/1)."""

TYPE_1 = (
    "ScheduledProcedureStepPriority",
    "ProcedureStepLabel",
    "ScheduledProcedureStepStartDateTime",
    "InputReadinessState",
)
TYPE_2 = (
    "WorklistLabel", "ScheduledProcessingParametersSequence", "ScheduledStationNameCodeSequence",
    "ScheduledStationClassCodeSequence", "ScheduledStationGeographicLocationCodeSequence",
    "ScheduledWorkitemCodeSequence", "CommentsOnTheScheduledProcedureStep", "InputInformationSequence",
    "StudyInstanceUID", "PatientName", "PatientID", "IssuerOfPatientID", "IssuerOfPatientIDQualifiersSequence",
    "OtherPatientIDsSequence", "PatientBirthDate", "PatientSex", "AdmissionID", "IssuerOfAdmissionIDSequence",
    "AdmittingDiagnosesDescription", "AdmittingDiagnosesCodeSequence", "ReferencedRequestSequence",
    "ProcedureStepProgressInformationSequence", "UnifiedProcedureStepPerformedProcedureSequence",
)  # fmt: skip
EMPTY_WHEN_CREATED = (
    "TransactionUID",
    "ProcedureStepProgressInformationSequence",
    "UnifiedProcedureStepPerformedProcedureSequence",
)
NOT_SET = (
    "SOPClassUID", "SOPInstanceUID", "ProcedureStepState", "PatientName", "PatientID", "IssuerOfPatientID",
    "IssuerOfPatientIDQualifiersSequence", "PatientBirthDate", "PatientSex", "AdmissionID",
    "IssuerOfAdmissionIDSequence", "AdmittingDiagnosesDescription", "AdmittingDiagnosesCodeSequence",
    "ReferencedRequestSequence", "ReplacedProcedureStepSequence",
)  # fmt: skip
ENUMERATED = {
    "ScheduledProcedureStepPriority": tuple(Priority),
    "InputReadinessState": ("INCOMPLETE", "UNAVAILABLE", "READY"),  # PS3.3 C.30.1
}
_OWN_COLUMNS = ("SOPClassUID", "SOPInstanceUID", "TransactionUID", "ProcedureStepState",
                "ScheduledProcedureStepModificationDateTime")  # fmt: skip


def refusal_to_create(given: Attributes) -> Reply | None:
    """Why N-CREATE is refused, or None. An absent attribute of type 2 is taken as empty."""
    if STATE not in given:
        return Reply(answer=Answer.MISSING_ATTRIBUTE, comment="ProcedureStepState")
    if first(given, STATE) != WorkItemState.SCHEDULED:
        return Reply(answer=Answer.NOT_SCHEDULED)
    for keyword in EMPTY_WHEN_CREATED:
        if values(given, tag_of(keyword)):
            return Reply(answer=Answer.INVALID_VALUE, comment=f"{keyword} shall be empty")
    for keyword in TYPE_1:
        if tag_of(keyword) not in given:
            return Reply(answer=Answer.MISSING_ATTRIBUTE, comment=keyword)
        if not values(given, tag_of(keyword)):
            return Reply(answer=Answer.MISSING_VALUE, comment=keyword)
    return _outside(given)


def created(given: Attributes) -> Attributes:
    """The attributes with which the item is made: everything required is there, empty where nothing is known."""
    kept = without_own_columns(given)
    made = data_set(**dict.fromkeys(TYPE_2)) | kept
    if not values(made, tag_of("WorklistLabel")):
        made |= data_set(WorklistLabel=WORKLIST_LABEL)
    return made


def refusal_to_set(given: Attributes, *, held: Attributes) -> Reply | None:
    """Why N-SET is refused, or None. An attribute that may not be set may be sent as it is."""
    for keyword in NOT_SET:
        tag = tag_of(keyword)
        if tag in given and values(given, tag) != values(held, tag):
            return Reply(answer=Answer.INVALID_VALUE, comment=f"{keyword} is not set by N-SET")
    for keyword in (*TYPE_1, "WorklistLabel"):
        tag = tag_of(keyword)
        if tag in given and not values(given, tag):
            return Reply(answer=Answer.MISSING_VALUE, comment=keyword)
    return _outside(given)


def without_own_columns(given: Attributes) -> Attributes:
    """The attributes that are kept as given, those left out that the item keeps apart or that the SCP itself sets."""
    own = {tag_of(keyword) for keyword in _OWN_COLUMNS}
    return {tag: element for tag, element in given.items() if tag not in own}


def transaction_uid(given: Attributes) -> str:
    """The Transaction UID of a request, empty where there is none."""
    return str(first(given, TRANSACTION_UID) or "")


def _outside(given: Attributes) -> Reply | None:
    for keyword, allowed in ENUMERATED.items():
        value = first(given, tag_of(keyword))
        if value is not None and value not in allowed:
            return Reply(answer=Answer.INVALID_VALUE, comment=f"{keyword} is one of {', '.join(allowed)}")
    return None
