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
import math
import mmap
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from training.errors import TrainingError
from training.study import Arrays

DEFAULT_GB = 200.0
RECOUNT = 0.05
"""The folder's size is counted again when this process alone has added such a share of the limit."""

T = TypeVar("T")

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

        Raises
        ------
        TrainingError
            The entry cannot be written: the disk is full, say. Nothing of it is left.
        """
        place = self.root / key[:2] / key
        found = _opened(place)
        if found is None:
            with self._making(key):
                found = _opened(place) or self._put(place, make())
        return found

    def find(self, key: str) -> Arrays | None:
        """The entry of `key`, or None; of its arrays those are mapped that are asked for (see `Entry` and `insist`)."""
        return _found(self.root / key[:2] / key)

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
        try:
            partial.mkdir(parents=True)
            for name, values in arrays.items():
                _write(partial / f"{name}.npy", np.asarray(values))
            partial.rename(place)
            _sync(place.parent)
        except OSError as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise TrainingError(f"the cache {self.root} cannot be written: {error}") from error
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


class Entry(Mapping[str, NDArray[Any]]):
    """The arrays of an entry, each memory-mapped read-only when it is asked for; whoever has one keeps its pages.

    Raises ``Gone`` where the entry has left the cache meanwhile.
    """

    def __init__(self, place: Path) -> None:
        self._place = str(place)
        self._names = frozenset(name[: -len(".npy")] for name in os.listdir(place) if name.endswith(".npy"))

    def __getitem__(self, name: str) -> NDArray[Any]:
        if name not in self._names:
            raise KeyError(name)
        try:
            return _mapped(f"{self._place}/{name}.npy")
        except FileNotFoundError as error:
            raise Gone(self._place) from error

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._names))

    def __len__(self) -> int:
        return len(self._names)


class Gone(LookupError):
    """An entry left the cache between being found and being read."""


def insist(look: Callable[[], T]) -> T:
    """What `look` finds in an entry that it opens; done again where the entry left the cache in between."""
    for _ in range(8):
        with suppress(Gone):
            return look()
    return look()


def _mapped(path: str) -> NDArray[Any]:
    """The array in a file of `numpy.save`, memory-mapped: as ``numpy.load`` does, in a tenth of its time."""
    with open(path, "rb") as file:
        header = _header(path)
        if not math.prod(header.shape):
            return np.empty(header.shape, header.dtype)
        pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return np.ndarray(header.shape, header.dtype, pages, header.offset)


class _Header(NamedTuple):
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    offset: int


@lru_cache(maxsize=1 << 20)
def _header(path: str) -> _Header:
    """What stands before the numbers. A path's never changes: it holds the digest of what its numbers come from."""
    with open(path, "rb") as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
        return _Header(shape, dtype, file.tell())


def _opened(place: Path) -> Arrays | None:
    """The arrays, all mapped, or None where there is no such entry (any more)."""
    try:
        return dict(_found(place) or {}) or None
    except Gone:
        return None


def _found(place: Path) -> Entry | None:
    try:
        now, used = time.time(), os.stat(place).st_mtime
        if now - used > 60:  # when it was last used, to the minute: reading should not write much
            os.utime(place, (now, now))
        return Entry(place)
    except FileNotFoundError:
        return None


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
