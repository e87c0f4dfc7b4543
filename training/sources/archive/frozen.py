"""A frozen data set as labelled studies: read from its list and the archive's files alone, every digest checked."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pydicom import dcmread

from inference.errors import UnreadablePixels
from inference.facts import facts
from inference.header import PARSER_ERRORS
from inference.result import LABELS
from inference.stacks import planes_of
from inference.volume import Slice, slices_of
from training.errors import DataError, DigestError
from training.sources.archive.freeze import FORMAT, digest_of
from training.sources.folder import DECODER, header, log, of_planes, slice_name, stacked
from training.study import UNKNOWN, Arrays, CohortFacts, LabelledStudy, Labels, volume_key

_META_LENGTH_AT = 128 + 4 + 8  # preamble, prefix, tag, VR and length of (0002,0000): PS3.10 7.1
_META_ENDS_AFTER = _META_LENGTH_AT + 4


def studies(path: Path) -> Iterator[LabelledStudy]:
    """The studies of the frozen list in `path`.

    Raises
    ------
    DataError
        It is no such list.
    DigestError
        It was changed since it was frozen.
    """
    try:
        content: dict[str, Any] = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is no frozen data set: {error}") from error
    if content.get("format") != FORMAT:
        raise DataError(f"{path} is no frozen data set of format {FORMAT}")
    if content["sha256"] != digest_of(content):
        raise DigestError(f"{path} was changed since it was frozen")
    archive = Path(content["archive"])
    for entry in content["studies"]:
        yield _study(archive, entry, group=content["name"])


def _study(archive: Path, entry: Mapping[str, Any], *, group: str) -> LabelledStudy:
    slices = entry["slices"]
    return LabelledStudy(
        source="archive",
        patient=entry["patient"],
        study_uid=entry["study_uid"],
        series_uid=entry["series_uid"],
        group=group,
        key=volume_key(DECODER, [(s["uid"], s["frame"], s["digest"]) for s in slices]),
        decode=partial(_volume, archive, slices, entry["study_uid"]),
        headers=partial(_headers, archive, slices),
        labels=tuple(entry["labels"] or UNKNOWN),
        slice_labels={_name(s): _labels(s["labels"]) for s in slices if s["labels"]} or None,
        readers={reader: tuple(vote) for reader, vote in entry["readers"].items()},
        facts=CohortFacts.from_json(entry["facts"]),
        revision=entry["revision"],
    )


def _name(entry: Mapping[str, Any]) -> str:
    return slice_name(entry["uid"], entry["frame"])


def _labels(by_name: Mapping[str, float | None]) -> Labels:
    return tuple(by_name[name] for name in LABELS)


def _volume(archive: Path, entries: Sequence[Mapping[str, Any]], study_uid: str) -> Arrays:
    """The listed slices, decoded as in serving; a slice that serving cannot decode is left out with a note."""
    wanted = {(entry["uid"], entry["frame"]) for entry in entries}
    slices: list[Slice] = []
    for path, digest in dict.fromkeys((entry["path"], entry["digest"]) for entry in entries):
        try:
            slices.extend(_verified(archive / path, digest))
        except UnreadablePixels as error:
            log.warning("%s left out: %s", path, error)
    kept = [s for s in slices if (s.sop_instance_uid, s.frame or 0) in wanted]
    return stacked(kept, name=f"study {study_uid}")


def _headers(archive: Path, entries: Sequence[Mapping[str, Any]]) -> Arrays:
    """What the headers of the listed slices say."""
    wanted = {(entry["uid"], entry["frame"]) for entry in entries}
    found = []
    for path, digest in dict.fromkeys((entry["path"], entry["digest"]) for entry in entries):
        dataset = header(io.BytesIO(_bytes(archive / path, digest)))
        found += [facts(dataset)] if dataset is not None else []
    return of_planes([p for p in planes_of(found) if (p.facts.sop_instance_uid, p.frame or 0) in wanted])


def _verified(path: Path, digest: str) -> tuple[Slice, ...]:
    """The slices of a file whose data set still has this digest; `DigestError` where it has not."""
    try:
        return slices_of(dcmread(io.BytesIO(_bytes(path, digest)), force=True))
    except PARSER_ERRORS as error:
        raise UnreadablePixels("the file cannot be read as DICOM") from error


def _bytes(path: Path, digest: str) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DigestError(f"{path} cannot be read, though it is in the frozen data set: {error.strerror}") from error
    begins = _META_ENDS_AFTER + int.from_bytes(data[_META_LENGTH_AT:_META_ENDS_AFTER], "little")
    if hashlib.sha256(data[begins:]).hexdigest() != digest:
        raise DigestError(f"{path} is not the file that was frozen: its digest is another")
    return data
