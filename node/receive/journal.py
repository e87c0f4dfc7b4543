"""The journal: instances in a few preallocated files, self-describing, so that one flush makes many of them durable.

A receiver writes each instance twice. First here, where a single ``fdatasync`` makes the bytes and what the index says
of them durable for all associations that wait. Then into its own file and its row, without any flush. Once both have
become durable in bulk (`node.receive.keeping`), the segment that held it is free to be overwritten. After a crash,
what the segments hold is written to files and rows again, which changes nothing where they are there.

A segment is a run of records that share its serial number::

    magic · serial · offset · lengths of text and content · SHA-256 of all that and of the text     68 bytes
    text       the row: `db.instances.NewInstance` in JSON, with the SHA-256 of the data set
    content    the file, to the byte; empty where the file was made durable by itself

A record counts if its offset is its place, its sums are right and its serial is that of the segment's first record. So
the first that does not count ends the segment: it was never flushed whole, and nobody was told otherwise.
"""

from __future__ import annotations

import datetime as dt
import errno
import hashlib
import json
import mmap
import struct
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from db.instances import NewInstance
from node.receive.archive import data_set_at
from node.receive.files import Files, Parts, Segment

SEGMENT_BYTES = 64 * 1024 * 1024
SEGMENTS = 4
ROOM_SECONDS = 30.0
"""How long an instance waits for a free segment before its sender is told to try again later."""

_MAGIC = b"HEMONOD1"
_FIELDS = struct.Struct("<8sQQLQ")
_HEADER_BYTES = _FIELDS.size + hashlib.sha256().digest_size


@dataclass(frozen=True, kw_only=True)
class Entry:
    """An instance with its whole file. `content` is empty where the file is durable by itself."""

    instance: NewInstance
    content: Parts


@dataclass(kw_only=True, eq=False)
class _Run:
    """A segment in use: `end` is where the next record goes, `since` (monotonic seconds) when it began."""

    file: Segment
    serial: int
    end: int = 0
    since: float = field(default_factory=time.monotonic)


class Journal:
    """The journal of one receiver. `append`, `settle` and `retire` are called by one thread at a time.

    Parameters
    ----------
    folder : pathlib.Path
        Where the segments lie; nobody else writes there.
    files : Files
        The disk.
    segment_bytes, segments : int
        How large a segment becomes, and how many there are at most.
    """

    def __init__(
        self, *, folder: Path, files: Files, segment_bytes: int = SEGMENT_BYTES, segments: int = SEGMENTS
    ) -> None:
        self._folder = folder
        self._files = files
        self._bytes = segment_bytes
        self._most = segments
        self._changed = threading.Condition()
        self._current: _Run | None = None
        self._filled: list[_Run] = []
        self._full: deque[_Run] = deque()
        self._paths = sorted(folder.glob("segment-*"))
        self._free = [files.segment(path) for path in self._paths]
        self._made = len(self._free)
        self.serial = max((first for path in self._paths if (first := _first_serial(path))), default=0)

    def left_behind(self, *, after: int) -> Iterator[Entry]:
        """Every record of a former life, of segments whose serial is greater than `after`, in the order written."""
        runs = {serial: path for path in self._paths if (serial := _first_serial(path)) > after}
        for serial in sorted(runs):
            yield from _records(runs[serial], serial)

    def begin(self, *, after: int) -> None:
        """What is written from now on has greater serials than `after` and than all that was left behind."""
        self.serial = max(self.serial, after)

    def append(self, entries: Sequence[Entry]) -> list[OSError | None]:
        """The entries are durable, after one flush, but for those of which an error is returned."""
        outcomes: list[OSError | None] = [None] * len(entries)
        began: dict[_Run, int] = {}
        placed: dict[_Run, list[int]] = {}
        for number, entry in enumerate(entries):
            text = _text(entry.instance)
            try:
                run = self._with_room(_HEADER_BYTES + len(text) + _length(entry.content))
                end = _write(run, text, entry.content)
            except OSError as error:
                outcomes[number] = error
            else:
                began.setdefault(run, run.end)
                placed.setdefault(run, []).append(number)
                run.end = end
        for run, start in began.items():
            try:
                run.file.flush()
            except OSError as error:
                # The kernel forgets what it failed to write. The next records are written over these.
                run.end = start
                for number in placed[run]:
                    outcomes[number] = error
        return outcomes

    def settle(self) -> None:
        """The rows of everything appended are in: segments that became full may be freed by and by."""
        if not self._filled:
            return
        with self._changed:
            self._full.extend(self._filled)
            self._filled.clear()
            self._changed.notify_all()

    def retire(self, *, older_than: float) -> None:
        """The segment in use counts as full if it holds something and began so many seconds ago."""
        run = self._current
        if run is not None and run.end and time.monotonic() - run.since >= older_than:
            self._current = None
            self._filled.append(run)
            self.settle()

    def wait_until_full(self, seconds: float) -> None:
        """Some segment is full, or so much time has passed."""
        with self._changed:
            self._changed.wait_for(lambda: bool(self._full), seconds)

    def full(self) -> int | None:
        """The serial of the oldest full segment."""
        with self._changed:
            return self._full[0].serial if self._full else None

    def entries_of_full(self) -> Iterator[Entry]:
        """What the oldest full segment holds."""
        run = self._full[0]
        yield from _records(run.file.path, run.serial, end=run.end)

    def free(self) -> None:
        """Files and rows of the oldest full segment are durable without it: it may be overwritten."""
        with self._changed:
            self._free.append(self._full.popleft().file)
            self._changed.notify_all()

    def close(self) -> None:
        """The segments are closed."""
        runs = [*self._filled, *self._full, *([self._current] if self._current else [])]
        for segment in (*self._free, *(run.file for run in runs)):
            segment.close()

    def _with_room(self, size: int) -> _Run:
        if size > self._bytes:
            raise OSError(errno.EFBIG, "larger than a segment of the journal")
        if self._current is not None and self._current.end + size <= self._bytes:
            return self._current
        if self._current is not None:
            self._filled.append(self._current)
            self._current = None
        self._current = _Run(file=self._free_segment(), serial=self.serial + 1)
        self.serial += 1
        return self._current

    def _free_segment(self) -> Segment:
        with self._changed:
            if not self._free and self._made < self._most:
                self._free.append(self._files.segment(self._folder / f"segment-{self._made}"))
                self._made += 1
            if not self._changed.wait_for(lambda: bool(self._free), ROOM_SECONDS):
                raise OSError(errno.ENOSPC, "the journal is full: the archive or the database is not keeping up")
            return self._free.pop()  # the one used last is the one in the kernel's memory


