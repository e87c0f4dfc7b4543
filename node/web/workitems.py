"""UPS-RS (PS3.18 11): the worklist over HTTP, by the very functions that serve it over DIMSE."""

from __future__ import annotations

import json
import re
from itertools import islice
from typing import Any

import anyio.from_thread
from pydicom.uid import generate_uid
from starlette.requests import Request
from starlette.responses import Response

from db import subscriptions, worklist
from db.dicom_json import Attributes, dataset_of, first, values
from db.matching import matches
from db.procedure_step import SOP_INSTANCE_UID, STATE, Answer
from db.states import WorkItemState
from db.subscriptions import FILTERED, GLOBAL, WELL_KNOWN
from db.worklist import Reply
from node.errors import RequestRefused
from node.query.attributes import created, refusal_to_create, refusal_to_set, transaction_uid, without_own_columns
from node.query.ups import LARGEST, listed
from node.receive.uids import is_uid
from node.web.answers import JSON, base_url, check_json, dicom_json, media_type, warning
from node.web.keys import asked, key
from node.web.served import served, uid_in

REQUESTER = "UPS-RS"
"""What stands for the AE title of who requests a cancellation by HTTP."""

INCONSISTENT = "The submitted request is inconsistent with the current state of the Workitem."
ANSWERS: dict[Answer, tuple[int, str]] = {
    Answer.DONE: (200, ""),
    Answer.NOT_SUPPORTED: (200, "Requested optional Attributes are not supported."),
    Answer.INVALID_VALUE: (400, ""),
    Answer.DUPLICATE: (409, ""),
    Answer.INVALID_ARGUMENT: (400, ""),
    Answer.INVALID_INSTANCE: (400, ""),
    Answer.MISSING_ATTRIBUTE: (400, ""),
    Answer.MISSING_VALUE: (400, ""),
    Answer.RESOURCE_LIMIT: (413, ""),
    Answer.ALREADY_CANCELED: (200, "The Workitem is already in the requested state of CANCELED."),
    Answer.ALREADY_COMPLETED: (200, "The Workitem is already in the requested state of COMPLETED."),
    Answer.NO_LONGER_UPDATED: (409, INCONSISTENT),
    Answer.WRONG_TRANSACTION: (400, "The Transaction UID is missing or incorrect."),
    Answer.ALREADY_IN_PROGRESS: (409, INCONSISTENT),
    Answer.ONLY_BY_CREATE: (400, ""),
    Answer.UNMET: (409, INCONSISTENT),
    Answer.UNKNOWN: (404, ""),
    Answer.UNKNOWN_RECEIVER: (403, ""),
    Answer.NOT_SCHEDULED: (400, ""),
    Answer.NOT_IN_PROGRESS: (409, INCONSISTENT),
    Answer.COMPLETED: (409, "The Workitem is already COMPLETED."),
    Answer.UNREACHABLE: (409, "The performer cannot be contacted."),
    Answer.INAPPROPRIATE: (400, ""),
}
"""HTTP status and warning (PS3.18 11.4 to 11.12) for what the worklist answers."""

_TAG = re.compile(r"[0-9A-Fa-f]{8}")
_TRUE = ("true", "TRUE")


def create(request: Request) -> Response:
    """Answers POST on /workitems: 201 with the new item's address."""
    given = _body(request)
    uid = _named(request) or str(first(given, SOP_INSTANCE_UID) or "") or str(generate_uid(prefix=None))
    if not is_uid(uid) or uid in WELL_KNOWN:
        raise RequestRefused("the Workitem UID is not one that an item may have", status=400)
    refusal = refusal_to_create(given)
    if refusal is not None:
        return _replied(request, refusal)
    with served(request).database.write() as tx:
        answer = worklist.create(tx, uid=uid, dataset=created(given))
    if answer is not Answer.DONE:
        return _replied(request, Reply(answer=answer))
    return Response(status_code=201, headers={"Location": f"{base_url(request)}/workitems/{uid}"})


def search(request: Request) -> Response:
    """Answers GET on /workitems: the matching items in reading order, whole."""
    check_json(request)
    node = served(request)
    given = asked(request, largest=node.settings.web.maximum_results)
    found = (item for item in listed(node.database, given.keys) if matches(given.keys, item))
    page = list(islice(found, given.offset, given.offset + given.limit + 1))
    more = ("There are additional results that can be requested.",) if len(page) > given.limit else ()
    headers = warning(request, *given.unsupported, *more)
    answer = page[: given.limit]
    return dicom_json(answer, headers=headers) if answer else Response(status_code=204, headers=headers)


def retrieve(request: Request) -> Response:
    """Answers GET on a work item, without its Transaction UID (PS3.4 CC.2.7.3)."""
    check_json(request)
    with served(request).database.read() as tx:
        item = worklist.find(tx, uid_in(request, "workitem"))
    if item is None:
        raise RequestRefused("no such Workitem", status=404)
    return dicom_json([item.attributes])


def update(request: Request) -> Response:
    """Answers POST on a work item."""
    given, uid = _body(request), uid_in(request, "workitem")
    transaction = request.query_params.get("transaction-uid") or _named(request) or transaction_uid(given)
    with served(request).database.write() as tx:
        item = worklist.find(tx, uid)
        reply = item and refusal_to_set(given, held=item.attributes)
        if not reply:
            changes = without_own_columns(given)
            reply = worklist.update(tx, uid=uid, transaction_uid=transaction, changes=changes)
    return _replied(request, reply)


