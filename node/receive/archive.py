"""Where files lie in the archive, and how one is written there.

::

    archive/
        3f/STUDY_UID/SERIES_UID/SOP_INSTANCE_UID-DIGEST.dcm     stored; 3f: the first byte of SHA-256 of the study UID
        conflicts/DIGEST.dcm                                    another object under a UID that is stored already
        quarantine/DIGEST.dcm                                   unreadable, or not what its command said
        incoming/RECEIVER/                                      one running receiver's own, see `node.receive.incoming`

A file's name holds (the first 16 hex digits of) the digest of its data set. So two different objects never meet at
one path, whatever their UIDs say and however many associations send them at once, and a file that is replaced is
replaced by the same bytes. The database alone decides which of them is the instance.

A receiver that is killed may leave a whole file without a row and without a record in the journal. It was never
acknowledged: nobody counts on it, and nothing looks for it. When its sender tries again it gets the same path, is
written once more, and then has its row.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import itertools
import os
import struct
from dataclasses import dataclass
from pathlib import Path

from db.states import SetAsideKind
from node.receive.files import Files, Parts
from node.receive.incoming import Claim, claims

IMPLEMENTATION_CLASS_UID = "2.25.88463078597967406918172230189498020124"
IMPLEMENTATION_VERSION_NAME = "HEMONODE"

_FOLDERS = {
    SetAsideKind.CONFLICT: "conflicts",
    SetAsideKind.UNREADABLE: "quarantine",
    SetAsideKind.MISMATCH: "quarantine",
}
_REMEMBERED_DIRECTORIES = 4096
_PREFIX_AT = 128
_META_AT = _PREFIX_AT + 4 + 12
"""Behind the group length (0002,0000), with which the File Meta Information begins (PS3.10 7.1)."""


@dataclass(frozen=True, kw_only=True)
class NewFile:
    """What becomes a file: a data set exactly as it was received, and its File Meta Information (PS3.10 7.1).

    `digest` is SHA-256 of `data` in hex. The texts of the meta information may be anything: they are only written.
    `spooled` names the file that holds all of it already, if there is one; it is renamed rather than written again.
    """

    data: memoryview
    digest: str
    transfer_syntax_uid: str
    sop_class_uid: str
    sop_instance_uid: str
    source_ae: str
    spooled: Path | None = None

    @functools.cached_property
    def parts(self) -> Parts:
        """The file's bytes: the meta information, and the data set behind it."""
        head = part_10_head(
            transfer_syntax_uid=self.transfer_syntax_uid,
            sop_class_uid=self.sop_class_uid,
            sop_instance_uid=self.sop_instance_uid,
            source_ae=self.source_ae,
        )
        return (head, self.data)


class Archive:
    """The archive directory, as one receiving process sees it.

    Parameters
    ----------
    root : pathlib.Path
        The archive directory.
    files : Files, optional
        The disk.
    """

    def __init__(self, *, root: Path, files: Files | None = None) -> None:
        self.root = root
        self.files = files or Files()
        self._claims: list[Claim] = []
        self._names = itertools.count()
        self._made: set[Path] = set()
        self._durable: set[Path] = set()

    @property
    def folders(self) -> tuple[Path, ...]:
        """This receiver's own folder, then those that dead receivers left behind and nobody has taken over."""
        return tuple(claim.folder for claim in self._claims)

    def prepare(self) -> None:
        """The directories exist, this receiver has its folder, and what dead ones left half-written is gone."""
        new = [path for path in (self.root, *self.root.parents) if not path.exists()]
        for folder in (self.root / "incoming", *(self.root / name for name in set(_FOLDERS.values()))):
            folder.mkdir(mode=0o750, parents=True, exist_ok=True)
        for path in new:
            self.files.sync(path.parent)
        self.release()
        self._claims = claims(self.root / "incoming")
        for folder in self.folders:
            for leftover in folder.glob("*.part"):
                leftover.unlink(missing_ok=True)
        for folder in (self.root / "incoming", self.root):
            self.files.sync(folder)

    def leave(self, folder: Path) -> None:
        """The folder that a dead receiver left behind is gone; nothing in it is needed any more."""
        for claim in self._claims:
            if claim.folder == folder:
                claim.remove()
        self._claims = [claim for claim in self._claims if claim.folder != folder]

    def release(self) -> None:
        """Another receiver may have the folder of this one."""
        for claim in self._claims:
            claim.release()
        self._claims = []

    def unfinished(self) -> Path:
        """A new name for a file that is being written, on the archive's file system.

        Raises ``OSError`` when this receiver has no folder, before `prepare` and after `release`.
        """
        if not self._claims:
            raise OSError(errno.ESHUTDOWN, "the archive is not open")
        return self._claims[0].folder / f"{next(self._names)}.part"

    def store(self, file: NewFile, *, study_uid: str, series_uid: str, durable: bool = True) -> tuple[str, int]:
        """The file is whole at its place, and durable if wanted; returns its path relative to the archive and its size.

        All UIDs must have passed `node.receive.uids.is_uid`. Raises ``OSError``, in which case nothing is left.
        """
        directory = _shelf(study_uid, series_uid)
        path = f"{directory}/{file.sop_instance_uid}-{file.digest[:16]}.dcm"
        return path, self._put(file.parts, path, spooled=file.spooled, durable=durable)

    def set_aside(self, file: NewFile, *, kind: SetAsideKind) -> tuple[str, int]:
        """The file is durable among those set aside, once however often it comes; returns its path and size."""
        path = Path(_FOLDERS[kind]) / f"{file.digest}.dcm"
        try:
            return path.as_posix(), (self.root / path).stat().st_size
        except FileNotFoundError:
            return path.as_posix(), self._put(file.parts, path.as_posix(), spooled=file.spooled, durable=True)

    def move_aside(self, path: str, *, digest: str, kind: SetAsideKind) -> tuple[str, int]:
        """The file at `path` lies durable among those set aside instead; returns its path and size there."""
        place = Path(_FOLDERS[kind]) / f"{digest}.dcm"
        with contextlib.suppress(FileNotFoundError):  # the same object came twice, and the other one was moved
            self.files.sync(self.root / path)
            self.files.place(self.root / path, self.root / place)
        self.files.sync((self.root / place).parent)
        return place.as_posix(), (self.root / place).stat().st_size

    def restore(self, path: str, parts: Parts) -> None:
        """The file is at its place again, durable."""
        self._put(parts, path, spooled=None, durable=True)

    def holds(self, path: str, *, size: int) -> bool:
        """Whether a file of this size lies at `path`."""
        try:
            return (self.root / path).stat().st_size == size
        except FileNotFoundError:
            return False

    def holds_exactly(self, path: str, parts: Parts) -> bool:
        """Whether a file of just these bytes lies at `path`."""
        try:
            return (self.root / path).read_bytes() == b"".join(parts)
        except FileNotFoundError:
            return False

    def discard(self, path: str) -> None:
        """The file at `path` is gone."""
        (self.root / path).unlink(missing_ok=True)

    def _put(self, parts: Parts, path: str, *, spooled: Path | None, durable: bool) -> int:
        destination = self.root / path
        unfinished = spooled or self.unfinished()
        try:
            if spooled is None:
                self.files.write(unfinished, parts)
            if durable:
                self.files.sync(unfinished)
            try:
                self._make_directories(destination.parent, durable=durable)
                self.files.place(unfinished, destination)
            except FileNotFoundError:  # a directory that was made before is gone
                self._forget(destination.parent)
                self._make_directories(destination.parent, durable=durable)
                self.files.place(unfinished, destination)
        except BaseException:
            unfinished.unlink(missing_ok=True)
            raise
        if durable:
            self.files.sync(destination.parent)
        return sum(len(part) for part in parts)

    def _forget(self, directory: Path) -> None:
        for remembered in (self._durable, self._made):
            remembered.discard(directory)

    def _make_directories(self, directory: Path, *, durable: bool) -> None:
        # An existing directory may be another process's, made a moment ago and not yet on the disk: so it counts as
        # durable only once this process has flushed every directory above it.
        remembered = self._durable if durable else self._made
        if directory in remembered:
            return
        above = [parent for parent in directory.parents if parent.is_relative_to(self.root)]
        for folder in (*reversed(above), directory):
            self.files.make_directory(folder)
        for folder in above if durable else ():
            self.files.sync(folder)
        if len(remembered) >= _REMEMBERED_DIRECTORIES:
            remembered.clear()
        remembered.add(directory)


