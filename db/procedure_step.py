"""One Unified Procedure Step: its value, its legal changes of state, and every answer that refuses one (PS3.4 CC)."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from db.dicom_json import Attributes, date_time, element, first, items, values
from db.states import Priority, WorkItemState

PUSH = "1.2.840.10008.5.1.4.34.6.1"
"""The SOP Class of every UPS instance, whichever of the five SOP Classes operates on it (PS3.4 CC.3.1)."""
WATCH = "1.2.840.10008.5.1.4.34.6.2"
PULL = "1.2.840.10008.5.1.4.34.6.3"
EVENT = "1.2.840.10008.5.1.4.34.6.4"
QUERY = "1.2.840.10008.5.1.4.34.6.5"

SOP_CLASS_UID = "00080016"
SOP_INSTANCE_UID = "00080018"
TRANSACTION_UID = "00081195"
STATE = "00741000"
PRIORITY = "00741200"
LABEL = "00741204"
READINESS = "00404041"
START = "00404005"
MODIFIED = "00404010"
COMMENTS = "00400400"
INPUT = "00404021"
STATION = "00404025"
HUMAN_PERFORMERS = "00404034"
PROGRESS = "00741002"
PERFORMED = "00741216"
CANCELED_AT = "00404052"
REASON = "00741238"
REASON_CODES = "0074100E"
COMMUNICATIONS = "00741008"
CONTACT_URI = "0074100A"
CONTACT_NAME = "0074100C"

FINAL = (WorkItemState.COMPLETED, WorkItemState.CANCELED)

UNSPECIFIED = {
    "00080100": element("SH", "110513"),
    "00080102": element("SH", "DCM"),
    "00080104": element("LO", "Discontinued for unspecified reason"),
}
"""The reason for cancellation where nobody gave one (PS3.16 CID 9300)."""


class Answer(IntEnum):
    """What a UPS SCP answers; the value is the DIMSE status, defined in the clause beside it.

    General statuses: PS3.7 Annex C. Service class: PS3.4 tables CC.2.1-2 (change state), CC.2.2-2 (request cancel),
    CC.2.3-3 (subscribe), CC.2.5-4 (create), CC.2.6-1 (set), CC.2.7-1 (get), CC.2.8-2 (find).
    """

    meaning: str

    def __new__(cls, status: int, meaning: str = "") -> Answer:
        """A status with its meaning in words."""
        answer = int.__new__(cls, status)
        answer._value_ = status
        answer.meaning = meaning
        return answer

    DONE = 0x0000, "done"
    NOT_SUPPORTED = 0x0001, "requested optional attributes are not supported"  # CC.2.6-1, CC.2.7-1
    INVALID_VALUE = 0x0106, "invalid attribute value"  # PS3.7 C.5.11
    PROCESSING_FAILURE = 0x0110, "processing failure"  # PS3.7 C.5.21
    DUPLICATE = 0x0111, "an instance of this UID exists already"  # PS3.7 C.5.8, PS3.4 table CC.1.1-2
    NO_SUCH_INSTANCE = 0x0112, "no such SOP instance"  # PS3.7 C.5.19; for UPS the Standard has C307
    INVALID_ARGUMENT = 0x0115, "invalid argument value"  # PS3.7 C.5.10
    INVALID_INSTANCE = 0x0117, "the SOP Instance UID is not allowed"  # PS3.7 C.5.12
    MISSING_ATTRIBUTE = 0x0120, "a required attribute is missing"  # PS3.7 C.5.13
    MISSING_VALUE = 0x0121, "a required attribute has no value"  # PS3.7 C.5.14
    NO_SUCH_ACTION = 0x0123, "no such action"  # PS3.7 C.5.24
    RESOURCE_LIMIT = 0x0213, "too large"  # PS3.7 C.5.22
    CREATED_MODIFIED = 0xB300, "created with modifications"  # CC.2.5-4
    LOCK_NOT_GRANTED = 0xB301, "deletion lock not granted"  # CC.2.3-3
    ALREADY_CANCELED = 0xB304, "already CANCELED"  # CC.2.1-2, CC.2.2-2
    COERCED = 0xB305, "invalid values were coerced to valid ones"  # CC.2.6-1
    ALREADY_COMPLETED = 0xB306, "already COMPLETED"  # CC.2.1-2
    NO_LONGER_UPDATED = 0xC300, "may no longer be updated"  # CC.2.1-2, CC.2.6-1
    WRONG_TRANSACTION = 0xC301, "the correct Transaction UID was not provided"  # CC.2.1-2, CC.2.6-1
    ALREADY_IN_PROGRESS = 0xC302, "already IN PROGRESS"  # CC.2.1-2
    ONLY_BY_CREATE = 0xC303, "only N-CREATE makes an item SCHEDULED"  # CC.2.1-2
    UNMET = 0xC304, "the final state requirements are not met"  # CC.2.1-2
    UNKNOWN = 0xC307, "not an instance managed here"  # CC.2.1-2, CC.2.2-2, CC.2.3-3, CC.2.6-1, CC.2.7-1
    UNKNOWN_RECEIVER = 0xC308, "the receiving AE title is unknown here"  # CC.2.3-3
    NOT_SCHEDULED = 0xC309, "the provided state was not SCHEDULED"  # CC.2.5-4
    NOT_IN_PROGRESS = 0xC310, "not yet IN PROGRESS"  # CC.2.1-2, CC.2.6-1
    COMPLETED = 0xC311, "already COMPLETED"  # CC.2.2-2
    UNREACHABLE = 0xC312, "the performer cannot be contacted"  # CC.2.2-2
    NOT_CANCELED = 0xC313, "the performer chooses not to cancel"  # CC.2.2-2
    INAPPROPRIATE = 0xC314, "the action does not fit this instance"  # CC.2.3-3
    NO_EVENTS = 0xC315, "event reports are not supported"  # CC.2.3-3
    CANCEL = 0xFE00, "matching was cancelled"  # CC.2.8-2
    PENDING = 0xFF00, "a match, and more to come"  # CC.2.8-2
    CANNOT_MATCH = 0xC000, "unable to process the identifier"  # CC.2.8-2


@dataclass(frozen=True, kw_only=True)
class WorkItem:
    """One item of the worklist.

    `study_uid`, `revision` and `asked` (the priority this node last asked for) belong to the node's own reading items
    and are None for items that others created. `dataset` holds every attribute that has no column of its own, in the
    DICOM JSON Model; it is patient data and never goes to a log.
    """

    uid: str
    study_uid: str | None
    revision: int | None
    asked: Priority | None
    state: WorkItemState
    priority: Priority
    transaction_uid: str | None
    dataset: Attributes
    created_at: dt.datetime
    updated_at: dt.datetime

    @classmethod
    def of(cls, row: Any) -> WorkItem:
        """The item in a row of the table."""
        asked = row["asked"] and Priority(row["asked"])
        return cls(
            **{**row, "asked": asked, "state": WorkItemState(row["state"]), "priority": Priority(row["priority"])}
        )

    @property
    def label(self) -> str:
        """Procedure Step Label (0074,1204)."""
        return str(first(self.dataset, LABEL) or "")

    @property
    def attributes(self) -> Attributes:
        """Every attribute anyone may see: all but the Transaction UID (PS3.4 CC.2.7.3)."""
        return self.dataset | {
            SOP_CLASS_UID: element("UI", PUSH),
            SOP_INSTANCE_UID: element("UI", self.uid),
            STATE: element("CS", str(self.state)),
            PRIORITY: element("CS", str(self.priority)),
            MODIFIED: element("DT", date_time(self.updated_at)),
        }


def transition(state: WorkItemState, to: WorkItemState, *, held: str | None, given: str) -> Answer:
    """Whether N-ACTION may change `state` to `to` (PS3.4 table CC.1.1-2); `Answer.DONE` when it may.

    Parameters
    ----------
    held : str or None
        The Transaction UID recorded in the item.
    given : str
        The Transaction UID in the request, empty where there is none.
    """
    if to is WorkItemState.SCHEDULED:
        return Answer.ONLY_BY_CREATE
    correct = bool(given) if state is WorkItemState.SCHEDULED else given == held
    if not correct:
        return Answer.WRONG_TRANSACTION
    if state is WorkItemState.SCHEDULED:
        return Answer.DONE if to is WorkItemState.IN_PROGRESS else Answer.NOT_IN_PROGRESS
    if state is WorkItemState.IN_PROGRESS:
        return Answer.ALREADY_IN_PROGRESS if to is WorkItemState.IN_PROGRESS else Answer.DONE
    if state is to:
        return Answer.ALREADY_COMPLETED if to is WorkItemState.COMPLETED else Answer.ALREADY_CANCELED
    return Answer.NO_LONGER_UPDATED


def unmet(dataset: Attributes) -> tuple[str, ...]:
    """What COMPLETED still lacks, by keyword (final state code P, PS3.4 table CC.2.5-3).

    CANCELED lacks nothing once `canceled` has filled what the SCP may fill.
    """
    required = {
        "PerformedStationNameCodeSequence": "00404028",
        "PerformedProcedureStepStartDateTime": "00404050",
        "PerformedWorkitemCodeSequence": "00404019",
        "PerformedProcedureStepEndDateTime": "00404051",
    }
    performed = items(dataset, PERFORMED)
    if not performed:
        return ("UnifiedProcedureStepPerformedProcedureSequence",)
    lacking = [keyword for keyword, tag in required.items() if not all(values(item, tag) for item in performed)]
    if not all("00404033" in item for item in performed):  # may hold no items, but must be there
        lacking.append("OutputInformationSequence")
    return tuple(lacking)


def canceled(dataset: Attributes, *, at: dt.datetime, request: Attributes | None = None) -> Attributes:
    """The attributes of an item that is CANCELED: when and why, as far as it is known (final state code X).

    The time is filled by the SCP as PS3.4 table CC.2.5-3 demands; a reason nobody gave is "unspecified".

    Parameters
    ----------
    request : dict, optional
        The action information of a Request UPS Cancel, whose reason and contact are taken over.
    """
    progress: Attributes = dict(next(iter(items(dataset, PROGRESS)), {}))
    progress |= {tag: (request or {})[tag] for tag in (REASON, REASON_CODES) if values(request or {}, tag)}
    contact = {tag: (request or {})[tag] for tag in (CONTACT_URI, CONTACT_NAME) if values(request or {}, tag)}
    if contact:
        progress[COMMUNICATIONS] = element("SQ", contact)
    if not values(progress, CANCELED_AT):
        progress[CANCELED_AT] = element("DT", date_time(at))
    if not values(progress, REASON_CODES):
        progress[REASON_CODES] = element("SQ", UNSPECIFIED)
    return dataset | {PROGRESS: element("SQ", progress)}