def change_state(request: Request) -> Response:
    """Answers PUT on a work item's state: claimed, COMPLETED or CANCELED."""
    given = _body(request)
    to = first(given, STATE)
    if to not in tuple(WorkItemState):
        raise RequestRefused("Procedure Step State is missing or unknown", status=400)
    with served(request).database.write() as tx:
        reply = worklist.change_state(
            tx, uid=uid_in(request, "workitem"), to=WorkItemState(to), transaction_uid=transaction_uid(given)
        )
    return _replied(request, reply)


def request_cancel(request: Request) -> Response:
    """Answers POST on a work item's cancelrequest: 202."""
    given = _body(request, needed=False)
    with served(request).database.write() as tx:
        reply = worklist.request_cancel(
            tx,
            uid=uid_in(request, "workitem"),
            requesting_ae=REQUESTER,
            information=given,
            transaction_uid=str(generate_uid(prefix=None)),
        )
    if reply.answer is Answer.ALREADY_CANCELED:
        return Response(status_code=409, headers=warning(request, ANSWERS[reply.answer][1]))
    return _replied(request, reply, done=202)


def subscribe(request: Request) -> Response:
    """Answers POST on a subscriber of a work item, or of the worklist: 201 with the address of its event channel."""
    node, uid, subscriber = served(request), uid_in(request, "workitem"), str(request.path_params["subscriber"])
    by_dimse = {known.ae_title for known in node.settings.subscribers}
    if subscriber not in by_dimse | set(node.settings.web.subscribers):
        return _replied(request, Reply(answer=Answer.UNKNOWN_RECEIVER))
    lock = request.query_params.get("deletionlock", "false") in _TRUE
    with node.database.write() as tx:
        if uid in (GLOBAL, FILTERED):
            keys = _filter(request) if uid == FILTERED else None
            answer = subscriptions.subscribe_globally(tx, ae_title=subscriber, deletion_lock=lock, keys=keys)
        else:
            answer = subscriptions.subscribe(tx, ae_title=subscriber, workitem_uid=uid, deletion_lock=lock)
    if answer is not Answer.DONE:
        return _replied(request, Reply(answer=answer))
    if subscriber in by_dimse:
        return Response(status_code=201)
    channel = f"{base_url(request)}/subscribers/{subscriber}".replace("http", "ws", 1)
    return Response(status_code=201, headers={"Content-Location": channel})


def unsubscribe(request: Request) -> Response:
    """Answers DELETE on a subscriber."""
    with served(request).database.write() as tx:
        answer = subscriptions.unsubscribe(
            tx, ae_title=str(request.path_params["subscriber"]), workitem_uid=uid_in(request, "workitem")
        )
    return _replied(request, Reply(answer=answer))


def suspend(request: Request) -> Response:
    """Answers POST on the suspension of a subscription to the worklist."""
    with served(request).database.write() as tx:
        answer = subscriptions.suspend(
            tx, ae_title=str(request.path_params["subscriber"]), workitem_uid=uid_in(request, "workitem")
        )
    return _replied(request, Reply(answer=answer))


def _replied(request: Request, reply: Reply, *, done: int = 200) -> Response:
    status, text = ANSWERS[reply.answer]
    headers = warning(request, text) if text else None
    if status < 400:
        return Response(status_code=done if reply.answer is Answer.DONE else status, headers=headers)
    said = f": {reply.comment}" if reply.comment else ""
    raise RequestRefused(f"{reply.answer.meaning}{said}", status=status, headers=headers)


def _named(request: Request) -> str:
    """A UID in the query: by name, or by itself as PS3.18 11.4 and 11.6 have it."""
    named = request.query_params.get("workitem") or request.query_params.get("AffectedSOPInstanceUID") or ""
    return named or (request.url.query if is_uid(request.url.query) else "")


def _filter(request: Request) -> Attributes:
    """The matching keys of a filtered subscription (PS3.18 11.10): parameters, or a list of them in ``filter``."""
    keys: Attributes = {}
    for name, value in request.query_params.multi_items():
        pairs = [pair.partition("=") for pair in value.split(",")] if name == "filter" else [(name, "=", value)]
        for keyword, _, wanted in pairs if name != "deletionlock" else ():
            keys |= key(keyword, wanted)
    return keys


def _body(request: Request, *, needed: bool = True) -> Attributes:
    """The one data set of a request, in the DICOM JSON Model. Raises ``RequestRefused`` (400, 413, 415)."""
    raw = anyio.from_thread.run(_read, request)
    if not raw and not needed:
        return {}
    if media_type(request.headers.get("content-type", ""))[0] not in (JSON, "application/json"):
        raise RequestRefused(f"expected {JSON}", status=415)
    try:
        given: Any = json.loads(raw)
        one = given[0] if isinstance(given, list) and len(given) == 1 else given
        attributes = {tag.upper(): _element(tag, held) for tag, held in one.items()}
        dataset_of(attributes)
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        raise RequestRefused("the body is not one data set in the DICOM JSON Model", status=400) from error
    return {tag: e for tag, e in attributes.items() if tag != "00080005" and not tag.endswith("0000")}


def _element(tag: str, held: Any) -> dict[str, Any]:
    if not _TAG.fullmatch(tag) or not isinstance(held["vr"], str) or not isinstance(held.get("Value", []), list):
        raise ValueError("not an element")
    if held["vr"] != "SQ":
        return dict(held)
    inner = [{t.upper(): _element(t, e) for t, e in (item or {}).items()} for item in values({"": held}, "")]
    return {"vr": "SQ", "Value": inner} if inner else {"vr": "SQ"}


async def _read(request: Request) -> bytes:
    body = bytearray()
    with anyio.fail_after(served(request).settings.web.timeout):
        async for chunk in request.stream():
            body += chunk
            if len(body) > LARGEST:
                raise RequestRefused(f"more than {LARGEST} bytes", status=413)
    return bytes(body)
