"""What this node holds, byte for byte: the answer to a request for storage commitment (PS3.4 J.3, PS3.3 C.14)."""

from __future__ import annotations

import datetime as dt
import threading
from collections.abc import Mapping
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
    with database.read() as tx:
        used = commitments.is_transaction_in_use(tx, request)
        found = instances.among(tx, [uid for _, uid in request.asked])
    if not used and len(found) < len({uid for _, uid in request.asked}) and _may_still_come(settings, request):
        with database.write() as tx:
            commitments.look_again(tx, request, after=LOOK_AGAIN)
        return
    failures = _failures(database, settings, request, found, used=used)
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


def _may_still_come(settings: Settings, request: Request) -> bool:
    return commitments.age(request) < dt.timedelta(seconds=settings.commitment.grace)


def _failures(
    database: Database, settings: Settings, request: Request, found: Mapping[str, Instance], *, used: bool
) -> dict[tuple[str, str], Failure]:
    """Why this node does not commit to an instance; those to which it does are left out."""
    low = Disk.of(settings).is_low()
    lease = dt.timedelta(seconds=settings.deliver.lease)
    failures: dict[tuple[str, str], Failure] = {}
    for number, (sop_class_uid, sop_instance_uid) in enumerate(request.asked, start=1):
        if number % RENEWED_EVERY == 0:
            with database.write() as tx:
                commitments.renew(tx, request, lease=lease)
        failure = Failure.DUPLICATE_TRANSACTION if used else None
        instance = found.get(sop_instance_uid)
        if failure is None and instance is None:
            failure = Failure.RESOURCE_LIMITATION if low else Failure.NO_SUCH_OBJECT
        elif failure is None and instance is not None:
            failure = _failure_of(settings, instance, sop_class_uid)
        if failure is not None:
            failures[sop_class_uid, sop_instance_uid] = failure
    return failures


def _failure_of(settings: Settings, instance: Instance, sop_class_uid: str) -> Failure | None:
    if instance.sop_class_uid != sop_class_uid:
        return Failure.CLASS_INSTANCE_CONFLICT
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


def _report(request: Request, failures: Mapping[tuple[str, str], Failure], *, retrieve_ae_title: str) -> Attributes:
    held = [_reference(*pair) for pair in request.asked if pair not in failures]
    failed = [_reference(*pair) | data_set(FailureReason=int(failure)) for pair, failure in failures.items()]
    report = data_set(TransactionUID=request.transaction_uid)
    if held:
        report |= data_set(RetrieveAETitle=retrieve_ae_title, ReferencedSOPSequence=held)
    return report | data_set(FailedSOPSequence=failed) if failed else report


def _reference(sop_class_uid: str, sop_instance_uid: str) -> Attributes:
    return data_set(ReferencedSOPClassUID=sop_class_uid, ReferencedSOPInstanceUID=sop_instance_uid)
