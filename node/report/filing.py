"""Files the report of a study revision in the archive, once: the same bytes however often it is asked."""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pydicom
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError

from db import instances, results, studies
from db.engine import Database
from db.errors import UnknownStudy
from db.instances import Instance
from db.results import Result
from inference.result import StudyResult
from node.config import Settings
from node.log import log
from node.report.content import Device, key_slice_uids
from node.report.identifiers import report_path
from node.report.sr import Predecessor, build, to_bytes

UNFINISHED = ".unfinished"
"""The folder of reports that are being written, beside those of the studies."""
LEFTOVER_SECONDS = 3600.0
"""Older than this, an unfinished report was left by a process that was killed."""


@dataclass(frozen=True, kw_only=True)
class _Material:
    """What the database knows for one report. `before` is the revision whose report this one supersedes."""

    result: Result
    evidence: tuple[Instance, ...]
    header: dict[str, object]
    before: int | None


def file_report(database: Database, *, archive: Path, settings: Settings, version: str) -> Callable[[str, int], Path]:
    """A function of study UID and revision that answers where the report lies, having filed it if it was missing.

    The report of an earlier revision that it names as its predecessor is filed first, so that what it names exists.
    Two processes may file the same report at once: both write the same bytes, and one rename wins.

    Parameters
    ----------
    version : str
        This software's version, which the report names.

    Raises
    ------
    UnknownStudy
        From the returned function: no such result, or no instance of the study is left to speak of.
    OSError
        From the returned function: the archive cannot be written.
    """
    device = Device(
        ae_title=settings.node.ae_title,
        version=version,
        institution=settings.report.institution,
        department=settings.report.department,
    )
    _clear_leftovers(archive)
    # Several destinations ask at the same moment; one of them builds.
    building = threading.Lock()

    def filed(study_uid: str, revision: int) -> Path:
        path = report_path(archive, study_uid=study_uid, revision=revision)
        if path.exists():
            return path
        with building:
            for missing in _missing(database, archive, study_uid=study_uid, revision=revision):
                _file(missing, archive=archive, device=device)
        return path

    return filed


def _missing(database: Database, archive: Path, *, study_uid: str, revision: int) -> Iterator[_Material]:
    """What is needed for each report not yet filed, oldest first."""
    with database.read() as tx:
        known = [result for result in results.of_study(tx, study_uid) if result.revision <= revision]
        if revision not in {result.revision for result in known}:
            raise UnknownStudy(f"no result for study {study_uid} revision {revision}")
        study = studies.find(tx, study_uid)
        stored = instances.of_study(tx, study_uid)
    before: int | None = None
    for result in known:
        if not report_path(archive, study_uid=study_uid, revision=result.revision).exists():
            evidence = _evidence(StudyResult.from_json(result.payload), stored)
            yield _Material(result=result, evidence=evidence, header=study.header if study else {}, before=before)
        before = result.revision


def _evidence(result: StudyResult, stored: Sequence[Instance]) -> tuple[Instance, ...]:
    """The key slices; without any, one instance that stands for the study: of the series read, or else of any.

    It is the one received first, which no instance that comes later can change.

    Raises
    ------
    UnknownStudy
        The archive holds no instance of the study.
    """
    by_uid = {instance.sop_instance_uid: instance for instance in stored}
    keys = tuple(by_uid[uid] for uid in key_slice_uids(result) if uid in by_uid)
    if keys:
        return keys
    if not stored:
        raise UnknownStudy(f"no instance of study {result.study_uid} is left to report on")
    read = [instance for instance in stored if instance.series_uid in result.read_series_uids[:1]]
    return ((read or list(stored))[0],)


def _file(material: _Material, *, archive: Path, device: Device) -> None:
    result = StudyResult.from_json(material.result.payload)
    evidence = [_header(instance, archive=archive, fallback=material.header) for instance in material.evidence]
    before = material.before
    document = build(
        result,
        evidence=evidence,
        made_at=material.result.made_at.astimezone(_zone(evidence[0])),
        device=device,
        predecessor=None if before is None else Predecessor.of(study_uid=result.study_uid, revision=before),
    )
    path = report_path(archive, study_uid=result.study_uid, revision=result.revision)
    write_durably(path, to_bytes(document))
    log().info("report_filed", study_uid=result.study_uid, revision=result.revision, images=len(evidence))


def _header(instance: Instance, *, archive: Path, fallback: dict[str, object]) -> Dataset:
    """The instance without its pixels; from the database where the file cannot be read.

    The UIDs are the database's in any case: under them the archive knows the instance.
    """
    try:
        header: Dataset = pydicom.dcmread(archive / instance.path, stop_before_pixels=True)
    except (OSError, InvalidDicomError) as error:
        log().warning("evidence_unreadable", sop_instance_uid=instance.sop_instance_uid, error=type(error).__name__)
        header = Dataset.from_json(fallback)
    header.StudyInstanceUID = instance.study_uid
    header.SeriesInstanceUID = instance.series_uid
    header.SOPInstanceUID = instance.sop_instance_uid
    header.SOPClassUID = instance.sop_class_uid
    return header


def _zone(image: Dataset) -> dt.tzinfo | None:
    # Timezone Offset From UTC (0008,0201) speaks for every time of an object (PS3.3 C.12.1.1.8); the report inherits
    # it together with the study's date. Without it, times are the wall clock of this machine, as those of a scanner.
    offset = re.fullmatch(r"([+-])(0\d|1[0-4])([0-5]\d)", str(image.get("TimezoneOffsetFromUTC", "") or "").strip())
    if offset is None:
        return None
    sign, hours, minutes = offset.groups()
    delta = dt.timedelta(hours=int(hours), minutes=int(minutes))
    return dt.timezone(-delta if sign == "-" else delta)


def write_durably(path: Path, content: bytes) -> None:
    """The file is whole under its name and survives power loss: written aside, synchronised, renamed."""
    unfinished = path.parent.parent / UNFINISHED
    for folder in (unfinished, path.parent):
        folder.mkdir(parents=True, exist_ok=True)
    aside = unfinished / uuid.uuid4().hex
    try:
        with aside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    for folder in (path.parent, path.parent.parent, path.parent.parent.parent):
        _synchronise(folder)


def _clear_leftovers(archive: Path) -> None:
    for path in (archive / "reports" / UNFINISHED).glob("*"):
        with contextlib.suppress(FileNotFoundError):  # another process is clearing too
            if time.time() - path.stat().st_mtime > LEFTOVER_SECONDS:
                path.unlink()


def _synchronise(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
