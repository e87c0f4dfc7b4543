"""From a written file to an instance that survives power loss: the journal's flush, the row, and later both without it.

========================  ==========================================================================================
what is flushed           what it makes durable
========================  ==========================================================================================
journal, ``fdatasync``    the bytes and the rows of a whole group: before `0x0000`, once for all who wait
file system, ``syncfs``   the files of a full segment, in the background
database commit           its rows, in the background (SQLite); with every group (PostgreSQL, which may be elsewhere
                          and fail alone)
========================  ==========================================================================================

Killed between any two lines: the files and rows are with the kernel, the journal repeats what lacks. Without power:
whatever lacks of a file or row is in the journal, for a segment is only overwritten after the last two flushes.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Sequence

from sqlalchemy.exc import DataError, SQLAlchemyError

from db import instances, journals
from db.engine import Database
from db.instances import Instance
from node.log import log
from node.receive.archive import Archive
from node.receive.group import Group
from node.receive.journal import SEGMENT_BYTES, SEGMENTS, Entry, Journal

MOST_AT_ONCE = 64
LARGEST_JOURNALLED = 2 * 1024 * 1024
"""Bytes. A larger object is flushed as a file: its flush then costs little beside its bytes. 64 of these, which is the
largest group, fill half of the journal."""
SETTLE_SECONDS = 10.0
"""After so long a quiet segment is freed as well, so that little is repeated after a crash."""
TEND_SECONDS = 0.5
REPLAYED_AT_ONCE = 16

Conflict = Callable[[Entry, Instance], None]
"""Sets an entry aside, durably, because another object stands under its SOP Instance UID."""


class Keeper:
    """Keeps instances; may be used by any number of threads.

    Parameters
    ----------
    archive : Archive
        Prepared; its files are the instances.
    database : Database
        Holds their rows.
    conflict : callable
        What is done, after a crash, with an object that was never acknowledged and whose UID another one has.
    flush : bool
        False: neither journal nor flush, for test rigs alone.
    segment_bytes : int
        See `Journal`.
    """

    def __init__(
        self,
        *,
        archive: Archive,
        database: Database,
        conflict: Conflict,
        flush: bool = True,
        segment_bytes: int = SEGMENT_BYTES,
    ) -> None:
        self._archive = archive
        self._database = database
        self._group: Group[Entry, Instance | None] = Group(self._commit, most=MOST_AT_ONCE)
        self._turn = threading.Lock()
        self._stopped = threading.Event()
        self._journal: Journal | None = None
        self._tender: threading.Thread | None = None
        for folder in reversed(archive.folders):
            journal = Journal(folder=folder, files=archive.files, segment_bytes=segment_bytes, segments=SEGMENTS)
            self._recover(journal, folder.name, conflict)
            if folder is not archive.folders[0]:
                journal.close()
                archive.leave(folder)
        if not flush:
            log().warning("NOT_DURABLE", why="[receive] flush = false: a power failure loses acknowledged images")
            journal.close()
            return
        self._journal = journal
        self._tender = threading.Thread(target=self._tend, args=(journal,), name="journal", daemon=True)
        self._tender.start()

    def keep(self, entry: Entry) -> Instance | None:
        """The instance survives power loss, bytes and row; its file is written already.

        Returns
        -------
        Instance or None
            None when its row was added; the row that was there before when its SOP Instance UID was known.

        Raises
        ------
        OSError, sqlalchemy.exc.SQLAlchemyError
            It may or may not be kept; nobody may be told that it is.
        """
        return self._group.join(entry)

    def close(self) -> None:
        """Everything kept is durable without the journal, as far as disk and database allow."""
        self._stopped.set()
        if self._tender is not None:
            self._tender.join()
        with self._turn:
            if self._journal is not None:
                self._journal.retire(older_than=0)
                self._freed(self._journal)
                self._journal.close()
        self._archive.release()

    def _commit(self, entries: Sequence[Entry]) -> list[Instance | Exception | None]:
        with self._turn:
            if self._stopped.is_set():
                raise OSError(errno.ESHUTDOWN, "nothing is kept any more")
            failed: list[OSError | None] = [None] * len(entries)
            if self._journal is not None:
                failed = self._journal.append(entries)
            try:
                return self._with_rows(entries, failed)
            finally:
                if self._journal is not None:
                    self._journal.settle()

    def _with_rows(
        self, entries: Sequence[Entry], failed: Sequence[OSError | None]
    ) -> list[Instance | Exception | None]:
        written = [entry for entry, error in zip(entries, failed, strict=True) if error is None]
        rows = iter(self._rows(written) if written else ())
        return [error if error is not None else next(rows) for error in failed]

    def _rows(self, entries: Sequence[Entry]) -> list[Instance | Exception | None]:
        try:
            with self._database.write(durable=False) as tx:
                return list(instances.add_all(tx, [entry.instance for entry in entries]))
        except DataError as error:
            # One row that the database cannot hold must not fail its neighbours.
            return [error] if len(entries) == 1 else [row for entry in entries for row in self._rows([entry])]

    def _tend(self, journal: Journal) -> None:
        while not self._stopped.is_set():
            journal.wait_until_full(TEND_SECONDS)
            # Whoever commits may be waiting for a segment to be freed: then there is nothing to retire.
            if self._turn.acquire(blocking=False):
                try:
                    journal.retire(older_than=SETTLE_SECONDS)
                finally:
                    self._turn.release()
            if not self._freed(journal):
                self._stopped.wait(TEND_SECONDS)

    def _freed(self, journal: Journal) -> bool:
        """Whether every full segment could be freed."""
        try:
            while (serial := journal.full()) is not None:
                self._make_files_durable(journal)
                self._mark(self._archive.folders[0].name, serial)
                journal.free()
        except (OSError, SQLAlchemyError) as error:
            log().error("journal_not_freed", error=type(error).__name__)
            return False
        return True

    def _make_files_durable(self, journal: Journal) -> None:
        try:
            self._archive.files.sync_all(self._archive.root)
        except OSError as error:
            # The kernel tells of a failed write once, and forgets the bytes: they are written again, each flushed.
            log().error("files_not_flushed", error=type(error).__name__)
            for entry in journal.entries_of_full():
                if entry.content:
                    self._archive.restore(entry.instance.path, entry.content)

    def _mark(self, name: str, serial: int) -> None:
        with self._database.write() as tx:
            journals.mark(tx, name=name, serial=serial)

    def _recover(self, journal: Journal, name: str, conflict: Conflict) -> None:
        with self._database.read() as tx:
            marked = journals.serial_of(tx, name)
        found = restored = added = 0
        batch: list[Entry] = []
        for entry in journal.left_behind(after=marked):
            found += 1
            restored += self._restored(entry)
            batch.append(entry)
            if len(batch) == REPLAYED_AT_ONCE:
                added += self._replay(batch, conflict)
                batch = []
        added += self._replay(batch, conflict)
        if found:
            self._archive.files.sync_all(self._archive.root)
            if self._archive.files.flushes:
                self._mark(name, journal.serial)
            log().warning("recovered", instances=found, files_written=restored, rows_added=added)
        journal.begin(after=marked)

    def _restored(self, entry: Entry) -> bool:
        if not entry.content or self._archive.holds_exactly(entry.instance.path, entry.content):
            return False
        self._archive.restore(entry.instance.path, entry.content)
        return True

    def _replay(self, entries: Sequence[Entry], conflict: Conflict) -> int:
        if not entries:
            return 0
        with self._database.write() as tx:
            known = instances.add_all(tx, [entry.instance for entry in entries])
        for entry, row in zip(entries, known, strict=True):
            if row is not None and row.digest != entry.instance.digest:
                conflict(entry, row)
        return sum(row is None for row in known)
