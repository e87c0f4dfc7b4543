"""Several threads and processes at one database, at the same moment."""

from __future__ import annotations

import datetime as dt
import multiprocessing
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from db import audit, deliveries, instances, jobs, studies
from db.deliveries import NewDelivery
from db.engine import Database
from db.instances import NewInstance
from db.states import DeliveryKind, StudyState

LEASE = dt.timedelta(minutes=1)
WHOLE = {"complete": True, "reason": "whole", "missing": []}
SPAWN = multiprocessing.get_context("spawn")
DEADLINE = 120


def an_instance(study: int, number: int) -> NewInstance:
    return NewInstance(
        sop_instance_uid=f"1.2.{study}.{number}",
        sop_class_uid="1.2.840.10008.5.1.4.1.1.2",
        series_uid=f"1.2.{study}",
        study_uid=f"1.{study}",
        transfer_syntax_uid="1.2.840.10008.1.2.1",
        path=f"{study}/{number}.dcm",
        size=1,
        digest="d",
        association_id="a",
        calling_ae="CT1",
        facts={},
        header={},
    )


def with_jobs(database: Database, count: int) -> None:
    with database.write() as tx:
        for study in range(count):
            instances.add(tx, an_instance(study, 1))
            seen = [f"1.2.{study}.1"]
            assert studies.pronounce(tx, study_uid=f"1.{study}", completeness=WHOLE, seen=seen, model="triage")


def claim_all(database: Database, owner: str) -> list[int]:
    claimed: list[int] = []
    while True:
        with database.write() as tx:
            job = jobs.claim(tx, owner=owner, lease=LEASE)
        if job is None:
            return claimed
        claimed.append(job.id)


def claiming(url: str, owner: str, pipe: Connection) -> None:
    """The life of a process that claims as soon as it is told to."""
    database = Database(url)
    pipe.send("ready")
    pipe.recv()
    pipe.send(claim_all(database, owner))
    database.close()


def upgrading(url: str, owner: str, pipe: Connection) -> None:
    """The life of a process that brings the schema up to date as soon as it is told to."""
    pipe.send("ready")
    pipe.recv()
    database = Database(url)
    database.upgrade()
    database.close()
    pipe.send(owner)


