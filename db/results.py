"""What was read: one result per study, revision and model, written together with everything that follows from it."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from db import audit, deliveries, jobs, studies
from db.deliveries import NewDelivery
from db.jobs import Job
from db.schema import now, results
from db.states import StudyState


@dataclass(frozen=True, kw_only=True)
class Result:
    """A stored result; `payload` is `inference.result.StudyResult` as JSON."""

    id: int
    study_uid: str
    revision: int
    model: str
    outcome: str
    payload: dict[str, Any]
    made_at: dt.datetime


def record(
    tx: sa.Connection, job: Job, *, outcome: str, payload: dict[str, Any], follow: Sequence[NewDelivery]
) -> Result:
    """The result stands, the job is done, the study has ended and its deliveries are due: all or nothing.

    Raises
    ------
    LeaseLost
        Somebody else holds the job now; nothing was written.
    """
    jobs.done(tx, job)
    analysed = outcome != "not_analysed"
    return _conclude(
        tx, job, outcome=outcome, payload=payload, follow=follow,
        state=StudyState.REPORTED if analysed else StudyState.NOT_ANALYSED,
    )  # fmt: skip


def record_parked(tx: sa.Connection, job: Job, *, payload: dict[str, Any], follow: Sequence[NewDelivery]) -> Result:
    """A parked job's study has its statement, *not analysed*, and its deliveries are due; the study stays failed."""
    return _conclude(
        tx, job, outcome="not_analysed", payload=payload, follow=follow, state=StudyState.FAILED
    )  # fmt: skip


def _conclude(
    tx: sa.Connection,
    job: Job,
    *,
    outcome: str,
    payload: dict[str, Any],
    follow: Sequence[NewDelivery],
    state: StudyState,
) -> Result:
    made_at = now()
    values = {"study_uid": job.study_uid, "revision": job.revision, "model": job.model, "outcome": outcome}
    inserted = tx.execute(results.insert().values(payload=payload, made_at=made_at, **values).returning(*results.c))
    result = Result(**dict(inserted.mappings().one()))
    studies.end(tx, study_uid=job.study_uid, revision=job.revision, state=state)
    studies.supersede_due(tx, study_uid=job.study_uid, before_revision=job.revision)
    audit.record(
        tx, "result", study_uid=job.study_uid, revision=job.revision, outcome=outcome, reason=payload["reason"]
    )
    deliveries.enqueue(tx, study_uid=job.study_uid, revision=job.revision, new=follow)
    return result


def find(tx: sa.Connection, *, study_uid: str, revision: int) -> Result | None:
    """The result of this revision, or None."""
    query = sa.select(results).where(results.c.study_uid == study_uid, results.c.revision == revision)
    row = tx.execute(query).mappings().first()
    return Result(**dict(row)) if row else None


def of_study(tx: sa.Connection, study_uid: str) -> tuple[Result, ...]:
    """All results of the study, by revision."""
    query = sa.select(results).where(results.c.study_uid == study_uid).order_by(results.c.revision)
    return tuple(Result(**dict(row)) for row in tx.execute(query).mappings())
