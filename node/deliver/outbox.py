"""Works off what is due for one destination: claim, act, record; back off on failure, give up loudly."""

from __future__ import annotations

import datetime as dt
import random
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import sqlalchemy as sa

from db import deliveries
from db.deliveries import Delivery
from db.engine import Database
from db.errors import DatabaseError, LeaseLost
from db.states import DeliveryKind, DeliveryState
from node.config import DeliverSection
from node.errors import HemonodeError, PeerRefused
from node.log import log

LASTING_ATTEMPTS = 3
"""How often a refusal that time alone does not cure is tried before somebody is told."""

# PS3.7 annex C and PS3.4 table B.2-1: statuses that speak of the object or of how the two sides are configured.
_LASTING = {0x0105, 0x0106, 0x0115, 0x0117, 0x0118, 0x0119, 0x0120, 0x0121, 0x0122, 0x0124, 0x0211, 0x0212}

_dice = random.SystemRandom()


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """What the far side answered. `confirmed` when it was also seen to hold what was delivered."""

    detail: str
    confirmed: bool = False
    sop_instance_uid: str | None = None


Act = Callable[[Delivery], Receipt]
"""Delivers one thing, or raises. It runs outside any transaction, and after a crash again: twice must do as once."""


def deliver_due(
    database: Database,
    *,
    kind: DeliveryKind,
    destination: str,
    act: Act,
    policy: DeliverSection,
    owner: str,
    stop: threading.Event,
) -> int:
    """Everything of this kind that is due for this destination has been tried once; returns how many were.

    A failure makes the delivery due again after a pause that doubles each time, with jitter, up to `policy.attempts`;
    then it is abandoned, which stands in the log as an error and in the study's timeline. A delivery is superseded
    when the same destination already holds a newer revision.

    Parameters
    ----------
    act : callable
        Raises ``DeliveryError`` for what can be named; anything else is recorded as a failure too.
    owner : str
        Who holds the leases, unique among the processes and threads of the node.
    stop : threading.Event
        When set, nothing more is claimed.
    """
    tried = 0
    while not stop.is_set():
        delivery = _claimed(database, kind=kind, destination=destination, owner=owner, policy=policy)
        if delivery is None:
            break
        outcome = _attempt(act, delivery)
        _record(database, delivery, outcome, policy=policy)
        tried += 1
    return tried


def _claimed(
    database: Database, *, kind: DeliveryKind, destination: str, owner: str, policy: DeliverSection
) -> Delivery | None:
    with database.read() as tx:
        # Most looks find nothing, and a look takes no write lock.
        if not deliveries.any_due(tx, kind=kind, destination=destination):
            return None
    lease = dt.timedelta(seconds=policy.lease)
    with database.write() as tx:
        while delivery := deliveries.claim(tx, kind=kind, destination=destination, owner=owner, lease=lease):
            newer = _newer_delivered(tx, delivery)
            if newer is None:
                return delivery
            deliveries.supersede(tx, delivery, by_revision=newer)
    return None


def _newer_delivered(tx: sa.Connection, delivery: Delivery) -> int | None:
    delivered = (DeliveryState.SENT, DeliveryState.CONFIRMED)
    newer = [
        other.revision
        for other in deliveries.of_study(tx, delivery.study_uid)
        if other.kind in (delivery.kind, _superseding(delivery.kind))
        and other.destination == delivery.destination
        and other.revision > delivery.revision
        and other.state in delivered
    ]
    return max(newer, default=None)


def _superseding(kind: DeliveryKind) -> DeliveryKind:
    """A newer report makes it pointless to ask whether an older one is kept."""
    return DeliveryKind.SR if kind is DeliveryKind.COMMITMENT else kind


def _attempt(act: Act, delivery: Delivery) -> Receipt | Exception:
    try:
        return act(delivery)
    except Exception as error:  # noqa: BLE001 - the boundary of a delivery: whatever happened is recorded
        return error


def _record(database: Database, delivery: Delivery, outcome: Receipt | Exception, *, policy: DeliverSection) -> None:
    try:
        with database.write() as tx:
            if isinstance(outcome, Receipt):
                _succeed(tx, delivery, outcome)
                say = partial(log().info, "delivery_sent", confirmed=outcome.confirmed, detail=outcome.detail)
            else:
                say = _fail(tx, delivery, outcome, policy=policy)
    except LeaseLost:
        # It took longer than the lease, and another sender tries again: the far side knows it by the same UID.
        say = partial(log().warning, "delivery_lease_lost")
    named = {"study_uid": delivery.study_uid, "revision": delivery.revision, "attempts": delivery.attempts}
    say(kind=delivery.kind.value, destination=delivery.destination, **named)


def _succeed(tx: sa.Connection, delivery: Delivery, receipt: Receipt) -> None:
    done = deliveries.confirmed if receipt.confirmed else deliveries.sent
    done(tx, delivery, detail=receipt.detail, sop_instance_uid=receipt.sop_instance_uid)


def _fail(tx: sa.Connection, delivery: Delivery, error: Exception, *, policy: DeliverSection) -> partial[None]:
    reason = reason_of(error)
    pause = retry_after(delivery.attempts, error=error, policy=policy)
    deliveries.failed(tx, delivery, error=reason, retry_after=pause)
    if pause is None:
        return partial(log().error, "delivery_abandoned", error=reason)
    return partial(log().warning, "delivery_failed", error=reason, pause_s=round(pause.total_seconds(), 1))


def retry_after(attempts: int, *, error: Exception, policy: DeliverSection) -> dt.timedelta | None:
    """How long to pause after the `attempts`-th try failed with `error`; None when it is to be given up.

    The pause doubles from `policy.first_retry` up to `policy.longest_retry`; a random half of it spreads the senders.
    """
    limit = min(policy.attempts, LASTING_ATTEMPTS) if _lasting(error) else policy.attempts
    if attempts >= limit:
        return None
    pause = min(policy.longest_retry, policy.first_retry * 2.0 ** (attempts - 1))
    return dt.timedelta(seconds=pause * _dice.uniform(0.5, 1.0))


def _lasting(error: Exception) -> bool:
    if not isinstance(error, PeerRefused):
        return False
    return error.status in _LASTING or error.status & 0xFF00 == 0xA900 or error.status & 0xF000 == 0xC000


def reason_of(error: Exception) -> str:
    """What may be told of a failure."""
    if isinstance(error, HemonodeError | DatabaseError | OSError):
        return str(error)
    # The message of an unexpected exception may quote a header; its type and place do not.
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"unexpected {type(error).__name__} at {Path(last.filename).name}:{last.lineno}"
