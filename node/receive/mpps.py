"""Modality Performed Procedure Step SCP (PS3.4 F.7): what scanners say they do and have made, kept as they said it.

========  =========================================  ==============================================================
Status    PS3.7 annex C                              here
========  =========================================  ==============================================================
0000      Success                                    durable
0107      Attribute list error (warning)             durable, but what N-SET may not change was left as it was
0106      Invalid attribute value                    a state that the step cannot take
0110      Processing failure                         Error ID A710: the step has ended; or this node failed
0111      Duplicate SOP instance                     a step of this UID is known
0112      No such SOP instance                       no step of this UID is known
0117      Invalid object instance                    the SOP Instance UID is none
0120      Missing attribute                          an attribute of type 1 is absent
0121      Missing attribute value                    an attribute of type 1 is empty
0213      Resource limitation                        the attribute list is too large
========  =========================================  ==============================================================
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pydicom import Dataset
from pydicom.uid import generate_uid
from pynetdicom import evt
from pynetdicom.events import Event

from db import performed_steps
from db.dicom_json import Attributes, data_set, first, items, tag_of, values
from db.engine import Database
from db.performed_steps import MPPS
from db.states import PerformedState
from node.dimse import SYNTAXES, Answered, attributes_of, guarded, size_of, status, uid_of_request
from node.receive.uids import is_uid
from node.service import Service

SUCCESS = 0x0000
INVALID_VALUE = 0x0106  # PS3.7 C.5.11
NOT_CHANGED = 0x0107  # PS3.7 C.4.2
FAILURE = 0x0110  # PS3.7 C.5.21
DUPLICATE = 0x0111  # PS3.7 C.5.8
UNKNOWN = 0x0112  # PS3.7 C.5.19
INVALID_INSTANCE = 0x0117  # PS3.7 C.5.12
MISSING_ATTRIBUTE = 0x0120  # PS3.7 C.5.13
MISSING_VALUE = 0x0121  # PS3.7 C.5.14
RESOURCE_LIMIT = 0x0213  # PS3.7 C.5.22
MAY_NO_LONGER_BE_UPDATED = 0xA710  # Error ID, PS3.4 F.7.2.2

LARGEST = 8 * 1024 * 1024
"""Bytes of one attribute list; an instance in it takes about 120."""

STATUS = "PerformedProcedureStepStatus"
SCHEDULED = "ScheduledStepAttributesSequence"
SERIES = "PerformedSeriesSequence"

# PS3.4 table F.7.2-1, column SCU of N-CREATE.
TYPE_1 = (SCHEDULED, "PerformedProcedureStepID", "PerformedStationAETitle", "PerformedProcedureStepStartDate",
          "PerformedProcedureStepStartTime", STATUS, "Modality")  # fmt: skip
TYPE_1_OF_SCHEDULED = ("StudyInstanceUID",)
TYPE_1_OF_SERIES = ("SeriesInstanceUID",)
TYPE_2 = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "ReferencedPatientSequence", "PerformedStationName",
    "PerformedLocation", "PerformedProcedureStepDescription", "PerformedProcedureTypeDescription",
    "ProcedureCodeSequence", "PerformedProcedureStepEndDate", "PerformedProcedureStepEndTime", "StudyID",
    "PerformedProtocolCodeSequence", SERIES,
)  # fmt: skip
# The same table: what a step needs when it ends, and what N-SET may not change.
FINAL = ("PerformedProcedureStepEndDate", "PerformedProcedureStepEndTime")
NOT_SET = (
    SCHEDULED, "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "ReferencedPatientSequence",
    "PerformedProcedureStepID", "PerformedStationAETitle", "PerformedStationName", "PerformedLocation",
    "PerformedProcedureStepStartDate", "PerformedProcedureStepStartTime", "Modality", "StudyID",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """Why a request is refused: a status, and the attribute that is to blame."""

    code: int
    comment: str


def service(*, database: Database) -> Service:
    """Modality Performed Procedure Step: N-CREATE and N-SET."""
    return Service(
        contexts=((MPPS, SYNTAXES),),
        handlers=((evt.EVT_N_CREATE, create, [database]), (evt.EVT_N_SET, update, [database])),
    )


@guarded
def create(event: Event, database: Database) -> Answered:
    """Answers N-CREATE. A scanner that names no instance is told the UID of the one that was made."""
    named = uid_of_request(event)
    uid = named or str(generate_uid(prefix=None))
    if not is_uid(uid):
        return status(INVALID_INSTANCE), None
    if size_of(event, "AttributeList") > LARGEST:
        return status(RESOURCE_LIMIT), None
    given = attributes_of(event.attribute_list) if size_of(event, "AttributeList") else {}
    refusal = next(_wrong_when_created(given), None)
    if refusal is not None:
        return status(refusal.code, refusal.comment), None
    ae_title = str(event.assoc.requestor.ae_title).strip()
    with database.write() as tx:
        made = performed_steps.create(tx, uid=uid, ae_title=ae_title, dataset=data_set(**dict.fromkeys(TYPE_2)) | given)
    if not made:
        return status(DUPLICATE), None
    return SUCCESS, None if named else _named(uid)


@guarded
def update(event: Event, database: Database) -> Answered:
    """Answers N-SET."""
    if size_of(event, "ModificationList") > LARGEST:
        return status(RESOURCE_LIMIT), None
    given = attributes_of(event.modification_list) if size_of(event, "ModificationList") else {}
    with database.write() as tx:
        step = performed_steps.hold(tx, uid_of_request(event))
        if step is None:
            return status(UNKNOWN), None
        if step.state is not PerformedState.IN_PROGRESS:
            comment = f"the step is {step.state}"
            return status(FAILURE, comment, error_id=MAY_NO_LONGER_BE_UPDATED), None
        fixed = {tag_of(keyword) for keyword in NOT_SET}
        changes = {tag: element for tag, element in given.items() if tag not in fixed}
        refusal = next(_wrong_when_changed({**step.dataset, **changes}), None)
        if refusal is not None:
            return status(refusal.code, refusal.comment), None
        performed_steps.update(tx, step, changes=changes)
    differing = [k for k in NOT_SET if (t := tag_of(k)) in given and values(given, t) != values(step.dataset, t)]
    return (status(NOT_CHANGED, ", ".join(differing)) if differing else SUCCESS), None


def _wrong_when_created(given: Attributes) -> Iterator[Refusal]:
    yield from _missing(given, TYPE_1)
    if first(given, tag_of(STATUS)) != PerformedState.IN_PROGRESS:
        yield Refusal(code=INVALID_VALUE, comment=f"{STATUS} shall be IN PROGRESS")
    for item in items(given, tag_of(SCHEDULED)):
        yield from _missing(item, TYPE_1_OF_SCHEDULED)
        if not is_uid(str(first(item, tag_of("StudyInstanceUID")))):
            yield Refusal(code=INVALID_VALUE, comment="StudyInstanceUID is none")
    yield from _missing_in_series(given)


def _wrong_when_changed(after: Attributes) -> Iterator[Refusal]:
    state = first(after, tag_of(STATUS))
    if state not in tuple(PerformedState):
        yield Refusal(code=INVALID_VALUE, comment=f"{STATUS} is one of {', '.join(PerformedState)}")
    yield from _missing_in_series(after)
    if state != PerformedState.IN_PROGRESS:
        yield from _missing(after, FINAL)
    if state == PerformedState.COMPLETED:  # an examination that was broken off may have made nothing
        yield from _missing(after, (SERIES,))


def _missing_in_series(given: Attributes) -> Iterator[Refusal]:
    for item in items(given, tag_of(SERIES)):
        yield from _missing(item, TYPE_1_OF_SERIES)


def _missing(given: Attributes, keywords: tuple[str, ...]) -> Iterator[Refusal]:
    for keyword in keywords:
        if tag_of(keyword) not in given:
            yield Refusal(code=MISSING_ATTRIBUTE, comment=keyword)
        elif not values(given, tag_of(keyword)):
            yield Refusal(code=MISSING_VALUE, comment=keyword)


def _named(uid: str) -> Dataset:
    named = Dataset()
    named.AffectedSOPInstanceUID = uid
    return named
