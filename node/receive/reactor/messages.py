"""DIMSE messages out of fragments (PS3.7 6.3, PS3.8 Annex E): C-STORE by the shortest way, others by pynetdicom's."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from io import BytesIO
from queue import Queue
from typing import TYPE_CHECKING, Any, cast

from pydicom.uid import UID
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.pdu_primitives import P_DATA

from node.log import log
from node.receive.reactor.spool import Collected, Spool, Store
from node.receive.uids import is_storage_class, is_uid

if TYPE_CHECKING:
    from node.receive.reactor.association import EventAssociation
    from node.receive.reactor.loop import EventLoop

COMMAND, LAST = 0x01, 0x02  # PS3.8 table E.2-1, the message control header
LARGEST_COMMAND = 1 << 16
LARGEST_IDENTIFIER = 16 * 1024 * 1024
"""Bytes of a data set other than a C-STORE's: a query, a work item, an event report. It lies in memory."""
MOST_EMPTY_FRAGMENTS = 1024
MOST_WAITING = 8
"""Messages that wait while another is served. The node negotiates one at a time (PS3.7 D.3.3.3)."""

COMMAND_FIELD, DATA_SET_TYPE, STORE_REQUEST, NO_DATA_SET = 0x0100, 0x0800, 0x0001, 0x0101
SOP_CLASS_UID, SOP_INSTANCE_UID, MESSAGE_ID, PRIORITY, ERROR_COMMENT = 0x0002, 0x1000, 0x0110, 0x0700, 0x0902
MOVE_ORIGINATOR, MOVE_MESSAGE_ID = 0x1030, 0x1031
_ELEMENT = struct.Struct("<HHL")
_US = struct.Struct("<H")
_STORE_RESPONSE = _ELEMENT.pack(0, COMMAND_FIELD, 2) + _US.pack(0x8001)
_WITHOUT_DATA_SET = _ELEMENT.pack(0, DATA_SET_TYPE, 2) + _US.pack(NO_DATA_SET)
_PRIORITIES = frozenset({_US.pack(0), _US.pack(1), _US.pack(2)})  # medium, high, low
_P_DATA_TF = struct.Struct(">BxLLBB")
_SMALLEST_USUAL_PDU = 1024


class InvalidMessage(Exception):
    """The peer broke the rules; the message says which, without quoting anything."""


class Announcing(Queue[Any]):
    """A queue that tells when something was put into it."""

    def __init__(self, tell: Callable[[], None]) -> None:
        super().__init__()
        self._tell = tell

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        """As in ``queue.Queue``, and somebody hears of it."""
        super().put(item, block, timeout)
        self._tell()


class Incoming:
    """One message while it arrives: a command set first, then the data set that it announces."""

    def __init__(self, context_id: int, collect: Callable[[Mapping[int, bytes]], Collected]) -> None:
        self.context_id = context_id
        self.encoded = bytearray()
        self.command: dict[int, bytes] | None = None
        self.data: BytesIO | None = None
        self.whole = False
        self._collect = collect
        self._size = self._empty = 0

    @property
    def is_store(self) -> bool:
        """Whether this is a C-STORE request."""
        return self.command is not None and _number(self.command, COMMAND_FIELD) == STORE_REQUEST

    def take(self, value: memoryview) -> None:
        """The fragment, which begins with its message control header, belongs to this message."""
        last, fragment = bool(value[0] & LAST), value[1:]
        if not fragment:
            self._empty += 1
            if self._empty > MOST_EMPTY_FRAGMENTS:
                raise InvalidMessage("too many empty fragments")
        if value[0] & COMMAND:
            self._take_command(fragment, last=last)
        else:
            self._take_data(fragment, last=last)

    def _take_command(self, fragment: memoryview, *, last: bool) -> None:
        if self.command is not None:
            raise InvalidMessage("a command within another message")
        self.encoded += fragment
        if len(self.encoded) > LARGEST_COMMAND:
            raise InvalidMessage("a command that does not end")
        if last:
            self.command = elements(bytes(self.encoded))
            self.whole = _number(self.command, DATA_SET_TYPE) == NO_DATA_SET
            if not self.whole:
                self.data = self._collect(self.command) if self.is_store else BytesIO()

    def _take_data(self, fragment: memoryview, *, last: bool) -> None:
        if self.data is None:
            raise InvalidMessage("data before their command")
        if isinstance(self.data, Collected):
            self.data.append(fragment)
        else:
            self._size += len(fragment)
            if self._size > LARGEST_IDENTIFIER:
                raise InvalidMessage("an identifier that does not end")
            self.data.write(fragment)
        self.whole = last

    def store_request(self) -> C_STORE:
        """The message as pynetdicom's primitive. Raises `InvalidMessage` or ``ValueError`` where it is none."""
        command, request = self.command or {}, C_STORE()
        request.MessageID = _number(command, MESSAGE_ID)
        request.Priority = _number(command, PRIORITY)
        request.AffectedSOPClassUID = _uid(command, SOP_CLASS_UID)
        request.AffectedSOPInstanceUID = _uid(command, SOP_INSTANCE_UID)
        if command.get(MOVE_MESSAGE_ID):
            request.MoveOriginatorMessageID = _number(command, MOVE_MESSAGE_ID)
        if command.get(MOVE_ORIGINATOR):
            request.MoveOriginatorApplicationEntityTitle = _text(command, MOVE_ORIGINATOR)
        request.DataSet = self.data
        if not request.is_valid_request:
            raise InvalidMessage("a C-STORE without a data set")
        return request

    def store(self, association: EventAssociation) -> Store | None:
        """The message as a `Store`; None where anything about its command is unusual, and pynetdicom is to judge it."""
        command, data = self.command or {}, self.data
        abstract_syntax_uid, transfer_syntax_uid = association.syntaxes(self.context_id)
        sop_class_uid, sop_instance_uid = _text(command, SOP_CLASS_UID), _text(command, SOP_INSTANCE_UID)
        is_usual = (
            isinstance(data, Collected)
            and sop_class_uid == abstract_syntax_uid
            and is_storage_class(sop_class_uid)
            and is_uid(sop_instance_uid)
            and len(command.get(MESSAGE_ID, b"")) == _US.size
            and command.get(PRIORITY) in _PRIORITIES
            and not command.get(MOVE_ORIGINATOR)
            and not command.get(MOVE_MESSAGE_ID)
        )
        if not is_usual:
            return None
        return Store(
            association=association,
            abstract_syntax_uid=abstract_syntax_uid,
            transfer_syntax_uid=transfer_syntax_uid,
            sop_class_uid=sop_class_uid,
            sop_instance_uid=sop_instance_uid,
            data=cast(BytesIO, data),
        )


