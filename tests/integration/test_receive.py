"""Reception over real sockets, pynetdicom as the scanner: what is stored, what is not, and what the sender is told."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pydicom
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.filereader import read_file_meta_info
from pydicom.misc import is_dicom
from pydicom.sequence import Sequence
from pydicom.uid import (
    UID,
    AllTransferSyntaxes,
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGLosslessSV1,
    RLELossless,
)
from pynetdicom import _config
from pynetdicom.presentation import build_context

from db import audit
from db.engine import Database
from db.states import SetAsideKind
from node.config import Settings
from node.receive.scp import Scp
from tests.receiving import (
    a_receiver,
    a_slice,
    aside,
    associated,
    data_set_of,
    digest_on_disk,
    encoded,
    listening,
    part_10,
    rejection,
    requested,
    send,
    settings_of,
    status_of,
    stored,
)

VERIFICATION = "1.2.840.10008.1.1"
LIMIT_EXCEEDED = (2, 3, 2)
NATIVE = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return settings_of(tmp_path / "data")


@pytest.fixture
def scp(settings: Settings, database: Database) -> Iterator[Scp]:
    with listening(settings, database) as scp:
        yield scp


def compressed(syntax: str) -> Dataset:
    dataset = a_slice(PixelData=encapsulate([b"\xff\xd8" * 50]), SOPInstanceUID=f"1.2.826.0.1.98.{syntax}")
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    return dataset


# ---------------------------------------------------------------------------------------------------- what is taken


def test_data_sets_are_stored_byte_for_byte_in_every_transfer_syntax(
    scp: Scp, database: Database, settings: Settings
) -> None:
    for number, syntax in enumerate(map(str, AllTransferSyntaxes)):
        dataset = a_slice(number) if syntax in NATIVE else compressed(syntax)
        assert send(scp, dataset, syntax=syntax) == [0x0000], syntax
        row = stored(database)[-1]
        assert row.transfer_syntax_uid == syntax
        assert digest_on_disk(settings.archive, row) == row.digest
        file = dcmread(settings.archive / row.path)
        assert (file.file_meta.TransferSyntaxUID, file.SOPInstanceUID) == (syntax, dataset.SOPInstanceUID)
    assert len(stored(database)) == len(AllTransferSyntaxes)


BUNDLED = {
    "test_files/CT_small.dcm": 0x0000,
    "test_files/MR_small_padded.dcm": 0x0000,
    "test_files/JPEG2000-embedded-sequence-delimiter.dcm": 0x0000,
    "test_files/SC_rgb_jpeg_dcmtk.dcm": 0x0000,
    "test_files/SC_rgb_small_odd_big_endian.dcm": 0x0000,
    "test_files/ExplVR_BigEnd.dcm": 0x0000,
    "test_files/image_dfl.dcm": 0x0000,
    "test_files/liver_1frame.dcm": 0x0000,
    "test_files/reportsi_with_empty_number_tags.dcm": 0x0000,
    "test_files/waveform_ecg.dcm": 0x0000,
    "test_files/rtdose_rle.dcm": 0x0000,
    "charset_files/chrH31.dcm": 0x0000,
    "charset_files/chrKoreanMulti.dcm": 0x0000,
    "charset_files/chrArab.dcm": 0x0000,
    "test_files/rtdose.dcm": 0xA900,
    "test_files/MR_truncated.dcm": 0xC000,
    "test_files/rtplan_truncated.dcm": 0xC000,
    "test_files/UN_sequence.dcm": 0xC000,
}


@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
def test_files_of_many_makers_are_stored_byte_for_byte_or_set_aside_for_their_flaw(
    scp: Scp, database: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_config, "STORE_SEND_CHUNKED_DATASET", True)  # the scanner sends the file's own bytes
    files = {name: Path(pydicom.__file__).parent / "data" / name for name in BUNDLED}
    answers = {name: store_file(scp, file) for name, file in files.items()}
    assert answers == BUNDLED
    kept = {hashlib.sha256(data_set_of(path.read_bytes())).hexdigest() for path in settings.archive.rglob("*.dcm")}
    assert kept == {hashlib.sha256(data_set_of(file.read_bytes())).hexdigest() for file in files.values()}
    assert len(aside(database)) == sum(status != 0x0000 for status in BUNDLED.values())


def store_file(scp: Scp, file: Path) -> int:
    """The status of a C-STORE of a file, whose File Meta Information becomes the command."""
    meta = read_file_meta_info(file)
    with associated(scp, build_context(meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID)) as association:
        return int(association.send_c_store(file).Status)


def a_document(sop_class_uid: str) -> Dataset:
    dataset = a_slice(SOPClassUID=sop_class_uid, SOPInstanceUID=f"1.2.826.0.1.96.{sop_class_uid}", PixelData=None)
    item = Dataset()
    item.TextValue = "text"
    dataset.ContentSequence = Sequence([item])
    return dataset


CLASSES = {
    "basic text SR": "1.2.840.10008.5.1.4.1.1.88.11",
    "comprehensive 3D SR": "1.2.840.10008.5.1.4.1.1.88.34",
    "key object selection": "1.2.840.10008.5.1.4.1.1.88.59",
    "segmentation": "1.2.840.10008.5.1.4.1.1.66.4",
    "presentation state": "1.2.840.10008.5.1.4.1.1.11.1",
    "enhanced CT": "1.2.840.10008.5.1.4.1.1.2.1",
    "secondary capture": "1.2.840.10008.5.1.4.1.1.7",
    "encapsulated PDF": "1.2.840.10008.5.1.4.1.1.104.1",
    "retired ultrasound": "1.2.840.10008.5.1.4.1.1.6",
    "private": "1.3.12.2.1107.5.9.1",
}


def test_whatever_a_scanner_a_pacs_or_a_workstation_sends_is_stored(scp: Scp, database: Database) -> None:
    assert send(scp, *map(a_document, CLASSES.values())) == [0x0000] * len(CLASSES)
    assert [row.sop_class_uid for row in stored(database)] == list(CLASSES.values())


def test_what_is_offered_compressed_first_stays_compressed(scp: Scp) -> None:
    offered: list[str | UID] = [JPEGLosslessSV1, ImplicitVRLittleEndian, ExplicitVRLittleEndian]
    native = build_context("1.2.840.10008.5.1.4.1.1.7", [ImplicitVRLittleEndian, ExplicitVRLittleEndian])
    with associated(scp, build_context(CTImageStorage, offered), native) as association:
        agreed = {str(c.abstract_syntax): c.transfer_syntax[0] for c in association.accepted_contexts}
    assert agreed == {
        CTImageStorage: JPEGLosslessSV1,
        "1.2.840.10008.5.1.4.1.1.7": ExplicitVRLittleEndian,
    }


def test_unknown_transfer_syntaxes_and_services_are_refused_one_by_one_with_the_right_reason(scp: Scp) -> None:
    unknown_syntax = build_context(CTImageStorage, "1.2.840.113619.5.2")
    other_service = build_context("1.2.840.10008.5.1.4.31")
    with associated(scp, VERIFICATION, unknown_syntax, other_service) as association:
        refused = {str(context.abstract_syntax): context.result for context in association.rejected_contexts}
        assert refused == {CTImageStorage: 4, "1.2.840.10008.5.1.4.31": 3}
        assert association.send_c_echo().Status == 0x0000


def test_a_hundred_and_twenty_eight_contexts_are_accepted(scp: Scp) -> None:
    contexts = [build_context(f"1.3.6.1.4.1.5962.{i}", RLELossless) for i in range(128)]
    with associated(scp, *contexts) as association:
        assert len(association.accepted_contexts) == 128


def test_verification_between_two_instances_is_answered(scp: Scp) -> None:
    with associated(scp, VERIFICATION, build_context(CTImageStorage, ExplicitVRLittleEndian)) as association:
        assert status_of(association, a_slice(1)) == 0x0000
        assert association.send_c_echo().Status == 0x0000
        assert status_of(association, a_slice(2)) == 0x0000


def test_eight_associations_at_once_lose_nothing(scp: Scp, database: Database, settings: Settings) -> None:
    statuses: list[int] = []

    def scanner(number: int) -> None:
        statuses.extend(send(scp, *(a_slice(number * 100 + i) for i in range(20)), calling=f"CT{number}"))

    threads = [threading.Thread(target=scanner, args=(number,)) for number in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == [0x0000] * 160
    instances = stored(database)
    assert len(instances) == 160
    assert all(digest_on_disk(settings.archive, row) == row.digest for row in instances)
    assert len({row.association_id for row in instances}) == 8


# -------------------------------------------------------------------------------------------- what is not, and why


def test_every_answer_that_is_not_success_has_its_status_and_a_comment_without_patient_data(
    scp: Scp, database: Database
) -> None:
    first, edited = a_slice(1), a_slice(1, PatientName="Other^Name")
    no_study = a_slice(2, StudyInstanceUID=None)
    with associated(scp, build_context(CTImageStorage, ExplicitVRLittleEndian)) as association:

        def answer(dataset: Dataset) -> tuple[int, str]:
            file = dcmread(BytesIO(part_10(dataset)))
            status = association.send_c_store(file)
            return status.Status, status.get("ErrorComment", "")

        assert answer(first) == (0x0000, "")
        assert answer(first) == (0x0000, "")
        assert answer(edited) == (0xB000, "another object with this SOP Instance UID is stored; kept aside")
        assert answer(no_study) == (0xC000, "StudyInstanceUID is missing")
    assert {kept.kind for kept in aside(database)} == {SetAsideKind.CONFLICT, SetAsideKind.UNREADABLE}


@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
def test_mismatching_hostile_and_broken_objects_get_their_status_and_are_kept_apart(
    scp: Scp, database: Database, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_config, "STORE_SEND_CHUNKED_DATASET", True)
    own, hostile = str(a_slice().SOPInstanceUID), "../../../../../tmp/x"
    data = encoded(a_slice())

    def answer(command_uid: str, data: bytes) -> int:
        placeholder = "9" * len(command_uid)
        whole = part_10(a_slice(SOPInstanceUID=placeholder))
        meta = whole[: -len(data_set_of(whole))].replace(placeholder.encode(), command_uid.encode())
        (tmp_path / "sent").write_bytes(meta + data)
        return store_file(scp, tmp_path / "sent")

    assert answer("1.2.3.4", data) == 0xA900
    assert answer(hostile, data) == 0xA900
    assert answer(hostile, data.replace(own.encode(), hostile.encode())) == 0xC000
    assert answer(own, data[:-40]) == 0xC000
    assert answer(own, data[-600:]) == 0xC000
    assert stored(database) == ()
    assert [(settings.archive / kept.path).parent.name for kept in aside(database)] == ["quarantine"] * 5
    assert {path.parent.name for path in tmp_path.rglob("*.dcm")} == {"quarantine"}
    assert len(hostile) == len(own)


def test_below_the_watermark_scanners_are_refused_the_operator_is_told_and_verification_still_works(
    tmp_path: Path, database: Database
) -> None:
    settings = settings_of(tmp_path / "data", disk_watermark_mb=10**9)
    with listening(settings, database) as scp:
        refused = requested(scp, build_context(CTImageStorage, ExplicitVRLittleEndian))
        assert rejection(refused) == LIMIT_EXCEEDED
        with associated(scp) as association:
            assert association.send_c_echo().Status == 0x0000
        assert scp.detail()["accepts_images"] is False
    with database.read() as tx:
        (event,) = audit.latest(tx, limit=9, event="refused_disk_low")
    assert event.detail == {"calling_ae": "CT1", "address": "127.0.0.1"}


def test_an_object_that_would_use_up_the_reserve_gets_out_of_resources(tmp_path: Path, database: Database) -> None:
    with listening(settings_of(tmp_path / "data", disk_reserve_mb=10**9), database) as scp:
        assert send(scp, a_slice()) == [0xA700]
    assert stored(database) == ()
    assert aside(database) == ()


def test_a_database_that_fails_refuses_the_association_as_congestion(scp: Scp, database: Database) -> None:
    with database.write() as tx:
        tx.exec_driver_sql("ALTER TABLE associations RENAME TO gone")
    assert rejection(requested(scp)) == (2, 3, 1)
    with database.write() as tx:
        tx.exec_driver_sql("ALTER TABLE gone RENAME TO associations")
    requested(scp).release()


def test_no_line_of_the_log_holds_patient_data_and_every_line_is_one_event(tmp_path: Path) -> None:
    name = "Zebedee"
    too_long = a_slice(3, PatientName=name, PatientID=name * 20)
    with a_receiver(tmp_path / "data") as receiver:
        send(receiver, a_slice(1, PatientName=name), a_slice(1, PatientName=f"{name}^Else"))
        send(receiver, a_slice(2, PatientName=name, StudyInstanceUID=None), too_long)
    lines = (tmp_path / "log").read_text().splitlines()
    assert any("event=set_aside" in line for line in lines)
    assert all(line.startswith("timestamp=") for line in lines)
    assert not any(name in line for line in lines)


def test_a_real_head_ct_arrives_as_it_was_sent(
    scp: Scp, head_ct: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_config, "STORE_SEND_CHUNKED_DATASET", True)
    files = [path for path in sorted(head_ct.rglob("*")) if path.is_file() and is_dicom(path)]
    assert [store_file(scp, file) for file in files] == [0x0000] * len(files)
    kept = {hashlib.sha256(data_set_of(path.read_bytes())).hexdigest() for path in settings.archive.rglob("*.dcm")}
    assert kept == {hashlib.sha256(data_set_of(file.read_bytes())).hexdigest() for file in files}
