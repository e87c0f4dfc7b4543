"""Storage commitments: what others asked this node to commit to and were told, and what this node asked of others."""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from db import audit
from db.dicom_json import Attributes, first, items, tag_of
from db.engine import insert_into
from db.errors import LeaseLost
from db.schema import associations, commitment_asks, commitment_requests, deliveries, now
from db.states import CommitmentState, DeliveryState

PUSH_MODEL = "1.2.840.10008.1.20.1"
"""Storage Commitment Push Model SOP Class (PS3.4 J.3)."""
PUSH_MODEL_INSTANCE = "1.2.840.10008.1.20.1.1"
"""Its well-known SOP Instance."""

PROCESSING_FAILURE = 0x0110
"""Failure Reason (0008,1197), PS3.3 C.14.1.1."""


@dataclass(frozen=True, kw_only=True)
class NewRequest:
    """A request as it came: `asked` holds pairs of SOP Class and SOP Instance UID.

    `association_id` names the association over which the answer may go back; None where it may not.
    """

    transaction_uid: str
    ae_title: str
    address: str
    association_id: str | None
    asked: tuple[tuple[str, str], ...]


@dataclass(frozen=True, kw_only=True)
class Request:
    """A request to commit. `event_type` and `report` are what the requester is to be told, None until it is known."""

    id: int
    transaction_uid: str
    ae_title: str
    address: str
    association_id: str | None
    digest: str
    asked: tuple[tuple[str, str], ...]
    state: CommitmentState
    event_type: int | None
    report: Attributes | None
    due_at: dt.datetime
    attempts: int
    owner: str | None
    lease_until: dt.datetime | None
    error: str | None
    asked_at: dt.datetime
    reported_at: dt.datetime | None


def accept(tx: sa.Connection, new: NewRequest) -> None:
    """The request stands and waits to be checked; one that was made before, word for word, is answered once more."""
    at = now()
    digest = hashlib.sha256("\n".join(" ".join(pair) for pair in sorted(new.asked)).encode()).hexdigest()
    fresh = {"association_id": new.association_id, "state": CommitmentState.ASKED, "due_at": at, "attempts": 0,
             "address": new.address, "asked_at": at, "owner": None, "lease_until": None, "error": None}  # fmt: skip
    key = {"transaction_uid": new.transaction_uid, "ae_title": new.ae_title, "digest": digest}
    query = insert_into(tx, commitment_requests).values(asked=[list(pair) for pair in new.asked], **key, **fresh)
    tx.execute(query.on_conflict_do_update(index_elements=list(key), set_=fresh))
    audit.record(tx, "commitment_asked", transaction_uid=new.transaction_uid, ae_title=new.ae_title,
                 instances=len(new.asked))  # fmt: skip


def any_to_check(tx: sa.Connection) -> bool:
    """Whether `claim_check` would find something; takes no write lock."""
    return tx.execute(sa.select(_row.id).where(_free(CommitmentState.ASKED)).limit(1)).first() is not None


def claim_check(tx: sa.Connection, *, owner: str, lease: dt.timedelta) -> Request | None:
    """The longest due request that was not checked is `owner`'s until the lease ends; or None."""
    return _claim(tx, _free(CommitmentState.ASKED), owner=owner, lease=lease)


def is_transaction_in_use(tx: sa.Connection, request: Request) -> bool:
    """Whether the same application entity used the Transaction UID before, for something else."""
    earlier = sa.select(_row.id).where(
        _row.transaction_uid == request.transaction_uid, _row.ae_title == request.ae_title, _row.id < request.id
    )
    return tx.execute(earlier.limit(1)).first() is not None


def age(request: Request) -> dt.timedelta:
    """How long ago it was asked."""
    return now() - request.asked_at


def renew(tx: sa.Connection, request: Request, *, lease: dt.timedelta) -> None:
    """The request is its owner's for a whole lease from now. Raises ``LeaseLost``."""
    _change_mine(tx, request, owner=request.owner, lease_until=now() + lease)


def look_again(tx: sa.Connection, request: Request, *, after: dt.timedelta) -> None:
    """Not everything has come yet: the request is checked again after a while. Raises ``LeaseLost``."""
    _change_mine(tx, request, due_at=now() + after)


