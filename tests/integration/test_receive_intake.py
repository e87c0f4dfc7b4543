"""From request to durable file and row, with a real directory and a real database."""

from __future__ import annotations

import errno
import random
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
import structlog
from pydicom import dcmread
from pydicom.dataset import Dataset

from db import audit, studies
from db.engine import Database
from db.states import SetAsideKind
from node.errors import CannotUnderstand, DataSetMismatch, OutOfResources
from node.log import configure
from node.receive.archive import Archive
from node.receive.disk import Disk
from node.receive.files import Files, Parts
from node.receive.intake import Intake, StoreRequest, Taken
from tests.receiving import a_request, a_slice, aside, digest_on_disk, encoded, facts, parts_being_written, stored

PLENTY = 10**12


@pytest.fixture
def database(either_database: Database) -> Database:
    return either_database


@pytest.fixture
def told() -> Iterator[Callable[[], str]]:
    """What has been logged."""
    stream = StringIO()
    configure(level="info", part="receive", stream=stream)
    yield stream.getvalue
    structlog.reset_defaults()


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Database]:
    """A second database, without a row."""
    database = Database(f"sqlite:///{tmp_path / 'fresh.db'}")
    database.upgrade()
    yield database
    database.close()


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    archive = Archive(root=tmp_path / "archive")
    archive.prepare()
    return archive


@pytest.fixture
def intake(archive: Archive, database: Database) -> Iterator[Intake]:
    intake = an_intake(archive, database)
    yield intake
    intake.close()


def an_intake(archive: Archive, database: Database, *, free: int = PLENTY, **options: Any) -> Intake:
    disk = Disk(path=archive.root, watermark=1000, reserve=0, free=lambda _: free)
    return Intake(archive=archive, database=database, disk=disk, facts=facts, **options)


def events(database: Database, name: str) -> list[dict[str, Any]]:
    with database.read() as tx:
        return [event.detail for event in audit.latest(tx, limit=100, event=name)]


def test_an_instance_taken_has_its_file_its_row_and_its_study(
    intake: Intake, archive: Archive, database: Database
) -> None:
    assert intake.take(a_request(a_slice(3))) is Taken.STORED
    (row,) = stored(database)
    assert digest_on_disk(archive.root, row) == row.digest
    assert row.size == (archive.root / row.path).stat().st_size
    assert row.facts == {"rows": 16, "pixels_seen": False}
    with database.read() as tx:
        study = studies.find(tx, row.study_uid)
    assert study is not None
    assert study.header["00100010"]["Value"] == [{"Alphabetic": "Doe^Jane"}]
    assert parts_being_written(archive.root) == []


def test_the_same_object_again_changes_nothing(intake: Intake, archive: Archive, database: Database) -> None:
    intake.take(a_request(a_slice()))
    before = sorted(archive.root.rglob("*.dcm"))
    assert intake.take(a_request(a_slice(), association_id="a2")) is Taken.KNOWN
    assert sorted(archive.root.rglob("*.dcm")) == before
    assert [row.association_id for row in stored(database)] == ["a1"]


def test_another_object_under_a_known_uid_is_kept_aside_once_and_shown(
    intake: Intake, archive: Archive, database: Database
) -> None:
    intake.take(a_request(a_slice()))
    for _ in range(3):
        assert intake.take(a_request(a_slice(PatientName="Somebody^Else"))) is Taken.KEPT_ASIDE
    (row,) = stored(database)
    assert dcmread(archive.root / row.path).PatientName == "Doe^Jane"
    (kept,) = aside(database)
    assert (kept.kind, kept.status) == (SetAsideKind.CONFLICT, 0xB000)
    assert dcmread(archive.root / kept.path).PatientName == "Somebody^Else"
    assert digest_on_disk(archive.root, kept) == kept.digest
    assert len(list((archive.root / "conflicts").iterdir())) == 1
    assert [detail["kind"] for detail in events(database, "set_aside")] == ["conflict"]