def _length(parts: Parts) -> int:
    return sum(len(part) for part in parts)


def _write(run: _Run, text: bytes, content: Parts) -> int:
    """Where the record ends that was written at the end of the run."""
    fields = _FIELDS.pack(_MAGIC, run.serial, run.end, len(text), _length(content))
    parts = [fields, hashlib.sha256(fields + text).digest(), text, *content]
    run.file.write(parts, at=run.end)
    return run.end + _length(parts)


def _text(instance: NewInstance) -> bytes:
    return json.dumps({**vars(instance), "received_at": instance.received_at.isoformat()}).encode()


def _instance(text: bytes) -> NewInstance:
    values = json.loads(text)
    return NewInstance(**{**values, "received_at": dt.datetime.fromisoformat(values["received_at"])})


def _first_serial(path: Path) -> int:
    """The serial of the segment's first record; 0 where there is none."""
    with open(path, "rb") as file:
        head = file.read(_FIELDS.size)
    if len(head) < _FIELDS.size:
        return 0
    magic, serial, *_ = _FIELDS.unpack(head)
    return int(serial) if magic == _MAGIC else 0


def _records(path: Path, serial: int, *, end: int | None = None) -> Iterator[Entry]:
    """The records of one run that count, up to `end`."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        at, end = 0, len(data) if end is None else end
        while at + _HEADER_BYTES <= end:
            fields = data[at : at + _FIELDS.size]
            magic, found, place, text_length, length = _FIELDS.unpack(fields)
            text_at = at + _HEADER_BYTES
            content_at = text_at + text_length
            if (magic, found, place) != (_MAGIC, serial, at) or content_at + length > end:
                return
            text = data[text_at:content_at]
            if hashlib.sha256(fields + text).digest() != data[at + _FIELDS.size : text_at]:
                return
            instance, content = _instance(text), data[content_at : content_at + length]
            if content and not _is_whole(instance, content):
                return
            yield Entry(instance=instance, content=(content,) if content else ())
            at = content_at + length


def _is_whole(instance: NewInstance, content: bytes) -> bool:
    """Whether the file's data set has the digest that the row says; the meta information is before it (PS3.10 7.1)."""
    return hashlib.sha256(memoryview(content)[data_set_at(content) :]).hexdigest() == instance.digest
