"""An accepted association whose loop waits for events; what the listening side makes of a connection."""

from __future__ import annotations

import threading
import time
from typing import Any

from pynetdicom import evt
from pynetdicom._globals import MODE_ACCEPTOR
from pynetdicom.ae import ApplicationEntity
from pynetdicom.association import Association
from pynetdicom.transport import AssociationSocket

from node.receive.connections import Connection
from node.receive.reactor.loop import EventLoop
from node.receive.reactor.messages import Messages
from node.receive.reactor.spool import Spool


class EventAssociation(Association):
    """pynetdicom's association: the loop's thread also answers each C-STORE, its own one sleeps until there is more."""

    dul: EventLoop
    dimse: Messages

    def __init__(self, ae: ApplicationEntity, *, spool: Spool) -> None:
        self._woken = threading.Event()
        self.is_serving = False
        self._syntaxes: dict[int, tuple[str, str]] = {}
        super().__init__(ae, MODE_ACCEPTOR)
        self.dul = EventLoop(self)
        self.dimse = Messages(self, spool=spool)
        # Their setters hand them to the loop's timers.
        self.acse_timeout = ae.acse_timeout
        self.network_timeout = ae.network_timeout

    def wake(self) -> None:
        """Should the association's own thread be asleep, it looks around."""
        self._woken.set()

    @property
    def is_free(self) -> bool:
        """Whether the loop's thread may serve a message: not while another one is served, or waits."""
        return self.is_established and not self.is_serving and not self.dimse.msg_queue.queue

    def syntaxes(self, context_id: int) -> tuple[str, str]:
        """Abstract and transfer syntax of an accepted presentation context."""
        found = self._syntaxes.get(context_id)
        if found is None:
            context = self._accepted_cx[context_id]
            found = self._syntaxes[context_id] = str(context.abstract_syntax), str(context.transfer_syntax[0])
        return found

    def serve_at_once(self, message: Any, context_id: int) -> bool:
        """Whether the message was served, in the loop's thread."""
        if not self.is_free:
            return False
        self._serve_request(message, context_id)
        self._is_paused = True  # our own thread sleeps, whatever serving made of this
        return True

    def _run_reactor(self) -> None:
        while not self._kill:
            # Somebody who sends requests over this association clears the checkpoint and waits until we are paused.
            self._is_paused = True
            self._woken.wait()
            self._woken.clear()
            self._reactor_checkpoint.wait()
            self._is_paused = False
            self._serve_waiting()
            if self._has_ended():
                self.kill()
                return

    def _serve_waiting(self) -> None:
        # Said before the look into the queue, so that the loop never finds it empty while we serve what was in it.
        self.is_serving = True
        try:
            while not self._kill and not self.acse.is_aborted():
                context_id, message = self.dimse.get_msg(block=False)
                if message is None or context_id is None:
                    return
                self._serve_request(message, context_id)
                self.dul.restart_silence()
        finally:
            self.is_serving = False

    def _has_ended(self) -> bool:
        """Whether the association is over: released, aborted by either side, broken off, or silent for too long."""
        if self.is_established and self.acse.is_release_requested():
            self.acse.send_release(is_response=True)
            self.is_released, self.is_established = True, False
            evt.trigger(self, evt.EVT_RELEASED, {})
            return True
        if self.acse.is_aborted():
            self.dul.receive_pdu(wait=False)  # tells who listens for it
            self.is_aborted, self.is_established = True, False
            evt.trigger(self, evt.EVT_ABORTED, {})
            return True
        if self.dul.is_silent and self.is_established:
            self.abort()
            return True
        return self.dul.has_ended

    def _abort_blocking(self, block: bool = True) -> None:
        # The loop's thread cannot wait for itself.
        super()._abort_blocking(block and threading.get_ident() != self.dul.ident)


class EventConnection(Connection):
    """An accepted connection, of which an `EventAssociation` is made.

    Parameters
    ----------
    spool : Spool
        Where data sets are collected while they arrive.
    """

    def __init__(self, request: Any, client_address: Any, server: Any, *, spool: Spool) -> None:
        self._spool = spool
        super().__init__(request, client_address, server)

    def _create_association(self) -> EventAssociation:
        association = EventAssociation(self.ae, spool=self._spool)
        association._server = self.server
        association.name = f"AcceptorThread@{time.time()}"
        association.set_socket(AssociationSocket(association, client_socket=self.request))
        acceptor, requestor = association.acceptor, association.requestor
        acceptor.maximum_length = self.ae.maximum_pdu_size
        acceptor.ae_title = self.server.ae_title
        acceptor.address_info = self.local
        acceptor.implementation_class_uid = self.ae.implementation_class_uid
        acceptor.implementation_version_name = self.ae.implementation_version_name
        acceptor.supported_contexts = list(self.server.contexts)
        requestor.address_info = self.remote
        for event, handlers in self.server._handlers.items():
            for handler in [handlers] if isinstance(handlers, tuple) else handlers:
                association.bind(event, *handler)
        return association
