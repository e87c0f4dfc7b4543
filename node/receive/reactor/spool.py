"""Where a C-STORE's data set is collected while it arrives: in memory, and beyond a size in a file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Protocol

from node.errors import OutOfResources


class File(Protocol):
    """A file that is being written. What it raises is what the sender is told in the end."""

    def write(self, fragment: memoryview) -> None:
        """The fragment is behind what came before. Raises ``OutOfResources``."""

    def finish(self) -> Any:
        """What the service takes that answers the C-STORE."""

    def discard(self) -> None:
        """Nothing of it is left."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Store:
    """A C-STORE request that is whole: its association, what its context and its command say, and its data set."""

    association: Any
    abstract_syntax_uid: str
    transfer_syntax_uid: str
    sop_class_uid: str
    sop_instance_uid: str
    data: BytesIO


@dataclass(frozen=True, kw_only=True)
class Spool:
    """How data sets are collected, and who takes them.

    Parameters
    ----------
    memory : int
        The bytes of one data set that may lie in memory.
    open : callable
        Opens a `File`; called with ``transfer_syntax_uid``, ``sop_class_uid``, ``sop_instance_uid`` and
        ``calling_ae``, all of them as they came. Raises ``OutOfResources``.
    take : callable, optional
        Answers a `Store`: the status, and an Error Comment (0000,0902) in ASCII or nothing. Raises nothing. Left out,
        pynetdicom is asked, and with it the handler of its EVT_C_STORE.
    """

    memory: int
    open: Callable[..., File]
    take: Callable[[Store], tuple[int, str]] | None = None


class Collected(BytesIO):
    """The bytes of one data set: appended as they arrive, taken once they are complete.

    It is a ``BytesIO`` because pynetdicom takes nothing else for a data set. One for which there is no room is received
    to its end all the same, so that its sender gets an answer.

    Parameters
    ----------
    memory : int
        As in `Spool`.
    open_file : callable
        Opens the file for what is larger.
    """

    def __init__(self, *, memory: int, open_file: Callable[[], File]) -> None:
        super().__init__()
        self._memory = memory
        self._open_file = open_file
        self._file: File | None = None
        self._failure: OutOfResources | None = None

    def append(self, fragment: memoryview) -> None:
        """The fragment stands behind what came before, or is dropped because there is no room."""
        if self._failure is not None:
            return
        if self._file is None and self.tell() + len(fragment) <= self._memory:
            self.write(fragment)
            return
        try:
            if self._file is None:
                self._file = self._open_file()
                self._file.write(self.getbuffer())
                self.seek(0)
                self.truncate()
            self._file.write(fragment)
        except OutOfResources as error:
            self._failure = error
            self.discard()

    def taken(self) -> Any:
        """All bytes: this very object where they are in memory, else what their file finished as, once.

        Raises
        ------
        OutOfResources
            They could not be kept.
        """
        if self._failure is not None:
            raise self._failure
        if self._file is None:
            self.seek(0)
            return self
        file, self._file = self._file, None
        return file.finish()

    def discard(self) -> None:
        """Unless the bytes were taken, no file of them is left."""
        file, self._file = self._file, None
        if file is not None:
            file.discard()

    def __del__(self) -> None:
        self.discard()
