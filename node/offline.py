"""What can be done without a running node: read a folder, list the models."""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from rich.progress import Progress

from db.schema import now
from inference import importing
from inference.card import CARD_FILE, ModelCard, ModelError, read_card
from inference.decoding import Stored
from inference.device import keep_freed_memory
from inference.errors import UnreadablePixels
from inference.models.catalogue import PUBLISHED
from inference.preprocess import Preprocessing, equalising_quantiles
from inference.result import ANY, Completeness, StudyResult
from inference.series import Criteria, facts, select
from inference.study import StudyReader
from inference.volume import read_slices
from node import overlay, reading
from node.config import ModelSection, Settings
from node.errors import ConfigError, NoSegmentation, StartError
from node.locate import Locator, device_of
from node.report.content import DEMONSTRATION, FOR_RESEARCH, key_slice_uids
from node.report.sr import build, to_bytes

SLICES_FOR_QUANTILES = 200


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """The files to write about the only study of a folder: report, segmentation, and a folder of pictures."""

    sr: Path | None = None
    seg: Path | None = None
    overlay: Path | None = None

    @property
    def anything(self) -> bool:
        """Whether there is a file to write."""
        return any(path is not None for path in (self.sr, self.seg, self.overlay))


def infer(folder: Path, *, settings: Settings, wanted: Wanted, progress: Progress) -> list[StudyResult]:
    """What the node would say about every study under `folder` (or in one file), in the order of their UIDs.

    Where a segmentation or pictures are wanted, the models are also asked where they looked, and the result has the
    volume that their masks enclose.

    Raises
    ------
    ConfigError
        There is no DICOM file, or files are wanted and there are several studies.
    NoSegmentation
        One is wanted, and no model draws masks or nothing was read.
    StartError
        A model cannot be loaded.
    """
    studies = _studies(folder, progress)
    if not studies:
        raise ConfigError(f"{folder}: no DICOM file with a Study Instance UID")
    if wanted.anything and len(studies) > 1:
        raise ConfigError(f"{folder} holds {len(studies)} studies; --sr, --seg and --overlay take one")
    keep_freed_memory()
    reader = reading.reader_of(settings, reading.engine_of(settings))
    results = [_read(reader, uid, stored, settings, progress) for uid, stored in sorted(studies.items())]
    if wanted.seg or wanted.overlay:
        results = [_located(results[0], next(iter(studies.values())), settings, wanted, progress)]
    if wanted.sr is not None:
        wanted.sr.write_bytes(_report(results[0], next(iter(studies.values())), settings))
    return results


def _located(
    result: StudyResult, stored: Sequence[Stored], settings: Settings, wanted: Wanted, progress: Progress
) -> StudyResult:
    """The result with volumes; the segmentation and the pictures are written."""
    progress.add_task("looking again", total=None)
    locator = Locator.load(settings, masks_only=wanted.overlay is None)
    located = locator.locate(result, stored)
    if located is None:
        raise NoSegmentation(f"nothing was read: {result.reason}")
    result = located.with_volumes(result)
    if wanted.seg is not None:
        wanted.seg.write_bytes(to_bytes(locator.segmentation(result, located, stored, made_at=now())))
    if wanted.overlay is not None:
        for one in (found for found in result.readings if found.name in located.maps):
            warning = DEMONSTRATION if one.demonstration else FOR_RESEARCH
            overlay.write(wanted.overlay, one, located.maps[one.name], located.slices, warning=warning)
    return result


def with_models(settings: Settings, names: Sequence[str]) -> Settings:
    """The settings with these models and no others: names from node.toml, packaged weights, or directories.

    A model without "any" may not raise the flag unless none of the others has it.

    Raises ``ConfigError`` for a name that is none of these.
    """
    if not names:
        return settings
    models = dict(_named(settings, name) for name in names)
    saying_any = {name for name, model in models.items() if ANY in _labels(model)}
    models = {
        name: model.model_copy(update={"trigger": name in (saying_any or models)}) for name, model in models.items()
    }
    return settings.model_copy(update={"read": settings.read.model_copy(update={"models": models})})


