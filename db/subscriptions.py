"""Who is told about which work item: specific, global and filtered subscriptions (PS3.4 table CC.2.3-2)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum

import sqlalchemy as sa

from db import audit, notifications
from db.dicom_json import Attributes, element, first, items, values
from db.engine import insert_into
from db.matching import matches
from db.procedure_step import (
    HUMAN_PERFORMERS,
    PRIORITY,
    PROGRESS,
    READINESS,
    REASON,
    REASON_CODES,
    STATE,
    STATION,
    Answer,
    WorkItem,
)
from db.schema import now, subscriptions, workitems

GLOBAL = "1.2.840.10008.5.1.4.34.5"
FILTERED = "1.2.840.10008.5.1.4.34.5.1"
WELL_KNOWN = (GLOBAL, FILTERED)


class EventType(IntEnum):
    """Event Type ID (PS3.4 table CC.2.4-1)."""

    STATE_REPORT = 1
    CANCEL_REQUESTED = 2
    PROGRESS_REPORT = 3
    SCP_STATUS_CHANGE = 4
    ASSIGNED = 5


@dataclass(frozen=True, kw_only=True)
class Subscription:
    """One subscription; `workitem_uid` is an item's or one of the two well-known UIDs, `filter` its matching keys."""

    ae_title: str
    workitem_uid: str
    deletion_lock: bool
    filter: Attributes | None


def subscribe(tx: sa.Connection, *, ae_title: str, workitem_uid: str, deletion_lock: bool) -> Answer:
    """`ae_title` is told of every change of this item, and of its present state at once."""
    item = _item(tx, workitem_uid)
    if item is None:
        return Answer.UNKNOWN
    _put(tx, ae_title=ae_title, workitem_uid=workitem_uid, deletion_lock=deletion_lock)
    report_state(tx, item, to=[ae_title])
    return Answer.DONE


def subscribe_globally(
    tx: sa.Connection, *, ae_title: str, deletion_lock: bool, keys: Attributes | None = None
) -> Answer:
    """`ae_title` is subscribed to all items, present and future, or to those that match `keys`.

    A subscription to a single item stays as it is. With a deletion lock each newly subscribed item is reported at once.
    """
    _alone(tx)
    tx.execute(_of(ae_title).where(subscriptions.c.workitem_uid.in_(WELL_KNOWN)))
    uid = GLOBAL if keys is None else FILTERED
    _put(tx, ae_title=ae_title, workitem_uid=uid, deletion_lock=deletion_lock, keys=keys)
    had = {s.workitem_uid for s in of_ae(tx, ae_title)}
    rows = tx.execute(sa.select(workitems).order_by(workitems.c.created_at, workitems.c.uid)).mappings()
    for item in [WorkItem.of(row) for row in rows]:
        if item.uid in had or not (keys is None or matches(keys, item.attributes)):
            continue
        _put(tx, ae_title=ae_title, workitem_uid=item.uid, deletion_lock=deletion_lock)
        if deletion_lock:
            report_state(tx, item, to=[ae_title])
    return Answer.DONE


def unsubscribe(tx: sa.Connection, *, ae_title: str, workitem_uid: str) -> Answer:
    """`ae_title` is told no more of this item and holds no lock on it; of a well-known UID: of nothing at all."""
    if workitem_uid in WELL_KNOWN:
        tx.execute(_of(ae_title))
        return Answer.DONE
    if _item(tx, workitem_uid) is None:
        return Answer.UNKNOWN
    tx.execute(_of(ae_title).where(subscriptions.c.workitem_uid == workitem_uid))
    return Answer.DONE


def suspend(tx: sa.Connection, *, ae_title: str, workitem_uid: str) -> Answer:
    """`ae_title` is not subscribed to future items; what it is subscribed to now, it stays subscribed to."""
    if workitem_uid not in WELL_KNOWN:
        return Answer.UNKNOWN if _item(tx, workitem_uid) is None else Answer.INAPPROPRIATE
    tx.execute(_of(ae_title).where(subscriptions.c.workitem_uid.in_(WELL_KNOWN)))
    return Answer.DONE


def drop(tx: sa.Connection, *, ae_title: str, reason: str) -> None:
    """Every subscription of `ae_title` ends and nothing is owed to it; the timeline says why."""
    count = tx.execute(_of(ae_title)).rowcount
    notifications.drop(tx, ae_title=ae_title, error=reason)
    audit.record(tx, "subscriber_dropped", ae_title=ae_title, subscriptions=count, reason=reason)


def introduce(tx: sa.Connection, item: WorkItem) -> None:
    """Every global subscriber whom it concerns is subscribed to the new item and told of it (PS3.4 CC.2.5.3)."""
    _alone(tx)
    query = sa.select(subscriptions).where(subscriptions.c.workitem_uid.in_(WELL_KNOWN))
    for row in tx.execute(query.order_by(subscriptions.c.id)).mappings().all():
        subscription = _subscription(row)
        if subscription.filter is not None and not matches(subscription.filter, item.attributes):
            continue
        ae_title = subscription.ae_title
        _put(tx, ae_title=ae_title, workitem_uid=item.uid, deletion_lock=subscription.deletion_lock)
        report_state(tx, item, to=[ae_title])
        if any(values(item.dataset, tag) for tag in (STATION, HUMAN_PERFORMERS)):
            report_assignment(tx, item, to=[ae_title])


