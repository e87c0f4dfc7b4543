"""What happened, in order: one row per event, the source of every timeline. Never holds patient data."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from db.schema import events, now


@dataclass(frozen=True, kw_only=True)
class Event:
    """One event of a study (or of the node, where `study_uid` is None)."""

    id: int
    study_uid: str | None
    at: dt.datetime
    event: str
    detail: dict[str, Any]


def record(tx: sa.Connection, event: str, *, study_uid: str | None = None, **detail: Any) -> None:
    """The event stands in the timeline. `detail` holds UIDs, numbers and sentences, never patient data."""
    tx.execute(events.insert().values(study_uid=study_uid, at=now(), event=event, detail=detail))


def timeline(tx: sa.Connection, study_uid: str) -> tuple[Event, ...]:
    """Everything that happened to a study, oldest first."""
    return _events(tx, sa.select(events).where(events.c.study_uid == study_uid).order_by(events.c.id))


def latest(tx: sa.Connection, *, limit: int, event: str | None = None) -> tuple[Event, ...]:
    """The most recent events, newest first."""
    query = sa.select(events).order_by(events.c.id.desc()).limit(limit)
    return _events(tx, query.where(events.c.event == event) if event else query)


def _events(tx: sa.Connection, query: sa.Select[Any]) -> tuple[Event, ...]:
    return tuple(Event(**_fields(row)) for row in tx.execute(query).mappings())


def _fields(row: Mapping[Any, Any]) -> dict[str, Any]:
    return dict(row)
