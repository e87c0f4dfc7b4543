"""Files in the archive and room on its disk, on a real directory."""

from __future__ import annotations

import hashlib
from io import BytesIO
from pathlib import Path

import pytest
from pydicom import dcmread

from db.states import SetAsideKind
from node.receive.archive import Archive, NewFile
from node.receive.disk import Disk, free_bytes
from tests.receiving import a_slice, data_set_of, encoded, parts_being_written

STUDY, SERIES = "1.2.3", "1.2.3.4"


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    archive = Archive(root=tmp_path / "archive")
    archive.prepare()
    return archive


def a_file(number: int = 1, *, patient: str = "Doe^Jane") -> NewFile:
    data = encoded(a_slice(number, PatientName=patient))
    return NewFile(
        data=memoryview(data),
        digest=hashlib.sha256(data).hexdigest(),
        transfer_syntax_uid="1.2.840.10008.1.2.1",
        sop_class_uid="1.2.840.10008.5.1.4.1.1.2",
        sop_instance_uid=f"1.2.3.4.{number}",
        source_ae="CT1",
    )


def test_a_stored_file_is_a_dicom_file_that_holds_the_data_set_byte_for_byte(archive: Archive) -> None:
    file = a_file()
    path, size = archive.store(file, study_uid=STUDY, series_uid=SERIES)
    written = (archive.root / path).read_bytes()
    assert len(written) == size
    assert data_set_of(written) == bytes(file.data)
    dataset = dcmread(BytesIO(written))
    assert dataset.InstanceNumber == 1
    assert dataset.file_meta.MediaStorageSOPInstanceUID == "1.2.3.4.1"
    assert dataset.file_meta.SourceApplicationEntityTitle == "CT1"


def test_different_objects_under_one_uid_never_share_a_path(archive: Archive) -> None:
    paths = {archive.store(a_file(patient=name), study_uid=STUDY, series_uid=SERIES)[0] for name in ("A", "B")}
    assert len(paths) == 2


def test_a_file_without_a_row_is_written_again_when_its_object_comes_again(archive: Archive) -> None:
    path, _ = archive.store(a_file(), study_uid=STUDY, series_uid=SERIES)
    whole = (archive.root / path).read_bytes()
    (archive.root / path).write_bytes(whole[:100])
    assert archive.store(a_file(), study_uid=STUDY, series_uid=SERIES)[0] == path
    assert (archive.root / path).read_bytes() == whole


def test_a_series_folder_that_retention_removed_is_made_again(archive: Archive) -> None:
    path, _ = archive.store(a_file(1), study_uid=STUDY, series_uid=SERIES)
    archive.discard(path)
    (archive.root / path).parent.rmdir()
    path, size = archive.store(a_file(2), study_uid=STUDY, series_uid=SERIES)
    assert archive.holds(path, size=size)


def test_a_new_start_clears_its_own_leftovers_and_no_other_receivers(archive: Archive) -> None:
    other = Archive(root=archive.root)
    other.prepare()
    for one in (archive, other):
        (one.folders[0] / "x.part").write_bytes(b"half")
    archive.prepare()
    assert [path.parent for path in parts_being_written(archive.root)] == [other.folders[0]]


def test_a_new_start_takes_over_what_dead_receivers_left_behind(archive: Archive) -> None:
    others = [Archive(root=archive.root) for _ in range(2)]
    for other in others:
        other.prepare()
    left = {other.folders[0] for other in others}
    for other in others:
        other.release()
    new = Archive(root=archive.root)
    new.prepare()
    assert set(new.folders) == left
    assert archive.folders[0] not in left


def test_an_object_set_aside_again_is_kept_once(archive: Archive) -> None:
    kept = {archive.set_aside(a_file(), kind=SetAsideKind.UNREADABLE) for _ in range(3)}
    assert len(kept) == 1
    assert len(list((archive.root / "quarantine").iterdir())) == 1


def test_a_write_that_fails_leaves_nothing_behind(archive: Archive) -> None:
    shelf = archive.root / hashlib.sha256(STUDY.encode()).hexdigest()[:2]
    shelf.mkdir()
    (shelf / STUDY).write_bytes(b"a file where the study's folder belongs")
    before = sorted(archive.root.rglob("*"))
    with pytest.raises(OSError, match=STUDY):
        archive.store(a_file(), study_uid=STUDY, series_uid=SERIES)
    assert sorted(archive.root.rglob("*")) == before


def test_patient_files_are_not_readable_by_every_user(archive: Archive) -> None:
    path, _ = archive.store(a_file(), study_uid=STUDY, series_uid=SERIES)
    assert (archive.root / path).stat().st_mode & 0o007 == 0
    assert (archive.root / path).parent.stat().st_mode & 0o007 == 0


def test_below_the_watermark_nothing_is_taken_and_no_object_may_reach_into_the_reserve(tmp_path: Path) -> None:
    def disk(free: int) -> Disk:
        return Disk(path=tmp_path, watermark=1000, reserve=300, free=lambda _: free)

    assert disk(999).is_low()
    assert not disk(999).has_room_for(1)
    assert not disk(1000).is_low()
    assert disk(1000).has_room_for(700)
    assert not disk(1000).has_room_for(701)


def test_free_bytes_are_the_file_systems(tmp_path: Path) -> None:
    assert free_bytes(tmp_path) > 0
    assert free_bytes(tmp_path / "not" / "yet" / "there") > 0
