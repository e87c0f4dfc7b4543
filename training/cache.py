"""Arrays that are made once and then memory-mapped by every process: decoded volumes, prepared images.

::

    CACHE/3f/3f…e2/hu.npy …     an entry, whole or not there
    CACHE/3f/3f…e2.partial/     being written; removed by the next who makes this entry
    CACHE/locks/3f              held while an entry of 3f is made, so that nobody makes it twice

An entry appears by one rename of a synced folder, and a lock ends with its process: whoever is killed, and whenever,
leaves nothing that could be taken for an entry and nobody waiting.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.study import Arrays

DEFAULT_GB = 200.0
RECOUNT = 0.05
"""The folder's size is counted again when this process alone has added such a share of the limit."""

log = logging.getLogger(__name__)


class VolumeCache:
    """Entries of named arrays under `root`, together not much more than `limit` bytes; the longest unused leave first.

    Several processes may write at once: each may add `RECOUNT` of the limit before it counts what the others added.
    """

    def __init__(self, root: Path, *, limit: int = int(DEFAULT_GB * 1e9)) -> None:
        self.root = root
        self.limit = limit
        self._added = 0
        self._size: int | None = None
        (root / "locks").mkdir(parents=True, exist_ok=True)

    def get(self, key: str, make: Callable[[], Arrays]) -> Arrays:
        """The entry of `key`, memory-mapped read-only, made by `make` where it is not there.

        `make` must not ask the cache itself: it runs while a lock is held that other entries share.
        """
        place = self.root / key[:2] / key
        found = _opened(place)
        if found is None:
            with self._making(key):
                found = _opened(place) or self._put(place, make())
        return found

    def find(self, key: str) -> Arrays | None:
        """The entry of `key`, or None."""
        return _opened(self.root / key[:2] / key)

    def __contains__(self, key: str) -> bool:
        return (self.root / key[:2] / key).is_dir()

    @contextmanager
    def _making(self, key: str) -> Iterator[None]:
        with (self.root / "locks" / key[:2]).open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _put(self, place: Path, arrays: Arrays) -> Arrays:
        partial = place.with_name(f"{place.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        for name, values in arrays.items():
            _write(partial / f"{name}.npy", np.asarray(values))
        partial.rename(place)
        _sync(place.parent)
        self._make_room(_bytes_in(place), keep=place)
        return _opened(place) or arrays

    def _make_room(self, new: int, *, keep: Path) -> None:
        self._added += new
        if self._size is None or self._added > RECOUNT * self.limit or self._size + self._added > self.limit:
            entries = self._entries()
            self._size, self._added = sum(size for _, size, _ in entries), 0
            for _, size, place in sorted(entries):
                if self._size <= self.limit:
                    break
                if place != keep:
                    _remove(place)
                    self._size -= size

    def _entries(self) -> list[tuple[float, int, Path]]:
        """When each was last used, its size, and where it lies."""
        found = []
        for place in self.root.glob("??/*"):
            if not place.suffix and place.is_dir():
                with suppress(FileNotFoundError):  # it left meanwhile
                    found.append((place.stat().st_mtime, _bytes_in(place), place))
        return found


def _opened(place: Path) -> Arrays | None:
    """The arrays, or None where there is no such entry (any more)."""
    try:
        names = sorted(path for path in os.listdir(place) if path.endswith(".npy"))
        arrays = {name.removesuffix(".npy"): np.load(place / name, mmap_mode="r") for name in names}
        now = time.time()
        if now - place.stat().st_mtime > 60:  # when it was last used, to the minute: reading should not write much
            os.utime(place, (now, now))
    except FileNotFoundError:
        return None
    return arrays


def _write(path: Path, values: NDArray[Any]) -> None:
    with path.open("wb") as file:
        np.save(file, np.ascontiguousarray(values), allow_pickle=False)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(place: Path) -> None:
    """Out of sight at once; who has it mapped keeps its pages."""
    gone = place.with_name(f"{place.name}.gone")
    with suppress(OSError):
        place.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def _bytes_in(place: Path) -> int:
    return sum(path.stat().st_size for path in place.iterdir())
