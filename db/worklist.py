"""The worklist: its items, every change of one, and the order in which they are read."""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from db import audit, notifications, subscriptions
from db.dicom_json import Attributes, element, first, items
from db.engine import insert_into
from db.procedure_step import (
    COMMENTS,
    COMMUNICATIONS,
    CONTACT_NAME,
    CONTACT_URI,
    FINAL,
    HUMAN_PERFORMERS,
    INPUT,
    LABEL,
    PRIORITY,
    PROGRESS,
    READINESS,
    REASON,
    REASON_CODES,
    STATION,
    Answer,
    WorkItem,
    canceled,
    transition,
    unmet,
)
from db.schema import now, workitems
from db.states import Priority, WorkItemState

OPEN = (WorkItemState.SCHEDULED, WorkItemState.IN_PROGRESS)
SAID = (LABEL, COMMENTS, INPUT)
"""What a new revision says anew of an item that exists; everything else may be someone else's by now."""
_SHOWN = ("00741006", "00741004", COMMUNICATIONS)  # what a UPS Progress Report is owed for (PS3.4 CC.2.4.3)


@dataclass(frozen=True, kw_only=True)
class NewReading:
    """What this node asks a reader to do about one revision of one study.

    `uid` names the study's first item and `further_uid` an item that this revision may need when the first is no longer
    open. `dataset` is everything but state and priority, in the DICOM JSON Model. `raised` says that the study is
    positive: only then is a study that has been read put on the list again.
    """

    study_uid: str
    revision: int
    priority: Priority
    raised: bool
    uid: str
    further_uid: str
    dataset: Attributes


@dataclass(frozen=True, kw_only=True)
class Reply:
    """The answer to a request, and in a few words why, where the status alone does not say."""

    answer: Answer
    comment: str = ""


def put_reading(tx: sa.Connection, new: NewReading) -> WorkItem:
    """The study stands on the reading worklist as `new` says; the same call again changes nothing.

    One item serves all revisions while it is open. A SCHEDULED item takes the new priority, except that a priority
    someone else has changed is never lowered. An IN PROGRESS item is being read: its priority is only ever raised. A
    study that has been read gets a further item when the new revision is positive, and nothing otherwise.
    """
    latest = _latest(tx, new.study_uid)
    if latest is None:
        return _add_reading(tx, new, uid=new.uid)
    if latest.revision is not None and latest.revision >= new.revision:
        return latest
    if latest.state in FINAL:
        return _add_reading(tx, new, uid=new.further_uid) if new.raised else latest
    said = {tag: new.dataset[tag] for tag in SAID if tag in new.dataset}
    item = _change(
        tx, latest, dataset=latest.dataset | said, priority=_revised(latest, new), asked=new.priority,
        revision=new.revision,
    )  # fmt: skip
    subscriptions.report_state(tx, item)
    _record(tx, item, "worklist_changed", before=str(latest.priority))
    return item


def create(tx: sa.Connection, *, uid: str, dataset: Attributes) -> Answer:
    """The item stands SCHEDULED on the worklist; `dataset` holds its priority. Nothing is written for a known UID."""
    priority = Priority(str(first(dataset, PRIORITY)))
    item = _add(tx, uid=uid, priority=priority, dataset={t: e for t, e in dataset.items() if t != PRIORITY})
    return Answer.DUPLICATE if item is None else Answer.DONE


def update(tx: sa.Connection, *, uid: str, transaction_uid: str, changes: Attributes) -> Reply:
    """The item has the new attributes (N-SET, PS3.4 CC.2.6.3), all or none; subscribers are told what concerns them.

    Parameters
    ----------
    transaction_uid : str
        Empty for a SCHEDULED item, the one that claimed it for an IN PROGRESS item.
    changes : dict
        In the DICOM JSON Model; a sequence replaces the whole of the earlier one.
    """
    item = _locked(tx, uid)
    if item is None:
        return Reply(answer=Answer.UNKNOWN)
    if item.state in FINAL:
        return Reply(answer=Answer.NO_LONGER_UPDATED, comment=str(item.state))
    if item.state is WorkItemState.IN_PROGRESS and transaction_uid != item.transaction_uid:
        return Reply(answer=Answer.WRONG_TRANSACTION)
    if item.state is WorkItemState.SCHEDULED and transaction_uid:
        return Reply(answer=Answer.NOT_IN_PROGRESS, comment="a SCHEDULED item is set without Transaction UID")
    dataset = item.dataset | {tag: value for tag, value in changes.items() if tag != PRIORITY}
    priority = Priority(str(first(changes, PRIORITY) or item.priority))
    _report_differences(tx, before=item, after=_change(tx, item, dataset=dataset, priority=priority))
    return Reply(answer=Answer.DONE)


