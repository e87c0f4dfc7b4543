"""A process killed between any two lines: what it had not committed never was, what it had committed stays."""

from __future__ import annotations

import datetime as dt
import multiprocessing
import random
from collections.abc import Callable
from multiprocessing.connection import Connection

import pytest
import sqlalchemy as sa

from db import deliveries, instances, jobs, results, studies
from db.deliveries import NewDelivery
from db.engine import Database
from db.instances import NewInstance
from db.states import DeliveryKind, DeliveryState, JobState, StudyState

LEASE = dt.timedelta(minutes=1)
AT_ONCE = dt.timedelta(0)
WHOLE = {"complete": True, "reason": "whole", "missing": []}
FLAG = NewDelivery(kind=DeliveryKind.FLAG, destination="ris")
SPAWN = multiprocessing.get_context("spawn")
DEADLINE = 120


def stored(tx: sa.Connection, study: str = "1") -> None:
    new = NewInstance(
        sop_instance_uid=f"{study}.1",
        sop_class_uid="1.2.840.10008.5.1.4.1.1.2",
        series_uid=f"{study}.0",
        study_uid=study,
        transfer_syntax_uid="1.2.840.10008.1.2.1",
        path=f"{study}/1.dcm",
        size=1,
        digest="d",
        association_id="a",
        calling_ae="CT1",
        facts={},
        header={},
    )
    assert instances.add(tx, new) is None


def pronounced(tx: sa.Connection, study: str = "1") -> None:
    assert studies.pronounce(tx, study_uid=study, completeness=WHOLE, seen=[f"{study}.1"], model="triage")


def claimed(tx: sa.Connection) -> None:
    assert jobs.claim(tx, owner="w1", lease=AT_ONCE) is not None


def recorded(tx: sa.Connection) -> None:
    (job,) = jobs.of_study(tx, "1")
    results.record(tx, job, outcome="negative", payload={"reason": "none"}, follow=[FLAG])


def delivered(tx: sa.Connection) -> None:
    delivery = deliveries.claim(tx, kind=DeliveryKind.FLAG, destination="ris", owner="d", lease=AT_ONCE)
    assert delivery is not None
    deliveries.sent(tx, delivery, detail="0000")


STEPS: dict[str, Callable[[sa.Connection], None]] = {
    "stored": stored,
    "pronounced": pronounced,
    "claimed": claimed,
    "recorded": recorded,
    "delivered": delivered,
}
"""A study's way through the database, one transaction each."""


def everything(database: Database) -> object:
    """All that stands in the database, to compare."""
    with database.read() as tx:
        study = studies.find(tx, "1")
        return (
            study,
            instances.of_study(tx, "1"),
            jobs.of_study(tx, "1"),
            results.of_study(tx, "1"),
            deliveries.of_study(tx, "1"),
        )


def walk(database: Database, steps: list[str]) -> None:
    for step in steps:
        with database.write() as tx:
            STEPS[step](tx)


def take_one_step(url: str, step: str, committed: bool, pipe: Connection) -> None:
    """The life of a process that takes a step, then waits to be killed, before its commit or after it."""
    database = Database(url)
    with database.write() as tx:
        STEPS[step](tx)
        if not committed:
            pipe.send("written")
            pipe.recv()
    pipe.send("written")
    pipe.recv()


def killed_in(url: str, step: str, *, committed: bool) -> None:
    ours, theirs = SPAWN.Pipe()
    process = SPAWN.Process(target=take_one_step, args=(url, step, committed, theirs))
    process.start()
    assert ours.poll(DEADLINE)
    assert ours.recv() == "written"
    process.kill()
    process.join()
    process.close()


@pytest.mark.parametrize("number", range(len(STEPS)), ids=list(STEPS))
def test_a_step_killed_before_its_commit_never_was_and_can_be_taken_again(database_url: str, number: int) -> None:
    before, step = list(STEPS)[:number], list(STEPS)[number]
    database = Database(database_url)
    walk(database, before)
    stood = everything(database)
    killed_in(database_url, step, committed=False)
    assert everything(database) == stood
    walk(database, list(STEPS)[number:])
    with database.read() as tx:
        assert [d.state for d in deliveries.of_study(tx, "1")] == [DeliveryState.SENT]
    database.close()


@pytest.mark.parametrize("number", range(len(STEPS)), ids=list(STEPS))
def test_a_step_killed_after_its_commit_stands_and_the_way_goes_on(database_url: str, number: int) -> None:
    database = Database(database_url)
    walk(database, list(STEPS)[:number])
    killed_in(database_url, list(STEPS)[number], committed=True)
    walk(database, list(STEPS)[number + 1 :])
    with database.read() as tx:
        study = studies.find(tx, "1")
        assert study is not None
        assert study.state is StudyState.REPORTED
        assert [job.state for job in jobs.of_study(tx, "1")] == [JobState.DONE]
        assert len(results.of_study(tx, "1")) == 1
        assert [d.state for d in deliveries.of_study(tx, "1")] == [DeliveryState.SENT]
    database.close()


def read_them_all(url: str, owner: str, pipe: Connection) -> None:
    """The life of a worker: takes over what the dead one held, reads until nothing waits."""
    database = Database(url)
    pipe.send("alive")
    while True:
        with database.write() as tx:
            jobs.reap(tx, attempts=1000)
        with database.write() as tx:
            job = jobs.claim(tx, owner=owner, lease=AT_ONCE)
        if job is None:
            break
        with database.write() as tx:
            results.record(tx, job, outcome="negative", payload={"reason": "none"}, follow=[FLAG])
    database.close()


def test_workers_killed_at_random_moments_leave_one_result_and_one_flag_for_every_study(database_url: str) -> None:
    database = Database(database_url)
    uids = [str(number) for number in range(1, 61)]
    for uid in uids:
        with database.write() as tx:
            stored(tx, uid)
            pronounced(tx, uid)
    chance = random.Random(7)
    kills = 0
    while True:
        ours, theirs = SPAWN.Pipe()
        worker = SPAWN.Process(target=read_them_all, args=(database_url, f"w{kills}", theirs))
        worker.start()
        assert ours.poll(DEADLINE)
        ours.recv()
        worker.join(chance.uniform(0.0, 0.02) if kills < 4 else DEADLINE)
        ended = worker.exitcode == 0
        worker.kill()
        worker.join()
        worker.close()
        if ended:
            break
        kills += 1
    with database.read() as tx:
        for uid in uids:
            assert [job.state for job in jobs.of_study(tx, uid)] == [JobState.DONE]
            assert len(results.of_study(tx, uid)) == 1
            assert len(deliveries.of_study(tx, uid)) == 1
    database.close()
    assert kills > 0