@functools.lru_cache(maxsize=_REMEMBERED_DIRECTORIES)
def _shelf(study_uid: str, series_uid: str) -> str:
    """Where a series lies."""
    return f"{hashlib.sha256(study_uid.encode('ascii')).hexdigest()[:2]}/{study_uid}/{series_uid}"


def data_set_at(head: bytes) -> int:
    """Where the data set begins in a file of the archive that begins so: behind its meta information (PS3.10 7.1)."""
    (length,) = struct.unpack_from("<L", head, _META_AT - 4)
    return int(_META_AT + length)


def digest_at(path: Path) -> str:
    """SHA-256 in hex of the data set in a file of the archive, read from the disk itself where the system can.

    Raises
    ------
    FileNotFoundError, OSError
        There is no such file, or it cannot be read.
    ValueError
        It is not a file of the archive.
    """
    with path.open("rb") as file:
        if hasattr(os, "posix_fadvise"):  # what is still in memory says nothing about the disk
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        head = file.read(_META_AT)
        if len(head) < _META_AT or head[_PREFIX_AT : _PREFIX_AT + 4] != b"DICM":
            raise ValueError("not a file of the archive")
        file.seek(data_set_at(head))
        return hashlib.file_digest(file, "sha256").hexdigest()


def part_10_head(*, transfer_syntax_uid: str, sop_class_uid: str, sop_instance_uid: str, source_ae: str) -> bytes:
    """Preamble, prefix and File Meta Information: what a file has in front of its data set (PS3.10 7.1)."""
    # Not pydicom's writer: it validates, and what is set aside is set aside because it is not valid.
    meta = b"".join(
        (
            struct.pack("<HH2s2xL", 0x0002, 0x0001, b"OB", 2) + b"\0\1",
            _meta_element(0x0002, b"UI", sop_class_uid),
            _meta_element(0x0003, b"UI", sop_instance_uid),
            _meta_element(0x0010, b"UI", transfer_syntax_uid),
            _meta_element(0x0012, b"UI", IMPLEMENTATION_CLASS_UID),
            _meta_element(0x0013, b"SH", IMPLEMENTATION_VERSION_NAME),
            _meta_element(0x0016, b"AE", source_ae),
        )
    )
    return b"\0" * 128 + b"DICM" + struct.pack("<HH2sHL", 0x0002, 0x0000, b"UL", 4, len(meta)) + meta


def _meta_element(element: int, vr: bytes, text: str) -> bytes:
    value = text.encode("ascii", errors="replace")
    if len(value) % 2:
        value += b"\0" if vr == b"UI" else b" "  # PS3.5 6.2: UI is padded with NUL, text with a space
    return struct.pack("<HH2sH", 0x0002, element, vr, len(value)) + value
