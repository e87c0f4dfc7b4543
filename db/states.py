"""The states of everything that has one, in the order in which they are passed through."""

from enum import StrEnum


class StudyState(StrEnum):
    """receiving → complete → reported | not_analysed | failed; a late slice leads back to receiving.

    archived: fetched from another archive, kept and not analysed; a slice from anybody else leads to receiving.
    """

    RECEIVING = "receiving"
    COMPLETE = "complete"
    REPORTED = "reported"
    NOT_ANALYSED = "not_analysed"
    FAILED = "failed"
    ARCHIVED = "archived"


class JobState(StrEnum):
    """todo → doing → done | failed; an expired lease leads back to todo."""

    TODO = "todo"
    DOING = "doing"
    DONE = "done"
    FAILED = "failed"


class DeliveryState(StrEnum):
    """due → sent → confirmed | abandoned; a failure leads back to due. superseded: a newer revision came first."""

    DUE = "due"
    SENT = "sent"
    CONFIRMED = "confirmed"
    ABANDONED = "abandoned"
    SUPERSEDED = "superseded"


class WorkItemState(StrEnum):
    """Procedure Step State (0074,1000), PS3.4 table CC.1.1-2."""

    SCHEDULED = "SCHEDULED"
    IN_PROGRESS = "IN PROGRESS"
    COMPLETED = "COMPLETED"
    CANCELED = "CANCELED"


class Priority(StrEnum):
    """Scheduled Procedure Step Priority (0074,1200). Hemonode itself never assigns LOW."""

    HIGH = "HIGH"
    MEDIUM = "MEDIUM"
    LOW = "LOW"


class DeliveryKind(StrEnum):
    """What is delivered: flag, Structured Report, the request to commit to it, what is available; for research, SEG."""

    FLAG = "flag"
    SR = "sr"
    COMMITMENT = "commitment"
    AVAILABILITY = "availability"
    SEG = "seg"


class SetAsideKind(StrEnum):
    """Why an object was kept apart from the archive."""

    CONFLICT = "conflict"
    UNREADABLE = "unreadable"
    MISMATCH = "mismatch"


class FetchState(StrEnum):
    """due → done | short (fewer came than were announced) | failed; a later run leads back to due."""

    DUE = "due"
    DONE = "done"
    SHORT = "short"
    FAILED = "failed"


class CommitmentState(StrEnum):
    """asked → checked → reported | abandoned; the same request once more leads back to asked."""

    ASKED = "asked"
    CHECKED = "checked"
    REPORTED = "reported"
    ABANDONED = "abandoned"


class PerformedState(StrEnum):
    """Performed Procedure Step Status (0040,0252), PS3.4 F.7.1."""

    IN_PROGRESS = "IN PROGRESS"
    COMPLETED = "COMPLETED"
    DISCONTINUED = "DISCONTINUED"


class LabelSource(StrEnum):
    """Where a label comes from, the most trusted first: a reader's feedback, an imported table, a final report."""

    READER = "reader"
    CSV = "csv"
    REPORT = "report"
