"""Reception over real sockets: pynetdicom as the scanner, and bare sockets where the far side misbehaves."""

from __future__ import annotations

import gc
import hashlib
import os
import socket
import struct
import threading
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pydicom
import pytest
import sqlalchemy as sa
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
from pynetdicom import _config, evt
from pynetdicom.ae import ApplicationEntity
from pynetdicom.presentation import build_context

from db import associations, audit, schema
from db.engine import Database
from db.states import SetAsideKind
from node.config import Settings
from node.errors import StartError
from node.receive import store
from node.receive.roll import receiver_name
from node.receive.scp import Scp
from node.service import Service
from tests.receiving import (
    a_receiver,
    a_slice,
    aside,
    associated,
    data_set_of,
    digest_on_disk,
    encoded,
    facts,
    listening,
    part_10,
    parts_being_written,
    rejection,
    requested,
    send,
    settings_of,
    status_of,
    stored,
    wait_until,
)

VERIFICATION = "1.2.840.10008.1.1"
LIMIT_EXCEEDED = (2, 3, 2)
ECHO = Service(contexts=((VERIFICATION, (ImplicitVRLittleEndian,)),))
NATIVE = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return settings_of(tmp_path / "data")


@pytest.fixture
def scp(settings: Settings, database: Database) -> Iterator[Scp]:
    with listening(settings, database) as scp:
        yield scp


def rows(database: Database) -> tuple[sa.RowMapping, ...]:
    with database.read() as tx:
        return tuple(tx.execute(sa.select(schema.associations).order_by("started_at")).mappings())


def outcomes(database: Database) -> list[tuple[str | None, str | None]]:
    return [(row.outcome, row.detail) for row in rows(database)]


def threads_of_associations() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if "AcceptorThread" in thread.name]


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
    assert {row.calling_ae for row in rows(database)} == {f"CT{number}" for number in range(1, 9)}


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


# ----------------------------------------------------------------------------------------------- who may associate


def test_strangers_are_rejected_with_the_standards_reasons(tmp_path: Path, database: Database) -> None:
    peers = [
        {"ae_title": "CT1", "addresses": ["127.0.0.0/8"]},
        {"ae_title": "CT2", "addresses": ["192.0.2.0/24"]},
    ]
    with listening(settings_of(tmp_path / "data", peers=peers, trust_loopback=False), database) as scp:
        requested(scp, calling="CT1").release()
        assert rejection(requested(scp, calling="CT2")) == (1, 1, 3)
        assert rejection(requested(scp, calling="NOBODY")) == (1, 1, 3)
        assert rejection(requested(scp, calling="CT1", called="OTHER")) == (1, 1, 7)
        assert [row.calling_ae for row in rows(database)] == ["CT1"]


def test_the_limit_of_one_ae_leaves_room_for_the_others_and_the_limit_of_all_holds(
    tmp_path: Path, database: Database
) -> None:
    settings = settings_of(tmp_path / "data", maximum_associations=3, maximum_associations_per_ae=2)
    with listening(settings, database) as scp:
        first, second = requested(scp, calling="CT1"), requested(scp, calling="CT1")
        assert rejection(requested(scp, calling="CT1")) == LIMIT_EXCEEDED
        third = requested(scp, calling="CT2")
        assert third.is_established
        assert rejection(requested(scp, calling="CT3")) == LIMIT_EXCEEDED
        first.release()
        wait_until(lambda: scp.detail()["associations"] == 2)
        fourth = requested(scp, calling="CT3")
        assert fourth.is_established
        for association in (second, third, fourth):
            association.release()


