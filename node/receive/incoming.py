"""The folder that a running receiver has to itself: its journal, and the files that it is writing.

It is locked as long as the receiver lives (``flock``, which the kernel lets go when a process ends in whatever way). A
folder that is not locked belonged to a receiver that is dead: the next one to start takes it over. So a journal is
found again also where a receiver comes back under another host name, and several receivers may share the archive.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from pathlib import Path
from uuid import uuid4


class Claim:
    """A folder and its lock."""

    def __init__(self, folder: Path, descriptor: int) -> None:
        self.folder = folder
        self._descriptor = descriptor

    def release(self) -> None:
        """Another receiver may have the folder."""
        os.close(self._descriptor)

    def remove(self) -> None:
        """The folder is gone."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.release()


def claims(incoming: Path) -> list[Claim]:
    """Every folder that no running receiver has, at least one: a new one where there is none."""
    free = [claim for folder in sorted(incoming.iterdir()) if folder.is_dir() and (claim := _claim(folder))]
    if free:
        return free
    folder = incoming / uuid4().hex
    folder.mkdir(mode=0o750)
    mine = _claim(folder)
    return [mine] if mine else claims(incoming)  # another receiver that starts just now was faster


def _claim(folder: Path) -> Claim | None:
    lock = folder / "lock"
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o640)  # NFS locks only what is open for writing
    except FileNotFoundError:
        return None
    with contextlib.suppress(BlockingIOError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if lock.exists():  # not removed by the one who had it
            return Claim(folder, descriptor)
    os.close(descriptor)
    return None
