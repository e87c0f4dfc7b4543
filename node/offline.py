"""What can be done without a running node: read a folder, list the models."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from rich.progress import Progress

from db.schema import now
from inference import importing
from inference.card import ModelError
from inference.result import Completeness, StudyResult
from inference.series import Criteria, facts, select
from inference.study import Stored, StudyReader
from node import __version__, reading
from node.config import Settings
from node.errors import ConfigError
from node.report.content import Device, key_slice_uids
from node.report.sr import build, to_bytes


def infer(folder: Path, *, settings: Settings, sr: Path | None, progress: Progress) -> list[StudyResult]:
    """What the node would say about every study under `folder` (or in one file), in the order of their UIDs.

    Parameters
    ----------
    sr : Path, optional
        Where the Structured Report of the only study goes.

    Raises
    ------
    ConfigError
        There is no DICOM file, or `sr` was asked for and there are several studies.
    StartError
        A model cannot be loaded.
    """
    studies = _studies(folder, progress)
    if not studies:
        raise ConfigError(f"{folder}: no DICOM file with a Study Instance UID")
    if sr is not None and len(studies) > 1:
        raise ConfigError(f"{folder} holds {len(studies)} studies; --sr takes one")
    reader = reading.reader_of(settings, reading.engine_of(settings))
    results = [_read(reader, uid, stored, settings, progress) for uid, stored in sorted(studies.items())]
    if sr is not None:
        sr.write_bytes(_report(results[0], next(iter(studies.values())), settings))
    return results


def _studies(folder: Path, progress: Progress) -> dict[str, list[Stored]]:
    paths = sorted(p for p in folder.rglob("*") if p.is_file()) if folder.is_dir() else [folder]
    task = progress.add_task("reading headers", total=len(paths))
    studies: dict[str, list[Stored]] = defaultdict(list)
    for path in paths:
        found = _stored(path)
        if found is not None:
            studies[found.facts.study_uid].append(found)
        progress.advance(task)
    return studies


def _stored(path: Path) -> Stored | None:
    try:
        header = dcmread(path, stop_before_pixels=True)
    except (InvalidDicomError, OSError):
        return None
    known = facts(header)
    if not known.study_uid or not known.sop_instance_uid:
        return None
    return Stored(facts=known, path=path, digest=hashlib.sha256(str(path).encode()).hexdigest())


def _read(
    reader: StudyReader, study_uid: str, stored: Sequence[Stored], settings: Settings, progress: Progress
) -> StudyResult:
    task = progress.add_task("reading slices", total=len(stored))
    return reader.read(
        study_uid=study_uid,
        revision=1,
        instances=stored,
        completeness=_completeness(stored, settings.select),
        progress=lambda done: progress.advance(task, done),
    )


def _completeness(stored: Sequence[Stored], criteria: Criteria) -> Completeness:
    """A folder cannot say whether more was coming: only the geometry of what is read speaks."""
    stacks = select([instance.facts for instance in stored], criteria).stacks
    missing = tuple(sentence for stack in stacks for sentence in stack.geometry.missing)
    return Completeness(complete=not missing, reason="read from a folder, judged by geometry alone", missing=missing)


def _report(result: StudyResult, stored: Sequence[Stored], settings: Settings) -> bytes:
    device = Device(
        ae_title=settings.node.ae_title,
        version=__version__,
        institution=settings.report.institution,
        department=settings.report.department,
    )
    return to_bytes(build(result, evidence=_evidence(result, stored), made_at=now(), device=device))


def _evidence(result: StudyResult, stored: Sequence[Stored]) -> list[Dataset]:
    keys = set(key_slice_uids(result))
    chosen: Iterable[Stored] = [s for s in stored if s.facts.sop_instance_uid in keys] or stored[:1]
    return [dcmread(s.path, stop_before_pixels=True) for s in chosen]


def import_weights(
    source: Path, *, family: str, architecture: Mapping[str, Any], out: Path, sha256: str, partial: bool
) -> dict[str, Any]:
    """`out` is a model directory with the weights of `source`; what was taken, left out and left untrained.

    Raises
    ------
    ConfigError
        The file is not weights of this network; the message names what is missing or too much.
    """
    try:
        imported = importing.import_weights(
            source, family=family, architecture=architecture, out=out, sha256=sha256, partial=partial
        )
    except ModelError as error:
        raise ConfigError(str(error)) from error
    return {
        "directory": str(out),
        "layout": imported.layout,
        "untrained": list(imported.untrained),
        "dropped": list(imported.dropped),
        "sha256": imported.card.sha256,
    }


def models(settings: Settings) -> list[dict[str, Any]]:
    """Every configured model: where it lies, what its card says, and whether it may raise the flag."""
    return [
        card.to_json()
        | {"model": card.name, "name": name, "directory": str(directory), "trigger": settings.read.models[name].trigger}
        | {"certainty": card.certainty_in_words()}
        for name, (directory, card) in reading.cards(settings).items()
    ]