def report_state(tx: sa.Connection, item: WorkItem, *, to: Iterable[str] | None = None) -> None:
    """Subscribers are owed a UPS State Report.

    It also carries the priority, which has no event of its own: an SCU accepts every attribute (PS3.4 CC.2.4.2).
    """
    progress = next(iter(items(item.dataset, PROGRESS)), {})
    information = {tag: progress[tag] for tag in (REASON, REASON_CODES) if tag in progress} | {
        STATE: element("CS", str(item.state)),
        READINESS: element("CS", str(first(item.dataset, READINESS) or "")),
        PRIORITY: element("CS", str(item.priority)),
    }
    _tell(tx, item, EventType.STATE_REPORT, information, to)


def report_cancel_request(tx: sa.Connection, item: WorkItem, information: Attributes) -> None:
    """Subscribers are owed a UPS Cancel Requested."""
    _tell(tx, item, EventType.CANCEL_REQUESTED, information, None)


def report_progress(tx: sa.Connection, item: WorkItem) -> None:
    """Subscribers are owed a UPS Progress Report."""
    _tell(tx, item, EventType.PROGRESS_REPORT, {PROGRESS: item.dataset.get(PROGRESS, element("SQ"))}, None)


def report_assignment(tx: sa.Connection, item: WorkItem, *, to: Iterable[str] | None = None) -> None:
    """Subscribers are owed a UPS Assigned: the scheduled station, the human performer and the organization."""
    performer = next(iter(items(item.dataset, HUMAN_PERFORMERS)), {})
    information = {tag: performer[tag] for tag in ("00404009", "00404036") if values(performer, tag)}
    if values(item.dataset, STATION):
        information[STATION] = item.dataset[STATION]
    _tell(tx, item, EventType.ASSIGNED, information, to)


def announce(tx: sa.Connection, *, status: str, fallback: Iterable[str]) -> None:
    """Every subscriber, and every AE on the fallback list, is owed an SCP Status Change (PS3.4 CC.2.4.3).

    `status` is RESTARTED or GOING DOWN. Subscriptions and items survive a restart, so both start warm.
    """
    information = {
        "00741242": element("CS", status),
        "00741244": element("CS", "WARM START"),
        "00741246": element("CS", "WARM START"),
    }
    notifications.enqueue(
        tx,
        ae_titles=sorted({*fallback, *subscribers(tx)}),
        workitem_uid=GLOBAL,
        event_type=EventType.SCP_STATUS_CHANGE,
        dataset=information,
    )


def subscribers(tx: sa.Connection, workitem_uid: str | None = None) -> tuple[str, ...]:
    """The AE titles subscribed to this item, or to anything."""
    query = sa.select(subscriptions.c.ae_title).distinct().order_by(subscriptions.c.ae_title)
    if workitem_uid is not None:
        query = query.where(subscriptions.c.workitem_uid == workitem_uid)
    return tuple(tx.execute(query).scalars())


def of_ae(tx: sa.Connection, ae_title: str) -> tuple[Subscription, ...]:
    """Every subscription of one application entity, oldest first."""
    query = sa.select(subscriptions).where(subscriptions.c.ae_title == ae_title).order_by(subscriptions.c.id)
    return tuple(_subscription(row) for row in tx.execute(query).mappings())


def locked_uids() -> sa.Select[tuple[str]]:
    """The UIDs of the items on which somebody holds a deletion lock, as a subquery."""
    return sa.select(subscriptions.c.workitem_uid).where(subscriptions.c.deletion_lock)


def forget(tx: sa.Connection, workitem_uids: Iterable[str]) -> None:
    """Subscriptions to items that no longer exist end."""
    tx.execute(subscriptions.delete().where(subscriptions.c.workitem_uid.in_(list(workitem_uids))))


def _alone(tx: sa.Connection) -> None:
    # A new item and a new global subscription must see each other. SQLite has one writer at a time anyway.
    if tx.dialect.name == "postgresql":
        tx.execute(sa.text("SELECT pg_advisory_xact_lock(7236411)"))


def _tell(
    tx: sa.Connection, item: WorkItem, event: EventType, information: Attributes, to: Iterable[str] | None
) -> None:
    ae_titles = subscribers(tx, item.uid) if to is None else to
    notifications.enqueue(tx, ae_titles=ae_titles, workitem_uid=item.uid, event_type=event, dataset=information)


def _put(
    tx: sa.Connection, *, ae_title: str, workitem_uid: str, deletion_lock: bool, keys: Attributes | None = None
) -> None:
    values = {"deletion_lock": deletion_lock, "filter": keys}
    query = insert_into(tx, subscriptions).values(
        ae_title=ae_title, workitem_uid=workitem_uid, created_at=now(), **values
    )
    tx.execute(query.on_conflict_do_update(index_elements=["ae_title", "workitem_uid"], set_=values))


def _of(ae_title: str) -> sa.Delete:
    return subscriptions.delete().where(subscriptions.c.ae_title == ae_title)


def _item(tx: sa.Connection, uid: str) -> WorkItem | None:
    row = tx.execute(sa.select(workitems).where(workitems.c.uid == uid)).mappings().first()
    return WorkItem.of(row) if row else None


def _subscription(row: sa.RowMapping) -> Subscription:
    return Subscription(
        ae_title=row["ae_title"],
        workitem_uid=row["workitem_uid"],
        deletion_lock=row["deletion_lock"],
        filter=row["filter"],
    )