def checked(
    tx: sa.Connection, request: Request, *, event_type: int, report: Attributes, failed: int, hold: dt.timedelta
) -> None:
    """What the requester is to be told is known. Raises ``LeaseLost``.

    While the association over which it asked is open, the report is held for it for as long as `hold`.
    """
    query = sa.select(associations.c.association_id).where(
        associations.c.association_id == request.association_id, associations.c.ended_at.is_(None)
    )
    due_at = now() + (hold if tx.execute(query).first() is not None else dt.timedelta(0))
    _change_mine(
        tx, request, state=CommitmentState.CHECKED, event_type=event_type, report=report, due_at=due_at, attempts=0
    )
    _tell(tx, request, "commitment_checked", instances=len(request.asked), failed=failed)


def hand_over(tx: sa.Connection, *, association_id: str) -> None:
    """The association has ended: what was held for it goes out over another one now."""
    held = commitment_requests.update().where(_row.association_id == association_id)
    tx.execute(held.where(_row.state == CommitmentState.CHECKED).values(due_at=now()))
    tx.execute(held.values(association_id=None))


def any_held(tx: sa.Connection, *, association_ids: Collection[str]) -> tuple[str, ...]:
    """Those of the associations for which a report is ready."""
    ready = sa.select(_row.association_id).where(
        _row.state == CommitmentState.CHECKED, _row.association_id.in_(association_ids), _unowned()
    )
    return tuple(tx.execute(ready.distinct()).scalars())


def claim_held(tx: sa.Connection, *, association_id: str, owner: str, lease: dt.timedelta) -> Request | None:
    """A report held for this association is `owner`'s until the lease ends; or None."""
    held = sa.and_(_row.state == CommitmentState.CHECKED, _row.association_id == association_id, _unowned())
    return _claim(tx, held, owner=owner, lease=lease)


def claim_report(tx: sa.Connection, *, ae_title: str, owner: str, lease: dt.timedelta) -> Request | None:
    """The longest due report for `ae_title` is `owner`'s until the lease ends; or None."""
    due = sa.and_(_free(CommitmentState.CHECKED), _row.ae_title == ae_title)
    return _claim(tx, due, owner=owner, lease=lease)


def owed_to(tx: sa.Connection) -> frozenset[str]:
    """The AE titles for which a report is due."""
    return frozenset(tx.execute(sa.select(_row.ae_title).where(_free(CommitmentState.CHECKED)).distinct()).scalars())


def reported(tx: sa.Connection, request: Request) -> None:
    """The requester has been told and has answered. Raises ``LeaseLost``."""
    _change_mine(tx, request, state=CommitmentState.REPORTED, reported_at=now(), error=None)
    _tell(tx, request, "commitment_reported", event_type=request.event_type)


def put_off(tx: sa.Connection, request: Request, *, error: str, retry_after: dt.timedelta | None) -> None:
    """The requester could not be told: it is tried again after a while, or given up when that is None.

    Raises ``LeaseLost``.
    """
    if retry_after is None:
        _change_mine(tx, request, state=CommitmentState.ABANDONED, error=error)
        _tell(tx, request, "commitment_abandoned", error=error, attempts=request.attempts)
    else:
        _change_mine(tx, request, due_at=now() + retry_after, error=error)


def count_by_state(tx: sa.Connection) -> dict[str, int]:
    """How many requests of others are in each state."""
    rows = tx.execute(sa.select(_row.state, sa.func.count()).group_by(_row.state))
    return {str(state): int(count) for state, count in rows}


def abandoned(tx: sa.Connection) -> tuple[Request, ...]:
    """The requests whose requester could not be told, oldest first."""
    query = sa.select(commitment_requests).where(_row.state == CommitmentState.ABANDONED).order_by(_row.id)
    return tuple(_request(row) for row in tx.execute(query).mappings())


def requeue(tx: sa.Connection) -> int:
    """Requests whose requester could not be told are checked and reported anew; returns how many."""
    query = commitment_requests.update().where(_row.state == CommitmentState.ABANDONED)
    values = {"state": CommitmentState.ASKED, "due_at": now(), "attempts": 0, "association_id": None}
    return int(tx.execute(query.values(**values)).rowcount)


def find(tx: sa.Connection, *, transaction_uid: str) -> tuple[Request, ...]:
    """The requests under this Transaction UID, oldest first."""
    query = sa.select(commitment_requests).where(_row.transaction_uid == transaction_uid).order_by(_row.id)
    return tuple(_request(row) for row in tx.execute(query).mappings())


