"""Claim → read → record: encodes slices while they arrive, decides when a study is complete, keeps its lease alive."""

from __future__ import annotations

import datetime as dt
import os
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import sqlalchemy.exc

from db import instances, jobs, parts, studies
from db.engine import Database
from db.errors import LeaseLost
from db.instances import Instance
from db.jobs import Job
from db.states import StudyState
from inference.facts import InstanceFacts
from inference.result import Completeness, StudyResult
from inference.study import Stored, StudyReader
from node.conclude import conclude
from node.config import Settings
from node.locate import Locator
from node.log import log

ARRIVALS_AT_ONCE = 8
"""Slices encoded before the queue is looked at again: a complete study must not wait behind one still arriving."""

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
    ) -> None:
        self._database = database
        self._settings = settings
        self._reader = reader
        self._name = name
        self._part = part
        self._detail = detail
        self._locator = locator
        self._avoid = avoid
        self._lease = dt.timedelta(seconds=settings.read.lease)
        self._seen: dict[str, list[Stored]] = {}
        self._last_seq: dict[str, int] = {}
        self._pending: set[str] = set()
        self._encoding: str | None = None

    def run(self, stop: threading.Event) -> None:
        """Works until `stop` is set; what is being read then is finished first."""
        while not stop.is_set():
            try:
                busy = self.step()
            except sqlalchemy.exc.SQLAlchemyError as error:
                log().error("database_failed", error=str(error).splitlines()[0])
                busy = False
            if not busy:
                stop.wait(self._settings.read.poll)

    def step(self) -> bool:
        """One job read, or else some arriving slices encoded; whether there was anything to do."""
        job = self._claim()
        if job is not None:
            self._handle(job)
            return True
        return self._settings.read.encode_on_arrival and self._encode_arrivals()

    def _claim(self) -> Job | None:
        with self._database.read() as tx:
            waiting = jobs.any_todo(tx)
        if not waiting:
            return None
        with self._database.write() as tx:
            return jobs.claim(tx, owner=self._name, lease=self._lease)

    def _handle(self, job: Job) -> None:
        said = log().bind(study_uid=job.study_uid, revision=job.revision, attempt=job.attempts)
        try:
            with self._held(job):
                result, segmented = self._read(job)
            with self._database.write() as tx:
                conclude(tx, job, result, self._settings, segmented=segmented)
            said.info("result", outcome=result.outcome.value, reason=result.reason, **_milliseconds(result))
        except LeaseLost as error:
            said.warning("lease_lost", error=str(error))
        except Exception as error:  # noqa: BLE001 the job's boundary: whatever it was, the queue goes on
            self._fail(job, error)

    def _read(self, job: Job) -> tuple[StudyResult, bool]:
        """The result, and whether a segmentation was filed beside it."""
        with self._database.read() as tx:
            study = studies.find(tx, job.study_uid)
            stored = instances.of_study(tx, job.study_uid, up_to_revision=job.revision)
        completeness = (study.completeness if study else None) or {"complete": False, "reason": "no verdict was stored"}
        found = self._stored(stored)
        result = self._reader.read(
            study_uid=job.study_uid,
            revision=job.revision,
            instances=found,
            completeness=Completeness.from_json(completeness),
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
    def _held(self, job: Job) -> Iterator[None]:
        """The lease is renewed while the block runs, but not for ever."""
        finished = threading.Event()
        thread = threading.Thread(target=self._renew, args=(job, finished), name="lease", daemon=True)
        thread.start()
        try:
            yield
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
