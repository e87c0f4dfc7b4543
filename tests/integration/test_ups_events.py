"""Subscriptions and the event reports that follow from them, over real associations."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pydicom import Dataset
from pydicom.sequence import Sequence

from db import audit, notifications, subscriptions, worklist
from db.engine import Database
from db.states import DeliveryState, WorkItemState
from db.subscriptions import FILTERED, GLOBAL
from inference.result import Outcome
from node.config import DeliverSection
from node.query import events
from tests.worklist_node import (
    CLAIM,
    PUSH,
    WATCH,
    Told,
    a_flag,
    a_free_port,
    associated,
    listening,
    put,
    remote,
    subscriber,
)

AE = "WATCHER"
SOON = DeliverSection(first_retry=0.000001, longest_retry=0.000001, attempts=3, timeout=5)
NEVER_AGAIN = DeliverSection(attempts=1, timeout=5)
LATER = DeliverSection(first_retry=600, timeout=5)

# pynetdicom leaves the socket of a refused connection to the garbage collector.
refused = pytest.mark.filterwarnings("ignore:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning")


@pytest.fixture
def database(either_database: Database) -> Database:
    return either_database


@pytest.fixture
def port(database: Database) -> Iterator[int]:
    with listening(database, subscribers=[AE, "OTHER"]) as port:
        yield port


def act(port: int, action: int, uid: str, **information: Any) -> int:
    dataset = Dataset()
    for keyword, value in information.items():
        setattr(dataset, keyword, value)
    with associated(port, WATCH) as association:
        status, _ = association.send_n_action(dataset if information else None, action, PUSH, uid)
    return int(status.Status)


def subscribe(port: int, uid: str, *, lock: str = "FALSE", ae: str = AE, **keys: Any) -> int:
    return act(port, 3, uid, ReceivingAE=ae, DeletionLock=lock, **keys)


def claim(database: Database, uid: str) -> None:
    with database.write() as tx:
        worklist.change_state(tx, uid=uid, to=WorkItemState.IN_PROGRESS, transaction_uid=CLAIM)


def owed(database: Database, ae: str = AE) -> list[tuple[str, int]]:
    """What the AE is owed by now, which it then no longer is."""
    with database.write() as tx:
        held = notifications.claim(tx, ae_title=ae, owner="test", lease=dt.timedelta(minutes=1))
        for notification in held:
            notifications.sent(tx, notification)
    return [(n.workitem_uid, n.event_type) for n in held]


def send(database: Database, port: int, deliver: DeliverSection = SOON, *, ae: str = AE) -> int:
    return events.send_due(
        database, subscriber=remote(port, name="watcher", ae_title=ae), own_ae_title="HEMONODE", owner="s1",
        deliver=deliver,
    )  # fmt: skip


def states(database: Database) -> dict[str, int]:
    with database.read() as tx:
        return notifications.count_by_state(tx)


def test_a_subscriber_hears_of_every_change_of_its_item_in_order(database: Database, port: int) -> None:
    item = put(database, a_flag(Outcome.NEGATIVE))
    assert subscribe(port, item.uid) == 0x0000
    put(database, a_flag(Outcome.POSITIVE, revision=2))
    claim(database, item.uid)
    with subscriber(ae_title=AE) as (watcher, told):
        assert send(database, watcher) == 3
    assert [(t.information.ProcedureStepState, t.information.ScheduledProcedureStepPriority) for t in told] == [
        ("SCHEDULED", "MEDIUM"), ("SCHEDULED", "HIGH"), ("IN PROGRESS", "HIGH"),
    ]  # fmt: skip
    assert {(t.sop_class_uid, t.workitem_uid, t.event_type) for t in told} == {(PUSH, item.uid, 1)}
    assert told[0].information.InputReadinessState == "READY"
    assert states(database) == {DeliveryState.SENT: 3}


def test_what_was_sent_is_not_sent_again(database: Database, port: int) -> None:
    subscribe(port, put(database, a_flag()).uid)
    with subscriber(ae_title=AE) as (watcher, told):
        assert (send(database, watcher), send(database, watcher)) == (1, 0)
    assert len(told) == 1


@pytest.mark.parametrize(
    ("uid", "information", "status"),
    [
        ("item", {"ReceivingAE": AE, "DeletionLock": "FALSE"}, 0x0000),
        ("1.2.99", {"ReceivingAE": AE, "DeletionLock": "FALSE"}, 0xC307),
        ("item", {"ReceivingAE": "NOBODY", "DeletionLock": "FALSE"}, 0xC308),
        ("item", {"DeletionLock": "FALSE"}, 0x0115),
        ("item", {"ReceivingAE": AE}, 0x0115),
        (GLOBAL, {"ReceivingAE": AE, "DeletionLock": "TRUE"}, 0x0000),
        (FILTERED, {"ReceivingAE": AE, "DeletionLock": "TRUE"}, 0x0000),
    ],
)
def test_a_subscription_is_answered(
    database: Database, port: int, uid: str, information: dict[str, str], status: int
) -> None:
    item = put(database, a_flag())
    assert act(port, 3, item.uid if uid == "item" else uid, **information) == status
    assert (owed(database) != []) == (status == 0x0000)


@pytest.mark.parametrize(("action", "status"), [(4, 0x0000), (5, 0xC314)])
def test_a_single_item_can_be_unsubscribed_but_not_suspended(
    database: Database, port: int, action: int, status: int
) -> None:
    item = put(database, a_flag())
    subscribe(port, item.uid)
    owed(database)
    assert act(port, action, item.uid, ReceivingAE=AE) == status
    claim(database, item.uid)
    assert len(owed(database)) == (0 if status == 0x0000 else 1)
    assert act(port, action, "1.2.99", ReceivingAE=AE) == 0xC307


# PS3.4 table CC.2.3-2: the subscription of one AE to one existing item before, the event, the subscription after and
# whether the AE is sent the present state at once.
NO, LOCKED, FREE = None, True, False
TRANSITIONS = [
    ("global with lock", NO, LOCKED, True),
    ("global with lock", LOCKED, LOCKED, False),
    ("global with lock", FREE, FREE, False),
    ("global without lock", NO, FREE, False),
    ("global without lock", LOCKED, LOCKED, False),
    ("global without lock", FREE, FREE, False),
    ("specific with lock", NO, LOCKED, True),
    ("specific with lock", LOCKED, LOCKED, True),
    ("specific with lock", FREE, LOCKED, True),
    ("specific without lock", NO, FREE, True),
    ("specific without lock", LOCKED, FREE, True),
    ("specific without lock", FREE, FREE, True),
    ("unsubscribe specific", NO, NO, False),
    ("unsubscribe specific", LOCKED, NO, False),
    ("unsubscribe specific", FREE, NO, False),
    ("unsubscribe global", NO, NO, False),
    ("unsubscribe global", LOCKED, NO, False),
    ("unsubscribe global", FREE, NO, False),
    ("suspend", NO, NO, False),
    ("suspend", LOCKED, LOCKED, False),
    ("suspend", FREE, FREE, False),
]
ACTIONS: dict[str, Callable[[int, str], int]] = {
    "global with lock": lambda port, _uid: subscribe(port, GLOBAL, lock="TRUE"),
    "global without lock": lambda port, _uid: subscribe(port, GLOBAL),
    "specific with lock": lambda port, uid: subscribe(port, uid, lock="TRUE"),
    "specific without lock": lambda port, uid: subscribe(port, uid),
    "unsubscribe specific": lambda port, uid: act(port, 4, uid, ReceivingAE=AE),
    "unsubscribe global": lambda port, _uid: act(port, 4, GLOBAL, ReceivingAE=AE),
    "suspend": lambda port, _uid: act(port, 5, GLOBAL, ReceivingAE=AE),
}


@pytest.mark.parametrize(("event", "before", "after", "reported"), TRANSITIONS)
def test_the_subscription_to_an_item_passes_as_the_standards_table_says(
    database: Database, port: int, event: str, before: bool | None, after: bool | None, reported: bool
) -> None:
    item = put(database, a_flag())
    if before is not None:
        subscribe(port, item.uid, lock="TRUE" if before else "FALSE")
        owed(database)
    assert ACTIONS[event](port, item.uid) == 0x0000
    with database.read() as tx:
        held = {s.workitem_uid: s.deletion_lock for s in subscriptions.of_ae(tx, AE)}
    assert held.get(item.uid) == after
    assert (GLOBAL in held) == event.startswith("global")
    assert owed(database) == ([(item.uid, 1)] if reported else [])


@pytest.mark.parametrize("lock", ["TRUE", "FALSE"])
def test_a_global_subscriber_hears_of_items_made_later_until_it_suspends(
    database: Database, port: int, lock: str
) -> None:
    subscribe(port, GLOBAL, lock=lock)
    first = put(database, a_flag(study_uid="1.2.1"))
    assert owed(database) == [(first.uid, 1)]
    act(port, 5, GLOBAL, ReceivingAE=AE)
    put(database, a_flag(study_uid="1.2.2"))
    claim(database, first.uid)
    assert owed(database) == [(first.uid, 1)]


def test_a_filtered_subscriber_hears_only_of_what_matches(database: Database, port: int) -> None:
    high, medium = put(database, a_flag(study_uid="1.2.1")), put(database, a_flag(Outcome.NEGATIVE, study_uid="1.2.2"))
    subscribe(port, FILTERED, lock="TRUE", ScheduledProcedureStepPriority="HIGH")
    later = put(database, a_flag(study_uid="1.2.3"))
    put(database, a_flag(Outcome.NEGATIVE, study_uid="1.2.4"))
    claim(database, medium.uid)
    assert owed(database) == [(high.uid, 1), (later.uid, 1)]


def test_a_new_item_for_a_named_station_is_also_reported_as_assigned(database: Database, port: int) -> None:
    subscribe(port, GLOBAL)
    station = Dataset()
    station.CodeValue, station.CodingSchemeDesignator, station.CodeMeaning = "WS1", "99LOCAL", "Workstation 1"
    item = Dataset()
    item.ScheduledProcedureStepPriority, item.ProcedureStepLabel = "LOW", "Read"
    item.ScheduledProcedureStepStartDateTime, item.InputReadinessState = "20260714", "READY"
    item.ProcedureStepState = "SCHEDULED"
    item.ScheduledStationNameCodeSequence = Sequence([station])
    with associated(port, PUSH) as association:
        association.send_n_create(item, PUSH, "1.5")
    assert owed(database) == [("1.5", 1), ("1.5", 5)]


def set_attributes(port: int, uid: str, **values: Any) -> None:
    changes = Dataset()
    changes.TransactionUID = CLAIM
    for keyword, value in values.items():
        setattr(changes, keyword, value)
    with associated(port, PUSH) as association:
        status, _ = association.send_n_set(changes, PUSH, uid)
    assert status.Status == 0x0000


def test_progress_assignment_and_readiness_each_have_their_event(database: Database, port: int) -> None:
    item = put(database, a_flag())
    subscribe(port, item.uid)
    claim(database, item.uid)
    owed(database)
    progress, performer, role = Dataset(), Dataset(), Dataset()
    progress.ProcedureStepProgress = "50"
    role.CodeValue, role.CodingSchemeDesignator, role.CodeMeaning = "121081", "DCM", "Physician"
    performer.HumanPerformerCodeSequence = Sequence([role])
    set_attributes(port, item.uid, ProcedureStepProgressInformationSequence=Sequence([progress]))
    assert owed(database) == [(item.uid, 3)]
    set_attributes(port, item.uid, ScheduledHumanPerformersSequence=Sequence([performer]))
    assert owed(database) == [(item.uid, 5)]
    set_attributes(port, item.uid, InputReadinessState="UNAVAILABLE")
    assert owed(database) == [(item.uid, 1)]
    set_attributes(port, item.uid, ScheduledProcedureStepPriority="MEDIUM")
    assert owed(database) == [(item.uid, 1)]
    set_attributes(port, item.uid, CommentsOnTheScheduledProcedureStep="nobody's business")
    assert owed(database) == []


def test_the_performer_hears_who_wants_its_item_cancelled_and_why(database: Database, port: int) -> None:
    item = put(database, a_flag())
    subscribe(port, item.uid)
    claim(database, item.uid)
    assert act(port, 2, item.uid, ReasonForCancellation="wrong patient", ContactDisplayName="Ward 1") == 0x0000
    with subscriber(ae_title=AE) as (watcher, told):
        send(database, watcher)
    request = told[-1]
    assert request.event_type == 2
    assert (request.information.RequestingAE, request.information.ReasonForCancellation) == ("PACS", "wrong patient")


def test_a_scheduled_item_passes_through_in_progress_when_it_is_cancelled(database: Database, port: int) -> None:
    item = put(database, a_flag())
    subscribe(port, item.uid)
    act(port, 2, item.uid)
    with subscriber(ae_title=AE) as (watcher, told):
        send(database, watcher)
    reports = [t.information.get("ProcedureStepState") for t in told if t.event_type == 1]
    assert reports == ["SCHEDULED", "IN PROGRESS", "CANCELED"]
    assert told[-1].information.ProcedureStepDiscontinuationReasonCodeSequence[0].CodeValue == "110513"


@refused
def test_a_subscriber_that_is_down_hears_everything_once_it_is_up_again(database: Database, port: int) -> None:
    item = put(database, a_flag())
    subscribe(port, item.uid)
    down = a_free_port()
    assert send(database, down) == 0
    claim(database, item.uid)
    with subscriber(ae_title=AE, port=down) as (watcher, told):
        assert send(database, watcher) == 2
    assert [t.information.ProcedureStepState for t in told] == ["SCHEDULED", "IN PROGRESS"]


@refused
def test_a_report_never_overtakes_one_that_is_put_off(database: Database, port: int) -> None:
    item = put(database, a_flag())
    subscribe(port, item.uid)
    send(database, a_free_port(), LATER)
    claim(database, item.uid)
    with subscriber(ae_title=AE) as (watcher, told):
        assert send(database, watcher) == 0
    assert told == []


@refused
def test_a_subscriber_that_stays_down_is_given_up_and_the_timeline_says_so(database: Database, port: int) -> None:
    subscribe(port, put(database, a_flag()).uid)
    send(database, a_free_port(), NEVER_AGAIN)
    assert states(database) == {DeliveryState.ABANDONED: 1}
    with database.read() as tx:
        (event,) = audit.latest(tx, limit=1, event="notification_abandoned")
    assert event.detail["ae_title"] == AE


@refused
def test_one_subscriber_that_is_down_does_not_keep_another_waiting(database: Database, port: int) -> None:
    item = put(database, a_flag())
    subscribe(port, item.uid)
    subscribe(port, item.uid, ae="OTHER")
    send(database, a_free_port())
    with subscriber(ae_title="OTHER") as (other, told):
        assert send(database, other, ae="OTHER") == 1
    assert len(told) == 1


def test_a_report_that_is_refused_is_not_repeated_and_the_next_one_goes_out(database: Database, port: int) -> None:
    item = put(database, a_flag())
    subscribe(port, item.uid)
    claim(database, item.uid)
    with subscriber(ae_title=AE, status=lambda n: 0x0110 if n == 1 else 0x0000) as (watcher, told):
        send(database, watcher)
        send(database, watcher)
    assert len(told) == 2
    assert states(database) == {DeliveryState.ABANDONED: 1, DeliveryState.SENT: 1}


def test_what_a_dead_sender_held_is_sent_by_the_next(database: Database, port: int) -> None:
    subscribe(port, put(database, a_flag()).uid)
    with database.write() as tx:
        notifications.claim(tx, ae_title=AE, owner="dead", lease=dt.timedelta(seconds=-1))
    with subscriber(ae_title=AE) as (watcher, _):
        assert send(database, watcher) == 1


def test_what_a_living_sender_holds_is_not_sent_twice(database: Database, port: int) -> None:
    subscribe(port, put(database, a_flag()).uid)
    with database.write() as tx:
        notifications.claim(tx, ae_title=AE, owner="alive", lease=dt.timedelta(minutes=1))
    with subscriber(ae_title=AE) as (watcher, told):
        assert send(database, watcher) == 0
    assert told == []


def started(told: list[Told]) -> list[tuple[str, str, str, str]]:
    return [
        (t.workitem_uid, t.information.SCPStatus, t.information.SubscriptionListStatus,
         t.information.UnifiedProcedureStepListStatus)
        for t in told if t.event_type == 4
    ]  # fmt: skip


def test_subscribers_hear_that_the_node_has_restarted(database: Database) -> None:
    with subscriber(ae_title=AE) as (watcher, told):
        events.start(database, subscribers=[remote(watcher, name="watcher", ae_title=AE)])
        send(database, watcher)
        events.stop(database, subscribers=[remote(watcher, name="watcher", ae_title=AE)])
        send(database, watcher)
    assert started(told) == [
        (GLOBAL, "RESTARTED", "WARM START", "WARM START"),
        (GLOBAL, "GOING DOWN", "WARM START", "WARM START"),
    ]


def test_a_subscriber_that_left_the_configuration_is_dropped_loudly(database: Database, port: int) -> None:
    subscribe(port, put(database, a_flag()).uid)
    events.start(database, subscribers=[])
    with database.read() as tx:
        assert subscriptions.subscribers(tx) == ()
        assert notifications.owed_to(tx) == ()
        (event,) = audit.latest(tx, limit=1, event="subscriber_dropped")
    assert event.detail["ae_title"] == AE
