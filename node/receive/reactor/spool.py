"""Where a data set is collected while it arrives: in memory, and beyond a size in a file without a name."""

from __future__ import annotations

import errno
import mmap
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import IO

STEP = 16 * 1024 * 1024
"""Bytes written to a file between two questions whether there is room for as many more."""


@dataclass(frozen=True, kw_only=True)
class Spool:
    """How data sets are collected.

    Parameters
    ----------
    folder : pathlib.Path
        Where files are made; on the file system that `has_room` speaks of.
    memory : int
        The bytes of one data set that may lie in memory.
    has_room : callable
        Whether so many bytes more may be written.
    """

    folder: Path
    memory: int
    has_room: Callable[[int], bool]

    def new(self) -> Collected:
        """A place for one data set."""
        return Collected(self)


class Collected(BytesIO):
    """The bytes of one data set: appended as they arrive, read once they are complete.

    It is a ``BytesIO`` because pynetdicom takes nothing else for a data set. One that does not fit is received to its
    end all the same, so that its sender gets an answer: everything that would read it raises the ``OSError`` that kept
    it from being written.
    """

    def __init__(self, spool: Spool) -> None:
        super().__init__()
        self._spool = spool
        self._size = 0
        self._file: IO[bytes] | None = None
        self._mapped: mmap.mmap | None = None
        self._failure: OSError | None = None

    def append(self, fragment: memoryview) -> None:
        """The fragment stands behind what came before."""
        before, self._size = self._size, self._size + len(fragment)
        if self._size <= self._spool.memory:
            self.write(fragment)
        elif self._failure is None:
            try:
                self._append_to_file(fragment, before)
            except OSError as error:
                self._failure = error
                self._forget()

    def complete(self) -> None:
        """Nothing is appended any more, and reading begins at the beginning."""
        if self._file is not None:
            self._file.flush()
            self._mapped = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
            self._forget()
        self.seek(0)

    def _append_to_file(self, fragment: memoryview, before: int) -> None:
        if (self._file is None or before // STEP != self._size // STEP) and not self._spool.has_room(STEP):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if self._file is None:
            self._spool.folder.mkdir(mode=0o750, parents=True, exist_ok=True)
            self._file = tempfile.TemporaryFile(dir=self._spool.folder, buffering=0)  # noqa: SIM115
            self._file.write(super().getbuffer())
            self.seek(0)
            self.truncate()
        if self._file.write(fragment) != len(fragment):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _forget(self) -> None:
        if self._file is not None:
            self._file.close()
        self._file = None

    # Reading: from the file where there is one. The system lends its pages and takes them back when memory is short.

    def getbuffer(self) -> memoryview:
        """All bytes, without a copy."""
        if self._failure is not None:
            raise OSError(self._failure.errno, self._failure.strerror)
        return super().getbuffer() if self._mapped is None else memoryview(self._mapped)

    def read(self, size: int | None = -1, /) -> bytes:
        """As in ``BytesIO``."""
        return super().read(size) if self._mapped is None else self._mapped.read(size)

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """As in ``BytesIO``."""
        if self._mapped is None:
            return super().seek(offset, whence)
        self._mapped.seek(offset, whence)  # type: ignore[arg-type]
        return self._mapped.tell()

    def tell(self) -> int:
        """As in ``BytesIO``."""
        return super().tell() if self._mapped is None else self._mapped.tell()