def change_state(tx: sa.Connection, *, uid: str, to: WorkItemState, transaction_uid: str) -> Reply:
    """The item is in state `to` (N-ACTION, PS3.4 CC.2.1.3) and its subscribers are told.

    Claiming is this change to IN PROGRESS: of any number of simultaneous claims exactly one is answered DONE.
    """
    item = _locked(tx, uid)
    if item is None:
        return Reply(answer=Answer.UNKNOWN)
    answer = transition(item.state, to, held=item.transaction_uid, given=transaction_uid)
    if answer is not Answer.DONE:
        return Reply(answer=answer)
    lacking = unmet(item.dataset) if to is WorkItemState.COMPLETED else ()
    if lacking:
        return Reply(answer=Answer.UNMET, comment=f"no {', '.join(lacking)}")
    _enter(tx, item, to, transaction_uid=transaction_uid)
    return Reply(answer=Answer.DONE)


def request_cancel(
    tx: sa.Connection, *, uid: str, requesting_ae: str, information: Attributes, transaction_uid: str
) -> Reply:
    """Somebody who does not hold the item wants it CANCELED (N-ACTION, PS3.4 CC.2.2.3).

    A SCHEDULED item is, passing through IN PROGRESS under `transaction_uid`. Of an IN PROGRESS item the subscribers
    are told, the performer hopefully among them; without subscribers it cannot be reached.
    """
    item = _locked(tx, uid)
    if item is None:
        return Reply(answer=Answer.UNKNOWN)
    if item.state is WorkItemState.COMPLETED:
        return Reply(answer=Answer.COMPLETED)
    if item.state is WorkItemState.CANCELED:
        return Reply(answer=Answer.ALREADY_CANCELED)
    if item.state is WorkItemState.IN_PROGRESS and not subscriptions.subscribers(tx, uid):
        return Reply(answer=Answer.UNREACHABLE, comment="nobody is subscribed to this item")
    told = {tag: information[tag] for tag in (REASON, REASON_CODES, CONTACT_URI, CONTACT_NAME) if tag in information}
    subscriptions.report_cancel_request(tx, item, told | {"00741236": element("AE", requesting_ae)})
    if item.state is WorkItemState.SCHEDULED:
        claimed = _enter(tx, item, WorkItemState.IN_PROGRESS, transaction_uid=transaction_uid)
        _enter(tx, claimed, WorkItemState.CANCELED, transaction_uid=transaction_uid, request=information)
    return Reply(answer=Answer.DONE)


def find(tx: sa.Connection, uid: str) -> WorkItem | None:
    """The item, or None."""
    row = tx.execute(sa.select(workitems).where(workitems.c.uid == uid)).mappings().first()
    return WorkItem.of(row) if row else None


def of_study(tx: sa.Connection, study_uid: str) -> tuple[WorkItem, ...]:
    """The node's own reading items of one study, oldest first."""
    query = sa.select(workitems).where(workitems.c.study_uid == study_uid)
    rows = tx.execute(query.order_by(workitems.c.created_at, workitems.c.revision)).mappings()
    return tuple(WorkItem.of(row) for row in rows)


def in_reading_order(
    tx: sa.Connection,
    *,
    states: Collection[str] | None = None,
    priorities: Collection[str] | None = None,
    uids: Collection[str] | None = None,
) -> tuple[WorkItem, ...]:
    """The items as they are to be read: what is still open before what has ended, HIGH first, then the longest waiting.

    `states`, `priorities` and `uids` keep only those.
    """
    ended = sa.case((workitems.c.state.in_(FINAL), 1), else_=0)
    rank = sa.case({Priority.HIGH: 0, Priority.MEDIUM: 1}, value=workitems.c.priority, else_=2)
    query = sa.select(workitems).order_by(ended, rank, workitems.c.created_at, workitems.c.uid)
    for column, kept in ((workitems.c.state, states), (workitems.c.priority, priorities), (workitems.c.uid, uids)):
        if kept is not None:
            query = query.where(column.in_(list(kept)))
    return tuple(WorkItem.of(row) for row in tx.execute(query).mappings())


