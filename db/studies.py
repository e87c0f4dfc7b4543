"""Studies and their passage from receiving to reported."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from db import audit, instances
from db.schema import deliveries, fetches, jobs, now, studies
from db.schema import instances as rows
from db.states import DeliveryState, JobState, StudyState

ENDED = (StudyState.REPORTED, StudyState.NOT_ANALYSED, StudyState.FAILED)
CLOSED = (*ENDED, StudyState.ARCHIVED)


@dataclass(frozen=True, kw_only=True)
class Study:
    """A study. `header` is its patient and study level in the DICOM JSON Model; it never goes to a log."""

    study_uid: str
    state: StudyState
    revision: int
    first_received_at: dt.datetime
    last_received_at: dt.datetime
    calling_ae: str
    header: dict[str, Any]
    completeness: dict[str, Any] | None
    verdict_at: dt.datetime | None


@dataclass(frozen=True, kw_only=True)
class Pending:
    """A study that is being received, or that has instances no verdict has counted.

    Those are `uncounted` in number, from `first_seq` to `last_seq`; both are 0 where there are none. `prior` when the
    study was to be fetched and kept unread, see `db.fetches`.
    """

    study_uid: str
    state: StudyState
    revision: int
    first_received_at: dt.datetime
    last_received_at: dt.datetime
    calling_ae: str
    uncounted: int
    first_seq: int
    last_seq: int
    prior: bool = False


def find(tx: sa.Connection, study_uid: str) -> Study | None:
    """The study, or None."""
    row = tx.execute(sa.select(studies).where(studies.c.study_uid == study_uid)).mappings().first()
    return _study(row) if row else None


def in_state(tx: sa.Connection, *states: StudyState) -> tuple[Study, ...]:
    """Every study in one of `states`, the longest waiting first."""
    query = sa.select(studies).where(studies.c.state.in_(states)).order_by(studies.c.first_received_at)
    return tuple(_study(row) for row in tx.execute(query).mappings())


def pending(tx: sa.Connection) -> tuple[Pending, ...]:
    """Every study that a verdict has to look at, the longest waiting first. Reads indices, no instance."""
    seq = rows.c.seq
    uncounted = (
        sa.select(
            rows.c.study_uid,
            sa.func.count().label("count"),
            sa.func.min(seq).label("first"),
            sa.func.max(seq).label("last"),
        )
        .where(rows.c.revision.is_(None))
        .group_by(rows.c.study_uid)
        .subquery()
    )
    which = sa.union(
        sa.select(studies.c.study_uid).where(studies.c.state == StudyState.RECEIVING), sa.select(uncounted.c.study_uid)
    )
    columns = ("study_uid", "state", "revision", "first_received_at", "last_received_at", "calling_ae")
    query = (
        sa.select(
            *(studies.c[name] for name in columns),
            sa.func.coalesce(uncounted.c.count, 0).label("uncounted"),
            sa.func.coalesce(uncounted.c.first, 0).label("first_seq"),
            sa.func.coalesce(uncounted.c.last, 0).label("last_seq"),
            sa.exists().where(fetches.c.study_uid == studies.c.study_uid, fetches.c.prior).label("prior"),
        )
        .outerjoin(uncounted, uncounted.c.study_uid == studies.c.study_uid)
        .where(studies.c.study_uid.in_(which))
        .order_by(studies.c.first_received_at, studies.c.study_uid)
    )
    return tuple(Pending(**{**row, "state": StudyState(row["state"])}) for row in tx.execute(query).mappings())


def latest(tx: sa.Connection, *, limit: int) -> tuple[Study, ...]:
    """The studies last received from, newest first."""
    query = sa.select(studies).order_by(studies.c.last_received_at.desc()).limit(limit)
    return tuple(_study(row) for row in tx.execute(query).mappings())


def uids_like(tx: sa.Connection, text: str, *, limit: int = 10) -> tuple[str, ...]:
    """The Study Instance UIDs that begin or end with `text`."""
    column = studies.c.study_uid
    like = sa.or_(column.startswith(text, autoescape=True), column.endswith(text, autoescape=True))
    return tuple(tx.execute(sa.select(column).where(like).order_by(column).limit(limit)).scalars())


def count_by_state(tx: sa.Connection) -> dict[str, int]:
    """How many studies are in each state."""
    rows = tx.execute(sa.select(studies.c.state, sa.func.count()).group_by(studies.c.state))
    return {str(state): int(count) for state, count in rows}


def pronounce(
    tx: sa.Connection, *, study_uid: str, completeness: dict[str, Any], seen: Sequence[str], model: str
) -> bool:
    """The verdict stands, every instance seen belongs to the revision, and its job waits for a worker.

    Parameters
    ----------
    seen : sequence of str
        The SOP Instance UIDs not yet counted on which the verdict was formed.
    model : str
        What reads it, the key of the job.

    Returns
    -------
    bool
        False, with nothing written, when the study is not being received or another slice came in meanwhile.
    """
    study = lock(tx, study_uid)
    if study is None or study.state is not StudyState.RECEIVING or not _are_uncounted(tx, study_uid, seen):
        return False
    instances.consider(tx, study_uid=study_uid, revision=study.revision)
    at = now()
    _change(tx, study_uid, state=StudyState.COMPLETE, completeness=completeness, verdict_at=at)
    tx.execute(
        jobs.insert().values(
            study_uid=study_uid, revision=study.revision, model=model, state=JobState.TODO, attempts=0, created_at=at
        )
    )
    audit.record(
        tx, "verdict", study_uid=study_uid, revision=study.revision, complete=completeness["complete"],
        reason=completeness["reason"], missing=completeness.get("missing", []),
    )  # fmt: skip
    return True


def recall(tx: sa.Connection, study_uid: str, *, reason: str) -> bool:
    """A slice came after the verdict but before the job began: the verdict is withdrawn, the revision stays.

    Returns False, with nothing written, when a worker holds the job already or it is done.
    """
    study = lock(tx, study_uid)
    if study is None or study.state is not StudyState.COMPLETE:
        return False
    todo = jobs.delete().where(
        jobs.c.study_uid == study_uid, jobs.c.revision == study.revision, jobs.c.state == JobState.TODO
    )
    if not tx.execute(todo).rowcount:
        return False
    _change(tx, study_uid, state=StudyState.RECEIVING)
    audit.record(tx, "verdict_recalled", study_uid=study_uid, revision=study.revision, reason=reason)
    return True


def reopen(tx: sa.Connection, study_uid: str, *, reason: str) -> int | None:
    """A slice came after the result, or somebody asked for it: received again as the next revision, which is returned.

    Returns None, with nothing written, unless the study had ended or was archived.
    """
    study = lock(tx, study_uid)
    if study is None or study.state not in CLOSED:
        return None
    revision = study.revision + 1
    _change(tx, study_uid, state=StudyState.RECEIVING, revision=revision)
    audit.record(tx, "revision_opened", study_uid=study_uid, revision=revision, reason=reason)
    return revision


def archive(tx: sa.Connection, study_uid: str, *, reason: str) -> bool:
    """What came of the study so far is kept, and not analysed.

    Returns False, with nothing written, where a verdict was pronounced.
    """
    study = lock(tx, study_uid)
    if study is None or study.state not in (StudyState.RECEIVING, StudyState.ARCHIVED):
        return False
    instances.consider(tx, study_uid=study_uid, revision=study.revision)
    if study.state is not StudyState.ARCHIVED:
        _change(tx, study_uid, state=StudyState.ARCHIVED)
        audit.record(tx, "archived", study_uid=study_uid, revision=study.revision, reason=reason)
    return True


def supersede_due(tx: sa.Connection, *, study_uid: str, before_revision: int) -> int:
    """Deliveries of earlier revisions that never went out will not; returns how many."""
    query = deliveries.update().where(
        deliveries.c.study_uid == study_uid,
        deliveries.c.revision < before_revision,
        deliveries.c.state == DeliveryState.DUE,
        deliveries.c.owner.is_(None),
    )
    return int(tx.execute(query.values(state=DeliveryState.SUPERSEDED)).rowcount)


def note_late(tx: sa.Connection, *, study_uid: str, seen: Sequence[str], reason: str) -> bool:
    """Instances that came after the result but change nothing that was read belong to the revision that ended.

    Parameters
    ----------
    seen : sequence of str
        The SOP Instance UIDs not yet counted of which this was found.

    Returns
    -------
    bool
        False, with nothing written, when the study is open or another instance came in meanwhile.
    """
    study = lock(tx, study_uid)
    if study is None or study.state not in ENDED or not _are_uncounted(tx, study_uid, seen):
        return False
    instances.consider(tx, study_uid=study_uid, revision=study.revision)
    audit.record(tx, "late_instances", study_uid=study_uid, revision=study.revision, instances=len(seen), reason=reason)
    return True


def end(tx: sa.Connection, *, study_uid: str, revision: int, state: StudyState) -> None:
    """The study stands in its final `state`, unless a later revision was opened meanwhile."""
    query = studies.update().where(studies.c.study_uid == study_uid, studies.c.revision == revision)
    tx.execute(query.values(state=state))


def lock(tx: sa.Connection, study_uid: str) -> Study | None:
    """The study, which nobody else changes until the transaction ends; or None."""
    query = sa.select(studies).where(studies.c.study_uid == study_uid).with_for_update()
    row = tx.execute(query).mappings().first()
    return _study(row) if row else None


def _are_uncounted(tx: sa.Connection, study_uid: str, seen: Sequence[str]) -> bool:
    query = sa.select(rows.c.sop_instance_uid).where(rows.c.study_uid == study_uid, rows.c.revision.is_(None))
    return set(tx.execute(query).scalars()) == set(seen)


def _change(tx: sa.Connection, study_uid: str, **values: Any) -> None:
    tx.execute(studies.update().where(studies.c.study_uid == study_uid).values(**values))


def _study(row: sa.RowMapping) -> Study:
    return Study(**{**row, "state": StudyState(row["state"])})
