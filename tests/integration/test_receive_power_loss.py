"""Power fails between any two operations: what was acknowledged is found again, in file and row."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from db import instances
from db.engine import Database
from node.errors import OutOfResources
from node.receive.archive import Archive
from node.receive.disk import Disk
from node.receive.files import Files
from node.receive.intake import Intake, StoreRequest, Taken
from tests.losing_power import LosingDatabase, LosingFiles, Power
from tests.receiving import a_request, a_slice, aside, digest_on_disk, facts, stored

SEGMENT_BYTES = 20_000
"""Half a dozen of the tests' slices, so that segments are filled, freed and used again."""
OPERATIONS = 500
SCANNERS = 4


def an_intake(archive: Archive, database: Database) -> Intake:
    disk = Disk(path=archive.root, watermark=0, reserve=0, free=lambda _: 10**12)
    return Intake(archive=archive, database=database, disk=disk, facts=facts, segment_bytes=SEGMENT_BYTES)


def traffic(rng: random.Random) -> list[StoreRequest]:
    """New slices, some of them twice, some under the UID of another."""
    requests = []
    for number in range(60):
        requests.append(a_request(a_slice(number)))
        if rng.random() < 0.2:
            requests.append(a_request(a_slice(number)))
        if rng.random() < 0.1:
            requests.append(a_request(a_slice(number, PatientName="Somebody^Else")))
    return requests


def acknowledged(intake: Intake, requests: list[StoreRequest]) -> dict[Taken, set[str]]:
    """The digests that senders were told are kept, by what they were told."""
    told: dict[Taken, set[str]] = {taken: set() for taken in Taken}

    def send(request: StoreRequest) -> None:
        try:
            taken = intake.take(request)
        except OutOfResources:
            return
        told[taken].add(digest_of(request))

    with ThreadPoolExecutor(SCANNERS) as scanners:
        list(scanners.map(send, requests))
    return told


def digest_of(request: StoreRequest) -> str:
    import hashlib

    assert not hasattr(request.data, "path")
    return hashlib.sha256(request.data.getbuffer()).hexdigest()  # type: ignore[union-attr]


@pytest.mark.parametrize("seed", range(10))
def test_what_was_acknowledged_before_power_failed_is_there_afterwards(seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    power = Power()
    files = LosingFiles(power)
    database = LosingDatabase(tmp_path / "hemonode.db", left=tmp_path / "left.db", power=power)
    database.upgrade()
    database.keep()
    archive = Archive(root=tmp_path / "archive", files=files)
    archive.prepare()
    intake = an_intake(archive, database)
    requests = traffic(rng)
    power.left = rng.randrange(5, OPERATIONS)
    told = acknowledged(intake, requests)
    assert power.is_lost
    intake.close()
    database.close()

    files.what_is_left(root=archive.root, at=tmp_path / "found", rng=rng)
    found = Archive(root=tmp_path / "found", files=Files())
    found.prepare()
    database = Database(f"sqlite:///{tmp_path / 'left.db'}")
    intake = an_intake(found, database)
    everything_is_there(database, found, told)
    again = acknowledged(intake, requests)
    assert sum(map(len, again.values())) >= len({digest_of(request) for request in requests})
    everything_is_there(database, found, again)
    intake.close()
    database.close()


def everything_is_there(database: Database, archive: Archive, told: dict[Taken, set[str]]) -> None:
    rows, kept = stored(database), aside(database)
    assert all(digest_on_disk(archive.root, row) == row.digest for row in rows)
    assert all(digest_on_disk(archive.root, item) == item.digest for item in kept)
    assert told[Taken.STORED] | told[Taken.KNOWN] <= {row.digest for row in rows}
    assert told[Taken.KEPT_ASIDE] <= {item.digest for item in kept}
    with database.read() as tx:
        assert instances.count(tx) == len(rows)