def test_a_storm_of_requests_never_exceeds_the_limit(tmp_path: Path, database: Database) -> None:
    with listening(settings_of(tmp_path / "data", maximum_associations=5), database) as scp:
        together = threading.Barrier(16)
        asked: list[Any] = []

        def ask() -> None:
            together.wait()
            asked.append(requested(scp))

        threads = [threading.Thread(target=ask) for _ in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sum(association.is_established for association in asked) == 5
        assert {rejection(a) for a in asked if a.is_rejected} == {LIMIT_EXCEEDED}
        for association in asked:
            association.release()


# ------------------------------------------------------------------------------------------- how associations end


def test_every_association_is_recorded_with_its_end(scp: Scp, database: Database) -> None:
    send(scp, a_slice())
    wait_until(lambda: outcomes(database) == [("released", None)])
    (row,) = rows(database)
    assert (row.calling_ae, row.called_ae, row.address) == ("CT1", "HEMONODE", "127.0.0.1")
    assert stored(database)[0].association_id == row.association_id
    requested(scp).abort()
    wait_until(lambda: outcomes(database)[1:] == [("aborted", "aborted by the peer")])


def associate_request() -> bytes:
    """An A-ASSOCIATE-RQ as a scanner would send it, overheard from one."""
    sent: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        scanner = ApplicationEntity("CT1")
        scanner.acse_timeout = 20

        def overhear() -> None:
            connection, _ = listener.accept()
            with connection:
                sent.append(connection.recv(65536))

        thread = threading.Thread(target=overhear)
        thread.start()
        contexts = [build_context(CTImageStorage, ExplicitVRLittleEndian), build_context(VERIFICATION)]
        scanner.associate("127.0.0.1", listener.getsockname()[1], contexts=contexts, ae_title="HEMONODE")
        thread.join()
    return sent[0]


def half_a_store() -> bytes:
    """The beginning of a P-DATA-TF that announces 1000 bytes and breaks off."""
    return struct.pack(">BBLLB", 4, 0, 1000, 996, 1) + b"\0" * 20


@pytest.fixture
def connected(scp: Scp) -> Iterator[socket.socket]:
    """A bare socket on which an association was accepted."""
    with accepted(scp) as connection:
        yield connection


def accepted(scp: Scp) -> socket.socket:
    request = associate_request()
    connection = socket.create_connection(("127.0.0.1", scp.port), timeout=20)
    connection.sendall(request)
    assert connection.recv(1) == b"\x02"
    return connection


def test_a_cable_pulled_in_the_middle_of_an_instance_leaves_an_aborted_association_and_nothing_else(
    scp: Scp, connected: socket.socket, database: Database, settings: Settings
) -> None:
    connected.sendall(half_a_store())
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connected.close()
    wait_until(lambda: outcomes(database) == [("aborted", "the connection broke off")])
    wait_until(lambda: threads_of_associations() == [])
    assert parts_being_written(settings.archive) == []
    assert send(scp, a_slice()) == [0x0000]


def test_an_abort_in_the_middle_of_an_instance_is_recorded_as_the_peers(
    connected: socket.socket, database: Database
) -> None:
    pdv = struct.pack(">LB", 22, 1) + b"\0" * 21
    connected.sendall(struct.pack(">BBL", 4, 0, len(pdv)) + pdv)
    connected.sendall(struct.pack(">BBLBBBB", 7, 0, 4, 0, 0, 0, 0))
    wait_until(lambda: outcomes(database) == [("aborted", "aborted by the peer")])


@pytest.mark.parametrize(
    "said",
    [b"", half_a_store(), half_a_store()[:3]],
    ids=["nothing", "half an instance", "half a PDU header"],
)
def test_a_peer_that_falls_silent_loses_its_association_and_holds_no_thread(
    said: bytes, tmp_path: Path, database: Database
) -> None:
    with listening(settings_of(tmp_path / "data", network_timeout=0.5), database) as scp, accepted(scp) as connection:
        connection.sendall(said)
        wait_until(lambda: [outcome for outcome, _ in outcomes(database)] == ["aborted"])
        wait_until(lambda: threads_of_associations() == [])


def test_connections_that_never_ask_are_closed_when_their_time_is_up(tmp_path: Path, database: Database) -> None:
    with listening(settings_of(tmp_path / "data", acse_timeout=0.5), database) as scp:
        with socket.create_connection(("127.0.0.1", scp.port), timeout=20) as connection:
            assert connection.recv(1) == b""
        wait_until(lambda: threads_of_associations() == [])
        assert rows(database) == ()


@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
def test_health_checks_that_only_connect_leave_no_thread_no_socket_and_no_row(
    reset: bool, scp: Scp, database: Database
) -> None:
    gc.collect()
    gc.disable()  # what is left to the garbage collector has leaked
    try:
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(50):
            connection = socket.create_connection(("127.0.0.1", scp.port), timeout=20)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", reset, 0))
            connection.close()
        wait_until(lambda: threads_of_associations() == [])
        wait_until(lambda: len(os.listdir("/proc/self/fd")) <= before)
    finally:
        gc.enable()
    assert rows(database) == ()
    requested(scp).release()


@pytest.mark.parametrize(
    "noise",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x01\0\0\0\0\x04\0\0\0\0",
        b"\x04\0\0\0\0\0",
        b"\xff" * 64,
        b"\x05\0\0\0\0\4\0\0\0\0",
    ],
)
def test_noise_instead_of_a_request_is_turned_away(noise: bytes, scp: Scp, database: Database) -> None:
    with socket.create_connection(("127.0.0.1", scp.port), timeout=20) as connection:
        connection.sendall(noise)
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(1024):
            pass
    wait_until(lambda: threads_of_associations() == [])
    assert rows(database) == ()
    requested(scp).release()


