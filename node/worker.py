"""Claim → read → record: encodes slices while they arrive, decides when a study is complete, keeps its lease alive."""

from __future__ import annotations

import datetime as dt
import os
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import sqlalchemy.exc

from db import instances, jobs, parts, studies
from db.engine import Database
from db.errors import LeaseLost
from db.instances import Instance
from db.jobs import Job
from db.states import StudyState
from inference.decoding import Stored
from inference.facts import InstanceFacts
from inference.result import Completeness, StudyResult
from inference.study import StudyReader
from node.conclude import conclude
from node.config import Settings
from node.locate import Locator
from node.log import log

ARRIVALS_AT_ONCE = 8
"""Slices encoded before the queue is looked at again: a complete study must not wait behind one still arriving."""

TOGETHER = 4
"""Jobs that one worker claims at once: the next are decoded while one is encoded, and fill up its last batch."""

LEASES = 20
"""A job is given up after so many renewals of its lease: something in it hangs."""


class Worker:
    """One worker process on one device.

    Parameters
    ----------
    name, part : str
        The holder of its leases, another for every process; its name among the parts, the same after a restart.
    detail : dict
        What the worker says of itself among the node's parts: device, precision, models.
    locator : Locator, optional
        Where a site, for research, wants to know where the models looked.
    avoid : str, optional
        A study over which the worker before this one died: its slices are not encoded early.
    workers : int
        How many workers share the queue.
    """

    def __init__(
        self,
        *,
        database: Database,
        settings: Settings,
        reader: StudyReader,
        name: str,
        part: str,
        detail: dict[str, Any],
        locator: Locator | None = None,
        avoid: str | None = None,
        workers: int = 1,
    ) -> None:
        self._database = database
        self._settings = settings
        self._reader = reader
        self._name = name
        self._part = part
        self._detail = detail
        self._locator = locator
        self._avoid = avoid
        self._workers = workers
        self._lease = dt.timedelta(seconds=settings.read.lease)
        self._seen: dict[str, list[Stored]] = {}
        self._last_seq: dict[str, int] = {}
        self._pending: set[str] = set()
        self._encoding: str | None = None

    def run(self, stop: threading.Event) -> None:
        """Works until `stop` is set; what is being read then is finished first."""
        while not stop.is_set():
            try:
                busy = self.step(stop)
            except sqlalchemy.exc.SQLAlchemyError as error:
                log().error("database_failed", error=str(error).splitlines()[0])
                busy = False
            if not busy:
                stop.wait(self._settings.read.poll)

    def step(self, stop: threading.Event) -> bool:
        """Some waiting jobs read, or else some arriving slices encoded; whether there was anything to do."""
        claimed = self._claim()
        if claimed:
            self._handle_in_turn(claimed, stop)
            return True
        return self._settings.read.encode_on_arrival and self._encode_arrivals()

    def _claim(self) -> list[Job]:
        """The oldest job, and with it this worker's share of the others as long as all of them are untried.

        A job that failed, or over which a worker died, is read alone: it can then take no other down with it.
        """
        with self._database.read() as tx:
            waiting = jobs.count_todo(tx)
        if not waiting:
            return []
        with self._database.write() as tx:
            first = jobs.claim(tx, owner=self._name, lease=self._lease)
            claimed = [] if first is None else [first]
            while first and first.attempts == 1 and len(claimed) < min(TOGETHER, -(-waiting // self._workers)):
                further = jobs.claim(tx, owner=self._name, lease=self._lease, untried=True)
                if further is None:
                    break
                claimed.append(further)
        return claimed

    def _handle_in_turn(self, claimed: Sequence[Job], stop: threading.Event) -> None:
        """Each job is read, and its result recorded before the next; those not begun when `stop` is set go back."""
        with ExitStack() as leases:
            held = {job.id: leases.enter_context(self._held(job)) for job in claimed}
            for job, then in zip_longest(claimed, claimed[1:]):
                if stop.is_set() and job is not claimed[0]:
                    self._give_back(job)
                else:
                    self._handle(job, then)
                held[job.id].set()

    def _give_back(self, job: Job) -> None:
        try:
            with self._database.write() as tx:
                jobs.give_back(tx, job)
        except LeaseLost as error:
            log().warning("lease_lost", study_uid=job.study_uid, error=str(error))

    def _handle(self, job: Job, then: Job | None) -> None:
        said = log().bind(study_uid=job.study_uid, revision=job.revision, attempt=job.attempts)
        try:
            result, segmented = self._read(job, then)
            with self._database.write() as tx:
                conclude(tx, job, result, self._settings, segmented=segmented)
            said.info("result", outcome=result.outcome.value, reason=result.reason, **_milliseconds(result))
        except LeaseLost as error:
            said.warning("lease_lost", error=str(error))
        except Exception as error:  # noqa: BLE001 the job's boundary: whatever it was, the queue goes on
            self._fail(job, error)

    def _read(self, job: Job, then: Job | None) -> tuple[StudyResult, bool]:
        """The result, and whether a segmentation was filed beside it."""
        with self._database.read() as tx:
            study = studies.find(tx, job.study_uid)
        completeness = (study.completeness if study else None) or {"complete": False, "reason": "no verdict was stored"}
        found = self._instances_of(job)
        result = self._reader.read(
            study_uid=job.study_uid,
            revision=job.revision,
            instances=found,
            completeness=Completeness.from_json(completeness),
            following=self._following(then),
        )
        return self._located(self._locator, result, found) if self._locator else (result, False)

    def _located(self, locator: Locator, result: StudyResult, found: Sequence[Stored]) -> tuple[StudyResult, bool]:
        """The result with volumes, and whether a segmentation was filed beside it."""
        try:
            return locator.filed(result, found)
        except Exception as error:  # noqa: BLE001 no study waits, or fails, for what is only for research
            log().warning("not_located", study_uid=result.study_uid, error=f"{type(error).__name__}: {error}")
            warning = f"volume and locations could not be made: {type(error).__name__}"
            return replace(result, warnings=(*result.warnings, warning)), False

    def _instances_of(self, job: Job) -> list[Stored]:
        with self._database.read() as tx:
            return self._stored(instances.of_study(tx, job.study_uid, up_to_revision=job.revision))

    def _following(self, then: Job | None) -> list[Stored]:
        """What the next job's reading will have to encode; nothing where that cannot be said, which it says itself."""
        try:
            return self._reader.to_encode(self._instances_of(then)) if then else []
        except Exception:  # noqa: BLE001 the boundary between two jobs
            return []

    def _fail(self, job: Job, error: Exception) -> None:
        told = "".join(traceback.format_exception(error))
        log().error(
            "job_failed", study_uid=job.study_uid, attempt=job.attempts, error=f"{type(error).__name__}: {error}"
        )
        try:
            with self._database.write() as tx:
                jobs.fail(tx, job, error=told, attempts=self._settings.read.attempts)
        except LeaseLost as lost:
            log().warning("lease_lost", study_uid=job.study_uid, error=str(lost))

    @contextmanager
    def _held(self, job: Job) -> Iterator[threading.Event]:
        """The lease is renewed while the block runs and its event is not set, but not for ever."""
        finished = threading.Event()
        thread = threading.Thread(target=self._renew, args=(job, finished), name="lease", daemon=True)
        thread.start()
        try:
            yield finished
        finally:
            finished.set()
            thread.join()

    def _renew(self, job: Job, finished: threading.Event) -> None:
        for _ in range(LEASES):
            if finished.wait(self._lease.total_seconds() / 3):
                return
            try:
                with self._database.write() as tx:
                    jobs.extend(tx, job, lease=self._lease)
            except (LeaseLost, sqlalchemy.exc.SQLAlchemyError) as error:
                log().warning("lease_not_renewed", study_uid=job.study_uid, error=str(error).splitlines()[0])
                return

    def _encode_arrivals(self) -> bool:
        self._look_for_arrivals()
        for study_uid in sorted(self._pending):
            self._note_encoding(study_uid)
            if self._reader.encode_arrivals(self._seen[study_uid], limit=ARRIVALS_AT_ONCE):
                return True
            self._pending.discard(study_uid)
        self._note_encoding(None)
        return False

    def _look_for_arrivals(self) -> None:
        with self._database.read() as tx:
            arriving = {study.study_uid for study in studies.in_state(tx, StudyState.RECEIVING)}
            fresh = {uid: instances.of_study(tx, uid, after_seq=self._last_seq.get(uid)) for uid in arriving}
        for study_uid in set(self._seen) - arriving:
            del self._seen[study_uid], self._last_seq[study_uid]
        self._pending &= arriving
        for study_uid, new in fresh.items():
            if new and study_uid != self._avoid:
                self._seen.setdefault(study_uid, []).extend(self._stored(new))
                self._last_seq[study_uid] = new[-1].seq
                self._pending.add(study_uid)

    def _note_encoding(self, study_uid: str | None) -> None:
        """If this process dies now, its successor knows over which study, and leaves it to the job's own attempts."""
        if study_uid != self._encoding:
            self._encoding = study_uid
            with self._database.write() as tx:
                parts.beat(tx, name=self._part, pid=os.getpid(), detail=self._detail | {"encoding": study_uid})

    def _stored(self, rows: Sequence[Instance]) -> list[Stored]:
        return [stored(row, archive=self._settings.archive) for row in rows]


def stored(row: Instance, *, archive: Path) -> Stored:
    """The archive's row as the reader wants it."""
    return Stored(facts=InstanceFacts.from_json(row.facts), path=archive / row.path, digest=row.digest)


def _milliseconds(result: StudyResult) -> dict[str, Any]:
    return {f"{name}_ms": round(value, 1) for name, value in result.timings_ms.items()}
