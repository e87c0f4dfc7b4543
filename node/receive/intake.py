"""From a C-STORE request to a durable instance, or to an object set aside with its reason."""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import dataclass
from enum import Enum
from io import BytesIO

import pydicom.config
from sqlalchemy.exc import SQLAlchemyError

from db.engine import Database
from db.instances import Instance, NewInstance
from db.states import SetAsideKind
from node.errors import CannotUnderstand, DataSetMismatch, IntakeError, OutOfResources
from node.receive import aside
from node.receive.archive import Archive, NewFile
from node.receive.aside import Aside
from node.receive.dataset import Described, Facts, Source, describe, view_of
from node.receive.disk import Disk
from node.receive.journal import SEGMENT_BYTES, Entry
from node.receive.keeping import LARGEST_JOURNALLED, Keeper
from node.receive.spool import Spool, Spooled
from node.receive.uids import is_uid

KEPT_ASIDE_STATUS = 0xB000
"""Warning: Coercion of Data Elements (PS3.4 table B.2-1)."""
KEPT_ASIDE_COMMENT = "another object with this SOP Instance UID is stored; kept aside"


class Taken(Enum):
    """What became of an object that was taken.

    A different object under a known UID is nearly always the same image with an edited header, sent by a second
    sender. It is kept, durably and apart, so a failure would be untrue and would make the sender repeat it for ever;
    it is not what stands in the archive, so plain success would be untrue as well. The Standard's warning for "stored,
    but the stored elements are not those you sent" says just that, and senders do not repeat what ended in a warning.
    """

    STORED = "stored"
    KNOWN = "known"
    KEPT_ASIDE = "kept_aside"


@dataclass(frozen=True, kw_only=True)
class StoreRequest:
    """A C-STORE request as it came: who sent it, what its command and context say, and the encoded data set.

    `abstract_syntax_uid` is the presentation context's; the other UIDs are the command's Affected SOP Class and
    Instance UID. Nothing in it has been checked.
    """

    association_id: str
    calling_ae: str
    abstract_syntax_uid: str
    transfer_syntax_uid: str
    sop_class_uid: str
    sop_instance_uid: str
    data: BytesIO | Spooled
    """In memory, which is not copied but while the kernel writes it; or in a file (see `Intake.spool`), which becomes
    the archive's own or is removed, whatever the answer."""


@dataclass(frozen=True, kw_only=True)
class _Arrived:
    """A request with its bytes at hand, which `source` holds from `start` on."""

    request: StoreRequest
    source: Source
    start: int
    file: NewFile

    @property
    def size(self) -> int:
        return self.file.data.nbytes


