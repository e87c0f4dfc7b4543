"""The routes of DICOMweb, and the door before them: tokens, failures without a word about patients, one line of log."""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Collection
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import anyio.to_thread
from starlette.applications import Starlette
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route, WebSocketRoute

from node.errors import RequestRefused
from node.log import log
from node.receive.roll import failure
from node.web import channel, images, qido, stow, wado, workitems
from node.web.answers import PREFIX
from node.web.served import Served

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

THREADS_BESIDE = 8
"""For what a request does while another one of the same client holds a thread: looking for event reports."""

_STUDY, _SERIES = "/studies/{study}", "/studies/{study}/series/{series}"
_INSTANCE = f"{_SERIES}/instances/{{instance}}"
_ITEM = "/workitems/{workitem}"

TRANSACTIONS: tuple[tuple[str, str, Any], ...] = (
    ("POST", "/studies", stow.store),
    ("POST", _STUDY, stow.store),
    ("GET", "/studies", qido.studies),
    ("GET", "/series", qido.series),
    ("GET", "/instances", qido.instances),
    ("GET", f"{_STUDY}/series", qido.series),
    ("GET", f"{_STUDY}/instances", qido.instances),
    ("GET", f"{_SERIES}/instances", qido.instances),
    ("GET", _STUDY, wado.retrieve),
    ("GET", _SERIES, wado.retrieve),
    ("GET", _INSTANCE, wado.retrieve),
    ("GET", f"{_STUDY}/metadata", wado.metadata),
    ("GET", f"{_SERIES}/metadata", wado.metadata),
    ("GET", f"{_INSTANCE}/metadata", wado.metadata),
    ("GET", f"{_INSTANCE}/bulkdata/{{tag}}", images.bulk_data),
    ("GET", f"{_INSTANCE}/frames/{{frames}}", images.frames),
    ("GET", f"{_INSTANCE}/rendered", images.rendered),
    ("GET", f"{_INSTANCE}/frames/{{frames}}/rendered", images.rendered),
    ("POST", "/workitems", workitems.create),
    ("GET", "/workitems", workitems.search),
    ("GET", _ITEM, workitems.retrieve),
    ("POST", _ITEM, workitems.update),
    ("PUT", f"{_ITEM}/state", workitems.change_state),
    ("POST", f"{_ITEM}/cancelrequest", workitems.request_cancel),
    ("POST", f"{_ITEM}/subscribers/{{subscriber}}", workitems.subscribe),
    ("DELETE", f"{_ITEM}/subscribers/{{subscriber}}", workitems.unsubscribe),
    ("POST", f"{_ITEM}/subscribers/{{subscriber}}/suspend", workitems.suspend),
)
"""Method, address below the prefix, and what answers it. The conformance statement lists them in this order."""

EVENT_CHANNEL = "/subscribers/{subscriber}"


def application(served: Served, *, tokens: Collection[str]) -> ASGIApp:
    """The services as an ASGI application.

    Parameters
    ----------
    tokens : collection of str
        SHA-256 in hex of every token that opens the door; empty for a door that stands open.
    """

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        # Each request has its thread: somebody who sends slowly keeps nobody else from being served.
        limiter = anyio.to_thread.current_default_thread_limiter()
        limiter.total_tokens = served.settings.web.maximum_requests + THREADS_BESIDE
        yield

    routes: list[BaseRoute] = [Route(PREFIX + path, answer, methods=[method]) for method, path, answer in TRANSACTIONS]
    routes.append(WebSocketRoute(PREFIX + EVENT_CHANNEL, channel.open_channel))
    app = Starlette(routes=routes, lifespan=lifespan, exception_handlers={RequestRefused: _refused, Exception: _failed})
    app.state.served = served
    return Door(app, tokens=frozenset(tokens))


def _refused(_request: Any, refusal: Exception) -> Response:
    if not isinstance(refusal, RequestRefused):
        raise refusal
    return _reason(refusal.status, str(refusal), refusal.headers)


def _failed(_request: Any, _error: Exception) -> Response:
    return _reason(500, "internal error")


def _reason(status: int, reason: str, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"status": status, "reason": reason}, status_code=status, headers=headers)


class Door:
    """Lets in who has a token, says in the log what was done and never to whom, and keeps failures to itself."""

    def __init__(self, app: ASGIApp, *, tokens: frozenset[str]) -> None:
        self._app = app
        self._tokens = tokens

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request, or opens one WebSocket."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        said = _Said(send)
        began = time.monotonic()
        try:
            if self._admits(scope):
                await self._app(scope, receive, said.send)
            else:
                await _unauthorized(scope, receive, said.send)
        except Exception as error:  # noqa: BLE001 - the process's own boundary; what is raised may quote patient data
            log().error("web_request_failed", transaction=_transaction(scope), **failure(error))
            if not said.is_whole:  # broken off, so that nobody takes it for whole
                raise ConnectionError("the answer broke off") from None
        finally:
            say = log().debug if said.status < 400 else log().warning
            seconds = round(time.monotonic() - began, 3)
            say("web_request", transaction=_transaction(scope), status=said.status, seconds=seconds)

    def _admits(self, scope: Scope) -> bool:
        if not self._tokens:
            return True
        header = dict(scope["headers"]).get(b"authorization", b"")
        kind, _, token = header.partition(b" ")
        digest = hashlib.sha256(token.strip()).hexdigest()
        return kind.lower() == b"bearer" and any(hmac.compare_digest(digest, known) for known in self._tokens)


class _Said:
    """What has been sent of an answer."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status = 0
        self.is_whole = False

    async def send(self, message: Message) -> None:
        if message["type"] in ("http.response.start", "websocket.http.response.start"):
            self.status = int(message["status"])
        elif message["type"] == "websocket.accept":
            self.status = 101
        elif message["type"] == "http.response.body":
            self.is_whole = not message.get("more_body", False)
        await self._send(message)


async def _unauthorized(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008, "reason": ""})  # before it was accepted: HTTP 403
        return
    headers = {"WWW-Authenticate": "Bearer"}
    await _reason(401, "a token is needed", headers)(scope, receive, send)


def _transaction(scope: Scope) -> str:
    """What was asked for, without the address: its query may name a patient."""
    return str(getattr(scope.get("endpoint"), "__name__", "unknown"))