class Messages(DIMSEServiceProvider):
    """pynetdicom's DIMSE provider with another way in, and another way out for the answer to a C-STORE."""

    assoc: EventAssociation
    dul: EventLoop

    def __init__(self, assoc: EventAssociation, *, spool: Spool) -> None:
        super().__init__(assoc)
        self.msg_queue = Announcing(assoc.wake)
        self._spool = spool
        self._incoming: Incoming | None = None

    def receive_primitive(self, primitive: P_DATA) -> None:
        """As `receive`; how the state machine hands fragments on while an association is being released."""
        self.receive([(context_id, memoryview(value)) for context_id, value in primitive.presentation_data_value_list])

    def receive(self, values: Iterable[tuple[int, memoryview]]) -> None:
        """Every message that the fragments complete is served or waits; a wrong one ends the association (Evt19)."""
        try:
            for context_id, value in values:
                self._fragment(context_id, value)
        except Exception as error:  # noqa: BLE001 pynetdicom's decoders raise anything, and its loop would die of it
            self.message = self._incoming = None
            log().warning("message_refused", why=str(error) if isinstance(error, InvalidMessage) else "not a command")
            self.dul.event_queue.put("Evt19")

    def send_msg(self, primitive: Any, context_id: int) -> None:
        """The message is on its way; a C-STORE's answer without a comment is encoded here, a hundred times faster."""
        is_plain = (
            isinstance(primitive, C_STORE)
            and primitive.MessageIDBeingRespondedTo is not None
            and primitive.ErrorComment is None
            and primitive.OffendingElement is None
            and not 0 < self.maximum_pdu_size < _SMALLEST_USUAL_PDU
        )
        if not is_plain:
            super().send_msg(primitive, context_id)
            return
        response = _encoded_response(
            sop_class_uid=str(primitive.AffectedSOPClassUID or ""),
            sop_instance_uid=str(primitive.AffectedSOPInstanceUID or ""),
            message_id=primitive.MessageIDBeingRespondedTo,
            status=primitive.Status,
        )
        self._send(context_id, response)

    def _answered(self, message: Incoming) -> bool:
        """Whether the C-STORE was answered here and now, which one is that is like nearly all of them."""
        take = self._spool.take
        if take is None or not self.assoc.is_free or 0 < self.maximum_pdu_size < _SMALLEST_USUAL_PDU:
            return False
        store = message.store(self.assoc)
        if store is None:
            return False
        status, comment = take(store)
        if self.assoc.is_established:
            self._tell(message, status, comment)
        return True

    def _tell(self, message: Incoming, status: int, comment: str) -> None:
        command = message.command or {}
        answer = _encoded_response(
            sop_class_uid=_text(command, SOP_CLASS_UID),
            sop_instance_uid=_text(command, SOP_INSTANCE_UID),
            message_id=_number(command, MESSAGE_ID),
            status=status,
            comment=comment,
        )
        size = len(answer) + 2
        head = _P_DATA_TF.pack(0x04, size + 4, size, message.context_id, COMMAND | LAST)
        if not self.dul.send_at_once(head + answer):
            self._send(message.context_id, answer)

    def _send(self, context_id: int, command: bytes) -> None:
        answer = P_DATA()
        answer.presentation_data_value_list.append((context_id, bytes([COMMAND | LAST]) + command))
        self.dul.send_pdu(answer)

    def forget(self) -> None:
        """What has begun to arrive will not become whole."""
        self._incoming = None

    def _collect(self, context_id: int, command: Mapping[int, bytes]) -> Collected:
        open_file = partial(
            self._spool.open,
            transfer_syntax_uid=str(self.assoc._accepted_cx[context_id].transfer_syntax[0]),
            sop_class_uid=_text(command, 0x0002),
            sop_instance_uid=_text(command, 0x1000),
            calling_ae=self.assoc.requestor.ae_title,
        )
        return Collected(memory=self._spool.memory, open_file=open_file)

    def _fragment(self, context_id: int, value: memoryview) -> None:
        if self._incoming is None:
            if context_id not in self.assoc._accepted_cx:
                raise InvalidMessage("a presentation context that was not accepted")
            self._incoming = Incoming(context_id, partial(self._collect, context_id))
        if self._incoming.context_id != context_id:
            raise InvalidMessage("a message in two presentation contexts")
        self._incoming.take(value)
        if self._incoming.whole:
            message, self._incoming = self._incoming, None
            self._complete(message)

    def _complete(self, message: Incoming) -> None:
        if self.msg_queue.qsize() >= MOST_WAITING:
            raise InvalidMessage("more operations at a time than were agreed")
        if message.is_store:
            if self._answered(message):
                return
            request = message.store_request()
            if not self.assoc.serve_at_once(request, message.context_id):
                self.msg_queue.put((message.context_id, request))
            return
        whole = P_DATA()
        whole.presentation_data_value_list.append((message.context_id, bytes([COMMAND | LAST]) + message.encoded))
        if message.data is not None:
            encoded = bytes([LAST]) + message.data.getvalue()
            whole.presentation_data_value_list.append((message.context_id, encoded))
        super().receive_primitive(whole)


