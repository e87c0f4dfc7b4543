"""The upper layer of one connection (PS3.8 9.2): waits for the peer, for the node or for a timer, and acts."""

from __future__ import annotations

import math
import os
import select
import socket
import threading
import time
from typing import TYPE_CHECKING

from pynetdicom.dul import DULServiceProvider
from pynetdicom.pdu import A_ABORT_RQ

from node.log import log
from node.receive.connections import acknowledge_at_once
from node.receive.reactor.frames import P_DATA_TF, Frames, InvalidPdu, values_of
from node.receive.reactor.messages import Announcing
from node.receive.roll import failure

if TYPE_CHECKING:
    from node.receive.reactor.association import EventAssociation

LINGER_SECONDS = 1.0
"""How long a peer may take to read our last words and to close, before we close."""

IDLE, AWAITING_REQUEST, ESTABLISHED, CLOSING = "Sta1", "Sta2", "Sta6", "Sta13"  # PS3.8 tables 9-1 to 9-5
TIMER_EXPIRED, CONNECTION_CLOSED, INVALID_PDU = "Evt18", "Evt17", "Evt19"  # PS3.8 table 9-10


class Bell:
    """Wakes one thread out of ``poll``; rung by any thread, and nothing more once it is closed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._eventfd: int | None = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def fileno(self) -> int:
        """What ``poll`` watches."""
        return -1 if self._eventfd is None else self._eventfd

    def ring(self) -> None:
        """Whoever polls wakes up."""
        with self._lock:  # a number that was closed may be somebody's file by now
            if self._eventfd is not None:
                os.eventfd_write(self._eventfd, 1)

    def hush(self) -> None:
        """It has been heard."""
        if self._eventfd is not None:
            os.eventfd_read(self._eventfd)

    def close(self) -> None:
        """Nobody listens any more."""
        with self._lock:
            if self._eventfd is not None:
                os.close(self._eventfd)
            self._eventfd = None


class EventLoop(DULServiceProvider):
    """pynetdicom's upper layer provider, whose thread sleeps until something happens."""

    assoc: EventAssociation

    def __init__(self, assoc: EventAssociation) -> None:
        super().__init__(assoc)
        self.daemon = True  # a peer that reads nothing must not keep the process from ending
        self.to_provider_queue = Announcing(self.wake)
        self.to_user_queue = Announcing(assoc.wake)
        self.has_ended = False
        self.is_silent = False
        self._bell: Bell | None = None
        self._poll = select.poll()
        self._frames = Frames(maximum=assoc.ae.maximum_pdu_size)
        self._close_at: float | None = None

    def wake(self) -> None:
        """Should the loop be asleep in another thread, it looks around."""
        if self._bell is not None and threading.get_ident() != self.ident:
            self._bell.ring()

    def run_reactor(self) -> None:
        """The connection is served until it has ended."""
        self._bell = bell = Bell()
        self._poll.register(bell, select.POLLIN)
        if self._connection is not None:
            self._poll.register(self._connection, select.POLLIN)
        self._idle_timer.start()
        self.assoc._dul_ready.set()
        try:
            while not self._kill_thread:
                self._turn()
        except Exception as error:  # noqa: BLE001 the thread's boundary
            log().error("association_failed", **failure(error))
            self._break_off()
        finally:
            self.has_ended = True
            self.assoc.dimse.forget()
            bell.close()
            self.assoc.wake()

    def restart_silence(self) -> None:
        """From now on silence is the peer's: it has been heard, or answered however long that took."""
        self._idle_timer.restart()

    def send_at_once(self, pdu: bytes) -> bool:
        """Whether the P-DATA-TF is on its way: only within an association that nothing else is about to change."""
        usual = self.state_machine.current_state == ESTABLISHED
        if not usual or self.event_queue.queue or self.to_provider_queue.queue or self.socket is None:
            return False
        self.socket.send(pdu)
        return True

    def kill_dul(self) -> None:
        """The loop ends."""
        super().kill_dul()
        self.wake()

    def stop_dul(self) -> bool:
        """Whether there is nothing left to do; the loop has ended then."""
        if self.state_machine.current_state != IDLE:
            return False
        self.kill_dul()
        if threading.get_ident() != self.ident:
            self.join()
        return True

    @property
    def _connection(self) -> socket.socket | None:
        connection = self.socket.socket if self.socket is not None else None
        return connection if isinstance(connection, socket.socket) else None

    def _turn(self) -> None:
        # Looked at without their locks: whoever puts something into them rings afterwards.
        events, primitives = self.event_queue.queue, self.to_provider_queue.queue
        state = self.state_machine.current_state
        if state == ESTABLISHED and not events and not primitives:
            self._receive()
        elif self.artim_timer.expired and state in (AWAITING_REQUEST, CLOSING):
            self.event_queue.put(TIMER_EXPIRED)
        elif state == CLOSING:
            self._linger()
        elif self.event_queue.empty() and not self._process_recv_primitive():
            self._receive()
        while events and not self._kill_thread:
            self.state_machine.do_action(self.event_queue.get())

    def _receive(self) -> None:
        """One PDU is taken; where none has arrived, one wait for anything to happen."""
        try:
            pdu = self._frames.take()
            if pdu is not None:
                self._take(pdu)
                self.restart_silence()
            elif self._wait(self._patience()):
                self._read()
        except InvalidPdu as error:
            log().warning("pdu_refused", why=str(error))
            self.event_queue.put(INVALID_PDU)

    def _take(self, pdu: memoryview) -> None:
        if pdu[0] == P_DATA_TF and self.state_machine.current_state == ESTABLISHED:
            self.assoc.dimse.receive(values_of(pdu))
            return
        try:
            decoded, event = self._decode_pdu(bytearray(pdu))
        except Exception as error:
            raise InvalidPdu("a PDU that cannot be decoded") from error
        self._recv_pdu.put(decoded)
        self.event_queue.put(event)

    def _read(self) -> None:
        connection = self._connection
        try:
            if connection is not None and self._frames.fill(connection):
                acknowledge_at_once(connection)
                return
        except OSError:
            log().debug("connection_gone_already")
        self.event_queue.put(CONNECTION_CLOSED)

    def _wait(self, seconds: float | None) -> bool:
        """Whether the peer has something to say, within this time and before anybody rings."""
        bell = self._bell
        if bell is None or self._connection is None:
            self.event_queue.put(CONNECTION_CLOSED)
            return False
        ready = dict(self._poll.poll(None if seconds is None else math.ceil(1000 * max(0.0, seconds))))
        if bell.fileno() in ready:
            bell.hush()
            ready.pop(bell.fileno())
        return bool(ready)

    def _patience(self) -> float | None:
        """Seconds until a timer expires; notices silence (`is_silent`), upon which the association acts."""
        state = self.state_machine.current_state
        if state == AWAITING_REQUEST:
            return None if self.artim_timer.timeout is None else self.artim_timer.remaining
        if state != ESTABLISHED or self.network_timeout is None or self.is_silent:
            return None
        if self._idle_timer.expired:
            if self.assoc.is_serving:
                self.restart_silence()
            else:
                self.is_silent = True
                self.assoc.wake()
                return None
        return self._idle_timer.remaining

    def _linger(self) -> None:
        """The peer hears our last words: closed while bytes arrive, a connection is reset, and that overtakes them."""
        while not self.to_provider_queue.empty():
            self.to_provider_queue.get()  # nothing may follow them
        if self._close_at is None:
            self._close_at = time.monotonic() + LINGER_SECONDS
        left = self._close_at - time.monotonic()
        if left <= 0 and self.socket is not None:
            self.socket.close()
        elif self._wait(left):
            self._frames.clear()
            self._read()

    def _break_off(self) -> None:
        """The association ends although the state machine failed."""
        pdu = A_ABORT_RQ()
        pdu.source, pdu.reason_diagnostic = 0x02, 0x00
        if self.socket is not None and self.socket.socket is not None:
            self.socket.send(pdu.encode())
            self.socket.close()
        self.assoc.is_aborted = True
        self.assoc.is_established = False
