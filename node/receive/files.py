"""The file-system calls that durability rests on, each with what it promises; tests put a failing disk here."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Sequence
from pathlib import Path

GROWTH = 4 * 1024 * 1024
"""Bytes by which a segment is preallocated in its first life, so that little is reserved where little arrives."""
_ZEROS = bytes(GROWTH)
MOST_PARTS = 512
"""Buffers handed to the kernel at once; Linux takes 1024 (``IOV_MAX``)."""

Parts = Sequence[bytes | memoryview]
_libc = ctypes.CDLL(None, use_errno=True)


class Files:
    """Writes files, and flushes them when told to. Nothing else in reception may promise that bytes are on the disk.

    What POSIX promises is all that is relied on: a file's bytes are durable after a flush of the file, its name after
    a flush of the directory; whatever was not flushed may be there after a power failure, in any part and any order.

    Parameters
    ----------
    flush : bool
        False turns every flush into nothing: for test rigs alone.
    """

    def __init__(self, *, flush: bool = True) -> None:
        self.flushes = flush

    def write(self, path: Path, parts: Parts) -> None:
        """A new file holds `parts`, one behind the other. Not durable. Raises ``FileExistsError`` and ``OSError``."""
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o640)
        try:
            _write_all(descriptor, parts, at=0)
        finally:
            os.close(descriptor)

    def place(self, source: Path, destination: Path) -> None:
        """The file has its new name, replacing what had it, at one stroke. Not durable."""
        os.replace(source, destination)

    def make_directory(self, path: Path) -> None:
        """The directory exists; its parent must. Not durable."""
        path.mkdir(mode=0o750, exist_ok=True)

    def sync(self, path: Path) -> None:
        """The bytes of this file, or the names in this directory, survive power loss."""
        if not self.flushes:
            return
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def sync_all(self, directory: Path) -> None:
        """Everything ever written on the file system of `directory` survives power loss (``syncfs``)."""
        if not self.flushes:
            return
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            if _libc.syncfs(descriptor) != 0:
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(directory))
        finally:
            os.close(descriptor)

    def segment(self, path: Path) -> Segment:
        """A preallocated file, made if it is not there; its name is durable."""
        segment = Segment(path)
        self.sync(path.parent)
        return segment


class Segment:
    """A file that is preallocated, written in place and used again: its flush moves bytes and no metadata.

    Preallocated with zeros, because space that is only reserved has to be marked as written when it first is, and that
    makes the flush wait for the file system's own journal as well.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o640)
        self._size = os.fstat(self._descriptor).st_size

    def write(self, parts: Parts, *, at: int) -> None:
        """`parts` lie at `at`, one behind the other. Not durable. Raises ``OSError`` where the disk has no room."""
        end = at + sum(len(part) for part in parts)
        if end > self._size:
            grown = max(end, self._size + GROWTH)
            os.posix_fallocate(self._descriptor, self._size, grown - self._size)
            _write_all(self._descriptor, (memoryview(_ZEROS)[: grown - end],), at=end)
            self._size = grown
        _write_all(self._descriptor, parts, at=at)

    def flush(self) -> None:
        """What was written survives power loss."""
        os.fdatasync(self._descriptor)

    def close(self) -> None:
        """The file is closed."""
        os.close(self._descriptor)


def _write_all(descriptor: int, parts: Parts, *, at: int) -> None:
    views = [memoryview(part).cast("B") for part in parts if len(part)]
    while views:
        written = os.pwritev(descriptor, views[:MOST_PARTS], at)
        if written == 0:
            raise OSError(errno.EIO, "nothing was written")
        at += written
        while views and written >= len(views[0]):
            written -= len(views.pop(0))
        if written:
            views[0] = views[0][written:]
