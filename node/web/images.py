"""WADO-RS for pixels (PS3.18 10.4): frames, bulk data, and pictures to look at."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from pydicom import dcmread
from pydicom.uid import UID
from starlette.requests import Request
from starlette.responses import Response

from db import instances
from db.instances import Instance
from node.errors import RequestRefused
from node.web.answers import OCTETS, Part, Wanted, is_of, multipart, wanted
from node.web.keys import tag_named
from node.web.metadata import BINARY, PIXELS
from node.web.pixels import pixels_of
from node.web.rendering import look_of, picture
from node.web.served import selection_of, served
from node.web.wado import ANY, DEFAULT, address_of

STREAMS = {
    "1.2.840.10008.1.2.4.50": "image/jpeg",
    "1.2.840.10008.1.2.4.51": "image/jpeg",
    "1.2.840.10008.1.2.4.57": "image/jpeg",
    "1.2.840.10008.1.2.4.70": "image/jpeg",
    "1.2.840.10008.1.2.4.80": "image/jls",
    "1.2.840.10008.1.2.4.81": "image/jls",
    "1.2.840.10008.1.2.4.90": "image/jp2",
    "1.2.840.10008.1.2.4.91": "image/jp2",
    "1.2.840.10008.1.2.4.201": "image/jphc",
    "1.2.840.10008.1.2.4.202": "image/jphc",
    "1.2.840.10008.1.2.4.203": "image/jphc",
    "1.2.840.10008.1.2.5": "image/dicom-rle",
}
"""The media types of compressed frames (PS3.18 table 8.7.3-5)."""

PICTURES = {"image/jpeg": "JPEG", "image/png": "PNG"}


def frames(request: Request) -> Response:
    """Answers GET on frames: compressed as they are stored where that is acceptable, else as plain pixels."""
    one, path = _found(request)
    with pixels_of(path, stored_in=one.transfer_syntax_uid) as pixels:
        chosen = _chosen(request, pixels.frames)
    return _streamed(request, one, path, chosen)


def bulk_data(request: Request) -> Response:
    """Answers GET on a bulk data address of the metadata: pixels, or another large value of the header."""
    one, path = _found(request)
    tag = tag_named(str(request.path_params["tag"]))
    if tag in PIXELS:
        with pixels_of(path, stored_in=one.transfer_syntax_uid) as pixels:
            if pixels.is_compressed:
                return _streamed(request, one, path, range(pixels.frames))
        _check_octets(request)
        return multipart(iter([_octets(_whole(path, one), location=_here(request, one))]), content=OCTETS)
    _check_octets(request)
    element = dcmread(path, stop_before_pixels=True).get(int(tag, 16))
    if element is None or element.VR not in BINARY or not isinstance(element.value, bytes):
        raise RequestRefused("this instance has no such bulk data", status=404)
    return multipart(iter([_octets([element.value], location=_here(request, one))]), content=OCTETS)


def rendered(request: Request) -> Response:
    """Answers GET on a rendered instance (its first frame) or frame."""
    one, path = _found(request)
    content = _picture_type(request)
    look = look_of(request)
    with pixels_of(path, stored_in=one.transfer_syntax_uid) as pixels:
        chosen = _chosen(request, pixels.frames)
        if len(chosen) > 1:
            raise RequestRefused("one frame is rendered at a time", status=406)
        return Response(picture(pixels, chosen[0], look, image_format=PICTURES[content]), media_type=content)


def _picture_type(request: Request) -> str:
    for each in wanted(request):
        for content in PICTURES:
            if not each.multipart and is_of(each, content):
                return content
    raise RequestRefused(f"only {' and '.join(PICTURES)} are offered here", status=406)


def _found(request: Request) -> tuple[Instance, Path]:
    node = served(request)
    selection = selection_of(request)
    with node.database.read() as tx:
        one = instances.find(tx, selection.sop_instance_uids[0])
    if one is None or (one.study_uid,) != selection.study_uids or (one.series_uid,) != selection.series_uids:
        raise RequestRefused("nothing is stored under this address", status=404)
    path = node.settings.archive / one.path
    if not path.exists():
        raise RequestRefused("the file of this instance is gone", status=500)
    return one, path


def _chosen(request: Request, count: int) -> Sequence[int]:
    """The frames that the address names, from 0; the first where it names none."""
    text = str(request.path_params.get("frames", "1"))
    numbers = [int(part) if part.isascii() and part.isdecimal() else 0 for part in text.split(",")]
    if min(numbers) < 1:
        raise RequestRefused("frames are numbers from 1, separated by commas", status=400)
    if max(numbers) > count:
        raise RequestRefused(f"this instance has {count} frames", status=404)
    return [number - 1 for number in numbers]


def _streamed(request: Request, one: Instance, path: Path, chosen: Sequence[int]) -> Response:
    content, as_stored = _form(wanted(request), UID(one.transfer_syntax_uid))
    syntax = one.transfer_syntax_uid if as_stored else DEFAULT
    kind = f"{content}; transfer-syntax={syntax}"
    address = f"{address_of(request, one)}/frames"

    def parts() -> Iterator[Part]:
        with pixels_of(path, stored_in=one.transfer_syntax_uid) as pixels:
            for index in chosen:
                frame = pixels.stored(index) if as_stored else pixels.plain(index)
                yield Part(content_type=kind, body=[frame], location=f"{address}/{index + 1}")

    return multipart(parts(), content=content)


def _form(acceptable: Sequence[Wanted], stored_in: UID) -> tuple[str, bool]:
    """The media type of frames, and whether they leave compressed as they are stored.

    Raises
    ------
    RequestRefused
        Nothing that could be sent is acceptable (406).
    """
    own = STREAMS.get(str(stored_in), OCTETS) if stored_in.is_encapsulated else ""
    for one in acceptable:
        names_it = one.syntax in (ANY, str(stored_in))
        if own and is_of(one, own) and (names_it or (one.content == own and not one.syntax)):
            return own, True
        if is_of(one, OCTETS):
            if own and names_it:
                return OCTETS, True
            if one.syntax in ("", ANY, DEFAULT):
                return OCTETS, False
    raise RequestRefused("frames leave as they are stored, or as plain pixels in little endian", status=406)


def _check_octets(request: Request) -> None:
    if not any(is_of(one, OCTETS) for one in wanted(request)):
        raise RequestRefused(f"only {OCTETS} is offered here", status=406)


def _whole(path: Path, one: Instance) -> Iterator[bytes]:
    with pixels_of(path, stored_in=one.transfer_syntax_uid) as pixels:
        yield from pixels.whole()


def _here(request: Request, one: Instance) -> str:
    return f"{address_of(request, one)}/bulkdata/{request.path_params['tag']}"


def _octets(body: Iterator[bytes] | list[bytes], *, location: str) -> Part:
    return Part(content_type=OCTETS, body=body, location=location)
