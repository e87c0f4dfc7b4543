"""The passage of a study through the database, on SQLite and on PostgreSQL."""

from __future__ import annotations

import dataclasses
import datetime as dt
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from db import associations, audit, deliveries, instances, jobs, parts, results, studies
from db.deliveries import NewDelivery
from db.engine import Database
from db.errors import LeaseLost, SchemaMismatch
from db.instances import NewInstance
from db.schema import deliveries as deliveries_table
from db.schema import metadata, now
from db.schema import studies as studies_table
from db.states import DeliveryKind, DeliveryState, SetAsideKind, StudyState

REPORT = DeliveryKind.SR
LEASE = dt.timedelta(minutes=1)
PAST = dt.timedelta(seconds=-1)
WHOLE: dict[str, Any] = {"complete": True, "reason": "geometrically whole", "missing": []}


@pytest.fixture
def database(either_database: Database) -> Database:
    return either_database


def an_instance(number: int, *, digest: str = "d") -> NewInstance:
    return NewInstance(
        sop_instance_uid=f"1.2.3.{number}",
        sop_class_uid="1.2.840.10008.5.1.4.1.1.2",
        series_uid="1.2.3",
        study_uid="1.2",
        transfer_syntax_uid="1.2.840.10008.1.2.1",
        path=f"a/{number}.dcm",
        size=10,
        digest=digest,
        association_id="a1",
        calling_ae="CT1",
        facts={},
        header={},
    )


def received(database: Database, *numbers: int) -> None:
    with database.write() as tx:
        for number in numbers:
            assert instances.add(tx, an_instance(number)) is None


def pronounced(database: Database, *numbers: int) -> bool:
    with database.write() as tx:
        seen = [f"1.2.3.{n}" for n in numbers]
        return studies.pronounce(tx, study_uid="1.2", completeness=WHOLE, seen=seen, model="triage")


def claimed(database: Database, owner: str = "w1", lease: dt.timedelta = LEASE) -> jobs.Job:
    with database.write() as tx:
        job = jobs.claim(tx, owner=owner, lease=lease)
    assert job is not None
    return job


def state_of(database: Database) -> StudyState:
    with database.read() as tx:
        study = studies.find(tx, "1.2")
    assert study is not None
    return study.state


def recorded(database: Database, job: jobs.Job) -> None:
    follow = [NewDelivery(kind=DeliveryKind.FLAG, destination="ris")]
    with database.write() as tx:
        results.record(tx, job, outcome="negative", payload={"reason": "none"}, follow=follow)


def test_the_migrations_build_the_schema(database: Database) -> None:
    with database.read() as tx:
        assert compare_metadata(MigrationContext.configure(tx), metadata) == []


def test_upgrading_twice_changes_nothing(database: Database) -> None:
    database.upgrade()


def test_the_same_instance_again_answers_the_first_row_and_changes_nothing(database: Database) -> None:
    received(database, 1)
    with database.write() as tx:
        known = instances.add(tx, an_instance(1, digest="other"))
    assert known is not None
    assert known.digest == "d"


def test_a_study_passes_from_receiving_to_reported(database: Database) -> None:
    received(database, 1, 2)
    assert pronounced(database, 1, 2)
    recorded(database, claimed(database))
    assert state_of(database) is StudyState.REPORTED
    with database.read() as tx:
        told = [event.event for event in audit.timeline(tx, "1.2")]
        due = deliveries.in_state(tx, DeliveryState.DUE)
    assert told == ["first_instance", "verdict", "job_started", "result"]
    assert [(d.kind, d.destination, d.revision) for d in due] == [(DeliveryKind.FLAG, "ris", 1)]


def test_a_verdict_formed_without_the_newest_slice_is_refused(database: Database) -> None:
    received(database, 1, 2)
    assert not pronounced(database, 1)
    assert state_of(database) is StudyState.RECEIVING


def test_a_late_slice_before_the_job_starts_recalls_the_verdict(database: Database) -> None:
    received(database, 1)
    assert pronounced(database, 1)
    received(database, 2)
    with database.write() as tx:
        assert studies.recall(tx, "1.2", reason="a slice more")
    assert state_of(database) is StudyState.RECEIVING
    assert pronounced(database, 2)
    assert claimed(database).revision == 1


def test_a_started_job_is_not_recalled(database: Database) -> None:
    received(database, 1)
    assert pronounced(database, 1)
    claimed(database)
    with database.write() as tx:
        assert not studies.recall(tx, "1.2", reason="a slice more")


def test_a_slice_after_the_result_opens_the_next_revision_and_supersedes_what_was_due(database: Database) -> None:
    received(database, 1)
    assert pronounced(database, 1)
    recorded(database, claimed(database))
    received(database, 2)
    with database.write() as tx:
        assert studies.reopen(tx, "1.2", reason="a late slice") == 2
    assert pronounced(database, 2)
    recorded(database, claimed(database))
    with database.read() as tx:
        states = [(d.revision, d.state) for d in deliveries.of_study(tx, "1.2")]
    assert states == [(1, DeliveryState.SUPERSEDED), (2, DeliveryState.DUE)]