def elements(encoded: bytes) -> dict[int, bytes]:
    """The elements of group 0000 of a command set (PS3.7 6.3.1: implicit VR little endian), by element number."""
    found: dict[int, bytes] = {}
    at = 0
    while at < len(encoded):
        if at + _ELEMENT.size > len(encoded):
            raise InvalidMessage("a command that breaks off")
        group, element, length = _ELEMENT.unpack_from(encoded, at)
        at += _ELEMENT.size + length
        if at > len(encoded):
            raise InvalidMessage("a command that breaks off")
        if group == 0x0000:
            found[element] = encoded[at - length : at]
    return found


def _number(command: Mapping[int, bytes], element: int) -> int:
    value = command.get(element, b"")
    if len(value) != _US.size:
        raise InvalidMessage("a command without a number that it needs")
    return int(_US.unpack(value)[0])


def _text(command: Mapping[int, bytes], element: int) -> str:
    return command.get(element, b"").decode("ascii", errors="replace").strip(" \0")


def _uid(command: Mapping[int, bytes], element: int) -> UID | None:
    return UID(_text(command, element)) if element in command else None


def _encoded_response(
    *, sop_class_uid: str, sop_instance_uid: str, message_id: int, status: int, comment: str = ""
) -> bytes:
    # PS3.7 table 9.3-2, elements in the order of their tags.
    elements = (
        _text_element(SOP_CLASS_UID, sop_class_uid, pad=b"\0")
        + _STORE_RESPONSE
        + _ELEMENT.pack(0, 0x0120, 2) + _US.pack(message_id)
        + _WITHOUT_DATA_SET
        + _ELEMENT.pack(0, 0x0900, 2) + _US.pack(status)
        + (_text_element(ERROR_COMMENT, comment, pad=b" ") if comment else b"")
        + _text_element(SOP_INSTANCE_UID, sop_instance_uid, pad=b"\0")
    )  # fmt: skip
    return _ELEMENT.pack(0, 0x0000, 4) + struct.pack("<L", len(elements)) + elements


def _text_element(element: int, text: str, *, pad: bytes) -> bytes:
    value = text.encode("ascii", errors="replace")
    value += pad * (len(value) % 2)
    return _ELEMENT.pack(0, element, len(value)) + value
