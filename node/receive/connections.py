"""Accepted connections, from accept to close, where pynetdicom leaves something to be desired."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from queue import Queue
from typing import Any

from pynetdicom import evt
from pynetdicom.association import Association
from pynetdicom.events import Event
from pynetdicom.transport import RequestHandler

from node.log import log


class Connection(RequestHandler):
    """An accepted connection, before pynetdicom makes an association of it."""

    def setup(self) -> None:
        """Small messages leave at once, and a peer that falls silent in the middle of a PDU is noticed."""
        connection: socket.socket = self.request
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.settimeout(self.ae.network_timeout)
        acknowledge_at_once(connection)


class Connections:
    """The sockets of all accepted connections; may be used by any number of threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sockets: dict[Association, socket.socket] = {}

    def handlers(self) -> list[tuple[Any, Callable[[Event], None]]]:
        """What pynetdicom binds."""
        return [
            (evt.EVT_CONN_OPEN, self._opened),
            (evt.EVT_PDU_RECV, self._received),
            (evt.EVT_CONN_CLOSE, self._closed),
        ]

    def shut(self, association: Association) -> None:
        """The connection ends, whatever the association is doing; its thread finds out by itself."""
        with self._lock:
            connection = self._sockets.get(association)
        if connection is not None:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                log().debug("connection_gone_already")

    def reap(self) -> None:
        """The connections of threads that ended without a word are closed."""
        with self._lock:
            dead = [association for association in self._sockets if not _is_running(association)]
        for association in dead:
            self._close(association)

    def _opened(self, event: Event) -> None:
        transport = event.assoc.dul.socket
        if transport is not None and transport.socket is not None:
            with self._lock:
                self._sockets[event.assoc] = transport.socket

    def _received(self, event: Event) -> None:
        connection = self._sockets.get(event.assoc)
        if connection is not None:
            acknowledge_at_once(connection)

    def _closed(self, event: Event) -> None:
        self._close(event.assoc)
        # A connection closed before it asked for anything (a load balancer's health check): pynetdicom would let the
        # association's thread wait for the request until the ACSE timeout. None is its own word for "nothing came".
        if event.assoc.requestor.primitive is None:
            waiting: Queue[Any] = event.assoc.dul.to_user_queue
            waiting.put(None)

    def _close(self, association: Association) -> None:
        # pynetdicom closes a socket only when shutting it down succeeded, which it does not after a reset.
        with self._lock:
            connection = self._sockets.pop(association, None)
        if connection is not None:
            connection.close()


def acknowledge_at_once(connection: socket.socket) -> None:
    """The segments received up to now are acknowledged without delay, where the system can (Linux).

    A sender with Nagle's algorithm on, as most scanners ship, holds back the last piece of a message until the piece
    before is acknowledged, which a receiver may delay by 40 ms. Linux forgets the option, so it is set again and again.
    """
    if hasattr(socket, "TCP_QUICKACK"):
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        except OSError:
            log().debug("connection_gone_already")


def _is_running(association: Association) -> bool:
    return association.ident is None or association.is_alive()