class Intake:
    """Takes objects one by one; may be used by any number of threads.

    In memory are the objects that the threads hand over, and nothing else: no copy of any, and a constant besides.

    Parameters
    ----------
    archive : Archive
        Where files go; prepared.
    database : Database
        Where rows go.
    disk : Disk
        Whether there is room.
    facts : callable
        See `node.receive.dataset.Facts`.
    flush : bool
        False: nothing is durable; for test rigs alone.
    segment_bytes : int
        See `node.receive.journal.Journal`.
    """

    def __init__(
        self,
        *,
        archive: Archive,
        database: Database,
        disk: Disk,
        facts: Facts,
        flush: bool = True,
        segment_bytes: int = SEGMENT_BYTES,
    ) -> None:
        _quiet()
        self._archive = archive
        self._database = database
        self._disk = disk
        self._facts = facts
        self._keeper = Keeper(
            archive=archive,
            database=database,
            conflict=self._keep_conflict,
            flush=flush,
            segment_bytes=segment_bytes,
        )

    def close(self) -> None:
        """Nothing is taken any more; what was is durable in file and row, so that the next start has nothing to do."""
        self._keeper.close()

    def spool(self, *, transfer_syntax_uid: str, sop_class_uid: str, sop_instance_uid: str, calling_ae: str) -> Spool:
        """A file for a data set that is too large for memory; what it finishes as is the `data` of its `StoreRequest`.

        Raises
        ------
        OutOfResources
            As does every write to it: the disk is below its watermark, or cannot be written.
        """
        return Spool(
            archive=self._archive,
            disk=self._disk,
            transfer_syntax_uid=transfer_syntax_uid,
            sop_class_uid=sop_class_uid,
            sop_instance_uid=sop_instance_uid,
            calling_ae=calling_ae,
        )

    def take(self, request: StoreRequest) -> Taken:
        """The object survives power loss: in the archive with its row, or set aside with its reason.

        Raises
        ------
        OutOfResources
            Nobody was told that it is kept: the disk is below its watermark, or the disk or the database failed.
        DataSetMismatch, CannotUnderstand
            The object was set aside; the message is what the sender may be told, and holds no value of the data set.
        """
        try:
            return self._take(_arrived(request))
        except OSError as error:
            raise OutOfResources("the archive cannot be written") from error
        except SQLAlchemyError as error:
            raise OutOfResources("the database cannot be written") from error
        finally:
            if isinstance(request.data, Spooled):
                request.data.path.unlink(missing_ok=True)

    def _take(self, arrived: _Arrived) -> Taken:
        # What was spooled is on the disk already.
        if not self._disk.has_room_for(0 if arrived.file.spooled else arrived.size):
            raise OutOfResources("the disk is below its watermark")
        try:
            described = self._understood(arrived)
        except (CannotUnderstand, DataSetMismatch) as error:
            self._set_aside(arrived, error)
            raise
        entry = self._written(arrived, described)
        known = self._keeper.keep(entry)
        if known is None:
            return Taken.STORED
        if known.digest == entry.instance.digest:
            return Taken.KNOWN  # and its file stands as it was, or stands again
        self._keep_conflict(entry, known)
        return Taken.KEPT_ASIDE

    def _understood(self, arrived: _Arrived) -> Described:
        request = arrived.request
        described = describe(
            arrived.source,
            transfer_syntax_uid=request.transfer_syntax_uid,
            facts=self._facts,
            start=arrived.start,
        )
        if request.sop_class_uid != request.abstract_syntax_uid:
            raise DataSetMismatch("the SOP Class UID is not the presentation context's")
        if request.sop_class_uid != described.sop_class_uid:
            raise DataSetMismatch("the data set has another SOP Class UID")
        if request.sop_instance_uid != described.sop_instance_uid:
            raise DataSetMismatch("the data set has another SOP Instance UID")
        return described

    def _written(self, arrived: _Arrived, described: Described) -> Entry:
        request, file = arrived.request, arrived.file
        by_itself = file.spooled is not None or arrived.size > LARGEST_JOURNALLED
        path, size = self._archive.store(
            file, study_uid=described.study_uid, series_uid=described.series_uid, durable=by_itself
        )
        new = NewInstance(
            sop_instance_uid=described.sop_instance_uid,
            sop_class_uid=described.sop_class_uid,
            series_uid=described.series_uid,
            study_uid=described.study_uid,
            transfer_syntax_uid=request.transfer_syntax_uid,
            path=path,
            size=size,
            digest=file.digest,
            association_id=request.association_id,
            calling_ae=request.calling_ae,
            facts=described.facts,
            header=described.header,
        )
        return Entry(instance=new, content=() if by_itself else file.parts)

    def _keep_conflict(self, entry: Entry, known: Instance) -> None:
        new = entry.instance
        path, size = self._archive.move_aside(new.path, digest=new.digest, kind=SetAsideKind.CONFLICT)
        aside.record(
            self._database,
            Aside(
                kind=SetAsideKind.CONFLICT,
                status=KEPT_ASIDE_STATUS,
                reason=KEPT_ASIDE_COMMENT,
                path=path,
                size=size,
                digest=new.digest,
                association_id=new.association_id,
                calling_ae=new.calling_ae,
                sop_class_uid=new.sop_class_uid,
                sop_instance_uid=new.sop_instance_uid,
                study_uid=known.study_uid,
            ),
        )

    def _set_aside(self, arrived: _Arrived, error: IntakeError) -> None:
        request = arrived.request
        kind = SetAsideKind.MISMATCH if isinstance(error, DataSetMismatch) else SetAsideKind.UNREADABLE
        path, size = self._archive.set_aside(arrived.file, kind=kind)
        # What is not a UID may be anything, a patient's name included: it stays in the file and goes no further.
        aside.record(
            self._database,
            Aside(
                kind=kind,
                status=error.status,
                reason=str(error),
                path=path,
                size=size,
                digest=arrived.file.digest,
                association_id=request.association_id,
                calling_ae=request.calling_ae,
                sop_class_uid=request.sop_class_uid if is_uid(request.sop_class_uid) else None,
                sop_instance_uid=request.sop_instance_uid if is_uid(request.sop_instance_uid) else None,
            ),
        )


def _arrived(request: StoreRequest) -> _Arrived:
    spooled = request.data if isinstance(request.data, Spooled) else None
    source: Source = request.data.opened() if isinstance(request.data, Spooled) else request.data
    start = spooled.start if spooled else 0
    data = view_of(source)[start:]
    file = NewFile(
        data=data,
        digest=hashlib.sha256(data).hexdigest(),
        transfer_syntax_uid=request.transfer_syntax_uid,
        sop_class_uid=request.sop_class_uid,
        sop_instance_uid=request.sop_instance_uid,
        source_ae=request.calling_ae,
        spooled=spooled.path if spooled else None,
    )
    return _Arrived(request=request, source=source, start=start, file=file)


def _quiet() -> None:
    # pydicom's warnings about odd values quote them, and a value may be a patient's name.
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    warnings.filterwarnings("ignore", module="pydicom")
