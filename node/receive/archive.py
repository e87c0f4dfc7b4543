"""Where files lie in the archive, and how one becomes durable there.

::

    archive/
        3f/STUDY_UID/SERIES_UID/SOP_INSTANCE_UID-DIGEST.dcm     stored; 3f: the first byte of SHA-256 of the study UID
        conflicts/DIGEST.dcm                                    another object under a UID that is stored already
        quarantine/DIGEST.dcm                                   unreadable, or not what its command said
        incoming/RECEIVER/*.part                                being written; never read by anybody

A file's name holds (the first 16 hex digits of) the digest of its data set. So two different objects never meet at
one path, whatever their UIDs say and however many associations send them at once, and a file that is replaced is
replaced by the same bytes. The database alone decides which of them is the instance.

A receiver that is killed leaves at most a ``.part`` file, removed when it starts again, or a whole file without a row.
The latter was never acknowledged: nobody counts on it, and nothing looks for it. When its sender tries again it gets
the same path, is written once more, and then has its row.
"""

from __future__ import annotations

import hashlib
import os
import re
import struct
from dataclasses import dataclass
from io import BufferedWriter
from pathlib import Path
from uuid import uuid4

from db.states import SetAsideKind

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
    """

    data: memoryview
    digest: str
    transfer_syntax_uid: str
    sop_class_uid: str
    sop_instance_uid: str
    source_ae: str


class Archive:
    """The archive directory, as one receiving process sees it.

    Parameters
    ----------
    root : pathlib.Path
        The archive directory.
    receiver : str
        The name of the receiving process, unlike that of any other that shares the archive.
    """

    def __init__(self, *, root: Path, receiver: str) -> None:
        self.root = root
        self._incoming = root / "incoming" / re.sub(r"[^A-Za-z0-9-]", "-", receiver)
        self._durable: set[Path] = set()

    def prepare(self) -> None:
        """The directories exist, and what a former life of this receiver left half-written is gone."""
        new = [path for path in (self.root, *self.root.parents) if not path.exists()]
        for folder in (self._incoming, *(self.root / name for name in set(_FOLDERS.values()))):
            folder.mkdir(mode=0o750, parents=True, exist_ok=True)
        for path in new:
            _sync_directory(path.parent)
        for leftover in self._incoming.glob("*.part"):
            leftover.unlink(missing_ok=True)

    def store(self, file: NewFile, *, study_uid: str, series_uid: str) -> tuple[str, int]:
        """The file is durable at its place; returns its path relative to the archive and its size in bytes.

        All UIDs must have passed `node.receive.uids.is_uid`. Raises ``OSError``, in which case nothing is left.
        """
        shelf = hashlib.sha256(study_uid.encode("ascii")).hexdigest()[:2]
        name = f"{file.sop_instance_uid}-{file.digest[:16]}.dcm"
        return self._write(file, Path(shelf) / study_uid / series_uid / name)

    def set_aside(self, file: NewFile, *, kind: SetAsideKind) -> tuple[str, int]:
        """The file is durable among those set aside, once however often it comes; returns its path and size."""
        path = Path(_FOLDERS[kind]) / f"{file.digest}.dcm"
        try:
            return path.as_posix(), (self.root / path).stat().st_size
        except FileNotFoundError:
            return self._write(file, path)

    def holds(self, path: str, *, size: int) -> bool:
        """Whether a file of this size lies at `path`."""
        try:
            return (self.root / path).stat().st_size == size
        except FileNotFoundError:
            return False

    def discard(self, path: str) -> None:
        """The file at `path` is gone."""
        (self.root / path).unlink(missing_ok=True)

    def _write(self, file: NewFile, path: Path) -> tuple[str, int]:
        destination = self.root / path
        temporary = self._incoming / f"{uuid4().hex}.part"
        try:
            with open(temporary, "xb", opener=_private) as out:
                size = _write_part_10(out, file)
                out.flush()
                os.fsync(out.fileno())
            self._make_durable(destination.parent)
            os.replace(temporary, destination)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _sync_directory(destination.parent)
        return path.as_posix(), size

    def _make_durable(self, directory: Path) -> None:
        # An existing directory may be another process's, made a moment ago and not yet on the disk: so it counts only
        # once this process has flushed every directory above it.
        if directory in self._durable and directory.is_dir():
            return
        directory.mkdir(mode=0o750, parents=True, exist_ok=True)
        for parent in directory.parents:
            _sync_directory(parent)
            if parent == self.root:
                break
        if len(self._durable) >= _REMEMBERED_DIRECTORIES:
            self._durable.clear()
        self._durable.add(directory)


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
        (length,) = struct.unpack_from("<L", head, _META_AT - 4)
        file.seek(_META_AT + length)
        return hashlib.file_digest(file, "sha256").hexdigest()


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o640)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_part_10(out: BufferedWriter, file: NewFile) -> int:
    # Not pydicom's writer: it validates, and what is set aside is set aside because it is not valid.
    meta = b"".join(
        (
            struct.pack("<HH2s2xL", 0x0002, 0x0001, b"OB", 2) + b"\0\1",
            _meta_element(0x0002, b"UI", file.sop_class_uid),
            _meta_element(0x0003, b"UI", file.sop_instance_uid),
            _meta_element(0x0010, b"UI", file.transfer_syntax_uid),
            _meta_element(0x0012, b"UI", IMPLEMENTATION_CLASS_UID),
            _meta_element(0x0013, b"SH", IMPLEMENTATION_VERSION_NAME),
            _meta_element(0x0016, b"AE", file.source_ae),
        )
    )
    head = b"\0" * 128 + b"DICM" + struct.pack("<HH2sHL", 0x0002, 0x0000, b"UL", 4, len(meta)) + meta
    out.write(head)
    out.write(file.data)
    return len(head) + file.data.nbytes


def _meta_element(element: int, vr: bytes, text: str) -> bytes:
    value = text.encode("ascii", errors="replace")
    if len(value) % 2:
        value += b"\0" if vr == b"UI" else b" "  # PS3.5 6.2: UI is padded with NUL, text with a space
    return struct.pack("<HH2sH", 0x0002, element, vr, len(value)) + value
