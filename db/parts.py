"""Which processes of the node are alive, by their last heartbeat."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from db.engine import insert_into
from db.schema import now, parts


@dataclass(frozen=True, kw_only=True)
class Part:
    """One process of the node; `detail` says what it has found out about itself (device, precision, disk, …)."""

    name: str
    kind: str
    pid: int
    started_at: dt.datetime
    beat_at: dt.datetime
    detail: dict[str, Any]


def started(tx: sa.Connection, *, name: str, kind: str, pid: int, detail: dict[str, Any]) -> None:
    """The part is alive since now; an earlier one of the same name is forgotten."""
    at = now()
    values = {"kind": kind, "pid": pid, "started_at": at, "beat_at": at, "detail": detail}
    query = insert_into(tx, parts).values(name=name, **values)
    tx.execute(query.on_conflict_do_update(index_elements=["name"], set_=values))


def beat(tx: sa.Connection, *, name: str, pid: int, detail: dict[str, Any] | None = None) -> None:
    """The part was alive just now; one whose successor has started says nothing any more."""
    values: dict[str, Any] = {"beat_at": now()} | ({} if detail is None else {"detail": detail})
    tx.execute(parts.update().where(_is(name, pid)).values(**values))


def stopped(tx: sa.Connection, *, name: str, pid: int) -> None:
    """The part has ended in good order; its successor, which may have started while it drained, stays."""
    tx.execute(parts.delete().where(_is(name, pid)))


def _is(name: str, pid: int) -> sa.ColumnElement[bool]:
    return sa.and_(parts.c.name == name, parts.c.pid == pid)


def find(tx: sa.Connection, name: str) -> Part | None:
    """The part of this name: alive, or one that died without ending in good order; None otherwise."""
    row = tx.execute(sa.select(parts).where(parts.c.name == name)).mappings().first()
    return Part(**dict(row)) if row else None


def all_parts(tx: sa.Connection) -> tuple[Part, ...]:
    """Every part that has started and not ended in good order."""
    return tuple(Part(**dict(row)) for row in tx.execute(sa.select(parts).order_by(parts.c.name)).mappings())
