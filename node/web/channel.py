"""The event channel of UPS-RS (PS3.18 11.13): what a subscriber is owed, over its WebSocket."""

from __future__ import annotations

import datetime as dt
import json
import uuid
from functools import partial

import anyio
from anyio.to_thread import run_sync
from starlette.websockets import WebSocket, WebSocketDisconnect

from db import notifications
from db.dicom_json import Attributes, element
from db.engine import Database
from db.errors import LeaseLost
from db.notifications import Notification
from db.procedure_step import EVENT
from node.log import log
from node.web.served import served

POLL_SECONDS = 0.25
LEASE = dt.timedelta(seconds=60)
NEVER_GIVEN_UP = 1 << 30


async def open_channel(websocket: WebSocket) -> None:
    """The subscriber gets what it is owed, in order, as long as it holds the channel open; the rest waits for it."""
    node, subscriber = served(websocket), str(websocket.path_params["subscriber"])
    if subscriber not in node.settings.web.subscribers:
        await websocket.close()  # before it was accepted: HTTP 403
        return
    await websocket.accept()
    log().info("event_channel_opened", ae_title=subscriber)
    async with anyio.create_task_group() as group:
        group.start_soon(_until_closed, websocket, group.cancel_scope)
        while True:
            if not await _deliver(websocket, node.database, subscriber):
                await anyio.sleep(POLL_SECONDS)


async def _until_closed(websocket: WebSocket, scope: anyio.CancelScope) -> None:
    try:
        while True:
            await websocket.receive_text()  # a subscriber has nothing to say
    except (WebSocketDisconnect, KeyError):
        scope.cancel()


async def _deliver(websocket: WebSocket, database: Database, subscriber: str) -> bool:
    """Whether anything was owed; what was sent stands as sent."""
    rest = list(await run_sync(_claim, database, subscriber))
    anything = bool(rest)
    try:
        while rest:
            await websocket.send_text(json.dumps(_message(rest[0])))
            with anyio.CancelScope(shield=True):
                await run_sync(partial(_sent, database, rest.pop(0)))
    except (WebSocketDisconnect, RuntimeError):  # closed by the far side; `_until_closed` ends the channel
        pass
    finally:
        if rest:
            with anyio.CancelScope(shield=True):
                await run_sync(_put_back, database, rest)
    return anything and not rest


def _claim(database: Database, subscriber: str) -> tuple[Notification, ...]:
    with database.read() as tx:
        if not notifications.any_due(tx, ae_title=subscriber):
            return ()
    with database.write() as tx:
        return notifications.claim(tx, ae_title=subscriber, owner=uuid.uuid4().hex, lease=LEASE)


def _sent(database: Database, owed: Notification) -> None:
    with database.write() as tx:
        notifications.sent(tx, owed)


def _put_back(database: Database, rest: list[Notification]) -> None:
    try:
        with database.write() as tx:
            notifications.put_off(
                tx, rest, error="the channel was closed", attempts=NEVER_GIVEN_UP, after=dt.timedelta(0)
            )
    except LeaseLost as lost:
        log().warning("notification_lease_lost", error=str(lost))


def _message(owed: Notification) -> Attributes:
    """The event report with the elements of its command that say what it is about."""
    return {
        "00000002": element("UI", EVENT),
        "00000110": element("US", owed.id % 0x10000),
        "00001000": element("UI", owed.workitem_uid),
        "00001002": element("US", owed.event_type),
        **owed.dataset,
    }
