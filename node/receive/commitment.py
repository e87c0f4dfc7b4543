"""Storage Commitment Push Model (PS3.4 J.3): requests become durable, and answers to our own requests are taken down.

What is held is checked elsewhere (`node.receive.held`), by the schedule process: an association never waits for it. The
report goes back over the association of the request where that has no other purpose and is still open, and over a new
one otherwise.
"""

from __future__ import annotations

import datetime as dt
import os
import threading
import time
from typing import Any

from pynetdicom import evt
from pynetdicom.association import Association
from pynetdicom.events import Event
from sqlalchemy.exc import SQLAlchemyError

from db import commitments
from db.commitments import PUSH_MODEL, PUSH_MODEL_INSTANCE, NewRequest, Request
from db.dicom_json import Attributes, dataset_of, first, items, tag_of
from db.engine import Database
from db.errors import LeaseLost
from node.dimse import SYNTAXES, Answered, attributes_of, guarded, size_of, status, uid_of_request
from node.log import log
from node.receive.roll import association_id_of, failure
from node.receive.uids import is_storage_class, is_uid
from node.service import Service

SUCCESS = 0x0000
NO_SUCH_INSTANCE = 0x0112  # PS3.7 C.5.19
NO_SUCH_EVENT = 0x0113  # PS3.7 C.5.18
INVALID_ARGUMENT = 0x0115  # PS3.7 C.5.10
NO_SUCH_ACTION = 0x0123  # PS3.7 C.5.24
RESOURCE_LIMIT = 0x0213  # PS3.7 C.5.22

REQUEST_COMMITMENT = 1
"""Action Type ID (PS3.4 table J.3-1)."""
EVENT_TYPES = (1, 2)
"""Successful; failures exist (PS3.4 table J.3-2)."""

LARGEST = 8 * 1024 * 1024
"""Bytes of one request; an instance takes about 120."""

POLL_SECONDS = 0.1
IDLE_SECONDS = 0.5
"""A report never crosses a request of its requester, who may be about to make the next one."""
LEASE = dt.timedelta(minutes=2)


def service(*, database: Database) -> Service:
    """Storage Commitment Push Model as SCP, and as the SCU that takes reports."""
    desk = Desk(database)
    return Service(
        contexts=((PUSH_MODEL, SYNTAXES),),
        handlers=((evt.EVT_N_ACTION, act, [desk]), (evt.EVT_N_EVENT_REPORT, hear, [desk])),
        reversible=frozenset({PUSH_MODEL}),
    )


@guarded
def act(event: Event, desk: Desk) -> Answered:
    """Answers N-ACTION: the request is durable before it is accepted."""
    if uid_of_request(event) != PUSH_MODEL_INSTANCE:
        return status(NO_SUCH_INSTANCE, "not the Storage Commitment Push Model SOP Instance"), None
    if event.action_type != REQUEST_COMMITMENT:
        return status(NO_SUCH_ACTION), None
    if size_of(event, "ActionInformation") > LARGEST:
        return status(RESOURCE_LIMIT, "too many instances in one request"), None
    information = attributes_of(event.action_information) if size_of(event, "ActionInformation") else {}
    transaction_uid, asked = transaction_of(information), _asked(information)
    if not transaction_uid:
        return status(INVALID_ARGUMENT, "TransactionUID is missing or no UID"), None
    if not asked:
        return status(INVALID_ARGUMENT, "ReferencedSOPSequence is missing, empty or has no UIDs"), None
    desk.accept(event.assoc, transaction_uid=transaction_uid, asked=asked)
    return SUCCESS, None


@guarded
def hear(event: Event, desk: Desk) -> Answered:
    """Answers N-EVENT-REPORT: what a destination says of what this node sent it."""
    if event.event_type not in EVENT_TYPES:
        return status(NO_SUCH_EVENT), None
    information = attributes_of(event.event_information) if size_of(event, "EventInformation") else {}
    return status(SUCCESS if desk.heard(information) else INVALID_ARGUMENT), None


def transaction_of(information: Attributes) -> str:
    """The Transaction UID, empty where there is none worth the name."""
    uid = str(first(information, tag_of("TransactionUID")) or "")
    return uid if is_uid(uid) else ""


