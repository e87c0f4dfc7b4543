"""A data set too large for memory, on its way into a file: written as it arrives, with its File Meta before it."""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass
from pathlib import Path

from node.errors import OutOfResources
from node.receive.archive import Archive, part_10_head
from node.receive.disk import Disk

CHECKED_BYTES = 8 * 1024 * 1024
"""So much is written between two looks at how full the disk is."""


@dataclass(frozen=True, kw_only=True)
class Spooled:
    """A whole DICOM file on the archive's file system; its data set begins at `start`. Whoever takes it owns it."""

    path: Path
    start: int

    def opened(self) -> mmap.mmap:
        """The file's bytes, as the kernel reads them when they are looked at."""
        with open(self.path, "rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


class Spool:
    """One data set that is arriving.

    Parameters
    ----------
    archive : Archive
        Prepared.
    disk : Disk
        Whether there is room.
    transfer_syntax_uid, sop_class_uid, sop_instance_uid, calling_ae : str
        As in `node.receive.intake.StoreRequest`: all known before the first byte of the data set.
    """

    def __init__(
        self,
        *,
        archive: Archive,
        disk: Disk,
        transfer_syntax_uid: str,
        sop_class_uid: str,
        sop_instance_uid: str,
        calling_ae: str,
    ) -> None:
        self._disk = disk
        self._unchecked = CHECKED_BYTES
        head = part_10_head(
            transfer_syntax_uid=transfer_syntax_uid,
            sop_class_uid=sop_class_uid,
            sop_instance_uid=sop_instance_uid,
            source_ae=calling_ae,
        )
        self._start = len(head)
        try:
            self._path = archive.unfinished()
            self._file = open(self._path, "xb", buffering=0, opener=_private)  # noqa: SIM115 — open across calls
        except OSError as error:
            raise OutOfResources("the archive cannot be written") from error
        try:
            self.write(memoryview(head))
        except OutOfResources:
            self.discard()
            raise

    def write(self, fragment: memoryview) -> None:
        """The fragment is behind what came before.

        Raises
        ------
        OutOfResources
            The disk is below its watermark, or cannot be written: `discard` is all that is left to do.
        """
        self._unchecked += len(fragment)
        if self._unchecked >= CHECKED_BYTES:
            self._unchecked = 0
            if not self._disk.has_room_for(len(fragment)):
                raise OutOfResources("the disk is below its watermark")
        try:
            while len(fragment):
                fragment = fragment[self._file.write(fragment) :]
        except OSError as error:
            raise OutOfResources("the archive cannot be written") from error

    def finish(self) -> Spooled:
        """The data set is whole."""
        self._file.close()
        return Spooled(path=self._path, start=self._start)

    def discard(self) -> None:
        """Nothing of it is left."""
        self._file.close()
        self._path.unlink(missing_ok=True)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o640)
