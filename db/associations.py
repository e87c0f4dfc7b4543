"""Every association that was accepted: who sent, from where, and how it ended."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from db.schema import associations, instances, now

RELEASED, ABORTED, LOST = "released", "aborted", "lost"


@dataclass(frozen=True, kw_only=True)
class Association:
    """One association. `outcome` is released, aborted, lost (the receiver died), or None while it is open."""

    association_id: str
    receiver: str
    calling_ae: str
    called_ae: str
    address: str
    started_at: dt.datetime
    ended_at: dt.datetime | None
    outcome: str | None
    detail: str | None


def opened(
    tx: sa.Connection, *, association_id: str, receiver: str, calling_ae: str, called_ae: str, address: str
) -> None:
    """The association stands as open."""
    values = {"receiver": receiver, "calling_ae": calling_ae, "called_ae": called_ae, "address": address}
    tx.execute(associations.insert().values(association_id=association_id, started_at=now(), **values))


def ended(tx: sa.Connection, *, association_id: str, outcome: str, detail: str | None = None) -> None:
    """The association stands as ended; the first end told is the one that counts."""
    query = associations.update().where(
        associations.c.association_id == association_id, associations.c.ended_at.is_(None)
    )
    tx.execute(query.values(ended_at=now(), outcome=outcome, detail=detail))


def close_lost(tx: sa.Connection, *, receiver: str) -> int:
    """Every association that a dead `receiver` left open stands as lost; returns how many."""
    query = associations.update().where(associations.c.receiver == receiver, associations.c.ended_at.is_(None))
    return int(tx.execute(query.values(ended_at=now(), outcome=LOST)).rowcount)


def callers_of(tx: sa.Connection, *, receivers: Sequence[str]) -> tuple[str, ...]:
    """The calling AE title of every association that is open at one of these receivers.

    Until the transaction ends no other receiver gets this answer, so that two do not both find the last place free.
    """
    if tx.dialect.name == "postgresql":  # SQLite has one writer at a time
        tx.execute(sa.text("SELECT pg_advisory_xact_lock(7236411)"))
    query = sa.select(associations.c.calling_ae)
    query = query.where(associations.c.receiver.in_(receivers), associations.c.ended_at.is_(None))
    return tuple(tx.execute(query).scalars())


def of_study(tx: sa.Connection, study_uid: str) -> tuple[Association, ...]:
    """The associations that brought at least one instance of the study, oldest first."""
    brought = sa.select(instances.c.association_id).where(instances.c.study_uid == study_uid).distinct()
    query = sa.select(associations).where(associations.c.association_id.in_(brought))
    return _rows(tx, query.order_by(associations.c.started_at))


def open_now(tx: sa.Connection) -> tuple[Association, ...]:
    """The associations that are open, oldest first."""
    query = sa.select(associations).where(associations.c.ended_at.is_(None))
    return _rows(tx, query.order_by(associations.c.started_at))


def _rows(tx: sa.Connection, query: sa.Select[Any]) -> tuple[Association, ...]:
    return tuple(Association(**dict(row)) for row in tx.execute(query).mappings())
