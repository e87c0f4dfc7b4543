"""What every answer over HTTP shares: media types asked for, multipart bodies, JSON, warnings."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from db.dicom_json import Attributes
from node.errors import RequestRefused
from node.web.served import served

PREFIX = "/dicom-web"
JSON = "application/dicom+json"
DICOM = "application/dicom"
OCTETS = "application/octet-stream"
CHUNK = 256 * 1024

_ONE_OF_A_LIST = re.compile(r'(?:[^,"]|"[^"]*")+')
_PARAMETER = re.compile(r';\s*([\w.-]+)\s*=\s*(?:"([^"]*)"|([^;,\s]*))')
_MULTIPART = "multipart/related"


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """One acceptable media type, of the parts where it is multipart. `syntax` is a transfer syntax UID, * or empty."""

    content: str
    multipart: bool
    syntax: str


def media_type(header: str) -> tuple[str, dict[str, str]]:
    """A media type and its parameters, both without regard to case (RFC 9110 8.3.1)."""
    parameters = {name.lower(): quoted or plain for name, quoted, plain in _PARAMETER.findall(header)}
    return header.split(";")[0].strip().lower(), parameters


def wanted(request: Request) -> tuple[Wanted, ...]:
    """What the client accepts, the most wanted first; the query parameter ``accept`` goes before the header."""
    header = request.query_params.get("accept") or ", ".join(request.headers.getlist("accept")) or "*/*"
    found = [_one(text) for text in _ONE_OF_A_LIST.findall(header) if text.strip()]
    return tuple(one for quality, one in sorted(found, key=lambda pair: -pair[0]) if quality > 0)


def _one(text: str) -> tuple[float, Wanted]:
    name, parameters = media_type(text)
    multipart = name == _MULTIPART
    content = parameters.get("type", "*/*").lower() if multipart else name
    try:
        quality = float(parameters.get("q", "1"))
    except ValueError:
        quality = 0.0
    return quality, Wanted(content=content, multipart=multipart, syntax=parameters.get("transfer-syntax", ""))


def is_of(one: Wanted, content: str) -> bool:
    """Whether a media type is acceptable by `one`, wild cards included."""
    return one.content in ("*/*", content, content.split("/")[0] + "/*")


def check_json(request: Request) -> None:
    """Raises ``RequestRefused`` (406) where the client takes no DICOM JSON."""
    if not any(is_of(one, JSON) or is_of(one, "application/json") for one in wanted(request)):
        raise RequestRefused(f"only {JSON} is offered here", status=406)


def dicom_json(
    content: Attributes | Sequence[Attributes], *, status: int = 200, headers: dict[str, str] | None = None
) -> Response:
    """An answer in the DICOM JSON Model (PS3.18 F)."""
    return JSONResponse(content, status_code=status, headers=headers, media_type=JSON)


def base_url(request: Request) -> str:
    """The address under which clients reach these services: the configured one, else that of the request."""
    return (served(request).settings.web.url or _origin(request)) + PREFIX


def _origin(request: Request) -> str:
    # dicomweb-client leaves the port out of its Host header. Only a proxy listens on another port than this one.
    port = request.scope["server"][1]
    is_direct = not any(name.startswith("x-forwarded-") for name in request.headers)
    url = request.url.replace(port=port) if request.url.port is None and is_direct else request.url
    return f"{url.scheme}://{url.netloc}"


def warning(request: Request, *texts: str) -> dict[str, str]:
    """The Warning header of PS3.18 8.3.4 and 11, or none."""
    return {"Warning": ", ".join(f'299 {base_url(request)} "{text}"' for text in texts)} if texts else {}


@dataclass(frozen=True, kw_only=True)
class Part:
    """One part of a multipart answer."""

    content_type: str
    body: Iterable[bytes]
    location: str = ""


def multipart(parts: Iterator[Part], *, content: str) -> Response:
    """A multipart/related answer that is made while it is sent; what fails before the first part is a plain refusal.

    Raises
    ------
    RequestRefused
        There is no part, or the first one cannot be had. A later failure breaks the connection: an answer that looks
        whole and is not would be worse.
    """
    first = next(parts, None)
    if first is None:
        raise RequestRefused("nothing is stored under this address", status=404)
    boundary = uuid.uuid4().hex
    return StreamingResponse(
        _encoded(chain([first], parts), boundary=boundary),
        media_type=f'{_MULTIPART}; type="{content}"; boundary={boundary}',
    )


def _encoded(parts: Iterable[Part], *, boundary: str) -> Iterator[bytes]:
    for part in parts:
        location = f"Content-Location: {part.location}\r\n" if part.location else ""
        yield f"\r\n--{boundary}\r\nContent-Type: {part.content_type}\r\n{location}\r\n".encode("ascii")
        yield from part.body
    yield f"\r\n--{boundary}--\r\n".encode("ascii")
