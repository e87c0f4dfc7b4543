"""The journal on a real directory: what is read back after a crash, and what no longer counts."""

from __future__ import annotations

import errno
import hashlib
from pathlib import Path

import pytest

from db.instances import NewInstance
from node.receive.files import Files, Parts, Segment
from node.receive.journal import Entry, Journal
from tests.receiving import a_slice, part_10

SEGMENT_BYTES = 10_000
"""Four of the records below."""


def an_entry(number: int) -> Entry:
    content = part_10(a_slice(number))
    start = 144 + int.from_bytes(content[140:144], "little")
    new = NewInstance(
        sop_instance_uid=f"1.2.{number}",
        sop_class_uid="1.2.840.10008.5.1.4.1.1.2",
        series_uid="1.2",
        study_uid="1",
        transfer_syntax_uid="1.2.840.10008.1.2.1",
        path=f"1/{number}.dcm",
        size=len(content),
        digest=hashlib.sha256(content[start:]).hexdigest(),
        association_id="a",
        calling_ae="CT1",
        facts={"positions": [[0.0, 0.5, number]], "kernel": "Ä"},
        header={"00100010": {"vr": "PN", "Value": [{"Alphabetic": "Doe^Jane"}]}},
    )
    return Entry(instance=new, content=(content,))


def a_journal(folder: Path, files: Files | None = None) -> Journal:
    return Journal(folder=folder, files=files or Files(), segment_bytes=SEGMENT_BYTES, segments=3)


def read_back(folder: Path, *, after: int = 0) -> list[NewInstance]:
    journal = a_journal(folder)
    found = [entry.instance for entry in journal.left_behind(after=after)]
    journal.close()
    return found


def test_what_was_appended_is_read_back_in_order_bytes_and_row(tmp_path: Path) -> None:
    entries = [an_entry(number) for number in range(10)]
    journal = a_journal(tmp_path)
    assert journal.append(entries[:6]) + journal.append(entries[6:]) == [None] * 10
    journal.close()
    journal = a_journal(tmp_path)
    assert [(e.instance, b"".join(e.content)) for e in journal.left_behind(after=0)] == [
        (e.instance, b"".join(e.content)) for e in entries
    ]
    journal.close()


def test_a_damaged_record_ends_its_segment_and_no_other(tmp_path: Path) -> None:
    entries = [an_entry(number) for number in range(8)]
    journal = a_journal(tmp_path)
    journal.append(entries)
    journal.close()
    first = tmp_path / "segment-0"
    content = bytearray(first.read_bytes())
    assert content.count(b"HEMONOD1") > 2
    second_record = content.find(b"HEMONOD1", 1)
    content[content.find(b"HEMONOD1", second_record + 1) - 1] ^= 1  # the last byte of the second record
    first.write_bytes(content)
    in_first = content.count(b"HEMONOD1")
    assert read_back(tmp_path) == [entries[0].instance, *(entry.instance for entry in entries[in_first:])]


def test_a_segment_used_again_forgets_what_it_held(tmp_path: Path) -> None:
    journal = a_journal(tmp_path)
    for number in range(40):
        assert journal.append([an_entry(number)]) == [None]
        journal.settle()
        while journal.full() is not None:
            journal.free()
    journal.close()
    found = [instance.sop_instance_uid for instance in read_back(tmp_path, after=journal.serial - 1)]
    assert found
    assert found == [f"1.2.{number}" for number in range(40 - len(found), 40)]
    assert len(list(tmp_path.glob("segment-*"))) <= 3


class FullDisk(Files):
    """A disk on which a segment cannot grow, or whose flush fails, as often as told."""

    growths = syncs = 1 << 30

    def segment(self, path: Path) -> Segment:
        return FullSegment(path, self)


class FullSegment(Segment):
    def __init__(self, path: Path, disk: FullDisk) -> None:
        super().__init__(path)
        self._disk = disk

    def write(self, parts: Parts, *, at: int) -> None:
        self._disk.growths -= 1
        if self._disk.growths == 0:
            raise OSError(errno.ENOSPC, "no space left on device")
        super().write(parts, at=at)

    def flush(self) -> None:
        self._disk.syncs -= 1
        if self._disk.syncs == 0:
            raise OSError(errno.EIO, "input/output error")
        super().flush()


def test_a_disk_that_is_full_for_one_of_a_group_fails_that_one_alone(tmp_path: Path) -> None:
    disk = FullDisk()
    disk.growths = 2
    journal = a_journal(tmp_path, disk)
    outcomes = journal.append([an_entry(number) for number in range(3)])
    journal.close()
    assert [type(outcome) for outcome in outcomes] == [type(None), OSError, type(None)]
    assert [instance.sop_instance_uid for instance in read_back(tmp_path)] == ["1.2.0", "1.2.2"]


def test_after_a_flush_that_failed_the_next_group_is_written_over_it_and_found(tmp_path: Path) -> None:
    disk = FullDisk()
    disk.syncs = 2
    journal = a_journal(tmp_path, disk)
    assert journal.append([an_entry(0)]) == [None]
    assert [type(outcome) for outcome in journal.append([an_entry(1), an_entry(2)])] == [OSError, OSError]
    assert journal.append([an_entry(3)]) == [None]
    journal.close()
    assert [i.sop_instance_uid for i in read_back(tmp_path)][:2] == ["1.2.0", "1.2.3"]


def test_an_entry_larger_than_a_segment_is_refused_and_its_neighbours_are_not(tmp_path: Path) -> None:
    journal = a_journal(tmp_path)
    large = Entry(instance=an_entry(1).instance, content=(bytes(SEGMENT_BYTES),))
    outcomes = journal.append([an_entry(0), large, an_entry(2)])
    journal.close()
    assert [outcome is None for outcome in outcomes] == [True, False, True]


@pytest.mark.parametrize("content", [b"", b"HEMO", b"\0" * 5000, b"HEMONOD1" + b"\xff" * 200])
def test_a_segment_of_rubbish_holds_nothing(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "segment-0").write_bytes(content)
    assert read_back(tmp_path) == []