def test_an_object_that_is_not_what_its_command_says_is_kept_as_a_mismatch(
    intake: Intake, archive: Archive, database: Database
) -> None:
    with pytest.raises(DataSetMismatch, match="another SOP Instance UID"):
        intake.take(a_request(a_slice(1), sop_instance_uid="1.2.3"))
    other = "1.2.840.10008.5.1.4.1.1.4"
    with pytest.raises(DataSetMismatch, match="another SOP Class UID"):
        intake.take(a_request(a_slice(2), sop_class_uid=other, abstract_syntax_uid=other))
    with pytest.raises(DataSetMismatch, match="presentation context"):
        intake.take(a_request(a_slice(3), abstract_syntax_uid=other))
    assert stored(database) == ()
    assert [(kept.kind, kept.status) for kept in aside(database)] == [(SetAsideKind.MISMATCH, 0xA900)] * 3
    assert all(digest_on_disk(archive.root, kept) == kept.digest for kept in aside(database))


def test_an_unreadable_object_is_kept_once_however_often_it_is_sent(
    intake: Intake, archive: Archive, database: Database
) -> None:
    for _ in range(3):
        with pytest.raises(CannotUnderstand, match="breaks off"):
            intake.take(a_request(a_slice(), data=encoded(a_slice())[:-5]))
    (kept,) = aside(database)
    assert (kept.kind, kept.status, kept.sop_instance_uid) == (
        SetAsideKind.UNREADABLE,
        0xC000,
        a_slice().SOPInstanceUID,
    )
    assert digest_on_disk(archive.root, kept) == kept.digest


@pytest.mark.parametrize("hostile", ["../../etc/passwd", "..", "/etc/passwd", "Doe^Jane", "1.2\0.3"])
def test_what_is_not_a_uid_never_becomes_a_path_or_a_column(
    hostile: str, intake: Intake, archive: Archive, database: Database, tmp_path: Path
) -> None:
    before = set(tmp_path.rglob("*"))
    data = encoded(a_slice(SOPInstanceUID="1" * 16)).replace(b"1" * 16, hostile.encode().ljust(16, b"\0")[:16])
    for _ in range(2):
        with pytest.raises(CannotUnderstand):
            intake.take(a_request(a_slice(), sop_instance_uid=hostile, data=data))
    (kept,) = aside(database)
    assert kept.sop_instance_uid is None
    new = {path for path in set(tmp_path.rglob("*")) - before if path.is_file()}
    assert {path.relative_to(archive.root).as_posix() for path in new if archive.root in path.parents} == {kept.path}
    assert kept.path == f"quarantine/{kept.digest}.dcm"


def test_below_the_watermark_nothing_is_kept_and_the_answer_is_out_of_resources(
    archive: Archive, database: Database
) -> None:
    with pytest.raises(OutOfResources, match="watermark"):
        an_intake(archive, database, free=999).take(a_request(a_slice()))
    assert stored(database) == ()
    assert list(archive.root.rglob("*.dcm")) == []


def test_a_disk_that_fails_is_out_of_resources_and_the_next_try_succeeds(
    intake: Intake, archive: Archive, database: Database
) -> None:
    incoming = archive.root / "incoming"
    incoming.rename(archive.root / "away")
    with pytest.raises(OutOfResources, match="archive cannot be written"):
        intake.take(a_request(a_slice()))
    (archive.root / "away").rename(incoming)
    assert intake.take(a_request(a_slice())) is Taken.STORED


def test_a_database_that_fails_is_out_of_resources_and_the_file_left_behind_is_adopted_by_the_next_try(
    intake: Intake, archive: Archive, database: Database
) -> None:
    with database.write() as tx:
        tx.execute(sa.text("ALTER TABLE studies RENAME TO gone"))
    with pytest.raises(OutOfResources, match="database cannot be written"):
        intake.take(a_request(a_slice()))
    orphans = list(archive.root.rglob("*.dcm"))
    assert len(orphans) == 1
    with database.write() as tx:
        tx.execute(sa.text("ALTER TABLE gone RENAME TO studies"))
    assert intake.take(a_request(a_slice())) is Taken.STORED
    assert [archive.root / row.path for row in stored(database)] == orphans


def test_a_file_that_went_missing_is_restored_when_its_object_comes_again(
    intake: Intake, archive: Archive, database: Database
) -> None:
    intake.take(a_request(a_slice()))
    (row,) = stored(database)
    archive.discard(row.path)
    assert intake.take(a_request(a_slice())) is Taken.KNOWN
    assert digest_on_disk(archive.root, row) == row.digest


