"""Storage commitment over associations of our own: reports to those who asked, requests to destinations (PS3.4 J.3)."""

from __future__ import annotations

import datetime as dt
import ipaddress
import queue
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from pydicom.uid import Comprehensive3DSRStorage, generate_uid
from pynetdicom import evt
from pynetdicom.association import Association
from pynetdicom.events import Event

from db import commitments, deliveries
from db.commitments import PUSH_MODEL, PUSH_MODEL_INSTANCE, Request
from db.deliveries import Delivery
from db.dicom_json import Attributes, data_set, dataset_of
from db.engine import Database
from db.errors import LeaseLost
from db.schema import now
from db.states import DeliveryKind, DeliveryState
from node.config import CommitmentSection, DeliverSection, PeerSection, RemoteSection
from node.deliver.outbox import Act, Receipt, reason_of, retry_after
from node.dimse import Answered, attributes_of, guarded, size_of, status
from node.errors import DeliveryError, PeerRefused, PeerUnreachable
from node.log import log
from node.scu import associate, checked

REQUEST_COMMITMENT = 1
"""Action Type ID (PS3.4 table J.3-1)."""
UNKNOWN_TRANSACTION = 0x0115  # PS3.7 C.5.10, invalid argument value


@dataclass(frozen=True, kw_only=True)
class Reports:
    """What those who asked are told with: `peers` name the ports at which they are reached."""

    database: Database
    peers: Sequence[PeerSection]
    own_ae_title: str
    policy: DeliverSection
    stop: threading.Event


def report_due(reports: Reports, *, ae_title: str, owner: str) -> int:
    """`ae_title` has been told of every request of its that is due, or is told later; returns how many were tried.

    It is called at the address from which it asked and the port that `peers` name. Without one it cannot be told,
    which the log and the timeline say.
    """
    tried, lease = 0, dt.timedelta(seconds=reports.policy.lease)
    while not reports.stop.is_set():
        with reports.database.read() as tx:
            if ae_title not in commitments.owed_to(tx):
                break
        with reports.database.write() as tx:
            request = commitments.claim_report(tx, ae_title=ae_title, owner=owner, lease=lease)
        if request is None:
            break
        _tell(reports, request)
        tried += 1
    return tried


def report_to_strangers(reports: Reports, *, known: frozenset[str], owner: str) -> int:
    """Nobody whose port is not `known` is owed a report any more; returns how many were."""
    with reports.database.read() as tx:
        strangers = commitments.owed_to(tx) - known
    return sum(report_due(reports, ae_title=title, owner=owner) for title in sorted(strangers))


def _tell(reports: Reports, request: Request) -> None:
    remote = _callable(reports.peers, request)
    pause: dt.timedelta | None = None
    error = f"no port under [[peers]] for {request.ae_title} at {request.address}"
    try:
        if remote is not None:
            error = ""
            _report(request, remote, own_ae_title=reports.own_ae_title, timeout=reports.policy.timeout)
    except Exception as failure:  # noqa: BLE001 - the boundary of a report: whatever happened is recorded
        error = reason_of(failure)
        pause = retry_after(request.attempts, error=failure, policy=reports.policy)
    try:
        with reports.database.write() as tx:
            if error:
                commitments.put_off(tx, request, error=error, retry_after=pause)
            else:
                commitments.reported(tx, request)
    except LeaseLost as lost:
        error = str(lost)
    say = log().info if not error else log().warning if pause else log().error
    said = {"ae_title": request.ae_title, "transaction_uid": request.transaction_uid, "attempts": request.attempts}
    say("commitment_not_reported" if error else "commitment_reported", **said, error=error or None)


def _callable(peers: Sequence[PeerSection], request: Request) -> RemoteSection | None:
    """How the requester is called; None where its port is not known."""
    address = ipaddress.ip_address(request.address.partition("%")[0])
    for peer in peers:
        networks = [ipaddress.ip_network(network, strict=False) for network in peer.addresses]
        known = address.is_loopback or any(address in network for network in networks)
        if peer.ae_title == request.ae_title and peer.port is not None and known:
            return RemoteSection(name="peer", ae_title=peer.ae_title, address=request.address, port=peer.port)
    return None


def _report(request: Request, remote: RemoteSection, *, own_ae_title: str, timeout: float) -> None:
    with associate(
        remote, own_ae_title=own_ae_title, contexts=[PUSH_MODEL], timeout=timeout, scp_roles=[PUSH_MODEL]
    ) as association:
        try:
            answer, _ = association.send_n_event_report(
                dataset_of(request.report or {}), request.event_type or 0, PUSH_MODEL, PUSH_MODEL_INSTANCE
            )
        except (RuntimeError, ValueError) as error:
            raise PeerUnreachable(f"N-EVENT-REPORT: {error}") from error
        checked(answer, doing=f"N-EVENT-REPORT to {remote.ae_title}")


# What this node asks


