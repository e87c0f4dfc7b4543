"""The outbox: what is due, to whom, how often it was tried, and how it ended."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from db import audit
from db.engine import insert_into
from db.errors import LeaseLost
from db.schema import deliveries, now
from db.states import DeliveryKind, DeliveryState

FLAG_FIRST = dt.timedelta(seconds=3)
"""How long a report waits at most for the flags of its study: a worklist that does not answer holds nothing up."""


@dataclass(frozen=True, kw_only=True)
class NewDelivery:
    """Something to be delivered: its kind, and the destination's name in node.toml."""

    kind: DeliveryKind
    destination: str


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """One thing for one destination. `attempts` counts the claims; `detail` says what the far side answered."""

    id: int
    study_uid: str
    revision: int
    kind: DeliveryKind
    destination: str
    state: DeliveryState
    due_at: dt.datetime
    attempts: int
    owner: str | None
    lease_until: dt.datetime | None
    sop_instance_uid: str | None
    detail: str | None
    error: str | None
    created_at: dt.datetime
    sent_at: dt.datetime | None
    confirmed_at: dt.datetime | None


def enqueue(tx: sa.Connection, *, study_uid: str, revision: int, new: Sequence[NewDelivery]) -> None:
    """Each delivery is due now; one that exists already stays as it is."""
    at = now()
    for item in new:
        values = {"study_uid": study_uid, "revision": revision, "kind": item.kind, "destination": item.destination}
        tx.execute(
            insert_into(tx, deliveries)
            .values(state=DeliveryState.DUE, due_at=at, attempts=0, created_at=at, **values)
            .on_conflict_do_nothing()
        )


def claim(
    tx: sa.Connection, *, kind: DeliveryKind, destination: str, owner: str, lease: dt.timedelta
) -> Delivery | None:
    """The longest due delivery of this kind for this destination is `owner`'s until the lease ends; or None.

    A delivery whose lease has expired is due again: whoever held it died. A report waits until every flag of its
    study revision has been tried once, `FLAG_FIRST` at most: building it takes time from what a patient waits for.
    """
    at = now()
    due = (
        sa.select(deliveries.c.id)
        .where(_claimable(kind=kind, destination=destination, at=at))
        .order_by(deliveries.c.due_at, deliveries.c.id)
        .limit(1)
        .with_for_update(skip_locked=True)
    )
    query = (
        deliveries.update()
        .where(deliveries.c.id == due.scalar_subquery())
        .values(owner=owner, lease_until=at + lease, attempts=deliveries.c.attempts + 1)
        .returning(deliveries)
    )
    row = tx.execute(query).mappings().first()
    return _delivery(row) if row else None


def any_due(tx: sa.Connection, *, kind: DeliveryKind, destination: str) -> bool:
    """Whether `claim` would find something; takes no write lock."""
    query = sa.select(deliveries.c.id).where(_claimable(kind=kind, destination=destination, at=now()))
    return tx.execute(query.limit(1)).first() is not None


def _claimable(*, kind: DeliveryKind, destination: str, at: dt.datetime) -> sa.ColumnElement[bool]:
    row = deliveries.c
    due = sa.and_(
        row.state == DeliveryState.DUE,
        row.kind == kind,
        row.destination == destination,
        row.due_at <= at,
        sa.or_(row.owner.is_(None), row.lease_until < at),
    )
    if kind is DeliveryKind.COMMITMENT:
        return sa.and_(due, ~_report_due())
    if kind is not DeliveryKind.SR:
        return due
    return sa.and_(due, sa.or_(row.created_at <= at - FLAG_FIRST, ~_flag_untried()))


def _report_due() -> sa.Exists:
    """Whether the report that is to be committed to has yet to be stored there."""
    report = deliveries.alias()
    return sa.exists().where(
        report.c.study_uid == deliveries.c.study_uid,
        report.c.revision == deliveries.c.revision,
        report.c.destination == deliveries.c.destination,
        report.c.kind == DeliveryKind.SR,
        report.c.state == DeliveryState.DUE,
    )