def test_one_job_is_claimed_once(database: Database) -> None:
    received(database, 1)
    pronounced(database, 1)
    claimed(database)
    with database.write() as tx:
        assert jobs.claim(tx, owner="w2", lease=LEASE) is None


def test_an_expired_lease_passes_on_and_its_first_holder_can_write_nothing(database: Database) -> None:
    received(database, 1)
    pronounced(database, 1)
    first = claimed(database, lease=PAST)
    with database.write() as tx:
        assert len(jobs.reap(tx, attempts=3)) == 1
    second = claimed(database, owner="w2")
    with pytest.raises(LeaseLost):
        recorded(database, first)
    recorded(database, second)


def test_a_poison_study_is_parked_after_its_attempts_and_still_gets_its_statement(database: Database) -> None:
    received(database, 1)
    pronounced(database, 1)
    for attempt in (1, 2):
        job = claimed(database)
        with database.write() as tx:
            assert jobs.fail(tx, job, error="boom", attempts=2) is (attempt == 2)
    with database.write() as tx:
        (parked,) = jobs.parked_unspoken(tx)
        results.record_parked(tx, parked, payload={"reason": "boom"}, follow=[])
        assert jobs.parked_unspoken(tx) == ()
        assert [r.outcome for r in results.of_study(tx, "1.2")] == ["not_analysed"]
    assert state_of(database) is StudyState.FAILED


def flag_and_report_due(database: Database) -> None:
    both = [NewDelivery(kind=kind, destination=name) for kind, name in ((DeliveryKind.FLAG, "ris"), (REPORT, "pacs"))]
    with database.write() as tx:
        deliveries.enqueue(tx, study_uid="1.2", revision=1, new=both)


def delivery_claimed(database: Database, kind: DeliveryKind, destination: str) -> deliveries.Delivery | None:
    with database.write() as tx:
        before = deliveries.any_due(tx, kind=kind, destination=destination)
        delivery = deliveries.claim(tx, kind=kind, destination=destination, owner="d", lease=LEASE)
        assert before is (delivery is not None)
    return delivery


@pytest.mark.parametrize("succeeds", [True, False])
def test_a_report_waits_until_the_flag_of_its_study_was_tried_once(database: Database, succeeds: bool) -> None:
    received(database, 1)
    flag_and_report_due(database)
    assert delivery_claimed(database, REPORT, "pacs") is None
    flag = delivery_claimed(database, DeliveryKind.FLAG, "ris")
    assert flag is not None
    assert delivery_claimed(database, REPORT, "pacs") is None
    with database.write() as tx:
        if succeeds:
            deliveries.sent(tx, flag, detail="created")
        else:
            deliveries.failed(tx, flag, error="nobody listens", retry_after=LEASE)
    assert delivery_claimed(database, REPORT, "pacs") is not None


def test_a_report_does_not_wait_long_for_a_flag(database: Database) -> None:
    received(database, 1)
    flag_and_report_due(database)
    with database.write() as tx:
        tx.execute(deliveries_table.update().values(created_at=now() - deliveries.FLAG_FIRST))
    assert delivery_claimed(database, REPORT, "pacs") is not None


def test_a_failed_delivery_is_due_later_and_then_abandoned(database: Database) -> None:
    received(database, 1)
    pronounced(database, 1)
    recorded(database, claimed(database))
    for retry in (PAST, None):
        with database.write() as tx:
            delivery = deliveries.claim(tx, kind=DeliveryKind.FLAG, destination="ris", owner="d", lease=LEASE)
            assert delivery is not None
            deliveries.failed(tx, delivery, error="down", retry_after=retry)
    with database.write() as tx:
        assert [d.attempts for d in deliveries.in_state(tx, DeliveryState.ABANDONED)] == [2]
        assert deliveries.requeue(tx) == 1


def test_an_instance_that_changes_nothing_is_noted_without_a_new_revision(database: Database) -> None:
    received(database, 1)
    assert pronounced(database, 1)
    recorded(database, claimed(database))
    received(database, 2)
    with database.write() as tx:
        assert studies.note_late(tx, study_uid="1.2", seen=["1.2.3.2"], reason="a report")
        assert [i.revision for i in instances.of_study(tx, "1.2")] == [1, 1]
    assert state_of(database) is StudyState.REPORTED


def test_a_note_about_one_instance_does_not_swallow_the_next(database: Database) -> None:
    received(database, 1)
    assert pronounced(database, 1)
    recorded(database, claimed(database))
    received(database, 2, 3)
    with database.write() as tx:
        assert not studies.note_late(tx, study_uid="1.2", seen=["1.2.3.2"], reason="a report")
        assert [i.sop_instance_uid for i in instances.unconsidered(tx, "1.2")] == ["1.2.3.2", "1.2.3.3"]


