"""DICOMweb on a loopback port for tests, and the clients that use it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from dicomweb_client.api import DICOMwebClient
from pydicom.config import disable_value_validation
from pydicom.dataset import Dataset

from db.engine import Database
from inference.facts import facts
from node.config import WebSection
from node.web.answers import PREFIX
from node.web.server import WebServer
from tests.receiving import part_10, settings_of

BOUNDARY = "between"
MULTIPART = f'multipart/related; type="application/dicom"; boundary={BOUNDARY}'
ANY = 'multipart/related; type="application/dicom"; transfer-syntax=*'


@dataclass(frozen=True, kw_only=True)
class Web:
    """A listening node. `http` is relative to the services' address."""

    port: int
    http: httpx.Client
    archive: Path

    @property
    def url(self) -> str:
        """The services' address."""
        return f"http://127.0.0.1:{self.port}{PREFIX}"

    def client(self) -> DICOMwebClient:
        """The peer under whose use everything has to work."""
        return DICOMwebClient(url=self.url, timeout=20)

    def stow(self, *files: bytes, study: str = "") -> httpx.Response:
        """What is answered to these bodies, sent as one request."""
        path = f"/studies/{study}" if study else "/studies"
        return self.http.post(path, content=body(*files), headers={"Content-Type": MULTIPART})

    def holds(self, *datasets: Dataset, syntax: str = "1.2.840.10008.1.2.1") -> None:
        """It has been sent these, and has stored them."""
        answer = self.stow(*(part_10(dataset, syntax) for dataset in datasets))
        assert answer.status_code == 200, answer.text


def body(*files: bytes, content: str = "application/dicom") -> bytes:
    """A multipart body."""
    head = f"\r\n--{BOUNDARY}\r\nContent-Type: {content}\r\n\r\n".encode()
    return b"".join(head + file for file in files) + f"\r\n--{BOUNDARY}--\r\n".encode()


def parts_of(answer: httpx.Response) -> list[tuple[dict[str, str], bytes]]:
    """Headers and body of each part of a multipart answer."""
    assert answer.status_code == 200, answer.text
    boundary = answer.headers["content-type"].split("boundary=")[1].encode()
    found = []
    for part in answer.content.split(b"\r\n--" + boundary)[1:-1]:
        head, _, content = part.partition(b"\r\n\r\n")
        lines = [line.partition(": ") for line in head.decode().split("\r\n") if line]
        found.append(({name.lower(): value for name, _, value in lines}, content))
    return found


@contextmanager
def web_node(
    data: Path,
    database: Database,
    *,
    subscribers: Sequence[str] = (),
    receive: dict[str, Any] | None = None,
    **web: Any,
) -> Iterator[Web]:
    """The services, until the block ends."""
    settings = settings_of(data, **(receive or {}))
    section = WebSection.model_validate({"port": 0, "subscribers": subscribers, **web})
    settings = settings.model_copy(update={"web": section})
    server = WebServer(settings=settings, database=database, facts=lambda dataset: facts(dataset).to_json())
    server.start()
    scheme = "https" if section.certificate else "http"
    with (
        disable_value_validation(),  # as in every process of the node
        httpx.Client(base_url=f"{scheme}://127.0.0.1:{server.port}{PREFIX}", timeout=20, verify=False) as http,  # noqa: S501
    ):
        try:
            yield Web(port=server.port, http=http, archive=settings.archive)
        finally:
            http.close()
            server.stop(grace_seconds=5)
