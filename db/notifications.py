"""The outbox of UPS event reports: what is due to which subscriber, in order, how often it was tried, how it ended."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from db import audit
from db.dicom_json import Attributes
from db.errors import LeaseLost
from db.schema import notifications, now
from db.states import DeliveryState


@dataclass(frozen=True, kw_only=True)
class Notification:
    """One event report for one application entity. `attempts` counts the claims."""

    id: int
    ae_title: str
    workitem_uid: str
    event_type: int
    dataset: Attributes
    state: DeliveryState
    due_at: dt.datetime
    attempts: int
    owner: str | None
    lease_until: dt.datetime | None
    error: str | None
    created_at: dt.datetime
    sent_at: dt.datetime | None


def enqueue(
    tx: sa.Connection, *, ae_titles: Iterable[str], workitem_uid: str, event_type: int, dataset: Attributes
) -> None:
    """Each application entity is owed this event report, after all it was owed before."""
    at = now()
    common = {"workitem_uid": workitem_uid, "event_type": event_type, "dataset": dataset}
    rows = [
        {"ae_title": ae_title, "state": DeliveryState.DUE, "due_at": at, "attempts": 0, "created_at": at, **common}
        for ae_title in ae_titles
    ]
    if rows:
        tx.execute(notifications.insert(), rows)


def any_due(tx: sa.Connection, *, ae_title: str) -> bool:
    """Whether `claim` might find something; takes no write lock."""
    head = tx.execute(_owed(ae_title).limit(1)).mappings().first()
    return head is not None and _free(head)


def claim(
    tx: sa.Connection, *, ae_title: str, owner: str, lease: dt.timedelta, limit: int = 100
) -> tuple[Notification, ...]:
    """Everything owed to `ae_title`, oldest first, is `owner`'s until the lease ends.

    Empty while somebody else holds any of it or its oldest is put off: event reports are never overtaken.
    """
    rows = tx.execute(_owed(ae_title).limit(limit).with_for_update()).mappings().all()
    if not rows or not _free(rows[0]):
        return ()
    query = notifications.update().where(notifications.c.id.in_([row["id"] for row in rows]))
    values = {"owner": owner, "lease_until": now() + lease, "attempts": notifications.c.attempts + 1}
    held = tx.execute(query.values(**values).returning(notifications)).mappings()
    return tuple(sorted((_notification(row) for row in held), key=lambda n: n.id))


def sent(tx: sa.Connection, notification: Notification) -> None:
    """The subscriber has answered with success. Raises ``LeaseLost`` when somebody else holds it."""
    _change_mine(tx, notification, state=DeliveryState.SENT, sent_at=now(), error=None, owner=None, lease_until=None)


def abandoned(tx: sa.Connection, notification: Notification, *, error: str) -> None:
    """It will not be sent, and the timeline says why. Raises ``LeaseLost`` when somebody else holds it."""
    _change_mine(tx, notification, state=DeliveryState.ABANDONED, error=error, owner=None, lease_until=None)
    audit.record(
        tx, "notification_abandoned", ae_title=notification.ae_title, workitem_uid=notification.workitem_uid,
        event_type=notification.event_type, attempts=notification.attempts, error=error,
    )  # fmt: skip


def put_off(tx: sa.Connection, held: Sequence[Notification], *, error: str, attempts: int, after: dt.timedelta) -> None:
    """What could not be sent is due again `after` this long, or abandoned once it was tried `attempts` times."""
    for notification in held:
        if notification.attempts >= attempts:
            abandoned(tx, notification, error=error)
        else:
            _change_mine(tx, notification, due_at=now() + after, error=error, owner=None, lease_until=None)


def drop(tx: sa.Connection, *, ae_title: str, error: str) -> int:
    """Nothing is owed to `ae_title` any more; returns how many reports are abandoned by that."""
    query = notifications.update().where(notifications.c.ae_title == ae_title, _DUE)
    count = int(tx.execute(query.values(state=DeliveryState.ABANDONED, error=error)).rowcount)
    if count:
        audit.record(tx, "notification_abandoned", ae_title=ae_title, notifications=count, error=error)
    return count


def owed_to(tx: sa.Connection) -> tuple[str, ...]:
    """The AE titles that are owed something."""
    query = sa.select(notifications.c.ae_title).where(_DUE).distinct().order_by(notifications.c.ae_title)
    return tuple(tx.execute(query).scalars())


def count_by_state(tx: sa.Connection) -> dict[str, int]:
    """How many event reports are in each state."""
    rows = tx.execute(sa.select(notifications.c.state, sa.func.count()).group_by(notifications.c.state))
    return {str(state): int(count) for state, count in rows}


def forget(tx: sa.Connection, *, before: dt.datetime) -> int:
    """Reports from before this time leave, also those that nobody has come for; returns how many."""
    query = notifications.delete().where(notifications.c.created_at < before)
    return int(tx.execute(query).rowcount)


_DUE = notifications.c.state == DeliveryState.DUE


def _owed(ae_title: str) -> sa.Select[tuple[object, ...]]:
    return sa.select(notifications).where(_DUE, notifications.c.ae_title == ae_title).order_by(notifications.c.id)


def _free(head: sa.RowMapping) -> bool:
    at = now()
    return bool(head["due_at"] <= at and (head["owner"] is None or head["lease_until"] < at))


def _change_mine(tx: sa.Connection, notification: Notification, **values: object) -> None:
    mine = notifications.update().where(
        notifications.c.id == notification.id,
        _DUE,
        notifications.c.owner == notification.owner,
        notifications.c.attempts == notification.attempts,
    )
    if not tx.execute(mine.values(**values)).rowcount:
        raise LeaseLost(f"notification {notification.id} is no longer held by {notification.owner}")


def _notification(row: sa.RowMapping) -> Notification:
    return Notification(**{**row, "state": DeliveryState(row["state"])})
