"""How full the archive's disk may become: a watermark for what arrives, a reserve for what goes out."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from node.config import Settings

MEGABYTE = 1024 * 1024


def free_bytes(path: Path) -> int:
    """The bytes that an unprivileged program may still write on the file system where `path` is or will be."""
    for place in (path, *path.absolute().parents):
        with contextlib.suppress(FileNotFoundError):
            return shutil.disk_usage(place).free
    raise FileNotFoundError(path)


@dataclass(frozen=True, kw_only=True)
class Disk:
    """The file system of the archive and how much of it reception leaves alone.

    Reception stops first, everything else goes on. Below `watermark` no association that could store is accepted and
    no instance is taken; results, reports and flags, which are small, never ask this class and may use what is left,
    down to nothing. `reserve` closes the remaining hole: an object larger than the room above the watermark would
    pass the first test and then fill the disk, so no object may leave less than `reserve` behind it.

    Nothing but the journal (at most 256 MB) is preallocated: the reserve is kept from reception, not from other
    programs on the same file system. Objects being written at this moment are not counted, so reception can overshoot
    by what its associations hold in flight, one object each.

    Parameters
    ----------
    path : pathlib.Path
        A directory on that file system.
    watermark, reserve : int
        Bytes.
    free : callable
        How the free bytes are found out.
    """

    path: Path
    watermark: int
    reserve: int
    free: Callable[[Path], int] = free_bytes

    @classmethod
    def of(cls, settings: Settings) -> Disk:
        """The disk of the configured archive, with the configured limits."""
        receive = settings.receive
        return cls(
            path=settings.archive,
            watermark=receive.disk_watermark_mb * MEGABYTE,
            reserve=receive.disk_reserve_mb * MEGABYTE,
        )

    def is_low(self) -> bool:
        """Whether less than the watermark is free."""
        return self.free(self.path) < self.watermark

    def has_room_for(self, size: int) -> bool:
        """Whether an object of `size` bytes may be written now."""
        free = self.free(self.path)
        return free >= self.watermark and free - size >= self.reserve
