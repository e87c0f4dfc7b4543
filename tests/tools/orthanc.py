"""Orthanc as a far system: how it is configured, started and asked."""

from __future__ import annotations

import http.client
import json
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_DEADLINE_S = 60.0
_POLL_S = 0.05


@dataclass(frozen=True, kw_only=True)
class Orthanc:
    """A running Orthanc: a PACS that receives, is asked over REST, and sends where it is told to."""

    ae_title: str
    port: int
    http_port: int

    def http(self, path: str, body: object = None, *, method: str | None = None) -> Any:
        """What its REST API answers; `body` goes out as JSON. Raises ``AssertionError`` for a failure status."""
        content = None if body is None else json.dumps(body).encode()
        text = self._ask(method or ("GET" if body is None else "POST"), path, content)
        return json.loads(text) if text else None

    def file(self, instance: str) -> bytes:
        """The instance as the PS3.10 file in which it is held."""
        return self._ask("GET", f"/instances/{instance}/file", None)

    def knows(self, *, name: str, ae_title: str, port: int) -> None:
        """From now on it may echo, store to and be asked by the application entity it calls `name`."""
        self.http(f"/modalities/{name}", {"AET": ae_title, "Host": "127.0.0.1", "Port": port}, method="PUT")

    def echo(self, name: str) -> None:
        """It has sent a C-ECHO to `name` and got its answer."""
        self.http(f"/modalities/{name}/echo", {}, method="POST")

    def upload(self, file: bytes) -> str:
        """It holds the PS3.10 file; returns the identifier under which it does."""
        return str(json.loads(self._ask("POST", "/instances", file))["ID"])

    def send(self, identifiers: list[str], *, to: str) -> None:
        """It has sent these of its resources (instances, series, studies) to `to` by C-STORE."""
        self.http(f"/modalities/{to}/store", {"Resources": identifiers, "Synchronous": True})

    def find(self, level: str, **query: str) -> list[str]:
        """Its identifiers of the resources on `level` ("Study", "Series", "Instance") that match."""
        found: list[str] = self.http("/tools/find", {"Level": level, "Query": query})
        return found

    def _ask(self, method: str, path: str, body: bytes | None) -> bytes:
        connection = http.client.HTTPConnection("127.0.0.1", self.http_port, timeout=_DEADLINE_S)
        try:
            connection.request(method, path, body=body)
            answer = connection.getresponse()
            content = answer.read()
        finally:
            connection.close()
        assert answer.status < 400, f"{path}: {answer.status} {content!r}"
        return content


@contextmanager
def running_orthanc(folder: Path, **settings: object) -> Iterator[Orthanc]:
    """Orthanc on free loopback ports, empty, with all it stores in `folder`; `settings` replace its configuration."""
    running = Orthanc(ae_title="ORTHANC", port=free_port(), http_port=free_port())
    folder.mkdir()
    configuration = folder / "orthanc.json"
    configuration.write_text(json.dumps(_configuration(running, folder) | settings), encoding="utf-8")
    program = shutil.which("Orthanc", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")
    assert program is not None
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([program, str(configuration)], stdout=log, stderr=subprocess.STDOUT)
    try:
        until(lambda: _listening(running.http_port) and _listening(running.port), of=process)
        yield running
    finally:
        process.terminate()
        process.wait(timeout=_DEADLINE_S)


def _configuration(running: Orthanc, folder: Path) -> dict[str, object]:
    return {
        "Name": running.ae_title,
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "storage"),
        "Plugins": [],
        "HttpPort": running.http_port,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "DicomAet": running.ae_title,
        "DicomPort": running.port,
        "DicomCheckCalledAet": True,
        "DicomAlwaysAllowStore": True,
        "DicomAlwaysAllowEcho": True,
        "DefaultEncoding": "Utf8",
        "OverwriteInstances": False,
    }


def until(condition: Callable[[], bool], *, of: subprocess.Popen[bytes]) -> None:
    """Return when `condition` holds; fail when the process `of` ends first, or after a minute."""
    pause = threading.Event()
    deadline = time.monotonic() + _DEADLINE_S
    while not condition():
        assert of.poll() is None, f"ended with {of.returncode}"
        assert time.monotonic() < deadline, "did not come up in time"
        pause.wait(_POLL_S)


def free_port() -> int:
    """A TCP port on the loopback interface on which nobody listened a moment ago."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _listening(port: int) -> bool:
    with socket.socket() as client:
        client.settimeout(1)
        return client.connect_ex(("127.0.0.1", port)) == 0
