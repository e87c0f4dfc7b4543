"""The listening application entity: accepts or rejects associations, records them, drains them on stop."""

from __future__ import annotations

import errno
import os
import re
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, cast

from pynetdicom import _config, evt
from pynetdicom.ae import ApplicationEntity
from pynetdicom.association import Association
from pynetdicom.events import Event
from pynetdicom.pdu_primitives import A_ABORT, A_P_ABORT
from pynetdicom.presentation import PresentationContext
from pynetdicom.transport import RequestHandler

from db import audit
from db.associations import ABORTED, RELEASED
from db.engine import Database
from node.config import Settings
from node.errors import OutOfResources, StartError
from node.log import log
from node.receive.access import (
    CALLING_AE_NOT_RECOGNIZED,
    DISK_IS_LOW,
    TEMPORARY_CONGESTION,
    TOO_MANY_ASSOCIATIONS,
    Access,
    Refusal,
)
from node.receive.connections import Connection, Connections
from node.receive.disk import MEGABYTE, Disk
from node.receive.listener import Listener, Lock
from node.receive.reactor import EventConnection, Spool
from node.receive.roll import MOST_PROCESSES, Caller, Roll, failure, receiver_name
from node.service import Service

POLL_SECONDS = 0.25
ABORT_SECONDS = 5.0


class Scp:
    """The listening side of the node, with any number of services.

    Parameters
    ----------
    settings : Settings
        Where to listen, who may call, every limit and timeout.
    database : Database
        Where associations are recorded.
    services : sequence of Service
        What is offered. An operation (C-STORE, N-CREATE …) is answered by one service only.
    request_handler : callable, optional
        What pynetdicom makes of an accepted connection; the configured reactor's when left out.
    number : int
        Which of the processes that share the port this is; the first is 0.
    """

    def __init__(
        self,
        *,
        settings: Settings,
        database: Database,
        services: Sequence[Service],
        request_handler: Callable[..., RequestHandler] | None = None,
        number: int = 0,
    ) -> None:
        operations = [event for service in services for event, _, _ in service.handlers if event.is_intervention]
        if len(operations) != len(set(operations)):
            raise ValueError("two services answer the same operation; pynetdicom would only ever ask the last")
        self._settings = settings
        self._database = database
        self._services = services
        self._disk = Disk.of(settings)
        self._access = Access(settings=settings, disk=self._disk)
        if number >= settings.receive.processes:
            raise StartError(
                f"[receive] processes = {settings.receive.processes}: there is no receiving process {number}"
            )
        names = [receiver_name(settings, number=other) for other in range(MOST_PROCESSES)]
        processes = settings.receive.processes
        self._former = names[processes:] if number == 0 else []
        self._roll = Roll(
            database=database,
            receiver=names[number],
            beside=[name for name in names[:processes] if name != names[number]],
        )
        self._lock = Lock(_lock_file(settings, names[number])) if processes > 1 else None
        self._connections = Connections()
        self._request_handler = request_handler or _request_handler(settings, services)
        self._server: Listener | None = None
        self._thread: threading.Thread | None = None

    @property
    def port(self) -> int:
        """The port listened on."""
        if self._server is None:
            raise StartError("not listening")
        return int(self._server.server_address[1])

    def start(self) -> None:
        """Associations are accepted from now on.

        Raises
        ------
        StartError
            The address or port cannot be listened on.
        """
        _quiet()
        with ExitStack() as undo:
            if self._lock is not None:
                self._lock.take()
                undo.callback(self._lock.release)
            server = self._listening()
            undo.callback(server.server_close)
            self._roll.close_lost(*self._former)  # only now: a receiver of this name that still runs holds port or lock
            undo.pop_all()
        self._server = server
        self._thread = threading.Thread(target=server.serve_forever, args=(POLL_SECONDS,), name="listener", daemon=True)
        self._thread.start()
        node = self._settings.node
        log().info("listening", address=node.address, port=self.port, ae_title=node.ae_title)

    def stop(self, *, grace_seconds: float) -> None:
        """Nobody is listening any more, and every association has ended.

        New ones are refused at once; those in progress may finish within `grace_seconds` and are aborted then.
        """
        if self._server is None or self._thread is None:
            return
        server, self._server = self._server, None
        server.stop()
        self._thread.join()
        drained = self._roll.wait_until_empty(grace_seconds)
        left = server.active_associations
        for association in left:
            self._roll.note(association, "the node stopped")
            if association.is_established:
                association.abort(block=False)
            else:
                self._connections.shut(association)
        deadline = time.monotonic() + ABORT_SECONDS
        for association in left:
            association.join(max(0.0, deadline - time.monotonic()))
        self._tend()
        for association in self._roll.open():
            self._roll.leave(association, ABORTED)
        for service in self._services:
            service.close()
        if self._lock is not None:
            self._lock.release()
        log().info("stopped_listening", drained=drained)

    def detail(self) -> dict[str, Any]:
        """What this process can say of itself: associations in progress, room on the disk, whether images are taken."""
        free = self._disk.free(self._disk.path)
        return {
            "associations": len(self._roll.open()),
            "disk_free_mb": free // MEGABYTE,
            "accepts_images": not self._disk.is_low(),
        }

    def _listening(self) -> Listener:
        node, receive = self._settings.node, self._settings.receive
        entity = ApplicationEntity(node.ae_title)
        entity.maximum_pdu_size = receive.maximum_pdu_size
        entity.acse_timeout = receive.acse_timeout
        entity.dimse_timeout = receive.dimse_timeout
        entity.network_timeout = receive.network_timeout
        entity.connection_timeout = receive.acse_timeout  # of the associations that a C-MOVE opens
        entity.maximum_associations = 1 << 30  # pynetdicom counts threads that have ended in all but name; we count
        own = [
            (evt.EVT_REQUESTED, self._requested),
            (evt.EVT_ACSE_RECV, self._acse_received),
            (evt.EVT_RELEASED, self._released),
            (evt.EVT_ABORTED, self._aborted),
            *self._connections.handlers(),
        ]
        try:
            return cast(
                Listener,
                entity.make_server(
                    (node.address, node.port),
                    contexts=[
                        _context(uid, syntaxes, reversible=uid in s.reversible)
                        for s in self._services
                        for uid, syntaxes in s.contexts
                    ],
                    evt_handlers=[*own, *(handler for service in self._services for handler in service.handlers)],
                    server_class=Listener,
                    request_handler=self._request_handler,
                    tend=self._tend,
                    shares_port=self._lock is not None,
                ),
            )
        except OSError as error:
            where = f"{node.address}:{node.port}"
            if error.errno == errno.EADDRINUSE:
                raise StartError(f"{where} is in use by another program; [node] port names another port") from error
            raise StartError(f"cannot listen on {where}: {error.strerror or error}") from error

    def _tend(self) -> None:
        self._roll.reap()
        self._connections.reap()

    def _requested(self, event: Event) -> None:
        association = event.assoc
        try:
            refusal = self._admit(association)
        except Exception as error:  # noqa: BLE001 — pynetdicom swallows what a handler raises and would then accept
            log().error("association_failed", **failure(error))
            refusal = TEMPORARY_CONGESTION
        if refusal is not None:
            association.acse.send_reject(refusal.result, refusal.source, refusal.reason)
            association.kill()  # waits until the rejection is sent and the connection closed

    def _admit(self, association: Association) -> Refusal | None:
        request, peer = association.requestor.primitive, association.requestor.address_info
        if request is None or peer is None:
            return CALLING_AE_NOT_RECOGNIZED
        caller = Caller(
            calling_ae=str(request.calling_ae_title).strip(),
            called_ae=str(request.called_ae_title).strip(),
            address=peer.address,
        )
        proposed = [str(context.abstract_syntax) for context in request.presentation_context_definition_list]
        refusal = self._access.refusal(caller, abstract_syntaxes=proposed)
        if refusal is None and not self._roll.enter(
            association,
            caller,
            maximum=self._settings.receive.maximum_associations,
            maximum_of_ae=self._access.maximum_of(caller),
        ):
            refusal = TOO_MANY_ASSOCIATIONS
        if refusal is not None:
            self._tell(caller, refusal)
        return refusal

    def _tell(self, caller: Caller, refusal: Refusal) -> None:
        log().warning(
            "association_refused", why=refusal.why, calling_ae=caller.calling_ae, called_ae=caller.called_ae,
            address=caller.address,
        )  # fmt: skip
        if refusal is DISK_IS_LOW:
            # A study refused here is a study that nobody triages: it belongs where the operator looks.
            with self._database.write() as tx:
                audit.record(tx, "refused_disk_low", calling_ae=caller.calling_ae, address=caller.address)

    def _acse_received(self, event: Event) -> None:
        primitive = getattr(event, "primitive", None)
        if isinstance(primitive, A_ABORT):
            self._roll.note(event.assoc, "aborted by the peer")
        elif isinstance(primitive, A_P_ABORT):
            self._roll.note(event.assoc, "the connection broke off")

    def _released(self, event: Event) -> None:
        self._roll.leave(event.assoc, RELEASED)

    def _aborted(self, event: Event) -> None:
        self._roll.leave(event.assoc, ABORTED)