def _flag_untried() -> sa.Exists:
    """Whether a flag of the same study revision has yet to be tried, or is being tried for the first time."""
    flag = deliveries.alias()
    return sa.exists().where(
        flag.c.study_uid == deliveries.c.study_uid,
        flag.c.revision == deliveries.c.revision,
        flag.c.kind == DeliveryKind.FLAG,
        flag.c.state == DeliveryState.DUE,
        sa.or_(flag.c.attempts == 0, sa.and_(flag.c.attempts == 1, flag.c.owner.is_not(None))),
    )


def sent(tx: sa.Connection, delivery: Delivery, *, detail: str, sop_instance_uid: str | None = None) -> None:
    """The far side has accepted it. Raises ``LeaseLost`` when somebody else holds it."""
    at = now()
    _change_mine(
        tx, delivery, state=DeliveryState.SENT, sent_at=at, detail=detail, error=None,
        sop_instance_uid=sop_instance_uid, owner=None, lease_until=None,
    )  # fmt: skip
    _tell(tx, delivery, f"{delivery.kind}_sent", detail=detail)


def confirmed(tx: sa.Connection, delivery: Delivery, *, detail: str, sop_instance_uid: str | None = None) -> None:
    """The far side has accepted it and was seen to hold it. Raises ``LeaseLost`` when somebody else holds it."""
    at = now()
    _change_mine(
        tx, delivery, state=DeliveryState.CONFIRMED, sent_at=at, confirmed_at=at, detail=detail, error=None,
        sop_instance_uid=sop_instance_uid, owner=None, lease_until=None,
    )  # fmt: skip
    _tell(tx, delivery, f"{delivery.kind}_confirmed", detail=detail)


def failed(tx: sa.Connection, delivery: Delivery, *, error: str, retry_after: dt.timedelta | None) -> None:
    """The attempt failed: due again after `retry_after`, or abandoned, loudly, when that is None."""
    if retry_after is None:
        _change_mine(tx, delivery, state=DeliveryState.ABANDONED, error=error, owner=None, lease_until=None)
        _tell(tx, delivery, f"{delivery.kind}_abandoned", error=error, attempts=delivery.attempts)
        return
    _change_mine(tx, delivery, due_at=now() + retry_after, error=error, owner=None, lease_until=None)
    _tell(tx, delivery, f"{delivery.kind}_failed", error=error, attempts=delivery.attempts)


def overdue(tx: sa.Connection, *, kind: DeliveryKind, destination: str, before: dt.datetime) -> tuple[Delivery, ...]:
    """What was sent before this time and has not been confirmed."""
    row = deliveries.c
    old = sa.and_(row.kind == kind, row.destination == destination, row.sent_at < before)
    query = sa.select(deliveries).where(row.state == DeliveryState.SENT, old).order_by(row.id)
    return tuple(_delivery(found) for found in tx.execute(query).mappings())


def confirm(tx: sa.Connection, delivery: Delivery, *, detail: str) -> None:
    """The far side says, of its own accord and later, that it holds what was sent."""
    values = {"state": DeliveryState.CONFIRMED, "confirmed_at": now(), "detail": detail, "error": None}
    if _change_unheld(tx, delivery, values):
        _tell(tx, delivery, f"{delivery.kind}_confirmed", detail=detail)


def doubt(tx: sa.Connection, delivery: Delivery, *, error: str, retry_after: dt.timedelta | None) -> None:
    """What was sent is not held over there, or nobody says so: due again, or abandoned, loudly, when that is None."""
    state = DeliveryState.ABANDONED if retry_after is None else DeliveryState.DUE
    due_at = now() + (retry_after or dt.timedelta(0))
    if _change_unheld(tx, delivery, {"state": state, "due_at": due_at, "error": error}):
        _tell(tx, delivery, f"{delivery.kind}_{'abandoned' if retry_after is None else 'failed'}", error=error)


