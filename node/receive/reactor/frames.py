"""PDUs out of a stream of bytes (PS3.8 9.3), in one buffer that is used again and again."""

from __future__ import annotations

import os
import socket

HEADER_BYTES = 6
P_DATA_TF = 0x04
KNOWN_TYPES = range(0x01, 0x08)
LARGEST_OTHER_PDU = 1 << 20
"""Bytes of an A-ASSOCIATE-RQ: 128 contexts with every transfer syntax there is take half of it."""


class InvalidPdu(Exception):
    """What arrived is no PDU, or is larger than was agreed; the message says which."""


class Frames:
    """The bytes that have arrived on one connection, cut into PDUs.

    Parameters
    ----------
    maximum : int
        The largest P-DATA-TF, in bytes after its header: what was told the peer as maximum length (PS3.8 D.1).
    """

    def __init__(self, *, maximum: int) -> None:
        self._maximum = maximum
        self._view = memoryview(bytearray(2 * (HEADER_BYTES + maximum)))
        self._start = self._end = 0

    def fill(self, connection: socket.socket) -> bool:
        """What has arrived is in the buffer, and PDUs taken before are no longer; False when the peer has closed.

        Called when something has arrived. Raises ``OSError`` when the connection is broken.
        """
        try:
            # Not recv_into: with a timeout set it polls once more.
            count = os.readv(connection.fileno(), [self._view[self._end :]])
        except BlockingIOError:
            return True
        self._end += count
        return count > 0

    def take(self) -> memoryview | None:
        """The next whole PDU, header included, valid until the next `fill`; None where more has to arrive first.

        Raises
        ------
        InvalidPdu
            Where the next one begins is not known any more: the connection is of no further use.
        """
        arrived = self._end - self._start
        if arrived < HEADER_BYTES:
            self._make_room(HEADER_BYTES)
            return None
        size = HEADER_BYTES + self._length()
        if arrived < size:
            self._make_room(size)
            return None
        pdu = self._view[self._start : self._start + size]
        self._start += size
        return pdu

    def clear(self) -> None:
        """Whatever has arrived is forgotten."""
        self._start = self._end = 0

    def _length(self) -> int:
        kind = self._view[self._start]
        length = int.from_bytes(self._view[self._start + 2 : self._start + HEADER_BYTES], "big")
        if kind not in KNOWN_TYPES:
            raise InvalidPdu("unknown PDU type")
        if length > (self._maximum if kind == P_DATA_TF else LARGEST_OTHER_PDU):
            raise InvalidPdu("a PDU larger than was agreed")
        return length

    def _make_room(self, size: int) -> None:
        """There is room for a PDU of `size` bytes from its beginning, of which some have arrived."""
        if self._start == self._end:
            self._start = self._end = 0
        if self._start + size <= len(self._view):
            return
        arrived = self._view[self._start : self._end]
        if size > len(self._view):
            self._view = memoryview(bytearray(size))
        self._view[: len(arrived)] = arrived
        self._start, self._end = 0, len(arrived)


def values_of(pdu: memoryview) -> list[tuple[int, memoryview]]:
    """The presentation data values of a P-DATA-TF (PS3.8 9.3.5.1) as views of it, each with its context's ID.

    Raises
    ------
    InvalidPdu
        There is none, or one is shorter than its own header, or longer than what is left of the PDU.
    """
    values: list[tuple[int, memoryview]] = []
    at, end = HEADER_BYTES, len(pdu)
    while at < end:
        length = int.from_bytes(pdu[at : at + 4], "big")
        if length < 2 or at + 4 + length > end:
            raise InvalidPdu("a presentation data value of an impossible length")
        values.append((pdu[at + 4], pdu[at + 5 : at + 4 + length]))
        at += 4 + length
    if not values:
        raise InvalidPdu("a P-DATA-TF without a presentation data value")
    return values
