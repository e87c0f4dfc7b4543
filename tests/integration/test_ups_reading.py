"""The node's own reading items through the revisions of a study, and the items that have had their time."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest

from db import audit, notifications, subscriptions, worklist
from db.dicom_json import data_set, first
from db.engine import Database
from db.procedure_step import COMMENTS, LABEL, PERFORMED, WorkItem
from db.schema import now
from db.states import Priority
from inference.result import Outcome
from node.flag.workitem import reading
from tests.worklist_node import CLAIM, CODE, DONE, a_flag, claimed, completed, put

POSITIVE, NEGATIVE = Outcome.POSITIVE, Outcome.NEGATIVE


@pytest.fixture
def database(either_database: Database) -> Database:
    return either_database


def changed_by_somebody(database: Database, item: WorkItem, **values: Any) -> None:
    with database.write() as tx:
        worklist.update(tx, uid=item.uid, transaction_uid="", changes=data_set(**values))


def items(database: Database) -> list[tuple[str, str, str]]:
    with database.read() as tx:
        return [(i.state, i.priority, i.label) for i in worklist.of_study(tx, "1.2.3")]


def told(database: Database) -> list[tuple[int, str | None]]:
    with database.write() as tx:
        owed = notifications.claim(tx, ae_title="WATCHER", owner="test", lease=dt.timedelta(minutes=1))
    return [(n.event_type, first(n.dataset, "00741200")) for n in owed]


def test_a_late_slice_that_finds_blood_raises_the_same_item(database: Database) -> None:
    before = put(database, a_flag(NEGATIVE))
    after = put(database, a_flag(POSITIVE, revision=2))
    assert (before.uid, before.created_at) == (after.uid, after.created_at)
    assert items(database) == [("SCHEDULED", "HIGH", "ICH suspected")]


def test_a_flag_can_be_withdrawn_while_nobody_reads(database: Database) -> None:
    put(database, a_flag(POSITIVE))
    put(database, a_flag(NEGATIVE, revision=2))
    assert items(database) == [("SCHEDULED", "MEDIUM", "No ICH found")]


def test_the_same_revision_again_changes_nothing(database: Database) -> None:
    first_time = put(database, a_flag(POSITIVE))
    assert put(database, a_flag(POSITIVE)) == first_time


def test_an_older_revision_that_comes_late_changes_nothing(database: Database) -> None:
    put(database, a_flag(POSITIVE, revision=2))
    put(database, a_flag(NEGATIVE, revision=1))
    assert items(database) == [("SCHEDULED", "HIGH", "ICH suspected")]


@pytest.mark.parametrize("theirs", ["HIGH", "LOW"])
def test_a_priority_that_somebody_else_has_set_is_not_lowered_or_lifted_to_normal(
    database: Database, theirs: str
) -> None:
    changed_by_somebody(database, put(database, a_flag(NEGATIVE)), ScheduledProcedureStepPriority=theirs)
    put(database, a_flag(NEGATIVE, revision=2))
    assert items(database) == [("SCHEDULED", theirs, "No ICH found")]


def test_blood_outweighs_whatever_somebody_else_has_set(database: Database) -> None:
    changed_by_somebody(database, put(database, a_flag(NEGATIVE)), ScheduledProcedureStepPriority="LOW")
    put(database, a_flag(POSITIVE, revision=2))
    assert items(database) == [("SCHEDULED", "HIGH", "ICH suspected")]


def test_what_others_have_set_survives_the_next_revision(database: Database) -> None:
    item = put(database, a_flag(NEGATIVE))
    changed_by_somebody(database, item, WorklistLabel="Night shift", ScheduledStationNameCodeSequence=CODE)
    after = put(database, a_flag(POSITIVE, revision=2))
    assert first(after.dataset, "00741202") == "Night shift"
    assert first(after.dataset, "00404025") == CODE
    assert "Study revision 2." in str(first(after.dataset, COMMENTS))


def test_an_item_being_read_is_raised_and_its_subscribers_are_told(database: Database) -> None:
    item = put(database, a_flag(NEGATIVE))
    with database.write() as tx:
        subscriptions.subscribe(tx, ae_title="WATCHER", workitem_uid=item.uid, deletion_lock=False)
    claimed(database, item)
    put(database, a_flag(POSITIVE, revision=2))
    assert items(database) == [("IN PROGRESS", "HIGH", "ICH suspected")]
    assert told(database) == [(1, "MEDIUM"), (1, "MEDIUM"), (1, "HIGH")]


def test_an_item_being_read_is_not_lowered_under_the_readers_hands(database: Database) -> None:
    item = put(database, a_flag(POSITIVE))
    claimed(database, item)
    with database.write() as tx:
        worklist.update(tx, uid=item.uid, transaction_uid=CLAIM, changes=DONE)
    after = put(database, a_flag(NEGATIVE, revision=2))
    assert (after.priority, after.transaction_uid) == (Priority.HIGH, CLAIM)
    assert first(after.dataset, LABEL) == "No ICH found"
    assert first(after.dataset, PERFORMED) is not None


def test_a_study_that_has_been_read_comes_back_only_when_it_is_positive(database: Database) -> None:
    item = put(database, a_flag(NEGATIVE))
    completed(database, item)
    put(database, a_flag(NEGATIVE, revision=2))
    assert len(items(database)) == 1
    further = put(database, a_flag(POSITIVE, revision=3))
    assert put(database, a_flag(POSITIVE, revision=3)) == further
    assert items(database) == [("COMPLETED", "MEDIUM", "No ICH found"), ("SCHEDULED", "HIGH", "ICH suspected")]
    put(database, a_flag(NEGATIVE, revision=4))
    assert items(database)[1:] == [("SCHEDULED", "MEDIUM", "No ICH found")]


def test_a_further_item_that_has_been_read_too_makes_room_for_another(database: Database) -> None:
    completed(database, put(database, a_flag(POSITIVE)))
    completed(database, put(database, a_flag(POSITIVE, revision=2)))
    put(database, a_flag(POSITIVE, revision=3))
    assert [state for state, _, _ in items(database)] == ["COMPLETED", "COMPLETED", "SCHEDULED"]


def test_the_timeline_tells_how_the_item_fared_without_naming_anybody(database: Database) -> None:
    completed(database, put(database, a_flag(NEGATIVE)))
    put(database, a_flag(POSITIVE, revision=2))
    with database.read() as tx:
        events = audit.timeline(tx, "1.2.3")
    assert [(e.event, e.detail["priority"]) for e in events] == [
        ("worklist_added", "MEDIUM"),
        ("worklist_in_progress", "MEDIUM"),
        ("worklist_completed", "MEDIUM"),
        ("worklist_added", "HIGH"),
    ]
    assert "Doe" not in str(events)


def test_a_write_that_fails_leaves_neither_item_nor_report(database: Database) -> None:
    with database.write() as tx:
        subscriptions.subscribe_globally(tx, ae_title="WATCHER", deletion_lock=False)

    def killed() -> None:
        with database.write() as tx:
            worklist.put_reading(tx, reading(a_flag(), ae_title="HEMONODE", at=now(), retrieve_ae_title="PACS"))
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        killed()
    with database.read() as tx:
        assert worklist.in_reading_order(tx) == ()
        assert notifications.owed_to(tx) == ()


def test_an_item_that_has_ended_leaves_in_time_unless_somebody_holds_a_lock(database: Database) -> None:
    later = now() + dt.timedelta(days=1)
    ended, held, still_open = (put(database, a_flag(study_uid=f"1.2.{n}")) for n in range(3))
    with database.write() as tx:
        subscriptions.subscribe(tx, ae_title="WATCHER", workitem_uid=ended.uid, deletion_lock=False)
        subscriptions.subscribe(tx, ae_title="WATCHER", workitem_uid=held.uid, deletion_lock=True)
    completed(database, ended)
    completed(database, held)
    with database.write() as tx:
        assert worklist.forget(tx, before=ended.created_at) == 0
        assert worklist.forget(tx, before=later) == 1
        assert {i.uid for i in worklist.in_reading_order(tx)} == {held.uid, still_open.uid}
        subscriptions.subscribe(tx, ae_title="WATCHER", workitem_uid=held.uid, deletion_lock=False)
        assert worklist.forget(tx, before=later) == 1
        assert [s.workitem_uid for s in subscriptions.of_ae(tx, "WATCHER")] == []
