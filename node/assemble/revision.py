"""What an instance means that comes after the verdict: it joins, it opens the next revision, or it changes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from db.states import JobState, StudyState
from inference.series import Criteria, InstanceFacts, SeriesChoice, choose
from node.assemble.view import EVERY_SERIES


class Act(StrEnum):
    """What is to be done about late instances."""

    RECALL = "recall"
    REOPEN = "reopen"
    NOTE = "note"
    WAIT = "wait"


@dataclass(frozen=True, kw_only=True)
class Late:
    """Whether late instances change what is read, and why, in one sentence."""

    changes: bool
    reason: str


def judge(
    *, before: Sequence[InstanceFacts], late: Sequence[InstanceFacts], read: Sequence[str], criteria: Criteria
) -> Late:
    """Whether `late` instances change what is read of a study.

    Both choices are made here, from headers, before and after: a stored result may have passed over a series for its
    pixels, and would differ for ever. Nothing without a place in the choice (reports, also our own that come back,
    key objects, presentation states, screen captures) can ever change it.

    Parameters
    ----------
    before, late : the instances that a verdict has counted, and those that came after it.
    read : the Series Instance UIDs that the last result was read from.
    criteria : which series may be read.
    """
    now = choose([*before, *late], criteria)
    chosen_before = {choice.series_uid for choice in choose(before, criteria) if choice.chosen}
    chosen_now = {choice.series_uid for choice in now if choice.chosen}
    if chosen_now != chosen_before:
        return Late(changes=True, reason=f"{_instances(len(late))} came late: another series is to be read")
    series = {facts.series_uid for facts in late if facts.has_pixels}
    touched = series & (chosen_now | set(read))
    if touched:
        count = sum(facts.series_uid in touched for facts in late)
        return Late(changes=True, reason=f"{_instances(count)} of a series that was read came late")
    if not chosen_now and series & _growing([*before, *late], criteria):
        return Late(changes=True, reason="slices came late of a study in which there was nothing to read")
    return Late(changes=False, reason=_harmless(late, now))


def meaning(*, state: StudyState, job: JobState | None, late: Late) -> Act:
    """What is to be done about late instances of a study in this state, whose job of this revision is in that one."""
    if state is StudyState.COMPLETE:
        return Act.RECALL if late.changes and job is JobState.TODO else Act.WAIT
    return Act.REOPEN if late.changes else Act.NOTE


def _growing(facts: Sequence[InstanceFacts], criteria: Criteria) -> set[str]:
    """The series that could be read if more of them came."""
    every = replace(criteria, max_series=EVERY_SERIES)
    return {choice.series_uid for choice in choose(facts, every, arriving=True) if choice.chosen}


def _harmless(late: Sequence[InstanceFacts], choices: Sequence[SeriesChoice]) -> str:
    series = {facts.series_uid for facts in late}
    codes = sorted({choice.code for choice in choices if choice.series_uid in series})
    return f"{_instances(len(late))} came late and changed nothing that was read ({', '.join(codes)})"


def _instances(count: int) -> str:
    return "1 instance" if count == 1 else f"{count} instances"
