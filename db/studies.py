"""Studies and their passage from receiving to reported."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from db import audit, instances
from db.schema import deliveries, jobs, now, studies
from db.states import DeliveryState, JobState, StudyState


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


def find(tx: sa.Connection, study_uid: str) -> Study | None:
    """The study, or None."""
    row = tx.execute(sa.select(studies).where(studies.c.study_uid == study_uid)).mappings().first()
    return _study(row) if row else None


def in_state(tx: sa.Connection, *states: StudyState) -> tuple[Study, ...]:
    """Every study in one of `states`, the longest waiting first."""
    query = sa.select(studies).where(studies.c.state.in_(states)).order_by(studies.c.first_received_at)
    return tuple(_study(row) for row in tx.execute(query).mappings())


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
    study = _locked(tx, study_uid)
    if study is None or study.state is not StudyState.RECEIVING:
        return False
    if {i.sop_instance_uid for i in instances.unconsidered(tx, study_uid)} != set(seen):
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


def recall(tx: sa.Connection, study_uid: str) -> bool:
    """A slice came after the verdict but before the job began: the verdict is withdrawn, the revision stays.

    Returns False, with nothing written, when a worker holds the job already or it is done.
    """
    study = _locked(tx, study_uid)
    if study is None or study.state is not StudyState.COMPLETE:
        return False
    todo = jobs.delete().where(
        jobs.c.study_uid == study_uid, jobs.c.revision == study.revision, jobs.c.state == JobState.TODO
    )
    if not tx.execute(todo).rowcount:
        return False
    _change(tx, study_uid, state=StudyState.RECEIVING)
    audit.record(tx, "verdict_recalled", study_uid=study_uid, revision=study.revision)
    return True


def reopen(tx: sa.Connection, study_uid: str, *, reason: str) -> int | None:
    """A slice came after the result, or somebody asked for it: received again as the next revision, which is returned.

    Returns None, with nothing written, unless the study had ended.
    """
    study = _locked(tx, study_uid)
    ended = (StudyState.REPORTED, StudyState.NOT_ANALYSED, StudyState.FAILED)
    if study is None or study.state not in ended:
        return None
    revision = study.revision + 1
    _change(tx, study_uid, state=StudyState.RECEIVING, revision=revision)
    audit.record(tx, "revision_opened", study_uid=study_uid, revision=revision, reason=reason)
    return revision


def supersede_due(tx: sa.Connection, *, study_uid: str, before_revision: int) -> int:
    """Deliveries of earlier revisions that never went out will not; returns how many."""
    query = deliveries.update().where(
        deliveries.c.study_uid == study_uid,
        deliveries.c.revision < before_revision,
        deliveries.c.state == DeliveryState.DUE,
        deliveries.c.owner.is_(None),
    )
    return int(tx.execute(query.values(state=DeliveryState.SUPERSEDED)).rowcount)


def note_late(tx: sa.Connection, *, study_uid: str, revision: int, reason: str) -> int:
    """Instances that came after the result but change nothing that was read belong to `revision`; returns how many."""
    count = instances.consider(tx, study_uid=study_uid, revision=revision)
    if count:
        audit.record(tx, "late_instances", study_uid=study_uid, revision=revision, instances=count, reason=reason)
    return count


def end(tx: sa.Connection, *, study_uid: str, state: StudyState) -> None:
    """The study stands in its final `state`."""
    _change(tx, study_uid, state=state)


def _locked(tx: sa.Connection, study_uid: str) -> Study | None:
    query = sa.select(studies).where(studies.c.study_uid == study_uid).with_for_update()
    row = tx.execute(query).mappings().first()
    return _study(row) if row else None


def _change(tx: sa.Connection, study_uid: str, **values: Any) -> None:
    tx.execute(studies.update().where(studies.c.study_uid == study_uid).values(**values))


def _study(row: sa.RowMapping) -> Study:
    return Study(**{**row, "state": StudyState(row["state"])})
