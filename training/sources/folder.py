"""What the sources that are folders share: an index made in one pass and kept, and slices decoded in their order."""

from __future__ import annotations

import csv
import hashlib
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from pydicom import dcmread
from pydicom.dataset import Dataset

from inference.errors import UnreadablePixels
from inference.facts import facts
from inference.header import PARSER_ERRORS
from inference.metadata import FACTS, header_facts
from inference.series import Stack
from inference.stacks import Plane, planes_of
from inference.volume import Slice, order, read_slices
from training.errors import DataError
from training.study import Arrays, CohortFacts, slice_digests, volume_key

DECODER = 2
"""Raised when the same files decode to other volumes, so that no cache gives the old ones."""

log = logging.getLogger(__name__)
Row = tuple[str, ...]


def indexed(folder: Path, *, kind: str, columns: Row, rows: Callable[[], Iterable[Row]], index: Path) -> list[Row]:
    """The rows of `folder`'s index: read from a file below `index`, or made by `rows` in one pass and kept there.

    The index is made anew when a file came, went or was renamed anywhere below `folder`.
    """
    name = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
    path = index / f"{kind}-{name}.csv"
    head = (f"hemonode {kind}", _stamp(folder), *columns)
    if path.exists():
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.reader(file)
            if tuple(next(reader, ())) == head:
                return [tuple(row) for row in reader]
    log.info("indexing %s, once", folder)
    index.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}")
    found = []
    with partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(head)
        for row in rows():
            writer.writerow(row)
            found.append(row)
    os.replace(partial, path)
    return found


def _stamp(folder: Path) -> str:
    """Changes when an entry of any folder below does; reads no file."""
    digest = hashlib.sha256()
    for place, folders, _ in os.walk(folder):
        folders.sort()
        digest.update(f"{place}:{os.stat(place).st_mtime_ns}".encode())
    return digest.hexdigest()


def header(file: Path | BinaryIO, tags: Sequence[str] = ()) -> Dataset | None:
    """The data set without its pixels, or None for a file that is not DICOM; `tags` limits what is read."""
    try:
        return dcmread(file, stop_before_pixels=True, force=True, specific_tags=[*tags] or None)
    except PARSER_ERRORS:
        return None


def files_key(paths: Sequence[Path]) -> str:
    """The volume key of these files, by name, size and time of change: nothing is read."""
    states = [(path.name, path.stat()) for path in paths]
    return volume_key(DECODER, [(name, state.st_size, state.st_mtime_ns) for name, state in states])


def decoded(paths: Sequence[Path]) -> Arrays:
    """The slices in the files `paths` as one volume from feet to head; an unreadable one is left out with a note.

    Signed values that wrapped around in twelve unsigned bits are unwrapped, as every reader of these sets does.

    Raises
    ------
    DataError
        No slice can be read.
    """
    slices: list[Slice] = []
    for path in paths:
        try:
            slices.extend(read_slices(path, repair_wrapped=True))
        except UnreadablePixels as error:
            log.warning("%s left out: %s", path.name, error)
    return stacked(slices, name=str(paths[0].parent) if paths else "")


def headers(paths: Sequence[Path]) -> Arrays:
    """What the headers of the files `paths` say of their slices (`LabelledStudy.headers`); no pixel is read."""
    found = [facts(dataset) for dataset in map(header, paths) if dataset is not None]
    return of_planes(planes_of([one for one in found if one.has_pixels]))


def of_planes(planes: Sequence[Plane]) -> Arrays:
    """As `headers`, for headers that are read already."""
    uids = [slice_name(plane.facts.sop_instance_uid, plane.frame) for plane in planes]
    return {"header": header_facts(planes, list(FACTS)), "uids": np.array(uids, dtype=str)}


def slice_name(sop_instance_uid: str, frame: int | None) -> str:
    """What labels call a slice: its instance, with the frame (1-based) where there are several."""
    return f"{sop_instance_uid}#{frame}" if frame else sop_instance_uid


def stacked(slices: Sequence[Slice], *, name: str) -> Arrays:
    """As `decoded`, for slices that are read already."""
    shapes = Counter(s.hu.shape for s in slices)
    usual = shapes.most_common(1)[0][0] if shapes else ()
    if len(shapes) > 1:
        log.warning("%s: %d slices of another size left out", name, len(slices) - shapes[usual])
    volume = order([s for s in slices if s.hu.shape == usual])
    if not volume.slices:
        raise DataError(f"{name}: no slice can be read")
    hu = volume.stacked()
    thickness = np.array([np.nan if s.thickness is None else s.thickness for s in volume.slices])
    return {
        "hu": hu,
        "spacing": np.array(volume.slices[0].pixel_spacing),
        "positions": np.array(volume.positions_mm),
        "thickness": thickness,
        "uids": np.array([slice_name(s.sop_instance_uid, s.frame) for s in volume.slices]),
        "digests": slice_digests(hu),
    }


def cohort(stack: Stack) -> CohortFacts:
    """What figures are broken down by, from the headers of a stack."""
    head = stack.head
    return CohortFacts(
        manufacturer=head.manufacturer,
        model=head.model_name,
        kernel=head.kernel,
        thickness_mm=stack.thickness_mm,
        spacing_mm=stack.geometry.spacing_mm,
        pixel_mm=head.pixel_spacing[0] if head.pixel_spacing else None,
        slices=len(stack.in_order),
        age_years=head.patient_age_years,
    )


def csv_rows(path: Path, required: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """Line number and values by column name of a CSV file. Columns are found by name, never by place.

    Raises
    ------
    DataError
        The file or a column is missing.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            names = [name.strip() for name in reader.fieldnames or ()]
            if missing := [name for name in required if name not in names]:
                raise DataError(f"{path}: no column {', '.join(missing)}; there are {', '.join(names)}")
            reader.fieldnames = names
            for row in reader:
                yield reader.line_num, row
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist") from error


def zero_or_one(value: str | None, *, path: Path, line: int, column: str) -> float:
    """0.0 or 1.0; raises `DataError` with the place for anything else."""
    if (value or "").strip() not in {"0", "1"}:
        raise DataError(f"{path.name}, line {line}, column {column}: {value!r}, expected 0 or 1")
    return float(value or "")