def test_an_open_study_is_not_noted_as_late(database: Database) -> None:
    received(database, 1)
    with database.write() as tx:
        assert not studies.note_late(tx, study_uid="1.2", seen=["1.2.3.1"], reason="a report")


def test_only_studies_a_verdict_has_to_look_at_are_pending(database: Database) -> None:
    received(database, 1, 2)
    with database.write() as tx:
        instances.add(tx, dataclasses.replace(an_instance(9), study_uid="7.7"))
    with database.read() as tx:
        first, second = studies.pending(tx)
    assert (first.study_uid, first.uncounted, second.study_uid, second.uncounted) == ("1.2", 2, "7.7", 1)
    assert first.last_seq < second.last_seq
    assert pronounced(database, 1, 2)
    recorded(database, claimed(database))
    with database.read() as tx:
        assert [study.study_uid for study in studies.pending(tx)] == ["7.7"]
    received(database, 3)
    with database.read() as tx:
        (late, _) = studies.pending(tx)
    assert (late.study_uid, late.state, late.uncounted) == ("1.2", StudyState.REPORTED, 1)


def test_a_view_does_not_change_while_others_write(database: Database) -> None:
    received(database, 1)
    with database.read() as tx:
        assert len(instances.of_study(tx, "1.2")) == 1
        received(database, 2)
        assert len(instances.of_study(tx, "1.2")) == 1
    with database.read() as tx:
        assert len(instances.of_study(tx, "1.2")) == 2


def test_a_lost_association_stays_lost(database: Database) -> None:
    who = {"receiver": "r1", "calling_ae": "CT1", "called_ae": "HEMONODE", "address": "127.0.0.1"}
    with database.write() as tx:
        associations.opened(tx, association_id="a1", **who)
        associations.opened(tx, association_id="a2", **who | {"receiver": "r2"})
    received(database, 1)
    with database.write() as tx:
        assert associations.close_lost(tx, receiver="r1") == 1
        associations.ended(tx, association_id="a1", outcome=associations.RELEASED)
    with database.read() as tx:
        assert [a.outcome for a in associations.of_study(tx, "1.2")] == [associations.LOST]
        assert [a.association_id for a in associations.open_now(tx)] == ["a2"]


def test_an_object_set_aside_is_kept_with_its_reason(database: Database) -> None:
    with database.write() as tx:
        instances.keep_aside(
            tx, kind=SetAsideKind.CONFLICT, status=0, reason="another object under this UID", path="c/1.dcm", size=3,
            digest="d", association_id="a1", calling_ae="CT1", sop_instance_uid="1.2.3.1",
        )  # fmt: skip
        assert instances.set_aside_digest_known(tx, sop_instance_uid="1.2.3.1", digest="d")
        assert not instances.set_aside_digest_known(tx, sop_instance_uid="1.2.3.1", digest="e")
        assert instances.count_set_aside(tx) == 1
        assert [a.kind for a in instances.all_set_aside(tx)] == [SetAsideKind.CONFLICT]


def test_a_part_that_starts_again_replaces_the_one_that_died(database: Database) -> None:
    with database.write() as tx:
        parts.started(tx, name="receive", kind="receive", pid=1, detail={})
        parts.started(tx, name="receive", kind="receive", pid=2, detail={"port": 11112})
        parts.beat(tx, name="receive", pid=2)
    with database.read() as tx:
        assert [(part.pid, part.detail) for part in parts.all_parts(tx)] == [(2, {"port": 11112})]
    with database.write() as tx:
        parts.stopped(tx, name="receive", pid=2)
        assert parts.all_parts(tx) == ()


def test_a_part_that_drains_while_its_successor_runs_does_not_speak_for_it(database: Database) -> None:
    with database.write() as tx:
        parts.started(tx, name="receive", kind="receive", pid=1, detail={})
        parts.started(tx, name="receive", kind="receive", pid=2, detail={})
        before = parts.all_parts(tx)
        parts.beat(tx, name="receive", pid=1, detail={"from": "the one before"})
        parts.stopped(tx, name="receive", pid=1)
        assert parts.all_parts(tx) == before


def test_a_database_of_a_newer_version_is_refused(fresh_database_url: str) -> None:
    database = Database(fresh_database_url)
    database.upgrade()
    with database.write() as tx:
        tx.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(SchemaMismatch, match="9999"):
        database.upgrade()
    database.close()


def test_a_time_without_a_zone_is_refused(database: Database) -> None:
    received(database, 1)
    with pytest.raises(sa.exc.StatementError, match="aware"), database.write() as tx:
        tx.execute(studies_table.update().values(verdict_at=dt.datetime(2026, 1, 1)))  # noqa: DTZ001 - the point


def test_a_write_that_raises_leaves_nothing_behind(database: Database) -> None:
    def killed_halfway() -> None:
        with database.write() as tx:
            instances.add(tx, an_instance(1))
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        killed_halfway()
    with database.read() as tx:
        assert instances.find(tx, "1.2.3.1") is None