def _change_unheld(tx: sa.Connection, delivery: Delivery, values: dict[str, Any]) -> bool:
    unheld = deliveries.update().where(
        deliveries.c.id == delivery.id,
        deliveries.c.state.in_((DeliveryState.DUE, DeliveryState.SENT)),
        sa.or_(deliveries.c.owner.is_(None), deliveries.c.lease_until < now()),
    )
    return bool(tx.execute(unheld.values(owner=None, lease_until=None, **values)).rowcount)


def supersede(tx: sa.Connection, delivery: Delivery, *, by_revision: int) -> None:
    """A newer revision's delivery makes this one pointless."""
    _change_mine(tx, delivery, state=DeliveryState.SUPERSEDED, owner=None, lease_until=None)
    _tell(tx, delivery, f"{delivery.kind}_superseded", by_revision=by_revision)


def requeue(tx: sa.Connection, *, study_uid: str | None = None) -> int:
    """Abandoned deliveries (of one study, or all) are due now with fresh attempts; returns how many."""
    query = deliveries.update().where(deliveries.c.state == DeliveryState.ABANDONED)
    if study_uid is not None:
        query = query.where(deliveries.c.study_uid == study_uid)
    values = {"state": DeliveryState.DUE, "due_at": now(), "attempts": 0, "owner": None, "lease_until": None}
    return int(tx.execute(query.values(**values)).rowcount)


def of_study(tx: sa.Connection, study_uid: str) -> tuple[Delivery, ...]:
    """The study's deliveries in the order they fell due."""
    query = sa.select(deliveries).where(deliveries.c.study_uid == study_uid).order_by(deliveries.c.id)
    return tuple(_delivery(row) for row in tx.execute(query).mappings())


def find(tx: sa.Connection, delivery_id: int) -> Delivery | None:
    """The delivery, or None."""
    row = tx.execute(sa.select(deliveries).where(deliveries.c.id == delivery_id)).mappings().first()
    return _delivery(row) if row else None


def report_of(tx: sa.Connection, delivery: Delivery) -> Delivery | None:
    """The delivery of the report on the same revision to the same destination, or None."""
    same = (d for d in of_study(tx, delivery.study_uid) if d.kind is DeliveryKind.SR)
    return next((d for d in same if (d.revision, d.destination) == (delivery.revision, delivery.destination)), None)


def in_state(tx: sa.Connection, *states: DeliveryState) -> tuple[Delivery, ...]:
    """Every delivery in one of `states`, oldest first."""
    query = sa.select(deliveries).where(deliveries.c.state.in_(states)).order_by(deliveries.c.id)
    return tuple(_delivery(row) for row in tx.execute(query).mappings())


def count_by_state(tx: sa.Connection) -> dict[str, int]:
    """How many deliveries are in each state."""
    rows = tx.execute(sa.select(deliveries.c.state, sa.func.count()).group_by(deliveries.c.state))
    return {str(state): int(count) for state, count in rows}


def _change_mine(tx: sa.Connection, delivery: Delivery, **values: Any) -> None:
    mine = deliveries.update().where(
        deliveries.c.id == delivery.id,
        deliveries.c.state == DeliveryState.DUE,
        deliveries.c.owner == delivery.owner,
        deliveries.c.attempts == delivery.attempts,
    )
    if not tx.execute(mine.values(**values)).rowcount:
        raise LeaseLost(f"delivery {delivery.id} is no longer held by {delivery.owner}")


def _tell(tx: sa.Connection, delivery: Delivery, event: str, **detail: Any) -> None:
    audit.record(
        tx, event, study_uid=delivery.study_uid, revision=delivery.revision, destination=delivery.destination, **detail
    )


def _delivery(row: sa.RowMapping) -> Delivery:
    return Delivery(**{**row, "kind": DeliveryKind(row["kind"]), "state": DeliveryState(row["state"])})
