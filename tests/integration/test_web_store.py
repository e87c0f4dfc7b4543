"""STOW-RS over real sockets: durable before it is answered, one intake with C-STORE, every failure with its reason."""

from __future__ import annotations

import hashlib
import re
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from db import associations
from db.engine import Database
from tests.receiving import (
    a_slice,
    aside,
    data_set_of,
    digest_on_disk,
    encoded,
    listening,
    part_10,
    parts_being_written,
    send,
    settings_of,
    stored,
    wait_until,
)
from tests.web_node import ANY, MULTIPART, Web, body, parts_of, web_node

STUDY = "1.2.826.0.1.99.1"


@pytest.fixture
def web(tmp_path: Path, database: Database) -> Iterator[Web]:
    with web_node(tmp_path, database) as node:
        yield node


def reasons(answer: object, sequence: str = "00081198") -> list[int]:
    content = answer.json()  # type: ignore[attr-defined]
    return [item["00081197"]["Value"][0] for item in content.get(sequence, {"Value": []})["Value"]]


def test_what_dicomweb_client_stores_is_in_the_archive_byte_for_byte(tmp_path: Path, database: Database) -> None:
    with web_node(tmp_path, database, url="https://pacs.example") as web:
        slices = [dcmread(BytesIO(part_10(a_slice(n)))) for n in (1, 2, 3)]
        told = web.client().store_instances(slices)
        assert [item.ReferencedSOPInstanceUID for item in told.ReferencedSOPSequence] == [
            dataset.SOPInstanceUID for dataset in slices
        ]
        assert told.RetrieveURL == f"https://pacs.example/dicom-web/studies/{STUDY}"
        rows = stored(database)
        assert [row.digest for row in rows] == [hashlib.sha256(encoded(dataset)).hexdigest() for dataset in slices]
        assert [digest_on_disk(web.archive, row) for row in rows] == [row.digest for row in rows]


def test_a_request_is_an_association_that_is_released_when_its_body_is_whole(web: Web, database: Database) -> None:
    web.holds(a_slice(1), a_slice(2))
    with database.read() as tx:
        (sender,) = associations.of_study(tx, STUDY)
    assert (sender.calling_ae, sender.address, sender.outcome) == ("STOW-RS", "127.0.0.1", "released")


def test_a_body_that_breaks_off_leaves_what_was_whole_and_an_association_that_was_aborted(
    web: Web, database: Database
) -> None:
    sent = body(part_10(a_slice(1)), part_10(a_slice(2)))[:-200]
    with socket.create_connection(("127.0.0.1", web.port)) as connection:
        head = (
            f"POST /dicom-web/studies HTTP/1.1\r\nHost: a\r\nContent-Type: {MULTIPART}\r\nContent-Length: 99999\r\n\r\n"
        )
        connection.sendall(head.encode() + sent)
        wait_until(lambda: len(stored(database)) == 1)

    def ended() -> str | None:
        with database.read() as tx:
            return associations.of_study(tx, STUDY)[0].outcome

    assert wait_until(ended) == "aborted"
    assert len(stored(database)) == 1
    assert parts_being_written(web.archive) == []


def test_a_truncated_body_and_one_without_boundary_are_bad_requests(web: Web) -> None:
    half = body(part_10(a_slice()))[:-10]
    assert web.http.post("/studies", content=half, headers={"Content-Type": MULTIPART}).status_code == 400
    assert web.http.post("/studies", content=b"no", headers={"Content-Type": MULTIPART}).status_code == 400
    headers = {"Content-Type": 'multipart/related; type="application/dicom"'}
    assert web.http.post("/studies", content=b"", headers=headers).status_code == 400
    assert web.http.post("/studies", content=body(), headers={"Content-Type": MULTIPART}).status_code == 400


@pytest.mark.parametrize("kind", ["application/dicom+json", "application/json", 'multipart/related; type="text/x"'])
def test_another_content_type_is_not_supported(web: Web, kind: str) -> None:
    assert web.http.post("/studies", content=b"x", headers={"Content-Type": kind}).status_code == 415


def test_who_accepts_only_xml_is_told_so_before_anything_is_stored(web: Web, database: Database) -> None:
    headers = {"Content-Type": MULTIPART, "Accept": "application/dicom+xml"}
    assert web.http.post("/studies", content=body(part_10(a_slice())), headers=headers).status_code == 406
    assert stored(database) == ()


