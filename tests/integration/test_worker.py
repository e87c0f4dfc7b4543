"""One worker and its queue: studies that wait are read in turn, and none of them takes another down."""

from __future__ import annotations

import datetime as dt
import hashlib
import threading
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread

from db import instances, jobs, studies
from db.engine import Database
from db.instances import NewInstance
from db.jobs import Job
from db.states import JobState
from inference.engine import Engine
from inference.result import Completeness
from inference.series import facts
from node.config import NodeSection, Settings
from node.reading import reader_of
from node.worker import Worker
from tests.scanner import Exam, Exams
from tests.small_models import small_models

LEASE = dt.timedelta(minutes=1)
WHOLE = Completeness(complete=True, reason="whole").to_json()
NEVER = threading.Event()


class Queue:
    """A database with studies to be read, and the archive they lie in."""

    def __init__(self, database: Database, root: Path, engine: Engine) -> None:
        self.database = database
        self.settings = Settings(node=NodeSection(data=root))
        self.reader = reader_of(self.settings, engine)
        self._exams = Exams(root=root / "archive", size=64, slices=12)

    def worker(self, *, workers: int = 1) -> Worker:
        return Worker(
            database=self.database,
            settings=self.settings,
            reader=self.reader,
            name="w",
            part="w",
            detail={},
            workers=workers,
        )

    def waits(self, *, spoilt: bool = False) -> str:
        """A study is complete and waits to be read; a spoilt one cannot be read at all."""
        exam = self._exams.new()
        with self.database.write() as tx:
            uids = [self._store(tx, exam, path, spoilt=spoilt) for path in exam.files]
            assert studies.pronounce(tx, study_uid=exam.study_uid, completeness=WHOLE, seen=uids, model="triage")
        return exam.study_uid

    def _store(self, tx: Any, exam: Exam, path: Path, *, spoilt: bool) -> str:
        known = facts(dcmread(path, stop_before_pixels=True))
        new = NewInstance(
            sop_instance_uid=known.sop_instance_uid,
            sop_class_uid="1.2.840.10008.5.1.4.1.1.2",
            series_uid=known.series_uid,
            study_uid=exam.study_uid,
            transfer_syntax_uid="1.2.840.10008.1.2.1",
            path=str(path.relative_to(self.settings.archive)),
            size=path.stat().st_size,
            digest=hashlib.sha256(path.read_bytes()).hexdigest(),
            association_id="a",
            calling_ae="CT1",
            facts={"no": "facts"} if spoilt else known.to_json(),
            header={},
        )
        instances.add(tx, new)
        return known.sop_instance_uid

    def job(self, study_uid: str) -> Job:
        with self.database.read() as tx:
            (job,) = jobs.of_study(tx, study_uid)
        return job

    def states(self, *study_uids: str) -> list[tuple[JobState, int]]:
        return [(job.state, job.attempts) for job in map(self.job, study_uids)]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    models = small_models(tmp_path_factory.mktemp("models"), threshold=0.0)
    return Engine.load({"radnet": models["radnet"]}, device="cpu", precision="fp32")


@pytest.fixture
def queue(either_database: Database, tmp_path: Path, engine: Engine) -> Queue:
    return Queue(either_database, tmp_path, engine)


def test_studies_that_wait_are_read_in_one_turn(queue: Queue) -> None:
    waiting = [queue.waits() for _ in range(3)]
    assert queue.worker().step(NEVER)
    assert queue.states(*waiting) == [(JobState.DONE, 1)] * 3


def test_a_worker_leaves_the_others_their_share(queue: Queue) -> None:
    waiting = [queue.waits() for _ in range(3)]
    queue.worker(workers=3).step(NEVER)
    assert queue.states(*waiting) == [(JobState.DONE, 1), (JobState.TODO, 0), (JobState.TODO, 0)]


def test_a_study_that_cannot_be_read_is_parked_and_its_companions_do_not_notice(queue: Queue) -> None:
    before, spoilt, after = queue.waits(), queue.waits(spoilt=True), queue.waits()
    worker = queue.worker()
    while worker.step(NEVER):
        pass
    assert queue.states(before, spoilt, after) == [
        (JobState.DONE, 1),
        (JobState.FAILED, queue.settings.read.attempts),
        (JobState.DONE, 1),
    ]
    assert "Traceback" in (queue.job(spoilt).error or "")


def test_a_study_over_which_a_worker_died_is_read_alone(queue: Queue) -> None:
    first, second = queue.waits(), queue.waits()
    with queue.database.write() as tx:
        for _ in range(2):
            jobs.claim(tx, owner="dead", lease=-LEASE)
        jobs.reap(tx, attempts=3)
    third = queue.waits()
    worker = queue.worker()
    seen: list[list[JobState]] = []
    while worker.step(NEVER):
        seen.append([queue.job(uid).state for uid in (first, second, third)])
    done, todo = JobState.DONE, JobState.TODO
    assert seen == [[done, todo, todo], [done, done, todo], [done, done, done]]


def test_a_worker_that_is_to_stop_gives_back_what_it_has_not_begun(queue: Queue) -> None:
    waiting = [queue.waits() for _ in range(3)]
    stop = threading.Event()
    stop.set()
    queue.worker().step(stop)
    assert queue.states(*waiting) == [(JobState.DONE, 1), (JobState.TODO, 0), (JobState.TODO, 0)]
