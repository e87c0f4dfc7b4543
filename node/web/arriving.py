"""The parts of a STOW-RS request as they arrive: read with bounded memory, each taken as soon as it is whole."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from typing import TYPE_CHECKING

from pydicom import dcmread
from python_multipart.multipart import MultipartParser

from node.errors import CannotUnderstand, IntakeError, OutOfResources
from node.log import log
from node.receive.intake import KEPT_ASIDE_STATUS, Intake, StoreRequest, Taken
from node.receive.roll import failure
from node.receive.spool import Spool
from node.receive.uids import TRANSFER_SYNTAXES, is_storage_class, is_uid
from node.web.answers import DICOM, media_type

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

CALLING_AE = "STOW-RS"
"""What stands for an AE title where an object came by HTTP."""

LONGEST_META = 1 << 20
"""Bytes of File Meta Information."""
_PREFIX_END, _META_START = 132, 144
_GROUP_LENGTH = b"\x02\x00\x00\x00UL\x04\x00"

SYNTAX_NOT_SUPPORTED, CLASS_NOT_SUPPORTED = 0xC122, 0x0122
"""Failure Reasons that C-STORE has no need of: there, negotiation comes first (PS3.18 table I.2-2)."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one part. `reason` is a C-STORE status, 0 for success; UIDs are empty where none could be read."""

    sop_class_uid: str = ""
    sop_instance_uid: str = ""
    reason: int = 0

    @property
    def is_kept(self) -> bool:
        """Whether it is durable, be it with a warning."""
        return self.reason == 0 or self.reason & 0xF000 == 0xB000


@dataclass(frozen=True, kw_only=True)
class Sender:
    """From where the parts come. `study_uid` is the only study they may be of, or empty."""

    association_id: str
    study_uid: str


class NotSupported(CannotUnderstand):
    """Neither stored nor set aside: nobody here accepts such objects."""

    def __init__(self, message: str, *, status: int) -> None:
        super().__init__(message)
        self.status = status


class Arriving:
    """The parts of one request; fed with what comes, it hands each whole object to the intake.

    Parameters
    ----------
    intake : Intake
        The one through which what comes over DIMSE goes as well.
    sender : Sender
        Stands with every object.
    kept : int
        Bytes of a data set that are held in memory; a larger one goes to the disk as it arrives.
    """

    def __init__(self, *, boundary: str, intake: Intake, sender: Sender, kept: int) -> None:
        self.outcomes: list[Outcome] = []
        self.is_whole = False
        self._part = partial(_Part, intake=intake, sender=sender, kept=kept)
        self._current: _Part | None = None
        self._header = [b"", b""]
        callbacks: MultipartCallbacks = {
            "on_part_begin": self._begin,
            "on_header_begin": self._begin_header,
            "on_header_field": lambda data, start, end: self._add_header(0, data[start:end]),
            "on_header_value": lambda data, start, end: self._add_header(1, data[start:end]),
            "on_header_end": self._end_header,
            "on_part_data": lambda data, start, end: self._now.write(memoryview(data)[start:end]),
            "on_part_end": self._end,
            "on_end": self._finish,
        }
        self._parser = MultipartParser(boundary.encode("latin-1"), callbacks)

    def write(self, data: bytes) -> None:
        """These bytes have come. Raises ``python_multipart.exceptions.MultipartParseError``."""
        self._parser.write(data)

    def discard(self) -> None:
        """What is not whole is gone."""
        if self._current is not None:
            self._current.discard()

    @property
    def _now(self) -> _Part:
        if self._current is None:
            raise RuntimeError("no part has begun")
        return self._current

    def _begin(self) -> None:
        self._current = self._part()

    def _begin_header(self) -> None:
        self._header = [b"", b""]

    def _add_header(self, which: int, data: bytes) -> None:
        self._header[which] += data

    def _end_header(self) -> None:
        name, value = (text.decode("latin-1").strip().lower() for text in self._header)
        if name == "content-type" and media_type(value)[0] != DICOM:
            self._now.refuse(CannotUnderstand("not application/dicom"))

    def _end(self) -> None:
        self.outcomes.append(self._now.taken())
        self._current = None

    def _finish(self) -> None:
        self.is_whole = True


