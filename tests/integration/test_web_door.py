"""Who gets in over HTTP, by what way, and what is heard of failures."""

from __future__ import annotations

import hashlib
import socket
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from db.engine import Database
from inference.facts import facts
from node.errors import StartError
from node.web.server import WebServer, tokens_in
from tests.receiving import a_slice, part_10, settings_of, stored, wait_until
from tests.web_node import MULTIPART, body, web_node

TOKEN = "correct horse battery staple"  # noqa: S105


@pytest.fixture
def tokens_file(tmp_path: Path) -> Path:
    file = tmp_path / "tokens"
    file.write_text(f"# the viewer\n{hashlib.sha256(TOKEN.encode()).hexdigest()}  # since May\n\n")
    return file


def bearing(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def test_without_the_right_token_nothing_is_answered(tmp_path: Path, database: Database, tokens_file: Path) -> None:
    with web_node(tmp_path, database, tokens_file=tokens_file, subscribers=["VIEWER"]) as web:
        for headers in ({}, bearing("wrong"), {"Authorization": f"Basic {TOKEN}"}):
            answer = web.http.get("/studies", headers=headers)
            assert (answer.status_code, answer.headers["WWW-Authenticate"]) == (401, "Bearer")
        assert web.http.get("/nowhere").status_code == 401
        assert web.http.get("/studies", headers=bearing(TOKEN)).status_code == 204
        address = f"ws://127.0.0.1:{web.port}/dicom-web/subscribers/VIEWER"
        with pytest.raises(InvalidStatus, match="403"), connect(address, proxy=None):
            pass
        with connect(address, proxy=None, additional_headers=bearing(TOKEN)) as channel:
            channel.ping()


@pytest.mark.parametrize("content", ["", "# nothing\n", "abc\n", f"{TOKEN}\n"])
def test_a_file_that_holds_no_digests_opens_no_door(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokens").write_text(content)
    with pytest.raises(StartError, match="tokens_file"):
        tokens_in(tmp_path / "tokens")
    with pytest.raises(StartError, match="cannot be read"):
        tokens_in(tmp_path / "missing")


def test_tls_is_spoken_where_a_certificate_is_named(
    tmp_path: Path, database: Database, peer: Callable[..., None]
) -> None:
    peer("openssl")
    certificate, key = self_signed(tmp_path)
    with web_node(tmp_path, database, certificate=certificate, key=key) as web:
        assert web.http.get("/studies").status_code == 204
        answer = web.stow(part_10(a_slice()))
        assert answer.json()["00081190"]["Value"][0].startswith(f"https://127.0.0.1:{web.port}/")
        with pytest.raises(httpx.RemoteProtocolError):
            httpx.get(f"http://127.0.0.1:{web.port}/dicom-web/studies")


def self_signed(folder: Path) -> tuple[Path, Path]:
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    made = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    written = ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run(["openssl", "req", "-x509", *made, *written], check=True, capture_output=True)
    return certificate, key


def test_what_cannot_be_listened_with_is_said_at_the_start(tmp_path: Path, database: Database) -> None:
    with web_node(tmp_path / "one", database) as web, pytest.raises(StartError, match="in use"):
        refused(tmp_path / "two", database, port=web.port)
    (tmp_path / "bad.pem").write_text("no certificate")
    with pytest.raises(StartError, match="certificate"):
        refused(tmp_path / "two", database, certificate=tmp_path / "bad.pem", key=tmp_path / "bad.pem")
    with pytest.raises(StartError, match="cannot listen"):
        refused(tmp_path / "two", database, address="192.0.2.1", allow_anonymous=True)


def refused(data: Path, database: Database, **web: object) -> None:
    with web_node(data, database, **web):
        pytest.fail("it listens")


def test_a_failure_of_the_node_is_told_without_its_words(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    broken = Database(f"sqlite:///{tmp_path / 'hemonode.db'}")
    broken.upgrade()
    with web_node(tmp_path, broken) as web:
        with broken.write() as tx:
            tx.exec_driver_sql("DROP TABLE catalog_studies")
        answer = web.http.get("/studies", params={"PatientName": "Secret"})
        assert (answer.status_code, answer.json()) == (500, {"status": 500, "reason": "internal error"})
    broken.close()
    said = "".join(capfd.readouterr())
    assert "web_request_failed" in said
    assert "Secret" not in said


def test_who_sends_nothing_for_too_long_is_let_go(tmp_path: Path, database: Database) -> None:
    with web_node(tmp_path, database, timeout=0.3) as web, socket.create_connection(("127.0.0.1", web.port)) as silent:
        silent.settimeout(20)
        head = 'Content-Type: multipart/related; type="application/dicom"; boundary=x\r\nContent-Length: 99'
        silent.sendall(f"POST /dicom-web/studies HTTP/1.1\r\nHost: a\r\n{head}\r\n\r\n--x".encode())
        assert b" 408 " in silent.recv(1000)


def test_more_requests_than_allowed_are_told_to_come_back(tmp_path: Path, database: Database) -> None:
    with web_node(tmp_path, database, maximum_requests=2) as web:
        held = [socket.create_connection(("127.0.0.1", web.port)) for _ in range(2)]
        for connection in held:
            connection.sendall(b"GET /dicom-web/studies HTTP/1.1\r\nHost: a\r\n")
        assert any(httpx.get(f"{web.url}/studies").status_code == 503 for _ in range(20))
        for connection in held:
            connection.close()


def test_a_request_in_progress_is_finished_before_the_part_ends(tmp_path: Path, database: Database) -> None:
    settings = settings_of(tmp_path)
    settings = settings.model_copy(update={"web": settings.web.model_copy(update={"port": 0})})
    server = WebServer(settings=settings, database=database, facts=lambda dataset: facts(dataset).to_json())
    server.start()
    sent = body(part_10(a_slice(1)), part_10(a_slice(2)))
    head = f"POST /dicom-web/studies HTTP/1.1\r\nHost: a\r\nContent-Type: {MULTIPART}\r\nContent-Length: {len(sent)}"
    with socket.create_connection(("127.0.0.1", server.port)) as sender:
        sender.sendall(f"{head}\r\n\r\n".encode() + sent[:-300])
        wait_until(lambda: stored(database))
        stopping = threading.Thread(target=server.stop, kwargs={"grace_seconds": 20})
        stopping.start()
        wait_until(lambda: not listens(server.port))
        sender.sendall(sent[-300:])
        assert b" 200 " in sender.recv(1000)
        stopping.join()
    assert len(stored(database)) == 2


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
