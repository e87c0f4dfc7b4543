"""WADO-RS (PS3.18 10.4): whole instances as they are stored or converted without loss, and their metadata."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from itertools import chain
from pathlib import Path

from pydicom import Dataset, dcmwrite
from pydicom.uid import ExplicitVRLittleEndian
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from db import holdings
from db.instances import Instance
from node.errors import RequestRefused
from node.query.transcode import CONVERTIBLE, PLAIN, outgoing
from node.web.answers import CHUNK, DICOM, JSON, Part, base_url, check_json, is_of, multipart, wanted
from node.web.metadata import described
from node.web.served import Served, selection_of, served

ANY = "*"
DEFAULT = str(ExplicitVRLittleEndian)
"""In which an instance leaves where no transfer syntax is named (PS3.18 8.7.3.5.2); with loss, as it is stored."""


@dataclass(frozen=True, kw_only=True)
class _Terms:
    """In which transfer syntaxes instances may leave."""

    syntaxes: frozenset[str]

    @property
    def accepted(self) -> frozenset[str]:
        """The transfer syntaxes by name."""
        return frozenset(syntax or DEFAULT for syntax in self.syntaxes)

    def is_possible(self, stored_in: str) -> bool:
        """Whether what is stored in this transfer syntax can leave."""
        if ANY in self.syntaxes or stored_in in self.accepted:
            return True
        return "" in self.syntaxes or (stored_in in CONVERTIBLE and not self.accepted.isdisjoint(PLAIN))

    def leaves_as_it_is(self, stored_in: str) -> bool:
        """Whether it is sent without conversion."""
        return ANY in self.syntaxes or stored_in in self.accepted or stored_in not in CONVERTIBLE


def retrieve(request: Request) -> Response:
    """Answers GET on a study, a series or an instance."""
    node, selection = served(request), selection_of(request)
    acceptable = [one for one in wanted(request) if is_of(one, DICOM)]
    terms = _Terms(syntaxes=frozenset(one.syntax for one in acceptable))
    with node.database.read() as tx:
        kinds = holdings.kinds(tx, selection)
    if not kinds:
        raise RequestRefused("nothing is stored under this address", status=404)
    if not all(terms.is_possible(kind.transfer_syntax_uid) for kind in kinds):
        raise RequestRefused(f"only {DICOM} is offered here, unchanged or converted without loss", status=406)
    held = holdings.each(node.database, selection)
    if acceptable[0].content == DICOM and not acceptable[0].multipart:
        return _single(node, held, terms, several=sum(kind.count for kind in kinds) > 1)
    parts = (Part(content_type=DICOM, body=_file(node, one, terms), location=address_of(request, one)) for one in held)
    return multipart(parts, content=DICOM)


def metadata(request: Request) -> Response:
    """Answers GET on the metadata of a study, a series or an instance."""
    check_json(request)
    node = served(request)
    held = holdings.each(node.database, selection_of(request))
    first = next(held, None)
    if first is None:
        raise RequestRefused("nothing is stored under this address", status=404)
    told = (
        json.dumps(described(_path(node, one), bulk_data=f"{address_of(request, one)}/bulkdata"))
        for one in chain([first], held)
    )
    return StreamingResponse(_listed(told), media_type=JSON)


def address_of(request: Request, one: Instance) -> str:
    """Where the instance is retrieved from."""
    return f"{base_url(request)}/studies/{one.study_uid}/series/{one.series_uid}/instances/{one.sop_instance_uid}"


def _path(node: Served, one: Instance) -> Path:
    path = node.settings.archive / one.path
    if not path.exists():
        raise RequestRefused("the file of this instance is gone", status=500)
    return path


def _single(node: Served, held: Iterator[Instance], terms: _Terms, *, several: bool) -> Response:
    if several:
        raise RequestRefused("several instances leave as multipart/related", status=406)
    return StreamingResponse(_file(node, next(held), terms), media_type=DICOM)


def _file(node: Served, one: Instance, terms: _Terms) -> Iterator[bytes]:
    """The file's bytes. Found now, read while they are sent."""
    path = _path(node, one)
    if terms.leaves_as_it_is(one.transfer_syntax_uid):
        return _read(path)
    return _converted(path, stored_in=one.transfer_syntax_uid, accepted=terms.accepted)


def _read(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            yield chunk


def _converted(path: Path, *, stored_in: str, accepted: frozenset[str]) -> Iterator[bytes]:
    dataset = outgoing(path, stored_in=stored_in, accepted=accepted)
    if not isinstance(dataset, Dataset):
        raise TypeError("nothing to convert")
    file = BytesIO()
    dcmwrite(file, dataset, enforce_file_format=True)
    whole = file.getbuffer()
    for start in range(0, len(whole), CHUNK):
        yield bytes(whole[start : start + CHUNK])


def _listed(texts: Iterator[str]) -> Iterator[str]:
    separator = "["
    for text in texts:
        yield separator + text
        separator = ","
    yield "]"
