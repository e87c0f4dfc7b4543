"""kill -9 while instances arrive: whatever was acknowledged is there, and the next life goes on."""

from __future__ import annotations

import random
import threading
from pathlib import Path

import pytest
import sqlalchemy as sa
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from pynetdicom.presentation import build_context

from db import schema
from db.engine import Database
from tests.receiving import (
    a_receiver,
    a_slice,
    aside,
    digest_on_disk,
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
