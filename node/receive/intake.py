"""From a C-STORE request to a durable instance, or to an object set aside with its reason."""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import dataclass
from enum import Enum
from io import BytesIO

import pydicom.config
from sqlalchemy.exc import SQLAlchemyError

from db import audit, instances
from db.engine import Database
from db.instances import Instance, NewInstance
from db.states import SetAsideKind
from node.errors import CannotUnderstand, DataSetMismatch, IntakeError, OutOfResources
from node.log import log
from node.receive.archive import Archive, NewFile
from node.receive.dataset import Described, Facts, describe
from node.receive.disk import Disk
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
    data: BytesIO

    @property
    def size(self) -> int:
        """The bytes of the encoded data set."""
        return self.data.getbuffer().nbytes


class Intake:
    """Takes objects one by one; may be used by any number of threads.

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
    """

    def __init__(self, *, archive: Archive, database: Database, disk: Disk, facts: Facts) -> None:
        _quiet()
        self._archive = archive
        self._database = database
        self._disk = disk
        self._facts = facts

    def take(self, request: StoreRequest) -> Taken:
        """The object survives power loss: in the archive with its row, or set aside with its reason.

        Raises
        ------
        OutOfResources
            Nothing was kept: the disk is below its watermark, or the disk or the database failed.
        DataSetMismatch, CannotUnderstand
            The object was set aside; the message is what the sender may be told, and holds no value of the data set.
        """
        try:
            return self._take(request)
        except OSError as error:
            raise OutOfResources("the archive cannot be written") from error
        except SQLAlchemyError as error:
            raise OutOfResources("the database cannot be written") from error

    def _take(self, request: StoreRequest) -> Taken:
        if not self._disk.has_room_for(request.size):
            raise OutOfResources("the disk is below its watermark")
        digest = hashlib.sha256(request.data.getbuffer()).hexdigest()
        try:
            described = self._understood(request)
        except (CannotUnderstand, DataSetMismatch) as error:
            self._set_aside(request, digest, error)
            raise
        known = self._known(described.sop_instance_uid)
        if known is None:
            known = self._add(request, digest, described)
        return Taken.STORED if known is None else self._again(request, digest, known)

    def _understood(self, request: StoreRequest) -> Described:
        described = describe(request.data, transfer_syntax_uid=request.transfer_syntax_uid, facts=self._facts)
        if request.sop_class_uid != request.abstract_syntax_uid:
            raise DataSetMismatch("the SOP Class UID is not the presentation context's")
        if request.sop_class_uid != described.sop_class_uid:
            raise DataSetMismatch("the data set has another SOP Class UID")
        if request.sop_instance_uid != described.sop_instance_uid:
            raise DataSetMismatch("the data set has another SOP Instance UID")
        return described

    def _known(self, sop_instance_uid: str) -> Instance | None:
        with self._database.read() as tx:
            return instances.find(tx, sop_instance_uid)

    def _add(self, request: StoreRequest, digest: str, described: Described) -> Instance | None:
        path, size = self._archive.store(
            _file(request, digest), study_uid=described.study_uid, series_uid=described.series_uid
        )
        new = NewInstance(
            sop_instance_uid=described.sop_instance_uid,
            sop_class_uid=described.sop_class_uid,
            series_uid=described.series_uid,
            study_uid=described.study_uid,
            transfer_syntax_uid=request.transfer_syntax_uid,
            path=path,
            size=size,
            digest=digest,
            association_id=request.association_id,
            calling_ae=request.calling_ae,
            facts=described.facts,
            header=described.header,
        )
        with self._database.write() as tx:
            known = instances.add(tx, new)
        if known is not None and known.path != path:
            self._archive.discard(path)  # another association was faster with another object; this one goes aside
        return known

    def _again(self, request: StoreRequest, digest: str, known: Instance) -> Taken:
        if digest != known.digest:
            self._keep_conflict(request, digest, known)
            return Taken.KEPT_ASIDE
        if not self._archive.holds(known.path, size=known.size):
            self._archive.store(_file(request, digest), study_uid=known.study_uid, series_uid=known.series_uid)
            log().warning("file_restored", sop_instance_uid=known.sop_instance_uid, path=known.path)
        return Taken.KNOWN

    def _keep_conflict(self, request: StoreRequest, digest: str, known: Instance) -> None:
        self._keep(
            request,
            digest,
            kind=SetAsideKind.CONFLICT,
            status=KEPT_ASIDE_STATUS,
            reason=KEPT_ASIDE_COMMENT,
            study_uid=known.study_uid,
        )

    def _set_aside(self, request: StoreRequest, digest: str, error: IntakeError) -> None:
        kind = SetAsideKind.MISMATCH if isinstance(error, DataSetMismatch) else SetAsideKind.UNREADABLE
        self._keep(request, digest, kind=kind, status=error.status, reason=str(error))

    def _keep(
        self,
        request: StoreRequest,
        digest: str,
        *,
        kind: SetAsideKind,
        status: int,
        reason: str,
        study_uid: str | None = None,
    ) -> None:
        # What is not a UID may be anything, a patient's name included: it stays in the file and goes no further.
        sop_class_uid = request.sop_class_uid if is_uid(request.sop_class_uid) else None
        sop_instance_uid = request.sop_instance_uid if is_uid(request.sop_instance_uid) else None
        path, size = self._archive.set_aside(_file(request, digest), kind=kind)
        with self._database.write() as tx:
            if not instances.set_aside_digest_known(tx, sop_instance_uid=sop_instance_uid, digest=digest):
                instances.keep_aside(
                    tx, kind=kind, status=status, reason=reason, path=path, size=size, digest=digest,
                    association_id=request.association_id, calling_ae=request.calling_ae,
                    sop_class_uid=sop_class_uid, sop_instance_uid=sop_instance_uid,
                )  # fmt: skip
                audit.record(
                    tx, "set_aside", study_uid=study_uid, kind=kind, status=status, reason=reason,
                    sop_instance_uid=sop_instance_uid, calling_ae=request.calling_ae,
                )  # fmt: skip
        log().warning(
            "set_aside", kind=str(kind), status=f"0x{status:04X}", reason=reason, path=path,
            sop_instance_uid=sop_instance_uid, association_id=request.association_id, calling_ae=request.calling_ae,
        )  # fmt: skip


def _file(request: StoreRequest, digest: str) -> NewFile:
    return NewFile(
        data=request.data.getbuffer(),
        digest=digest,
        transfer_syntax_uid=request.transfer_syntax_uid,
        sop_class_uid=request.sop_class_uid,
        sop_instance_uid=request.sop_instance_uid,
        source_ae=request.calling_ae,
    )


def _quiet() -> None:
    # pydicom's warnings about odd values quote them, and a value may be a patient's name.
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    warnings.filterwarnings("ignore", module="pydicom")
