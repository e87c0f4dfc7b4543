"""The flag: what is said about a study before anything else, and the channel that carries it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from db.states import Priority
from inference.result import Outcome, StudyResult

SUSPECTED = "ICH suspected"
"""How the label of every positive study begins, and of no other."""

LABEL_LENGTH = 64
"""Procedure Step Label is of VR LO (PS3.5 table 6.2-1)."""


@dataclass(frozen=True, kw_only=True)
class Reference:
    """An instance the reader will look at."""

    series_uid: str
    sop_class_uid: str
    sop_instance_uid: str


@dataclass(frozen=True, kw_only=True)
class Flag:
    """What the node says about one revision of one study to whoever orders the reading.

    `priority` is HIGH or MEDIUM, never LOW: nothing is pushed below its normal place. `label` is short text of at most
    64 characters, `reason` a sentence. `header` is the patient and study level in the DICOM JSON Model; it never goes
    to a log. `instances` belong to the series that were read, or to all where none was.
    """

    study_uid: str
    revision: int
    priority: Priority
    outcome: Outcome
    label: str
    reason: str
    demonstration: bool
    header: dict[str, Any]
    read_series_uids: tuple[str, ...] = ()
    instances: tuple[Reference, ...] = ()

    @property
    def raised(self) -> bool:
        """Whether the study goes to the top of the list."""
        return self.priority is Priority.HIGH


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """What became of a flag that the far side accepted.

    `confirmed` means that it was read back and is as asked; `detail` says what the far side shows. It names no patient.
    """

    confirmed: bool
    detail: str


class Channel(Protocol):
    """Carries flags to one destination; `name` is the destination's in node.toml."""

    @property
    def name(self) -> str:
        """The destination's name."""

    def send(self, flag: Flag) -> Receipt:
        """The far side stands as the flag says; sending it again has the effect of once.

        Raises
        ------
        DeliveryError
            It does not, this time.
        """


def flag_of(result: StudyResult, *, header: dict[str, Any], instances: Iterable[Reference] = ()) -> Flag:
    """The flag of a result: HIGH for a positive study, MEDIUM for every other, labelled as what it is."""
    read = result.read_series_uids
    return Flag(
        study_uid=result.study_uid,
        revision=result.revision,
        priority=Priority.HIGH if result.outcome is Outcome.POSITIVE else Priority.MEDIUM,
        outcome=result.outcome,
        label=_label(result),
        reason=_reason(result),
        demonstration=result.demonstration,
        header=header,
        read_series_uids=read,
        instances=tuple(i for i in instances if not read or i.series_uid in read),
    )


def _label(result: StudyResult) -> str:
    complete = result.completeness.complete
    unlike = " (unlike training)" if result.out_of_distribution else ""
    if result.outcome is Outcome.POSITIVE:
        return f"{SUSPECTED}{'' if complete else ' (incomplete study)'}{unlike}"
    if result.outcome is Outcome.NEGATIVE:
        return f"{'No ICH found' if complete else 'Incomplete study: no ICH found in what arrived'}{unlike}"
    reason = re.sub(r"^not analysed\W*", "", result.reason, flags=re.IGNORECASE).rstrip(". ")
    return _short(f"Not analysed: {reason}" if complete else f"Not analysed, incomplete study: {reason}")


def _short(text: str) -> str:
    # A backslash separates values in LO, and control characters are not allowed (PS3.5 6.2).
    line = " ".join(re.sub(r"[\\\x00-\x1f\x7f]", " ", text).split())
    return line if len(line) <= LABEL_LENGTH else f"{line[: LABEL_LENGTH - 3].rstrip()}..."


def _reason(result: StudyResult) -> str:
    if result.completeness.complete:
        return result.reason
    return " ".join(
        sentence if sentence.endswith(".") else f"{sentence}."
        for sentence in (result.reason, f"Incomplete: {result.completeness.reason}", *result.completeness.missing)
    )