def _nowhere(**_: str) -> NoReturn:
    raise OutOfResources("no service stores here")


def _lock_file(settings: Settings, receiver: str) -> Path:
    return settings.node.data / (re.sub(r"[^A-Za-z0-9-]", "-", receiver) + ".lock")


def _request_handler(settings: Settings, services: Sequence[Service]) -> Callable[..., RequestHandler]:
    """What makes an association of a connection, by ``[receive] reactor``. Raises ``StartError``."""
    if settings.receive.reactor == "library":
        return Connection
    if not hasattr(os, "eventfd"):
        raise StartError('[receive] reactor = "event" needs Linux; set it to "library"')
    spool = Spool(
        memory=settings.receive.spool_above_mb * MEGABYTE,
        open=next((service.spool for service in services if service.spool is not None), _nowhere),
        take=next((service.take for service in services if service.take is not None), None),
    )
    return partial(EventConnection, spool=spool)


class _SharedContext(PresentationContext):
    """A supported context that every association shares: pynetdicom copies hundreds of them for each, only to read."""

    def __deepcopy__(self, _memo: dict[int, Any]) -> _SharedContext:
        return self


def _context(abstract_syntax: str, transfer_syntaxes: Sequence[str], *, reversible: bool) -> PresentationContext:
    context = _SharedContext()
    context.abstract_syntax = abstract_syntax
    context.transfer_syntax = list(transfer_syntaxes)
    if reversible:
        context.scu_role = context.scp_role = True
    return context


def _quiet() -> None:
    # pynetdicom formats every message for its log, identifiers (patient data) included.
    _config.LOG_HANDLER_LEVEL = "none"
    _config.LOG_REQUEST_IDENTIFIERS = False
    _config.LOG_RESPONSE_IDENTIFIERS = False