def _named(settings: Settings, name: str) -> tuple[str, ModelSection]:
    if name in settings.read.models:
        return name, settings.read.models[name]
    directory = Path(name) if Path(name).is_dir() else reading.PACKAGED / name
    if not (directory / CARD_FILE).is_file():
        known = [*settings.read.models, *(path.name for path in reading.packaged())]
        raise ConfigError(f"--model {name!r}: no directory with {CARD_FILE}, and none of {', '.join(known)}")
    short = re.sub(r"[^a-z0-9_-]", "-", directory.resolve().name.lower()).strip("-_")[:48] or "model"
    return short, ModelSection(weights=str(directory.resolve()))


def _labels(model: ModelSection) -> tuple[str, ...]:
    try:
        return read_card(reading.directory_of(model.weights)).labels
    except ModelError as error:
        raise StartError(str(error)) from error


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
    evidence = _evidence(result, stored)
    return to_bytes(build(result, evidence=evidence, made_at=now(), device=device_of(settings)))


def _evidence(result: StudyResult, stored: Sequence[Stored]) -> list[Dataset]:
    keys = set(key_slice_uids(result))
    chosen: Iterable[Stored] = [s for s in stored if s.facts.sop_instance_uid in keys] or stored[:1]
    return [dcmread(s.path, stop_before_pixels=True) for s in chosen]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is asked of an import beside the network; what is left out is the paper's.

    `preprocessing` has the keys of a card's; `quantiles_of` is a folder of DICOM slices whose Hounsfield units equalise
    the images of a classifier.
    """

    preprocessing: Mapping[str, Any] | None = None
    quantiles_of: Path | None = None
    labels: tuple[str, ...] = ()
    name: str = ""
    sha256: str = ""
    partial: bool = False


def import_weights(
    source: Path, *, family: str, architecture: Mapping[str, Any], out: Path, asked: Asked
) -> dict[str, Any]:
    """`out` is a model directory with the weights of `source`; what was taken, left out and left untrained.

    Raises
    ------
    ConfigError
        The file is not weights of this network; the message names what is missing or too much.
    """
    try:
        imported = importing.import_weights(
            source,
            family=family,
            architecture=architecture,
            out=out,
            preprocessing=_preprocessing(asked, architecture),
            labels=asked.labels or None,
            name=asked.name,
            sha256=asked.sha256,
            partial=asked.partial,
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


def _preprocessing(asked: Asked, architecture: Mapping[str, Any]) -> Preprocessing | None:
    if asked.quantiles_of is not None:
        size = architecture.get("size")
        return Preprocessing.equalised(_quantiles(asked.quantiles_of), **({"size": size} if size else {}))
    if asked.preprocessing is None:
        return None
    try:
        return Preprocessing.from_json(asked.preprocessing)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"--preprocessing: {error}") from error


def _quantiles(folder: Path) -> tuple[float, ...]:
    """Of every fourth pixel of up to `SLICES_FOR_QUANTILES` slices, evenly spread over the files of the folder."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    step = max(1, len(paths) // SLICES_FOR_QUANTILES)
    pixels = []
    for path in paths[::step]:
        try:
            pixels += [torch.from_numpy(piece.hu[::2, ::2].copy()).flatten() for piece in read_slices(path)]
        except UnreadablePixels:
            continue
    if not pixels:
        raise ConfigError(f"{folder}: no slice in Hounsfield units")
    return equalising_quantiles(torch.cat(pixels))


def catalogue(settings: Settings) -> dict[str, Any]:
    """Our own and the papers' networks, the configured models, and the packaged weights that are not configured."""
    configured = models(settings)
    used = {Path(model["directory"]).resolve() for model in configured}
    packaged = [
        _card_facts(path.name, path, read_card(path), trigger=False)
        for path in reading.packaged()
        if path.resolve() not in used
    ]
    return {
        "networks": [published.facts() for published in PUBLISHED],
        "configured": configured,
        "packaged": packaged,
    }


def models(settings: Settings) -> list[dict[str, Any]]:
    """Every configured model: where it lies, what its card says, and whether it may raise the flag."""
    return [
        _card_facts(name, directory, card, trigger=settings.read.models[name].trigger)
        for name, (directory, card) in reading.cards(settings).items()
    ]


def _card_facts(name: str, directory: Path, card: ModelCard, *, trigger: bool) -> dict[str, Any]:
    return {
        **card.to_json(),
        "model": card.name,
        "name": name,
        "directory": str(directory),
        "trigger": trigger,
        "certainty": card.certainty_in_words(),
    }