def ask(
    database: Database, *, remote: RemoteSection, own_ae_title: str, timeout: float, commitment: CommitmentSection
) -> Act:
    """The delivery of a request to commit: `remote` has accepted it; its answer comes at once, later, or never.

    The association stays open for `commitment.hold` seconds for the sake of those who answer over it. Whatever comes,
    here or to the listening side of the node, has its effect in `settle`.
    """

    def act(delivery: Delivery) -> Receipt:
        transaction_uid = str(generate_uid(prefix=None))
        information = _question(database, delivery, transaction_uid=transaction_uid)
        heard: queue.SimpleQueue[threading.Thread] = queue.SimpleQueue()
        hear = (evt.EVT_N_EVENT_REPORT, _hear, [(database, heard)])
        with associate(
            remote, own_ae_title=own_ae_title, contexts=[PUSH_MODEL], timeout=timeout, handlers=[hear]
        ) as association:
            _ask(association, information, remote=remote)
            with suppress(queue.Empty):
                heard.get(timeout=commitment.hold).join(timeout)  # only then is our answer on its way
        return Receipt(detail=f"asked as transaction {transaction_uid}")

    return act


def _question(database: Database, delivery: Delivery, *, transaction_uid: str) -> Attributes:
    """What is asked; it stands in the database before it is."""
    with database.write() as tx:
        report = deliveries.report_of(tx, delivery)
        if report is None or report.sop_instance_uid is None or report.state is DeliveryState.ABANDONED:
            raise DeliveryError("the report has not been stored there")
        commitments.ask(tx, transaction_uid=transaction_uid, delivery_id=delivery.id)
    reference = data_set(
        ReferencedSOPClassUID=str(Comprehensive3DSRStorage), ReferencedSOPInstanceUID=report.sop_instance_uid
    )
    return data_set(TransactionUID=transaction_uid, ReferencedSOPSequence=reference)


def _ask(association: Association, information: Attributes, *, remote: RemoteSection) -> None:
    try:
        answer, _ = association.send_n_action(
            dataset_of(information), REQUEST_COMMITMENT, PUSH_MODEL, PUSH_MODEL_INSTANCE
        )
    except (RuntimeError, ValueError) as error:
        raise PeerUnreachable(f"N-ACTION: {error}") from error
    checked(answer, doing=f"N-ACTION to {remote.ae_title}")


@guarded
def _hear(event: Event, told: tuple[Database, queue.SimpleQueue[threading.Thread]]) -> Answered:
    database, heard = told
    information = attributes_of(event.event_information) if size_of(event, "EventInformation") else {}
    with database.write() as tx:
        known = commitments.heard(tx, information)
    heard.put(threading.current_thread())  # pynetdicom serves an N-EVENT-REPORT in a thread of its own
    return status(0x0000 if known else UNKNOWN_TRANSACTION), None


def settle(database: Database, *, remote: RemoteSection, policy: DeliverSection, commitment: CommitmentSection) -> int:
    """What `remote` answered has had its effect, and silence too; returns how many answers there were.

    Where it commits, the report is confirmed. Where it does not, the report is stored there once more and then asked
    for again; where it stays silent for `commitment.answer_within`, it is asked again. After as many attempts as every
    delivery has, that is given up, loudly.
    """
    silent_since = now() - dt.timedelta(seconds=commitment.answer_within)
    with database.read() as tx:
        said = commitments.answers(tx, destination=remote.name)
        silent = deliveries.overdue(tx, kind=DeliveryKind.COMMITMENT, destination=remote.name, before=silent_since)
    for answer in said:
        _settle(database, answer, policy=policy)
    answered = {answer.delivery_id for answer in said}
    for delivery in (d for d in silent if d.id not in answered):
        _doubt(database, delivery, PeerUnreachable(f"no answer within {commitment.answer_within:g} s"), policy=policy)
    return len(said)


def _settle(database: Database, answer: commitments.Answer, *, policy: DeliverSection) -> None:
    with database.read() as tx:
        delivery = deliveries.find(tx, answer.delivery_id)
    if delivery is None:
        return
    if answer.failure:
        refused = PeerRefused(f"failure reason 0x{answer.failure:04X}", status=answer.failure)
        _doubt(database, delivery, refused, policy=policy)
    else:
        with database.write() as tx:
            report = deliveries.report_of(tx, delivery)
            for held in (delivery, report):
                if held is not None:
                    deliveries.confirm(tx, held, detail=f"committed to (transaction {answer.transaction_uid})")
        log().info("delivery_committed", study_uid=delivery.study_uid, destination=delivery.destination)
    with database.write() as tx:
        commitments.settle(tx, answer.transaction_uid)


def _doubt(database: Database, delivery: Delivery, error: DeliveryError, *, policy: DeliverSection) -> None:
    pause = retry_after(delivery.attempts, error=error, policy=policy)
    told = f"not committed to: {error}"
    with database.write() as tx:
        deliveries.doubt(tx, delivery, error=told, retry_after=pause)
        report = deliveries.report_of(tx, delivery)
        if isinstance(error, PeerRefused) and pause is not None and report is not None:
            deliveries.doubt(tx, report, error=told, retry_after=pause)
    say = log().error if pause is None else log().warning
    say("delivery_not_committed", study_uid=delivery.study_uid, destination=delivery.destination, error=told,
        given_up=pause is None)  # fmt: skip
