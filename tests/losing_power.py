"""A disk and a database that lose their power: of what was not flushed, any part may be there afterwards, or none.

The model is stricter than any real file system. Names and bytes are separate; each change of a directory survives by
itself, in whatever order; an unflushed file may be empty, cut short, or have zeros where bytes belong; an unflushed
write into a segment survives sector by sector. What was flushed is there.
"""

from __future__ import annotations

import random
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import sqlalchemy as sa

from db.engine import Database
from node.receive.files import Files, Parts, Segment

SECTOR = 512


@dataclass(eq=False)
class _Inode:
    """`durable` is what is surely there; `pending` are writes (offset, bytes) that may be."""

    durable: bytearray = field(default_factory=bytearray)
    pending: list[tuple[int, bytes]] = field(default_factory=list)

    def flush(self) -> None:
        for at, data in self.pending:
            _put(self.durable, at, data)
        self.pending.clear()

    def after_power_loss(self, rng: random.Random) -> bytes:
        found = bytearray(self.durable)
        luck = rng.choice((0.0, 0.5, 0.9, 1.0))
        for at, data in self.pending:
            for start in range(0, len(data), SECTOR):
                if rng.random() < luck:
                    _put(found, at + start, data[start : start + SECTOR])
        return bytes(found)


def _put(into: bytearray, at: int, data: bytes) -> None:
    into.extend(bytes(max(0, at + len(data) - len(into))))
    into[at : at + len(data)] = data


@dataclass(frozen=True, eq=False)
class _Change:
    """One change of a directory: `inode` has the name, or nobody (None), or a directory has it."""

    path: Path
    inode: _Inode | None
    directory: bool = False


class Power:
    """On, until so many operations were done."""

    def __init__(self, operations: float = float("inf")) -> None:
        self.lock = threading.RLock()
        self.left = operations

    @property
    def is_lost(self) -> bool:
        return self.left <= 0

    def spend(self) -> None:
        """One operation. Raises ``OSError`` once there is no power."""
        with self.lock:
            self.left -= 1
            if self.is_lost:
                raise OSError("no power")


class LosingFiles(Files):
    """Real files on a real directory, and a record of what would be left of them."""

    def __init__(self, power: Power) -> None:
        super().__init__()
        self.power = power
        self._inodes: dict[Path, _Inode] = {}
        self._names: dict[Path, _Inode | None] = {}
        self._pending: list[_Change] = []

    def write(self, path: Path, parts: Parts) -> None:
        with self.power.lock:
            self.power.spend()
            super().write(path, parts)
            inode = _Inode(pending=[(0, b"".join(parts))])
            self._inodes[path] = inode
            self._pending.append(_Change(path, inode))

    def place(self, source: Path, destination: Path) -> None:
        with self.power.lock:
            self.power.spend()
            super().place(source, destination)
            inode = self._inodes[destination] = self._inodes.pop(source)
            self._pending += [_Change(destination, inode), _Change(source, None)]

    def make_directory(self, path: Path) -> None:
        with self.power.lock:
            self.power.spend()
            if not path.exists():
                self._pending.append(_Change(path, None, directory=True))
            super().make_directory(path)

    def sync(self, path: Path) -> None:
        with self.power.lock:
            self.power.spend()
            if path.is_dir():
                self._apply([change for change in self._pending if change.path.parent == path])
            elif path in self._inodes:
                self._inodes[path].flush()
            else:  # renamed by another thread
                raise FileNotFoundError(path)

    def sync_all(self, directory: Path) -> None:
        with self.power.lock:
            self.power.spend()
            self._apply(list(self._pending))
            for inode in self._inodes.values():
                inode.flush()

    def segment(self, path: Path) -> Segment:
        with self.power.lock:
            inode = self._inodes.setdefault(path, _Inode())
            self._pending.append(_Change(path, inode))
            segment = _LosingSegment(path, inode, self.power)
            self.sync(path.parent)
            return segment

    def _apply(self, changes: list[_Change]) -> None:
        for change in changes:
            _change(self._names, change)
            self._pending.remove(change)

    def what_is_left(self, *, root: Path, at: Path, rng: random.Random) -> None:
        """The archive as found when power is back, made `at`; the directories made by `Archive.prepare` are there."""
        names = dict(self._names)
        luck = rng.choice((0.0, 0.5, 1.0))
        for change in self._pending:
            if rng.random() < luck:
                _change(names, change)
        for folder in ("incoming", "conflicts", "quarantine"):
            (at / folder).mkdir(parents=True)
        for path in (p for p in root.glob("incoming/*") if p.is_dir()):
            (at / path.relative_to(root)).mkdir()
        for path, inode in sorted(names.items(), key=lambda item: len(item[0].parts)):
            found = at / path.relative_to(root)
            if inode is None:
                found.mkdir(exist_ok=True) if found.parent.is_dir() else None
            elif found.parent.is_dir():
                found.write_bytes(inode.after_power_loss(rng))


def _change(names: dict[Path, _Inode | None], change: _Change) -> None:
    if change.inode is not None or change.directory:
        names[change.path] = change.inode
    else:
        names.pop(change.path, None)


class _LosingSegment(Segment):
    def __init__(self, path: Path, inode: _Inode, power: Power) -> None:
        super().__init__(path)
        self._inode = inode
        self._power = power

    def write(self, parts: Parts, *, at: int) -> None:
        with self._power.lock:
            self._power.spend()
            super().write(parts, at=at)
            self._inode.pending.append((at, b"".join(parts)))

    def flush(self) -> None:
        with self._power.lock:
            self._power.spend()
            self._inode.flush()


class LosingDatabase(Database):
    """A SQLite database of which, after power loss, no more is left than its last durable transaction made sure of."""

    def __init__(self, path: Path, *, left: Path, power: Power) -> None:
        super().__init__(f"sqlite:///{path}")
        self._path, self._left, self._power = path, left, power

    @contextmanager
    def write(self, *, durable: bool = True) -> Iterator[sa.Connection]:
        with super().write(durable=durable) as tx:
            yield tx
            self._power.spend()
        with self._power.lock:
            if durable and not self._power.is_lost:
                self.keep()

    def keep(self) -> None:
        """What stands now is left after power loss."""
        with closing(sqlite3.connect(self._path)) as source, closing(sqlite3.connect(self._left)) as left:
            source.backup(left)
