"""STOW-RS (PS3.18 10.5): objects come by HTTP, through the same intake and with the same promise as by C-STORE."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from functools import partial

import anyio
import anyio.from_thread
from python_multipart.exceptions import FormParserError
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from db import associations, instances
from db.associations import ABORTED, RELEASED
from db.dicom_json import Attributes, data_set
from db.instances import Instance
from node.errors import OutOfResources, RequestRefused
from node.log import log
from node.receive.disk import MEGABYTE, Disk
from node.web.answers import DICOM, base_url, check_json, dicom_json, media_type
from node.web.arriving import CALLING_AE, Arriving, Outcome, Sender
from node.web.served import Served, served, uid_in

RETRY_SECONDS = "120"
"""A full disk is not emptied sooner."""

LONGEST_BOUNDARY = 128
"""RFC 2046 5.1.1 allows 70 characters; Orthanc sends 73."""


def store(request: Request) -> Response:
    """Answers POST on /studies and /studies/{study}, after everything that it calls stored is durable.

    For assembly the request is an association that sends the objects: opened now, released when the body is whole.
    """
    node = served(request)
    study_uid, boundary = uid_in(request, "study"), _boundary(request)
    check_json(request)
    if Disk.of(node.settings).is_low():
        raise _full()
    with _association(request, node) as association_id:
        arriving = Arriving(
            boundary=boundary,
            intake=node.intake,
            sender=Sender(association_id=association_id, study_uid=study_uid),
            kept=node.settings.receive.spool_above_mb * MEGABYTE,
        )
        try:
            _receive(request, arriving, timeout=node.settings.web.timeout)
        finally:
            arriving.discard()
    return _answer(request, node, arriving.outcomes)


def _boundary(request: Request) -> str:
    name, parameters = media_type(request.headers.get("content-type", ""))
    if name != "multipart/related" or parameters.get("type", DICOM).lower() != DICOM:
        raise RequestRefused(f'expected multipart/related; type="{DICOM}"', status=415)
    boundary = parameters.get("boundary", "")
    if not 1 <= len(boundary) <= LONGEST_BOUNDARY or not boundary.isascii():
        raise RequestRefused("the multipart body has no boundary", status=400)
    return boundary


def _receive(request: Request, arriving: Arriving, *, timeout: float) -> None:
    chunks = aiter(request.stream())
    try:
        while chunk := anyio.from_thread.run(partial(_next, chunks, timeout)):
            arriving.write(chunk)
    except FormParserError as error:
        raise RequestRefused("the multipart body is malformed", status=400) from error
    except TimeoutError as error:
        raise RequestRefused("nothing came for too long", status=408, headers={"Connection": "close"}) from error
    if not arriving.is_whole:
        raise RequestRefused("the multipart body breaks off", status=400)


async def _next(chunks: AsyncIterator[bytes], timeout: float) -> bytes:
    """The next bytes of the body, none at its end."""
    with anyio.fail_after(timeout):
        async for chunk in chunks:
            if chunk:
                return chunk
    return b""


@contextmanager
def _association(request: Request, node: Served) -> Iterator[str]:
    association_id = uuid.uuid4().hex
    with node.database.write() as tx:
        associations.opened(
            tx,
            association_id=association_id,
            receiver=node.receiver,
            calling_ae=CALLING_AE,
            called_ae=node.settings.node.ae_title,
            address=request.client.host if request.client else "",
        )
    outcome = ABORTED
    try:
        yield association_id
        outcome = RELEASED
    except ClientDisconnect as error:
        raise RequestRefused("the connection broke off", status=400) from error
    finally:
        with node.database.write() as tx:
            associations.ended(tx, association_id=association_id, outcome=outcome)
        log().info("association_ended", association_id=association_id, calling_ae=CALLING_AE, outcome=outcome)


def _answer(request: Request, node: Served, outcomes: list[Outcome]) -> Response:
    """PS3.18 tables 10.5.3-1 and I.1-1: what is stored with its address, what is not with its reason."""
    with node.database.read() as tx:
        rows = instances.among(tx, [outcome.sop_instance_uid for outcome in outcomes])
    kept = [o for o in outcomes if o.is_kept]
    failed = [o for o in outcomes if not o.is_kept]
    told: Attributes = {}
    if kept:
        told |= data_set(ReferencedSOPSequence=[_stored(request, o, rows[o.sop_instance_uid]) for o in kept])
    studies = {rows[o.sop_instance_uid].study_uid for o in kept}
    if len(studies) == 1:
        told |= data_set(RetrieveURL=f"{base_url(request)}/studies/{studies.pop()}")
    if named := [o for o in failed if o.sop_instance_uid]:
        told |= data_set(FailedSOPSequence=[_reference(o) | data_set(FailureReason=o.reason) for o in named])
    if unnamed := [o for o in failed if not o.sop_instance_uid]:
        told |= data_set(OtherFailuresSequence=[data_set(FailureReason=o.reason) for o in unnamed])
    if not outcomes:
        raise RequestRefused("nothing was sent", status=400)
    if failed and not kept and all(o.reason == OutOfResources.status for o in failed):
        return dicom_json(told, status=503, headers={"Retry-After": RETRY_SECONDS})
    clean = not failed and all(o.reason == 0 for o in kept)
    return dicom_json(told, status=200 if clean else 202 if kept else 409)


def _stored(request: Request, outcome: Outcome, row: Instance) -> Attributes:
    address = f"{base_url(request)}/studies/{row.study_uid}/series/{row.series_uid}/instances/{row.sop_instance_uid}"
    told = _reference(outcome) | data_set(RetrieveURL=address)
    return told | data_set(WarningReason=outcome.reason) if outcome.reason else told


def _reference(outcome: Outcome) -> Attributes:
    return data_set(ReferencedSOPClassUID=outcome.sop_class_uid, ReferencedSOPInstanceUID=outcome.sop_instance_uid)


def _full() -> RequestRefused:
    return RequestRefused("the disk is below its watermark", status=503, headers={"Retry-After": RETRY_SECONDS})