Start = Callable[[Callable[[str, str, Connection], None], str, int], list[Connection]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts so many processes; they are gone when the test ends."""
    running: list[BaseProcess] = []

    def begin(life: Callable[[str, str, Connection], None], url: str, count: int) -> list[Connection]:
        pipes = []
        for number in range(count):
            ours, theirs = SPAWN.Pipe()
            process = SPAWN.Process(target=life, args=(url, f"p{number}", theirs))
            process.start()
            running.append(process)
            pipes.append(ours)
        return pipes

    yield begin
    for process in running:
        process.kill()
        process.join()
        process.close()


def answers(pipes: list[Connection]) -> list[object]:
    said = []
    for pipe in pipes:
        assert pipe.poll(DEADLINE)
        said.append(pipe.recv())
    return said


def test_processes_that_claim_at_once_share_the_jobs_without_overlap(database_url: str, start: Start) -> None:
    database = Database(database_url)
    with_jobs(database, 60)
    pipes = start(claiming, database_url, 4)
    answers(pipes)
    for pipe in pipes:
        pipe.send("go")
    claimed = [job for share in answers(pipes) for job in share]  # type: ignore[attr-defined]
    assert len(claimed) == len(set(claimed)) == 60
    database.close()


def test_processes_may_bring_the_schema_up_to_date_at_once(fresh_database_url: str, start: Start) -> None:
    pipes = start(upgrading, fresh_database_url, 4)
    answers(pipes)
    for pipe in pipes:
        pipe.send("go")
    assert sorted(map(str, answers(pipes))) == ["p0", "p1", "p2", "p3"]


def test_all_who_open_a_new_database_at_once_open_it(tmp_path: Path) -> None:
    """SQLite lets nobody wait who switches to a write-ahead log while another does: one round in 25 failed."""
    barrier = threading.Barrier(4)

    def opened(number: int) -> str:
        barrier.wait(DEADLINE)
        database = Database(f"sqlite:///{tmp_path / f'{number}.db'}")
        try:
            with database.engine.connect() as connection:
                return str(connection.exec_driver_sql("PRAGMA journal_mode").scalar())
        finally:
            database.close()

    with ThreadPoolExecutor(4) as pool:
        for number in range(60):
            assert list(pool.map(opened, [number] * 4)) == ["wal"] * 4


def test_threads_that_claim_at_once_share_the_jobs_without_overlap(either_database: Database) -> None:
    with_jobs(either_database, 60)
    barrier = threading.Barrier(8)

    def share(owner: int) -> list[int]:
        barrier.wait(DEADLINE)
        return claim_all(either_database, f"t{owner}")

    with ThreadPoolExecutor(8) as pool:
        claimed = [job for part in pool.map(share, range(8)) for job in part]
    assert len(claimed) == len(set(claimed)) == 60


def test_threads_that_deliver_at_once_deliver_each_thing_once(either_database: Database) -> None:
    new = [NewDelivery(kind=DeliveryKind.SR, destination="pacs")]
    with either_database.write() as tx:
        for study in range(40):
            deliveries.enqueue(tx, study_uid=f"1.{study}", revision=1, new=new)
            deliveries.enqueue(tx, study_uid=f"1.{study}", revision=1, new=new)
    barrier = threading.Barrier(6)

    def share(owner: int) -> list[str]:
        barrier.wait(DEADLINE)
        mine: list[str] = []
        while True:
            with either_database.write() as tx:
                held = deliveries.claim(tx, kind=DeliveryKind.SR, destination="pacs", owner=f"t{owner}", lease=LEASE)
                if held is None:
                    return mine
                deliveries.sent(tx, held, detail="0000")
            mine.append(held.study_uid)

    with ThreadPoolExecutor(6) as pool:
        sent = [uid for part in pool.map(share, range(6)) for uid in part]
    assert len(sent) == len(set(sent)) == 40


def test_the_same_instance_over_parallel_associations_is_stored_once(either_database: Database) -> None:
    barrier = threading.Barrier(6)

    def receive(_thread: int) -> int:
        barrier.wait(DEADLINE)
        added = 0
        for number in range(30):
            with either_database.write() as tx:
                added += instances.add(tx, an_instance(1, number)) is None
        return added

    with ThreadPoolExecutor(6) as pool:
        assert sum(pool.map(receive, range(6))) == 30
    with either_database.read() as tx:
        assert len(instances.of_study(tx, "1.1")) == 30
        assert [event.event for event in audit.timeline(tx, "1.1")] == ["first_instance"]


def test_no_slice_is_lost_between_verdicts_that_fall_while_slices_arrive(either_database: Database) -> None:
    """Every verdict counts exactly what it saw; what came meanwhile stays uncounted, for the next look."""
    counted: Counter[str] = Counter()
    received = threading.Event()

    def receive(thread: int) -> None:
        for number in range(25):
            with either_database.write() as tx:
                instances.add(tx, an_instance(1, 100 * thread + number))

    def judge() -> None:
        while True:
            last = received.is_set()
            with either_database.read() as tx:
                seen = [i.sop_instance_uid for i in instances.unconsidered(tx, "1.1")]
            with either_database.write() as tx:
                if studies.pronounce(tx, study_uid="1.1", completeness=WHOLE, seen=seen, model="triage"):
                    counted.update(seen)
            with either_database.write() as tx:
                studies.recall(tx, "1.1", reason="a slice more")
            if last:
                return

    with ThreadPoolExecutor(5) as pool:
        judging = pool.submit(judge)
        list(pool.map(receive, range(4)))
        received.set()
        judging.result(DEADLINE)
    with either_database.read() as tx:
        stored = instances.of_study(tx, "1.1")
        (study,) = studies.in_state(tx, StudyState.RECEIVING)
    assert study.revision == 1
    assert len(stored) == 100
    assert {i.sop_instance_uid for i in stored if i.revision == 1} == set(counted)
    assert set(counted.values()) == {1}