def test_an_object_of_another_study_than_the_address_names_is_refused(web: Web, database: Database) -> None:
    good, bad = a_slice(1), a_slice(2, StudyInstanceUID="1.2.3")
    answer = web.stow(part_10(good), part_10(bad), study=STUDY)
    assert (answer.status_code, reasons(answer)) == (202, [0xA900])
    assert web.stow(part_10(bad), study=STUDY).status_code == 409
    assert [row.sop_instance_uid for row in stored(database)] == [str(good.SOPInstanceUID)]


def test_another_object_under_a_known_uid_is_kept_aside_with_the_warning_of_c_store(
    web: Web, database: Database
) -> None:
    web.holds(a_slice())
    web.holds(a_slice())  # the same once more is nothing new
    answer = web.stow(part_10(a_slice(PatientName="Other")))
    item = answer.json()["00081199"]["Value"][0]
    assert (answer.status_code, item["00081196"]["Value"]) == (202, [0xB000])
    assert [row.status for row in aside(database)] == [0xB000]


def test_each_failure_has_the_reason_that_c_store_or_the_standard_gives_it(web: Web, database: Database) -> None:
    assert reasons(web.stow(part_10(a_slice(StudyInstanceUID=None)))) == [0xC000]
    assert reasons(web.stow(part_10(a_slice())[:-100])) == [0xC000]
    assert reasons(web.stow(part_10(a_slice(SOPClassUID="1.2.840.10008.1.3.10")))) == [0x0122]
    mismatch = part_10(a_slice()).replace(str(CTImageStorage).encode(), b"1.2.840.10008.5.1.4.1.1.4", 1)
    assert reasons(web.stow(mismatch)) == [0xA900]
    unknown = part_10(a_slice()).replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.9.9.9\0", 1)
    assert reasons(web.stow(unknown)) == [0xC122]
    answer = web.stow(b"not DICOM at all" * 100)
    assert (answer.status_code, reasons(answer, "0008119A")) == (409, [0xC000])
    assert stored(database) == ()


def test_a_large_object_goes_to_the_disk_as_it_arrives(tmp_path: Path, database: Database) -> None:
    large = a_slice(Rows=1024, Columns=1024, PixelData=bytes(range(256)) * 8192)
    with web_node(tmp_path, database, receive={"spool_above_mb": 1}) as web:
        web.holds(large)
        (row,) = stored(database)
        assert row.digest == hashlib.sha256(encoded(large)).hexdigest() == digest_on_disk(web.archive, row)
        assert parts_being_written(web.archive) == []


def test_below_the_watermark_the_client_is_told_to_come_back(tmp_path: Path, database: Database) -> None:
    with web_node(tmp_path, database, receive={"disk_watermark_mb": 1 << 40}) as web:
        answer = web.stow(part_10(a_slice()))
        assert answer.status_code == 503
        assert int(answer.headers["Retry-After"]) > 0
    assert stored(database) == ()


def test_what_came_by_c_store_leaves_by_wado_byte_for_byte(tmp_path: Path, database: Database) -> None:
    dataset = a_slice()
    with listening(settings_of(tmp_path), database) as scp:
        assert send(scp, dataset, syntax=ImplicitVRLittleEndian) == [0x0000]
    with web_node(tmp_path, database) as web:
        ((_, file),) = parts_of(web.http.get(f"/studies/{STUDY}", headers={"Accept": ANY}))
    assert data_set_of(file) == encoded(dataset, ImplicitVRLittleEndian)


def test_no_patient_is_named_in_the_log(web: Web, capfd: pytest.CaptureFixture[str]) -> None:
    web.stow(part_10(a_slice(PatientName="Secret^Name")), part_10(a_slice(2, PatientName="Secret^Name"))[:-50])
    web.http.get("/studies", params={"PatientName": "Secret^Name"})
    web.http.get("/studies", params={"Secret^Name": "x"})
    said = "".join(capfd.readouterr())
    assert not re.search("secret", said, re.IGNORECASE)


def test_every_sender_at_once_is_answered_on_either_database(tmp_path: Path, either_database: Database) -> None:
    with web_node(tmp_path, either_database) as web:

        def sent(number: int) -> int:
            return web.stow(*(part_10(a_slice(number * 10 + n)) for n in range(3))).status_code

        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(sent, range(1, 9))) == [200] * 8
        assert len(web.http.get(f"/studies/{STUDY}/instances").json()) == 24
    assert {row.transfer_syntax_uid for row in stored(either_database)} == {str(ExplicitVRLittleEndian)}
