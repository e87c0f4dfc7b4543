"""The queue: one job per study, revision and model; claimed by one statement, held by a lease that expires."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from db import audit
from db.errors import LeaseLost
from db.schema import jobs, now, results, studies
from db.states import JobState, StudyState


@dataclass(frozen=True, kw_only=True)
class Job:
    """A study revision to be read. `attempts` counts the claims, this one included."""

    id: int
    study_uid: str
    revision: int
    model: str
    state: JobState
    attempts: int
    owner: str | None
    lease_until: dt.datetime | None
    error: str | None
    created_at: dt.datetime
    started_at: dt.datetime | None
    ended_at: dt.datetime | None


def claim(tx: sa.Connection, *, owner: str, lease: dt.timedelta, untried: bool = False) -> Job | None:
    """The oldest waiting job is `owner`'s until the lease ends; None when nothing waits.

    With `untried` only a job that nobody has claimed before.
    """
    waiting = (
        sa.select(jobs.c.id)
        .where(jobs.c.state == JobState.TODO, *([jobs.c.attempts == 0] if untried else []))
        .order_by(jobs.c.id)
        .limit(1)
        .with_for_update(skip_locked=True)
    )
    at = now()
    query = (
        jobs.update()
        .where(jobs.c.id == waiting.scalar_subquery())
        .values(state=JobState.DOING, owner=owner, attempts=jobs.c.attempts + 1, lease_until=at + lease, started_at=at)
        .returning(jobs)
    )
    row = tx.execute(query).mappings().first()
    if row is None:
        return None
    job = _job(row)
    audit.record(tx, "job_started", study_uid=job.study_uid, revision=job.revision, worker=owner, attempt=job.attempts)
    return job


def count_todo(tx: sa.Connection) -> int:
    """How many jobs wait."""
    return int(tx.execute(sa.select(sa.func.count()).where(jobs.c.state == JobState.TODO)).scalar_one())


def give_back(tx: sa.Connection, job: Job) -> None:
    """The job, which was claimed and not begun, waits as before. Raises ``LeaseLost`` when somebody else holds it."""
    _change_mine(tx, job, state=JobState.TODO, owner=None, lease_until=None, started_at=None, attempts=job.attempts - 1)
    audit.record(tx, "job_given_back", study_uid=job.study_uid, revision=job.revision, worker=job.owner)


def extend(tx: sa.Connection, job: Job, *, lease: dt.timedelta) -> None:
    """The lease runs anew from now.

    Raises
    ------
    LeaseLost
        Somebody else holds the job.
    """
    _change_mine(tx, job, lease_until=now() + lease)


def done(tx: sa.Connection, job: Job) -> None:
    """The job is done. Raises ``LeaseLost`` when somebody else holds it; call it first in the result's transaction."""
    _change_mine(tx, job, state=JobState.DONE, ended_at=now(), lease_until=None, error=None)


def fail(tx: sa.Connection, job: Job, *, error: str, attempts: int) -> bool:
    """The attempt failed: the job waits again, or is parked after `attempts` claims. Returns whether it was parked."""
    parked = job.attempts >= attempts
    state = JobState.FAILED if parked else JobState.TODO
    _change_mine(tx, job, state=state, error=error, owner=None, lease_until=None, ended_at=now() if parked else None)
    _tell(tx, job, error=error, parked=parked)
    return parked


def reap(tx: sa.Connection, *, attempts: int) -> tuple[Job, ...]:
    """Jobs whose lease has expired wait again, or are parked after `attempts` claims; returns them as they were."""
    query = sa.select(jobs).where(jobs.c.state == JobState.DOING, jobs.c.lease_until < now())
    expired = tuple(_job(row) for row in tx.execute(query.with_for_update(skip_locked=True)).mappings())
    for job in expired:
        fail(tx, job, error=f"worker {job.owner} stopped answering", attempts=attempts)
    return expired


def _tell(tx: sa.Connection, job: Job, *, error: str, parked: bool) -> None:
    event = "job_parked" if parked else "job_retry"
    first_line = error.strip().splitlines()[-1] if error.strip() else "no reason given"
    audit.record(tx, event, study_uid=job.study_uid, revision=job.revision, attempt=job.attempts, error=first_line)
    if parked:
        tx.execute(studies.update().where(studies.c.study_uid == job.study_uid).values(state=StudyState.FAILED))


def needs_reaping(tx: sa.Connection) -> bool:
    """Whether `reap` or `parked_unspoken` would find something; takes no write lock."""
    query = sa.select(jobs.c.id).where(jobs.c.state == JobState.DOING, jobs.c.lease_until < now()).limit(1)
    return tx.execute(query).first() is not None or bool(parked_unspoken(tx))


def parked_unspoken(tx: sa.Connection) -> tuple[Job, ...]:
    """Parked jobs of which no result speaks yet: their studies still need a statement."""
    spoken = sa.select(results.c.id).where(
        results.c.study_uid == jobs.c.study_uid, results.c.revision == jobs.c.revision, results.c.model == jobs.c.model
    )
    query = sa.select(jobs).where(jobs.c.state == JobState.FAILED, ~spoken.exists()).order_by(jobs.c.id)
    return tuple(_job(row) for row in tx.execute(query).mappings())


def of_study(tx: sa.Connection, study_uid: str) -> tuple[Job, ...]:
    """The study's jobs, by revision."""
    query = sa.select(jobs).where(jobs.c.study_uid == study_uid).order_by(jobs.c.revision)
    return tuple(_job(row) for row in tx.execute(query).mappings())


def count_by_state(tx: sa.Connection) -> dict[str, int]:
    """How many jobs are in each state."""
    rows = tx.execute(sa.select(jobs.c.state, sa.func.count()).group_by(jobs.c.state))
    return {str(state): int(count) for state, count in rows}


def _change_mine(tx: sa.Connection, job: Job, **values: Any) -> None:
    mine = jobs.update().where(
        jobs.c.id == job.id,
        jobs.c.state == JobState.DOING,
        jobs.c.owner == job.owner,
        jobs.c.attempts == job.attempts,
    )
    if not tx.execute(mine.values(**values)).rowcount:
        raise LeaseLost(f"job {job.id} is no longer held by {job.owner}")


def _job(row: sa.RowMapping) -> Job:
    return Job(**{**row, "state": JobState(row["state"])})
