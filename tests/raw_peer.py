"""A peer that speaks PDU by PDU over a bare socket, so that it can break every rule of PS3.8 and PS3.7."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable, Sequence
from types import TracebackType

from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, ImplicitVRLittleEndian

VERIFICATION = "1.2.840.10008.1.1"
ASSOCIATE_AC, ASSOCIATE_RJ, P_DATA, RELEASE_RQ, RELEASE_RP, ABORT = 2, 3, 4, 5, 6, 7
COMMAND, DATA, LAST = 1, 0, 2
ECHO, CT = 1, 3
"""The IDs of the two presentation contexts that are proposed unless others are named."""
USUAL = ((ECHO, VERIFICATION, (ImplicitVRLittleEndian,)), (CT, CTImageStorage, (ExplicitVRLittleEndian,)))


def pdu(kind: int, body: bytes) -> bytes:
    """A PDU (PS3.8 9.3)."""
    return struct.pack(">BxL", kind, len(body)) + body


def item(kind: int, value: bytes) -> bytes:
    """An item or sub-item of an association request (PS3.8 9.3.2)."""
    return struct.pack(">BxH", kind, len(value)) + value


def context(number: int, abstract: str, syntaxes: Sequence[str]) -> bytes:
    """A proposed presentation context (PS3.8 9.3.2.2)."""
    names = item(0x30, abstract.encode()) + b"".join(item(0x40, syntax.encode()) for syntax in syntaxes)
    return item(0x20, bytes([number % 256, 0, 0, 0]) + names)


def request(
    contexts: Iterable[tuple[int, str, Sequence[str]]] = USUAL, *, user: bytes = b"", items: bytes = b""
) -> bytes:
    """An A-ASSOCIATE-RQ; `user` are further sub-items of the user information, `items` further items."""
    head = struct.pack(">H2x16s16s32x", 1, b"HEMONODE".ljust(16), b"CT1".ljust(16))
    body = item(0x10, b"1.2.840.10008.3.1.1.1") + b"".join(context(*one) for one in contexts)
    information = item(0x51, struct.pack(">L", 16384)) + item(0x52, b"1.2.3.4") + user
    return pdu(1, head + body + items + item(0x50, information))


def value(number: int, control: int, fragment: bytes) -> bytes:
    """A presentation data value (PS3.8 9.3.5.1) with its message control header."""
    return struct.pack(">LBB", len(fragment) + 2, number, control) + fragment


def data(*values: bytes) -> bytes:
    """A P-DATA-TF."""
    return pdu(P_DATA, b"".join(values))


def command(**elements: int | str) -> bytes:
    """A command set (PS3.7 6.3.1); names are ``e0100`` for (0000,0100), numbers are US, texts UI."""
    encoded = b""
    for name, given in sorted(elements.items()):
        text = struct.pack("<H", given) if isinstance(given, int) else given.encode() + b"\0" * (len(given) % 2)
        encoded += struct.pack("<HHL", 0, int(name[1:], 16), len(text)) + text
    return struct.pack("<HHLL", 0, 0, 4, len(encoded)) + encoded


def echo_command(message_id: int = 1) -> bytes:
    """A C-ECHO-RQ."""
    return command(e0002=VERIFICATION, e0100=0x0030, e0110=message_id, e0800=0x0101)


def store_command(sop_instance_uid: str, message_id: int = 1) -> bytes:
    """A C-STORE-RQ."""
    return command(e0002=str(CTImageStorage), e0100=0x0001, e0110=message_id, e0700=0, e0800=1, e1000=sop_instance_uid)


class RawPeer:
    """A connection to the node."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=20)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def __enter__(self) -> RawPeer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.socket.close()

    def send(self, *pieces: bytes) -> None:
        """The bytes, a piece at a time."""
        for piece in pieces:
            self.socket.sendall(piece)

    def receive(self) -> tuple[int, bytes] | None:
        """The next PDU's type and body; None when the node has closed."""
        head = self._exactly(6)
        if head is None:
            return None
        body = self._exactly(int.from_bytes(head[2:], "big"))
        return None if body is None else (head[0], body)

    def kind(self) -> int | None:
        """The type of the next PDU; None when the node has closed."""
        received = self.receive()
        return None if received is None else received[0]

    def associate(self, asking: bytes = b"") -> bytes:
        """The association was accepted; returns the body of the A-ASSOCIATE-AC."""
        self.send(asking or request())
        received = self.receive()
        assert received is not None
        assert received[0] == ASSOCIATE_AC
        return received[1]

    def status(self) -> int:
        """The status of the next message, which is an answer in one PDU."""
        received = self.receive()
        assert received is not None
        kind, body = received
        assert kind == P_DATA, kind
        encoded, at = body[6:], 0
        while at < len(encoded):
            _, element, length = struct.unpack_from("<HHL", encoded, at)
            if element == 0x0900:
                return int(struct.unpack_from("<H", encoded, at + 8)[0])
            at += 8 + length
        raise AssertionError("an answer without a status")

    def release(self) -> None:
        """The association was released in good order."""
        self.send(pdu(RELEASE_RQ, bytes(4)))
        assert self.kind() == RELEASE_RP
        self.socket.close()

    def _exactly(self, size: int) -> bytes | None:
        received = b""
        while len(received) < size:
            try:
                piece = self.socket.recv(size - len(received))
            except ConnectionResetError:
                return None
            if not piece:
                return None
            received += piece
        return received