# ---------------------------------------------------------------------------------------------- starting, stopping


def test_a_port_in_use_is_a_clear_error_and_leaves_the_other_receivers_associations_alone(
    scp: Scp, settings: Settings, database: Database
) -> None:
    association = requested(scp)
    node = settings.node.model_copy(update={"port": scp.port})
    taken = settings.model_copy(update={"node": node})
    second = Scp(settings=taken, database=database, services=[ECHO])
    with pytest.raises(StartError, match=f"127.0.0.1:{scp.port} is in use"):
        second.start()
    assert outcomes(database) == [(None, None)]
    association.release()


def test_an_address_that_is_not_this_machines_is_a_clear_error(settings: Settings, database: Database) -> None:
    node = settings.node.model_copy(update={"address": "192.0.2.1"})
    with pytest.raises(StartError, match=r"cannot listen on 192\.0\.2\.1"):
        Scp(settings=settings.model_copy(update={"node": node}), database=database, services=[ECHO]).start()


def test_what_a_dead_receiver_left_open_stands_as_lost(settings: Settings, database: Database) -> None:
    with database.write() as tx:
        for key, receiver in (("a", receiver_name(settings)), ("b", "elsewhere:104")):
            associations.opened(
                tx, association_id=key, receiver=receiver, calling_ae="CT1", called_ae="HEMONODE", address="192.0.2.7"
            )
    with listening(settings, database):
        assert {row.association_id: row.outcome for row in rows(database)} == {"a": "lost", "b": None}


def test_stopping_lets_a_running_transfer_finish(settings: Settings, database: Database) -> None:
    with listening(settings, database) as scp:
        port = scp.port
        with associated(scp, build_context(CTImageStorage, ExplicitVRLittleEndian)) as association:
            assert status_of(association, a_slice(1)) == 0x0000
            stopping = threading.Thread(target=scp.stop, kwargs={"grace_seconds": 30})
            stopping.start()
            wait_until(lambda: not _answers(port))
            assert status_of(association, a_slice(2)) == 0x0000
        stopping.join()
    assert len(stored(database)) == 2
    assert outcomes(database) == [("released", None)]


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def test_stopping_aborts_who_does_not_finish_within_the_grace(settings: Settings, database: Database) -> None:
    with listening(settings, database) as scp:
        established = requested(scp)
        mute = socket.create_connection(("127.0.0.1", scp.port), timeout=20)
        wait_until(lambda: len(threads_of_associations()) == 2)
        scp.stop(grace_seconds=0.1)
        assert outcomes(database) == [("aborted", "the node stopped")]
        assert threads_of_associations() == []
        wait_until(lambda: established.is_aborted)
        assert mute.recv(1) == b""
        mute.close()


def test_another_service_listens_beside_storage(settings: Settings, database: Database) -> None:
    asked: list[str] = []

    def find(event: evt.Event) -> Iterator[tuple[int, None]]:
        asked.append(event.assoc.requestor.ae_title)
        yield 0x0000, None

    worklist = "1.2.840.10008.5.1.4.31"
    services = [
        store.service(settings=settings, database=database, facts=facts),
        Service(contexts=((worklist, (ExplicitVRLittleEndian,)),), handlers=((evt.EVT_C_FIND, find, []),)),
    ]
    scp = Scp(settings=settings, database=database, services=services)
    scp.start()
    with associated(scp, worklist) as association:
        query = Dataset()
        query.PatientName = "*"
        assert [status.Status for status, _ in association.send_c_find(query, worklist)] == [0x0000]
    scp.stop(grace_seconds=1)
    assert asked == ["CT1"]


def test_two_services_for_one_operation_are_an_error_and_not_a_surprise(settings: Settings, database: Database) -> None:
    twice = [Service(contexts=ECHO.contexts, handlers=((evt.EVT_C_ECHO, lambda _: 0x0000, []),))] * 2
    with pytest.raises(ValueError, match="two services"):
        Scp(settings=settings, database=database, services=twice)


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