def test_many_objects_under_one_uid_at_once_leave_one_instance_and_the_others_aside(
    intake: Intake, archive: Archive, database: Database
) -> None:
    names = [f"Name{i}" for i in range(8)] * 2
    together = threading.Barrier(len(names))
    taken: list[Taken] = []

    def send(name: str) -> None:
        request = a_request(a_slice(PatientName=name))
        together.wait()
        taken.append(intake.take(request))

    threads = [threading.Thread(target=send, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (row,) = stored(database)
    kept = aside(database)
    assert taken.count(Taken.STORED) == 1
    assert digest_on_disk(archive.root, row) == row.digest
    assert [digest_on_disk(archive.root, item) for item in kept] == [item.digest for item in kept]
    assert len({row.digest, *(item.digest for item in kept)}) == 8
    assert len(kept) == 7
    assert len(list(archive.root.rglob("*.dcm"))) == 8
    assert parts_being_written(archive.root) == []


def test_sixty_four_associations_at_once_keep_everything_once(archive: Archive, database: Database) -> None:
    """New ones, the same one twice, and another under a known UID: whichever of them share a group."""
    intake = an_intake(archive, database, segment_bytes=50_000)
    new = [a_request(a_slice(number), association_id=f"a{number}") for number in range(200)]
    again = [a_request(a_slice(number)) for number in range(0, 200, 4)]
    others = [a_request(a_slice(number, PatientName="Somebody^Else")) for number in range(0, 200, 10)]
    requests = [*new, *again, *others]
    random.Random(1).shuffle(requests)
    with ThreadPoolExecutor(64) as associations:
        taken = Counter(associations.map(intake.take, requests))
    intake.close()
    rows, kept = stored(database), aside(database)
    # Of two objects under one UID that arrive together either may be the instance; a second copy of the other one is
    # then set aside as well, once.
    assert len(rows) == len({row.sop_instance_uid for row in rows}) == 200
    assert taken[Taken.STORED] == 200
    assert len(kept) == len({item.digest for item in kept}) == 20
    assert taken[Taken.KNOWN] + taken[Taken.KEPT_ASIDE] == 70
    assert all(digest_on_disk(archive.root, row) == row.digest for row in (*rows, *kept))
    assert set(archive.root.rglob("*.dcm")) == {archive.root / row.path for row in (*rows, *kept)}
    assert len(events(database, "first_instance")) == 1


class FullForSome(Files):
    """A disk that has no room for some of the files."""

    def write(self, path: Path, parts: Parts) -> None:
        if any(b"No^Room" in bytes(part) for part in parts):
            raise OSError(errno.ENOSPC, "no space left on device")
        super().write(path, parts)


def test_a_disk_without_room_for_one_object_fails_that_one_and_not_those_beside_it(
    tmp_path: Path, database: Database
) -> None:
    archive = Archive(root=tmp_path / "archive", files=FullForSome())
    archive.prepare()
    intake = an_intake(archive, database)

    def outcome(number: int) -> bool:
        name = "No^Room" if number % 5 == 0 else "Doe^Jane"
        try:
            return intake.take(a_request(a_slice(number, PatientName=name))) is Taken.STORED
        except OutOfResources:
            return False

    with ThreadPoolExecutor(16) as associations:
        assert list(associations.map(outcome, range(40))) == [number % 5 != 0 for number in range(40)]
    intake.close()
    assert len(stored(database)) == 32
    assert parts_being_written(archive.root) == []


class ForgetfulDisk(Files):
    """A disk whose writes failed after they were promised: the kernel tells once, and then no more."""

    told = False

    def sync_all(self, directory: Path) -> None:
        if not self.told:
            self.told = True
            for path in directory.rglob("*.dcm"):
                path.write_bytes(b"")
            raise OSError(errno.EIO, "input/output error")
        super().sync_all(directory)


def test_files_that_the_disk_lost_in_the_background_are_written_again_from_the_journal(
    tmp_path: Path, database: Database
) -> None:
    archive = Archive(root=tmp_path / "archive", files=ForgetfulDisk())
    archive.prepare()
    intake = an_intake(archive, database)
    for number in range(5):
        intake.take(a_request(a_slice(number)))
    intake.close()
    assert [digest_on_disk(archive.root, row) for row in stored(database)] == [r.digest for r in stored(database)]


def spooled(intake: Intake, dataset: Dataset) -> StoreRequest:
    """The request of a data set that arrived in pieces, too large for memory."""
    request = a_request(dataset)
    spool = intake.spool(
        transfer_syntax_uid=request.transfer_syntax_uid,
        sop_class_uid=request.sop_class_uid,
        sop_instance_uid=request.sop_instance_uid,
        calling_ae=request.calling_ae,
    )
    data = memoryview(encoded(dataset))
    for start in range(0, len(data), 300):
        spool.write(data[start : start + 300])
    return a_request(dataset, data=spool.finish())


def test_a_data_set_that_was_spooled_is_taken_like_any_other_and_its_file_not_written_twice(
    intake: Intake, archive: Archive, database: Database
) -> None:
    assert intake.take(spooled(intake, a_slice(1))) is Taken.STORED
    assert intake.take(a_request(a_slice(1))) is Taken.KNOWN
    assert intake.take(spooled(intake, a_slice(1))) is Taken.KNOWN
    assert intake.take(spooled(intake, a_slice(1, PatientName="Somebody^Else"))) is Taken.KEPT_ASIDE
    with pytest.raises(CannotUnderstand):
        intake.take(spooled(intake, a_slice(2, StudyInstanceUID=None)))
    (row,) = stored(database)
    assert digest_on_disk(archive.root, row) == row.digest
    assert dcmread(archive.root / row.path).PatientName == "Doe^Jane"
    assert [digest_on_disk(archive.root, item) for item in aside(database)] == [i.digest for i in aside(database)]
    assert len(aside(database)) == 2
    assert parts_being_written(archive.root) == []


def test_a_spool_stops_at_the_watermark_and_leaves_nothing(archive: Archive, database: Database) -> None:
    intake = an_intake(archive, database, free=999)
    with pytest.raises(OutOfResources, match="watermark"):
        spooled(intake, a_slice())
    intake.close()
    assert parts_being_written(archive.root) == []


def test_an_object_too_large_for_the_journal_is_taken_all_the_same(
    intake: Intake, archive: Archive, database: Database
) -> None:
    large = a_slice(PixelData=bytes(3 * 1024 * 1024))
    assert intake.take(a_request(large)) is Taken.STORED
    (row,) = stored(database)
    assert digest_on_disk(archive.root, row) == row.digest


def test_without_flushing_everything_is_kept_but_nothing_is_promised_and_the_log_says_so(
    archive: Archive, database: Database, told: Callable[[], str]
) -> None:
    intake = an_intake(archive, database, flush=False)
    assert "NOT_DURABLE" in told()
    assert intake.take(a_request(a_slice())) is Taken.STORED
    assert intake.take(a_request(a_slice())) is Taken.KNOWN
    intake.close()
    assert len(stored(database)) == 1
    assert list(archive.root.glob("incoming/*/segment-*")) == []


def test_after_a_stop_in_good_order_the_next_start_repeats_nothing(
    archive: Archive, database: Database, told: Callable[[], str]
) -> None:
    intake = an_intake(archive, database)
    intake.take(a_request(a_slice()))
    intake.close()
    with pytest.raises(OutOfResources):
        intake.take(a_request(a_slice(2)))
    archive.prepare()
    an_intake(archive, database).close()
    assert "recovered" not in told()


@pytest.mark.parametrize("flush", [True, False])
def test_a_journal_is_enough_to_make_files_and_rows_of(
    flush: bool, intake: Intake, archive: Archive, fresh: Database, tmp_path: Path
) -> None:
    """As on another machine, with no file and no row left; also where flushing was switched off in the meantime."""
    for number in range(20):
        assert intake.take(a_request(a_slice(number))) is Taken.STORED
    found = Archive(root=tmp_path / "found", files=Files(flush=flush))
    shutil.copytree(archive.root / "incoming", found.root / "incoming")
    found.prepare()
    an_intake(found, fresh, flush=flush).close()
    assert len(stored(fresh)) == 20
    assert all(digest_on_disk(found.root, row) == row.digest for row in stored(fresh))