class _Part:
    """One DICOM file that is arriving: its File Meta first, then its data set, in memory or in a file."""

    def __init__(self, *, intake: Intake, sender: Sender, kept: int) -> None:
        self._intake = intake
        self._sender = sender
        self._kept = kept
        self._head: bytearray | None = bytearray()
        self._named: dict[str, str] = {}
        self._data = BytesIO()
        self._spool: Spool | None = None
        self._error: IntakeError | None = None

    def write(self, data: memoryview) -> None:
        """These bytes are behind what came before. What is refused already is not kept."""
        if self._error is not None:
            return
        try:
            self._write(data)
        except IntakeError as error:
            self.refuse(error)

    def refuse(self, error: IntakeError) -> None:
        """Whatever else comes of it, the part is not stored."""
        self.discard()
        self._error = error

    def discard(self) -> None:
        """Nothing of it is kept."""
        if self._spool is not None:
            self._spool.discard()
            self._spool = None
        self._data = BytesIO()

    def taken(self) -> Outcome:
        """The part is whole: what the intake makes of it."""
        try:
            reason = self._take()
        except IntakeError as error:
            self._say(error, status=error.status)
            reason = error.status
        except Exception as error:  # noqa: BLE001 - one object's failure is not its neighbours'
            self._say(error, status=CannotUnderstand.status)
            reason = CannotUnderstand.status
        named = {name: uid for name, uid in self._named.items() if name != "transfer_syntax_uid"}
        return Outcome(reason=reason, **{name: uid if is_uid(uid) else "" for name, uid in named.items()})

    def _take(self) -> int:
        if self._head is not None and self._error is None:
            raise CannotUnderstand("not a DICOM file")
        if self._error is not None:
            raise self._error
        spool, self._spool = self._spool, None
        request = StoreRequest(
            association_id=self._sender.association_id,
            calling_ae=CALLING_AE,
            abstract_syntax_uid=self._named["sop_class_uid"],
            data=self._data if spool is None else spool.finish(),
            study_uid=self._sender.study_uid,
            **self._named,
        )
        return KEPT_ASIDE_STATUS if self._intake.take(request) is Taken.KEPT_ASIDE else 0

    def _say(self, error: Exception, *, status: int) -> None:
        # Only these are nobody's fault but this node's; the rest is said to the sender and, if kept, in the timeline.
        if not isinstance(error, IntakeError) or isinstance(error, OutOfResources):
            known = {"association_id": self._sender.association_id, "calling_ae": CALLING_AE}
            log().error("not_stored", status=f"0x{status:04X}", **failure(error), **known)

    def _write(self, data: memoryview) -> None:
        if self._head is not None:
            self._head += data
            end = _end_of_meta(self._head)
            if end is None:
                return
            head, self._head = self._head, None
            self._named = _names(bytes(head[:end]))
            _check_supported(self._named)
            data = memoryview(bytes(head[end:]))
        if self._spool is None and self._data.tell() + len(data) > self._kept:
            self._spool = self._intake.spool(calling_ae=CALLING_AE, **self._named)
            self._spool.write(self._data.getbuffer())
            self._data = BytesIO()
        keep: Callable[[memoryview], object] = self._data.write if self._spool is None else self._spool.write
        keep(data)


def _end_of_meta(head: bytearray) -> int | None:
    """Where the data set begins (PS3.10 7.1), None while more has to come."""
    if len(head) < _META_START:
        return None
    if head[_PREFIX_END - 4 : _PREFIX_END] != b"DICM" or head[_PREFIX_END : _META_START - 4] != _GROUP_LENGTH:
        raise CannotUnderstand("not a DICOM file")
    end = _META_START + int.from_bytes(head[_META_START - 4 : _META_START], "little")
    if end > LONGEST_META:
        raise CannotUnderstand("the File Meta Information is too long")
    return end if len(head) >= end else None


def _names(head: bytes) -> dict[str, str]:
    """What a file says of itself before its data set."""
    try:
        meta = dcmread(BytesIO(head)).file_meta
        named = {
            "transfer_syntax_uid": str(meta.TransferSyntaxUID),
            "sop_class_uid": str(meta.MediaStorageSOPClassUID),
            "sop_instance_uid": str(meta.MediaStorageSOPInstanceUID),
        }
    except Exception as error:
        raise CannotUnderstand("the File Meta Information cannot be read") from error
    if not all(is_uid(uid) for uid in named.values()):
        raise CannotUnderstand("the File Meta Information has what is no UID")
    return named


def _check_supported(named: dict[str, str]) -> None:
    if named["transfer_syntax_uid"] not in TRANSFER_SYNTAXES:
        raise NotSupported("the transfer syntax is not accepted", status=SYNTAX_NOT_SUPPORTED)
    if not is_storage_class(named["sop_class_uid"]):
        raise NotSupported("not a storage class", status=CLASS_NOT_SUPPORTED)
