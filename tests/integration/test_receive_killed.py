"""kill -9 while instances arrive, at random and before each operation: what was acknowledged is there, life goes on."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import threading
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import sqlalchemy as sa
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from pynetdicom.presentation import build_context

from db import schema
from db.engine import Database
from node.receive.archive import Archive
from node.receive.disk import Disk
from node.receive.files import Files, Parts
from node.receive.intake import Intake, Taken
from tests.receiving import (
    a_receiver,
    a_request,
    a_slice,
    aside,
    digest_on_disk,
    facts,
    parts_being_written,
    send,
    settings_of,
    status_of,
    stored,
    wait_until,
)
from tests.receiving import requested as request_association

SCANNERS, SLICES = 4, 60


def slices_of(scanner: int) -> list[Dataset]:
    return [a_slice(scanner * 1000 + number) for number in range(SLICES)]


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_kill_9_under_load_loses_nothing_that_was_acknowledged(seed: int, tmp_path: Path) -> None:
    settings = settings_of(tmp_path / "data")
    acknowledged: list[str] = []
    deadly = random.Random(seed).randrange(5, SCANNERS * SLICES // 2)

    with a_receiver(settings.node.data) as receiver:

        def scanner(number: int) -> None:
            association = request_association(receiver, build_context(CTImageStorage, ExplicitVRLittleEndian))
            for dataset in slices_of(number):
                try:
                    if status_of(association, dataset) == 0x0000:
                        acknowledged.append(str(dataset.SOPInstanceUID))
                except (RuntimeError, AttributeError):
                    return  # the node is gone: no association, or an answer without a status

        threads = [threading.Thread(target=scanner, args=(number,)) for number in range(SCANNERS)]
        for thread in threads:
            thread.start()
        wait_until(lambda: len(acknowledged) >= deadly)
        receiver.process.kill()
        receiver.process.wait()
        for thread in threads:
            thread.join()
    assert deadly <= len(acknowledged) < SCANNERS * SLICES

    database = Database(settings.database_url)
    everything_acknowledged_is_there(database, settings.archive, acknowledged)
    with a_receiver(settings.node.data) as receiver:
        assert parts_being_written(settings.archive) == []
        with database.read() as tx:
            ends = list(tx.execute(sa.select(schema.associations.c.outcome)).scalars())
        assert ends == ["lost"] * SCANNERS
        for number in range(SCANNERS):
            assert send(receiver, *slices_of(number)) == [0x0000] * SLICES
    rows = stored(database)
    everything_acknowledged_is_there(database, settings.archive, [row.sop_instance_uid for row in rows])
    assert len(rows) == SCANNERS * SLICES
    assert aside(database) == ()
    assert {settings.archive / row.path for row in rows} == set(settings.archive.rglob("*.dcm"))
    database.close()


def everything_acknowledged_is_there(database: Database, archive: Path, acknowledged: list[str]) -> None:
    rows = {row.sop_instance_uid: row for row in stored(database)}
    assert set(acknowledged) <= set(rows)
    for uid in acknowledged:
        assert digest_on_disk(archive, rows[uid]) == rows[uid].digest
        assert (archive / rows[uid].path).stat().st_size == rows[uid].size


class DeadlyFiles(Files):
    """A disk before whose operation number `deadly` the process is killed."""

    def __init__(self, deadly: int) -> None:
        super().__init__()
        self.deadly = deadly

    def _step(self) -> None:
        self.deadly -= 1
        if self.deadly == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def write(self, path: Path, parts: Parts) -> None:
        self._step()
        super().write(path, parts)

    def make_directory(self, path: Path) -> None:
        self._step()
        super().make_directory(path)

    def place(self, source: Path, destination: Path) -> None:
        self._step()
        super().place(source, destination)

    def sync(self, path: Path) -> None:
        self._step()
        super().sync(path)

    def sync_all(self, directory: Path) -> None:
        self._step()
        super().sync_all(directory)


def an_intake(archive: Archive, database: Database) -> Intake:
    disk = Disk(path=archive.root, watermark=0, reserve=0)
    return Intake(archive=archive, database=database, disk=disk, facts=facts, segment_bytes=10_000)


def take_until_killed(root: str, url: str, deadly: int, pipe: Connection) -> None:
    """A receiver's life: takes slices, some under the UID of another, and tells what it acknowledged."""
    files = DeadlyFiles(1 << 30)
    archive = Archive(root=Path(root), files=files)
    archive.prepare()
    intake = an_intake(archive, Database(url))
    files.deadly = deadly
    for number in range(15):
        other = {"PatientName": "Somebody^Else"} if number % 3 == 0 else {}
        for request in (a_request(a_slice(number)), a_request(a_slice(number, **other))):
            pipe.send((intake.take(request), str(request.sop_instance_uid)))


@pytest.mark.parametrize("deadly", [1, 4, 8, 11, 40])
def test_killed_before_any_operation_of_the_disk_what_was_acknowledged_is_there(deadly: int, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'hemonode.db'}"
    database = Database(url)
    database.upgrade()
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(
        target=take_until_killed, args=(str(tmp_path / "archive"), url, deadly, theirs)
    )
    process.start()
    theirs.close()
    told: list[tuple[Taken, str]] = []
    try:
        while True:
            told.append(ours.recv())
    except EOFError:
        process.join()
    assert process.exitcode == -signal.SIGKILL
    archive = Archive(root=tmp_path / "archive")
    archive.prepare()
    intake = an_intake(archive, database)
    everything_acknowledged_is_there(database, archive.root, [uid for taken, uid in told if taken is Taken.STORED])
    set_aside = {item.sop_instance_uid for item in aside(database)}
    assert {uid for taken, uid in told if taken is Taken.KEPT_ASIDE} <= set_aside
    assert parts_being_written(archive.root) == []
    for number in range(15):
        assert intake.take(a_request(a_slice(number))) in (Taken.STORED, Taken.KNOWN)
    intake.close()
    assert {archive.root / row.path for row in (*stored(database), *aside(database))} >= set(
        archive.root.glob("*/*/*/*.dcm")
    )
    database.close()
