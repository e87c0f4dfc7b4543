"""Sends the event reports that subscribers are owed (N-EVENT-REPORT, UPS Event SOP Class, PS3.4 CC.2.4)."""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection, Sequence

from pynetdicom.association import Association

from db import notifications, subscriptions
from db.dicom_json import dataset_of
from db.engine import Database
from db.notifications import Notification
from db.procedure_step import EVENT, PUSH
from node.config import DeliverSection, RemoteSection
from node.errors import DeliveryError, PeerRefused, PeerUnreachable
from node.log import log
from node.scu import associate, checked


def send_due(
    database: Database, *, subscriber: RemoteSection, own_ae_title: str, owner: str, deliver: DeliverSection
) -> int:
    """Everything owed to `subscriber` has been sent, in order, or is put off; returns how many reports arrived.

    A subscriber that cannot be reached gets its reports later, after longer and longer pauses; after
    ``deliver.attempts`` they are given up, which the log and the timeline say. A report that it refuses is not
    sent again, as it would be refused again.
    """
    with database.read() as tx:
        if not notifications.any_due(tx, ae_title=subscriber.ae_title):
            return 0
    lease = dt.timedelta(seconds=deliver.lease)
    with database.write() as tx:
        owed = notifications.claim(tx, ae_title=subscriber.ae_title, owner=owner, lease=lease)
    if not owed:
        return 0
    rest = list(owed)
    try:
        with associate(
            subscriber,
            own_ae_title=own_ae_title,
            contexts=[EVENT],
            timeout=deliver.timeout,
            scp_roles=[EVENT],  # who sends an event report is its SCP (PS3.7 D.3.3.4)
        ) as association:
            while rest:
                _send(database, association, rest[0])
                rest.pop(0)
    except DeliveryError as error:
        _put_off(database, rest, error=error, deliver=deliver)
    return len(owed) - len(rest)


def start(database: Database, *, subscribers: Collection[RemoteSection], by_web: Collection[str] = ()) -> None:
    """The subscribers learn that the node has started; those that node.toml does not name are subscribers no more.

    `by_web` are the AE titles of those that come for their event reports over DICOMweb.

    Called once when the node starts (PS3.4 CC.2.4.3: SCP Status Change to all subscribers and a fallback list, which
    is the one in node.toml).
    """
    known = {*(subscriber.ae_title for subscriber in subscribers), *by_web}
    with database.write() as tx:
        for ae_title in sorted({*subscriptions.subscribers(tx), *notifications.owed_to(tx)} - known):
            subscriptions.drop(tx, ae_title=ae_title, reason="no address in node.toml")
            log().warning("subscriber_dropped", ae_title=ae_title, reason="no address in node.toml")
        subscriptions.announce(tx, status="RESTARTED", fallback={s.ae_title for s in subscribers})


def stop(database: Database, *, subscribers: Collection[RemoteSection]) -> None:
    """The subscribers are owed the news that the node goes down."""
    with database.write() as tx:
        subscriptions.announce(tx, status="GOING DOWN", fallback={s.ae_title for s in subscribers})


def _send(database: Database, association: Association, owed: Notification) -> None:
    try:
        status, _ = association.send_n_event_report(
            dataset_of(owed.dataset), owed.event_type, PUSH, owed.workitem_uid,
            meta_uid=EVENT,
        )  # fmt: skip
    except RuntimeError as error:
        raise PeerUnreachable(f"N-EVENT-REPORT: {error}") from error
    try:
        checked(status, doing="N-EVENT-REPORT")
    except PeerRefused as error:
        log().warning("notification_refused", ae_title=owed.ae_title, event_type=owed.event_type, error=str(error))
        with database.write() as tx:
            notifications.abandoned(tx, owed, error=str(error))
        return
    with database.write() as tx:
        notifications.sent(tx, owed)


def _put_off(
    database: Database, rest: Sequence[Notification], *, error: DeliveryError, deliver: DeliverSection
) -> None:
    tried = rest[0].attempts
    pause = min(deliver.longest_retry, deliver.first_retry * 2 ** (tried - 1))
    given_up = sum(notification.attempts >= deliver.attempts for notification in rest)
    with database.write() as tx:
        notifications.put_off(tx, rest, error=str(error), attempts=deliver.attempts, after=dt.timedelta(seconds=pause))
    say = log().error if given_up else log().warning
    say("notifications_put_off", ae_title=rest[0].ae_title, owed=len(rest), given_up=given_up, error=str(error))
