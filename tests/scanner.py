"""A scanner: exams of a synthetic head, sent over real associations, each acknowledged instance noted."""

from __future__ import annotations

import hashlib
import itertools
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from pydicom import dcmread
from pynetdicom import _config
from pynetdicom.ae import ApplicationEntity
from pynetdicom.association import Association
from pynetdicom.presentation import build_context

from node.steady import steady
from training.sources.phantom import EASY, MAKERS, PhantomStudy, make_study, write_study

META_LENGTH_AT = 128 + 4 + 8  # preamble, prefix, tag and VR of (0002,0000)
PAUSE_SECONDS = 0.2


@dataclass(frozen=True, kw_only=True)
class Exam:
    """The files of one study, in the order in which a scanner sends them."""

    study_uid: str
    folder: Path
    files: tuple[Path, ...]


@dataclass(kw_only=True)
class Exams:
    """Any number of exams of one head with a bleed, each with UIDs of its own; made once, written often."""

    root: Path
    size: int = 128
    slices: int = 16
    seed: int = 3
    _numbers: itertools.count[int] = field(default_factory=itertools.count)
    _head: PhantomStudy | None = None

    def new(self, *series: str) -> Exam:
        """Another exam; the axial series alone unless others are named."""
        folder = self.root / f"exam-{next(self._numbers)}"
        files = write_study(
            self._drawn(), folder, maker=MAKERS["ge"], series=series or ("axial",), salt=folder.name
        )  # fmt: skip
        header = dcmread(files[0], stop_before_pixels=True, specific_tags=["StudyInstanceUID"])
        return Exam(study_uid=str(header.StudyInstanceUID), folder=folder, files=tuple(files))

    def _drawn(self) -> PhantomStudy:
        if self._head is None:
            spec = replace(EASY, size=self.size, slices=self.slices)
            self._head = make_study(seed=self.seed, spec=spec, subtypes=("intraparenchymal",))
        return self._head


@dataclass(frozen=True, kw_only=True)
class Acknowledged:
    """An instance that was answered with success: SHA-256 of its data set, and when (monotonic seconds)."""

    digest: str
    at: float


@dataclass(kw_only=True)
class Scanner:
    """Sends like a modality: at its own pace, and again what was not acknowledged."""

    port: int
    ae_title: str = "CT1"
    called: str = "HEMONODE"
    timeout: float = 10.0
    acknowledged: dict[str, Acknowledged] = field(default_factory=dict)
    associations: int = 0

    def send(self, files: Sequence[Path], *, pace: float = 0.0, within: float = 120.0) -> float:
        """Every file is acknowledged; returns when the last one was, in monotonic seconds.

        Parameters
        ----------
        pace : float
            Seconds from one slice to the next.

        Raises
        ------
        TimeoutError
            It was not, `within` so many seconds.
        """
        _config.STORE_SEND_CHUNKED_DATASET = True  # sends the bytes of the file as they are
        deadline = time.monotonic() + within
        waiting = [(path, *_identity(path)) for path in files]
        while waiting:
            waiting = self._try(waiting, pace=pace)
            if waiting and time.monotonic() > deadline:
                raise TimeoutError(f"{len(waiting)} of {len(files)} instances were never acknowledged")
            if waiting:
                threading.Event().wait(PAUSE_SECONDS)
        return max(a.at for a in self.acknowledged.values())

    def _try(self, waiting: list[tuple[Path, str, str]], *, pace: float) -> list[tuple[Path, str, str]]:
        """One association; what is left when it ends."""
        kinds = {_kind(path) for path, _, _ in waiting}
        entity = ApplicationEntity(self.ae_title)
        entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = self.timeout
        entity.connection_timeout = self.timeout
        contexts = [build_context(sop_class, syntax) for sop_class, syntax in sorted(kinds)]
        association = steady(entity.associate("127.0.0.1", self.port, contexts=contexts, ae_title=self.called))
        if not association.is_established:
            return waiting
        self.associations += 1
        left = [item for item in waiting if not self._store(association, *item, pace=pace)]
        if association.is_established:
            association.release()
        return left

    def _store(self, association: Association, path: Path, uid: str, digest: str, *, pace: float) -> bool:
        began = time.monotonic()
        try:
            answer = association.send_c_store(path)
        except RuntimeError:
            return False
        if answer.get("Status") != 0x0000:
            return False
        self.acknowledged[uid] = Acknowledged(digest=digest, at=time.monotonic())
        threading.Event().wait(max(0.0, began + pace - time.monotonic()))
        return True


def data_set_of(part_10: bytes) -> bytes:
    """The bytes of a DICOM file behind its File Meta Information (PS3.10 7.1)."""
    length = int.from_bytes(part_10[META_LENGTH_AT : META_LENGTH_AT + 4], "little")
    return part_10[META_LENGTH_AT + 4 + length :]


def _identity(path: Path) -> tuple[str, str]:
    uid = str(dcmread(path, stop_before_pixels=True, specific_tags=["SOPInstanceUID"]).SOPInstanceUID)
    return uid, hashlib.sha256(data_set_of(path.read_bytes())).hexdigest()


def _kind(path: Path) -> tuple[str, str]:
    header = dcmread(path, stop_before_pixels=True, specific_tags=["SOPClassUID"])
    return str(header.SOPClassUID), str(header.file_meta.TransferSyntaxUID)