def forget(tx: sa.Connection, *, before: dt.datetime) -> int:
    """Items that ended before this time leave, with their subscriptions; returns how many.

    An item on which anybody holds a deletion lock stays (PS3.4 CC.2.1.3).
    """
    query = sa.select(workitems.c.uid).where(
        workitems.c.state.in_(FINAL),
        workitems.c.updated_at < before,
        workitems.c.uid.not_in(subscriptions.locked_uids()),
    )
    uids = tx.execute(query).scalars().all()
    if uids:
        subscriptions.forget(tx, uids)
        tx.execute(workitems.delete().where(workitems.c.uid.in_(uids)))
    notifications.forget(tx, before=before)
    return len(uids)


def _add_reading(tx: sa.Connection, new: NewReading, *, uid: str) -> WorkItem:
    item = _add(
        tx, uid=uid, priority=new.priority, dataset=new.dataset, study_uid=new.study_uid, revision=new.revision,
        asked=new.priority,
    )  # fmt: skip
    if item is None:  # known already: made by this revision before
        return _of_uid(tx, uid)
    _record(tx, item, "worklist_added")
    return item


def _revised(latest: WorkItem, new: NewReading) -> Priority:
    if new.priority is Priority.HIGH:
        return Priority.HIGH
    untouched = latest.state is WorkItemState.SCHEDULED and latest.priority is latest.asked
    return new.priority if untouched else latest.priority


def _add(tx: sa.Connection, *, uid: str, priority: Priority, dataset: Attributes, **own: Any) -> WorkItem | None:
    at = now()
    values = {"state": WorkItemState.SCHEDULED, "priority": priority, "dataset": dataset, **own}
    query = insert_into(tx, workitems).values(uid=uid, created_at=at, updated_at=at, **values)
    if not tx.execute(query.on_conflict_do_nothing(index_elements=["uid"])).rowcount:
        return None
    item = _of_uid(tx, uid)
    subscriptions.introduce(tx, item)
    return item


def _enter(
    tx: sa.Connection, item: WorkItem, to: WorkItemState, *, transaction_uid: str, request: Attributes | None = None
) -> WorkItem:
    dataset = canceled(item.dataset, at=now(), request=request) if to is WorkItemState.CANCELED else item.dataset
    entered = _change(tx, item, state=to, transaction_uid=transaction_uid, dataset=dataset)
    subscriptions.report_state(tx, entered)
    _record(tx, entered, f"worklist_{str(to).lower().replace(' ', '_')}")
    return entered


def _report_differences(tx: sa.Connection, *, before: WorkItem, after: WorkItem) -> None:
    def differ(*tags: str) -> bool:
        return any(before.dataset.get(tag) != after.dataset.get(tag) for tag in tags)

    if before.priority is not after.priority or differ(READINESS):
        subscriptions.report_state(tx, after)
    if differ(STATION, HUMAN_PERFORMERS):
        subscriptions.report_assignment(tx, after)
    if _progress(before) != _progress(after):
        subscriptions.report_progress(tx, after)
    if before.priority is not after.priority:
        _record(tx, after, "worklist_changed", before=str(before.priority))


def _progress(item: WorkItem) -> Sequence[Any]:
    return [[entry.get(tag) for tag in _SHOWN] for entry in items(item.dataset, PROGRESS)]


def _record(tx: sa.Connection, item: WorkItem, event: str, **detail: Any) -> None:
    if item.study_uid is not None:  # what others write in the label of their own items may name a patient
        detail |= {"revision": item.revision, "label": item.label}
    audit.record(
        tx, event, study_uid=item.study_uid, workitem_uid=item.uid, state=str(item.state), priority=str(item.priority),
        **detail,
    )  # fmt: skip


def _latest(tx: sa.Connection, study_uid: str) -> WorkItem | None:
    query = sa.select(workitems).where(workitems.c.study_uid == study_uid)
    order = (workitems.c.revision.desc(), workitems.c.created_at.desc())
    row = tx.execute(query.order_by(*order).limit(1).with_for_update()).mappings().first()
    return WorkItem.of(row) if row else None


def _locked(tx: sa.Connection, uid: str) -> WorkItem | None:
    row = tx.execute(sa.select(workitems).where(workitems.c.uid == uid).with_for_update()).mappings().first()
    return WorkItem.of(row) if row else None


def _of_uid(tx: sa.Connection, uid: str) -> WorkItem:
    return WorkItem.of(tx.execute(sa.select(workitems).where(workitems.c.uid == uid)).mappings().one())


def _change(tx: sa.Connection, item: WorkItem, **values: Any) -> WorkItem:
    query = workitems.update().where(workitems.c.uid == item.uid).values(updated_at=now(), **values)
    return WorkItem.of(tx.execute(query.returning(workitems)).mappings().one())
