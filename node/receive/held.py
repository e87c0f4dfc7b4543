"""What this node holds, byte for byte: the answer to a request for storage commitment (PS3.4 J.3, PS3.3 C.14)."""

from __future__ import annotations

import datetime as dt
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum

from db import commitments, instances
from db.commitments import Request
from db.dicom_json import Attributes, data_set
from db.engine import Database
from db.errors import LeaseLost
from db.instances import Instance
from node.config import Settings
from node.log import log
from node.receive.archive import digest_at
from node.receive.disk import Disk

ALL_HELD, SOME_FAILED = 1, 2
"""Event Type IDs (PS3.4 table J.3-2)."""

RENEWED_EVERY = 1000
"""Files read between two renewals of the lease: a slow disk takes half a minute for them."""
LOOK_AGAIN = dt.timedelta(seconds=1)


class Failure(IntEnum):
    """Failure Reason (0008,1197), PS3.3 C.14.1.1."""

    PROCESSING_FAILURE = 0x0110
    NO_SUCH_OBJECT = 0x0112
    RESOURCE_LIMITATION = 0x0213
    CLASS_INSTANCE_CONFLICT = 0x0119
    DUPLICATE_TRANSACTION = 0x0131


_Pair = tuple[str, str]


@dataclass(frozen=True, kw_only=True)
class _Found:
    """What the index knows of a request.

    `kept_aside` are the instances under whose UIDs the requester sent another object than the one that is stored: what
    it asks about is not what stands in the archive.
    """

    instances: Mapping[str, Instance]
    kept_aside: frozenset[str]
    transaction_in_use: bool


def check_due(database: Database, settings: Settings, *, owner: str, stop: threading.Event) -> int:
    """Every request that is due has been checked, or waits for instances that may still come; returns how many were.

    An instance counts as held when its file was read again just now and its data set has the digest under which it was
    acknowledged. What is not there is looked for until `commitment.grace` has passed since the request.
    """
    checked = 0
    while not stop.is_set():
        with database.read() as tx:
            if not commitments.any_to_check(tx):
                break
        with database.write() as tx:
            request = commitments.claim_check(tx, owner=owner, lease=dt.timedelta(seconds=settings.deliver.lease))
        if request is None:
            break
        try:
            _check(database, settings, request)
        except LeaseLost as lost:
            log().warning("commitment_lease_lost", error=str(lost))
        checked += 1
    return checked


def _check(database: Database, settings: Settings, request: Request) -> None:
    uids = list(dict.fromkeys(uid for _, uid in request.asked))
    with database.read() as tx:
        found = _Found(
            instances=instances.among(tx, uids),
            kept_aside=instances.conflicts_among(tx, uids, calling_ae=request.ae_title),
            transaction_in_use=commitments.is_transaction_in_use(tx, request),
        )
    incomplete = len(found.instances) < len(uids) and not found.transaction_in_use
    if incomplete and commitments.age(request) < dt.timedelta(seconds=settings.commitment.grace):
        with database.write() as tx:
            commitments.look_again(tx, request, after=LOOK_AGAIN)
        return
    failures = _failures(database, settings, request, found)
    with database.write() as tx:
        commitments.checked(
            tx,
            request,
            event_type=SOME_FAILED if failures else ALL_HELD,
            report=_report(request, failures, retrieve_ae_title=settings.retrieve_ae_title),
            failed=len(failures),
            hold=dt.timedelta(seconds=settings.commitment.hold),
        )
    log().info("commitment_checked", transaction_uid=request.transaction_uid, ae_title=request.ae_title,
               instances=len(request.asked), failed=len(failures))  # fmt: skip


def _failures(database: Database, settings: Settings, request: Request, found: _Found) -> dict[_Pair, Failure]:
    """Why this node does not commit to an instance; those to which it does are left out."""
    lease = dt.timedelta(seconds=settings.deliver.lease)
    failures: dict[_Pair, Failure] = {}
    for number, pair in enumerate(request.asked, start=1):
        if number % RENEWED_EVERY == 0:
            with database.write() as tx:
                commitments.renew(tx, request, lease=lease)
        failure = _failure(settings, found, *pair)
        if failure is not None:
            failures[pair] = failure
    return failures


def _failure(settings: Settings, found: _Found, sop_class_uid: str, sop_instance_uid: str) -> Failure | None:
    instance = found.instances.get(sop_instance_uid)
    if found.transaction_in_use:
        return Failure.DUPLICATE_TRANSACTION
    if instance is None:
        return Failure.RESOURCE_LIMITATION if Disk.of(settings).is_low() else Failure.NO_SUCH_OBJECT
    if instance.sop_class_uid != sop_class_uid:
        return Failure.CLASS_INSTANCE_CONFLICT
    if sop_instance_uid in found.kept_aside:
        return Failure.PROCESSING_FAILURE
    return _damage(settings, instance)


def _damage(settings: Settings, instance: Instance) -> Failure | None:
    try:
        digest = digest_at(settings.archive / instance.path)
    except FileNotFoundError:
        failure = Failure.NO_SUCH_OBJECT
    except (OSError, ValueError):
        failure = Failure.PROCESSING_FAILURE
    else:
        if digest == instance.digest:
            return None
        failure = Failure.PROCESSING_FAILURE
    # Nothing but a failing disk or somebody's hand does this: the operator has to know before the sender deletes it.
    log().error("archive_damaged", sop_instance_uid=instance.sop_instance_uid, path=instance.path, reason=failure.name)
    return failure


def _report(request: Request, failures: Mapping[_Pair, Failure], *, retrieve_ae_title: str) -> Attributes:
    held = [_reference(*pair) for pair in request.asked if pair not in failures]
    failed = [_reference(*pair) | data_set(FailureReason=int(failure)) for pair, failure in failures.items()]
    report = data_set(TransactionUID=request.transaction_uid)
    if held:
        report |= data_set(RetrieveAETitle=retrieve_ae_title, ReferencedSOPSequence=held)
    return report | data_set(FailedSOPSequence=failed) if failed else report


def _reference(sop_class_uid: str, sop_instance_uid: str) -> Attributes:
    return data_set(ReferencedSOPClassUID=sop_class_uid, ReferencedSOPInstanceUID=sop_instance_uid)