def _asked(information: Attributes) -> tuple[tuple[str, str], ...]:
    """SOP Class and Instance UIDs, each pair once; empty where one of them is none."""
    keys = tag_of("ReferencedSOPClassUID"), tag_of("ReferencedSOPInstanceUID")
    listed = items(information, tag_of("ReferencedSOPSequence"))
    pairs = [(str(first(item, keys[0]) or ""), str(first(item, keys[1]) or "")) for item in listed]
    return tuple(dict.fromkeys(pairs)) if all(is_uid(uid) for pair in pairs for uid in pair) else ()


class Desk:
    """Takes requests and reports down, and gives reports back over associations that wait for them.

    May be used by any number of threads; has one of its own while an association waits.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lock = threading.Lock()
        self._waiting: dict[Association, float] = {}
        self._thread: threading.Thread | None = None

    def accept(self, association: Association, *, transaction_uid: str, asked: tuple[tuple[str, str], ...]) -> None:
        """The request stands; its report may go back over its association if that serves nothing else."""
        alone = not any(is_storage_class(str(c.abstract_syntax)) for c in association.accepted_contexts)
        peer = association.requestor
        new = NewRequest(
            transaction_uid=transaction_uid,
            ae_title=str(peer.ae_title).strip(),
            address=peer.address or "",
            association_id=association_id_of(association) if alone else None,
            asked=asked,
        )
        with self._database.write() as tx:
            commitments.accept(tx, new)
        if alone:
            self._wait_for(association)

    def heard(self, information: Attributes) -> bool:
        """What a far side reports stands; False where nobody asked."""
        with self._database.write() as tx:
            known = commitments.heard(tx, information)
        if not known:
            log().warning("commitment_unknown", transaction_uid=transaction_of(information))
        return known

    def _wait_for(self, association: Association) -> None:
        with self._lock:
            self._waiting[association] = time.monotonic()
            if self._thread is None:
                self._thread = threading.Thread(target=self._serve, name="commitment", daemon=True)
                self._thread.start()

    def _serve(self) -> None:
        pause = threading.Event()
        while True:
            with self._lock:
                if not self._waiting:
                    self._thread = None
                    return
                waiting = dict(self._waiting)
            try:
                self._look(waiting)
            except SQLAlchemyError as error:
                log().error("commitment_report_failed", **failure(error))
            pause.wait(POLL_SECONDS)

    def _look(self, waiting: dict[Association, float]) -> None:
        by_id = {association_id_of(association): association for association in waiting}
        with self._database.read() as tx:
            ready = commitments.any_held(tx, association_ids=tuple(by_id))
        for association_id, association in by_id.items():
            if not association.is_established:
                self._let_go(association, association_id)
            elif association_id in ready and time.monotonic() - waiting[association] >= IDLE_SECONDS:
                self._report(association, association_id)

    def _let_go(self, association: Association, association_id: str) -> None:
        with self._database.write() as tx:
            commitments.hand_over(tx, association_id=association_id)
        with self._lock:
            self._waiting.pop(association, None)

    def _report(self, association: Association, association_id: str) -> None:
        with self._database.write() as tx:
            request = commitments.claim_held(
                tx, association_id=association_id, owner=f"receive:{os.getpid()}", lease=LEASE
            )
        if request is None or request.report is None or request.event_type is None:
            return
        error = _sent(association, request)
        try:
            with self._database.write() as tx:
                if error is None:
                    commitments.reported(tx, request)
                else:
                    commitments.put_off(tx, request, error=error, retry_after=dt.timedelta(0))
                    commitments.hand_over(tx, association_id=association_id)
        except LeaseLost as lost:
            log().warning("commitment_lease_lost", error=str(lost))
        log().info("commitment_reported", ae_title=request.ae_title, transaction_uid=request.transaction_uid,
                   event_type=request.event_type, error=error)  # fmt: skip


def _sent(association: Association, request: Request) -> str | None:
    """None when the requester took the report over its own association, else why it did not."""
    information: Any = dataset_of(request.report or {})
    try:
        answer, _ = association.send_n_event_report(
            information, request.event_type or 0, PUSH_MODEL, PUSH_MODEL_INSTANCE
        )
    except (RuntimeError, ValueError) as error:
        return f"over its own association: {type(error).__name__}"
    if "Status" not in answer:
        return "over its own association: no answer"
    return None if answer.Status == SUCCESS else f"over its own association: status 0x{answer.Status:04X}"