# What this node asked of others


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a far side said of a delivery: `failure` is its Failure Reason (0008,1197), 0 where it commits."""

    transaction_uid: str
    delivery_id: int
    failure: int


def ask(tx: sa.Connection, *, transaction_uid: str, delivery_id: int) -> None:
    """The question stands before it is asked: its answer may come at once, and to another process."""
    tx.execute(
        commitment_asks.insert().values(transaction_uid=transaction_uid, delivery_id=delivery_id, asked_at=now())
    )


def heard(tx: sa.Connection, information: Attributes) -> bool:
    """What a far side reports (PS3.4 table J.3-2) stands; False where nobody asked it under this Transaction UID.

    Each request of this node names one instance: what the report says of it is the answer. A report that does not
    speak of it is the failure 0110.
    """
    uid = str(first(information, tag_of("TransactionUID")) or "")
    failed = items(information, tag_of("FailedSOPSequence"))
    reasons = [int(first(item, tag_of("FailureReason")) or PROCESSING_FAILURE) for item in failed]
    committed = items(information, tag_of("ReferencedSOPSequence"))
    failure = reasons[0] if reasons else (0 if committed else PROCESSING_FAILURE)
    query = commitment_asks.update().where(commitment_asks.c.transaction_uid == uid)
    return bool(tx.execute(query.values(answered_at=now(), failure=failure)).rowcount)


def answers(tx: sa.Connection, *, destination: str) -> tuple[Answer, ...]:
    """What this destination said of deliveries that wait for it and that nobody is working on."""
    ask, to = commitment_asks.c, deliveries.c
    query = (
        sa.select(ask.transaction_uid, ask.delivery_id, ask.failure)
        .join(deliveries, to.id == ask.delivery_id)
        .where(
            ask.answered_at.is_not(None),
            to.destination == destination,
            to.state.in_((DeliveryState.DUE, DeliveryState.SENT)),
            sa.or_(to.owner.is_(None), to.lease_until < now()),
        )
        .order_by(ask.answered_at)
    )
    return tuple(Answer(**dict(row)) for row in tx.execute(query).mappings())


def settle(tx: sa.Connection, transaction_uid: str) -> None:
    """The answer has had its effect."""
    tx.execute(commitment_asks.delete().where(commitment_asks.c.transaction_uid == transaction_uid))


def forget(tx: sa.Connection, *, before: dt.datetime) -> None:
    """Requests that ended, and questions that were asked, before this time leave."""
    ended = _row.state.in_((CommitmentState.REPORTED, CommitmentState.ABANDONED))
    tx.execute(commitment_requests.delete().where(ended, _row.asked_at < before))
    tx.execute(commitment_asks.delete().where(commitment_asks.c.asked_at < before))


_row = commitment_requests.c


def _unowned() -> sa.ColumnElement[bool]:
    return sa.or_(_row.owner.is_(None), _row.lease_until < now())


def _free(state: CommitmentState) -> sa.ColumnElement[bool]:
    return sa.and_(_row.state == state, _row.due_at <= now(), _unowned())


def _claim(tx: sa.Connection, which: sa.ColumnElement[bool], *, owner: str, lease: dt.timedelta) -> Request | None:
    # No row is skipped because it is locked: who hands one over holds it for a moment only.
    one = sa.select(_row.id).where(which).order_by(_row.due_at, _row.id).limit(1).with_for_update()
    query = (
        commitment_requests.update()
        .where(_row.id == one.scalar_subquery())
        .values(owner=owner, lease_until=now() + lease, attempts=_row.attempts + 1)
        .returning(commitment_requests)
    )
    row = tx.execute(query).mappings().first()
    return _request(row) if row else None


def _change_mine(tx: sa.Connection, request: Request, **values: Any) -> None:
    mine = commitment_requests.update().where(
        _row.id == request.id, _row.owner == request.owner, _row.attempts == request.attempts
    )
    if not tx.execute(mine.values({"owner": None, "lease_until": None, **values})).rowcount:
        raise LeaseLost(f"commitment {request.transaction_uid} is no longer held by {request.owner}")


def _tell(tx: sa.Connection, request: Request, event: str, **detail: Any) -> None:
    audit.record(tx, event, transaction_uid=request.transaction_uid, ae_title=request.ae_title, **detail)


def _request(row: sa.RowMapping) -> Request:
    asked = _pairs(row["asked"])
    return Request(**{**row, "state": CommitmentState(row["state"]), "asked": asked})


def _pairs(asked: Sequence[Sequence[str]]) -> tuple[tuple[str, str], ...]:
    return tuple((sop_class, sop_instance) for sop_class, sop_instance in asked)
