"""Labelled scans ready for a network: made once by the serving's own preprocessing, then memory-mapped and sampled."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import compress
from multiprocessing import get_context
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from inference import preprocess
from inference.errors import UnreadablePixels
from inference.models.scan_model import steps_of
from inference.preprocess import Preprocessing
from inference.result import SUBTYPES, Json
from training.cache import VolumeCache, insist
from training.errors import DataError
from training.measures import by_name, measured, thicknesses_of
from training.study import Arrays, CohortFacts, LabelledStudy, Labels, volume_key

HALF = 0.5
"""A reduced pixel bleeds where at least this part of it does."""

FEW = 4
"""Scans that one process decodes in the time in which others start."""

PREPARED = 3
"""Raised when the same volume and preprocessing give other images, so that no cache gives the old ones."""

BY_SLICE = ("images", "masks", "uids", "positions", "thickness", "digests", "labels", "brain")
"""Arrays of a prepared volume whose rows are its slices."""

KEPT = ("uids", "positions", "thickness", "digests", "labels")
"""Arrays of a decoded volume that stay beside its images."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ScanFacts(Json):
    """Whose a prepared scan is, and what figures are broken down by."""

    patient: str
    """Two scans of one patient never stand on both sides of a split."""
    group: str
    """What figures are also given separately for, such as the preset of a phantom."""
    pixel_mm: float
    """Side of one pixel of the prepared images."""
    source: str = ""
    study_uid: str = ""
    revision: int = 0
    cohort: CohortFacts = field(default_factory=CohortFacts)
    positions_mm: tuple[float, ...] = ()
    """Where each slice lies along the normal; empty where only their order is known."""
    thicknesses_mm: tuple[float | None, ...] = ()
    """Of each slice; empty where nothing is known of any."""
    measures: dict[str, float] = field(default_factory=dict)
    """What `inference.novelty.measure` finds in the scan as it came."""
    readers: dict[str, Labels] = field(default_factory=dict)
    """Each reader's own labels of the study, where several read it."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Scan:
    """One prepared scan. Its arrays are opened when they are asked for: no process may hold thousands of files open.

    Attributes
    ----------
    labels : float32 (slices, 6)
        0 or 1, NaN where nobody said.
    study_labels : float32 (6,)
        Of the whole scan; NaN where nobody said.
    opened : callable
        images : float16 (slices, channels, size, size); masks : uint8 (slices, size, size), one bit for each subtype
        (absent where the source has no outlines); digests : uint8 (slices, 32), of the slices' decoded pixels.
    volume : callable or None
        The decoded volume behind the images, for pictures.
    blank : bool (slices,) or None
        The slices that the preprocessing leaves out; None where it leaves out none.
    """

    facts: ScanFacts
    labels: NDArray[np.float32]
    study_labels: NDArray[np.float32]
    opened: Callable[[], Arrays]
    volume: Callable[[], Arrays] | None = None
    blank: NDArray[np.bool_] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def array(self, name: str) -> NDArray[Any] | None:
        """One of its arrays, or None where it has none of this name; looked up again where it just left the cache."""
        return insist(lambda: self.opened().get(name))

    @property
    def images(self) -> NDArray[np.float16]:
        """(slices, channels, size, size)"""
        return insist(lambda: self.opened()["images"])

    def outlines(self, here: slice) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """Masks (slices, size, size) of some slices, one bit for each subtype, and whether they are known.

        They are known where there are outlines, or nothing to outline.
        """
        masks = self.array("masks")
        if masks is not None:
            return masks[here], np.full(len(masks[here]), True)
        known: NDArray[np.bool_] = (self.labels[here] == 0).all(1)
        return np.zeros((len(known), *self.images.shape[2:]), np.uint8), known

    def among(self, here: slice, *, reach: int) -> NDArray[np.float16]:
        """Images of some slices as `ScanModel.among` makes them of the whole scan, (slices, seen, size, size)."""
        images = self.images
        if not reach:
            return images[here]
        places = np.arange(here.start, here.stop)
        planes = [images[(places + step).clip(0, len(self) - 1), :1] for step in steps_of(reach)]
        return np.concatenate((images[here], *planes), 1)

    def as_one(self) -> Scan:
        """As a network sees it that gives one answer for the whole: the labels are those of the study, (1, 6)."""
        facts = replace(self.facts, positions_mm=(), thicknesses_mm=())
        return replace(self, labels=self.study_labels[None], facts=facts)

    def of(self, chosen: NDArray[np.bool_]) -> Scan:
        """These slices alone, with what is known of the whole scan."""
        facts = self.facts
        facts = replace(
            facts,
            positions_mm=tuple(compress(facts.positions_mm, chosen)),
            thicknesses_mm=tuple(compress(facts.thicknesses_mm, chosen)),
        )
        return replace(
            self,
            facts=facts,
            labels=self.labels[chosen],
            opened=partial(_some_slices, self.opened, chosen),
            blank=None if self.blank is None else self.blank[chosen],
        )

    @property
    def shown(self) -> NDArray[np.bool_]:
        """(slices,), which slices are read: all but the blank ones."""
        return np.full(len(self), True) if self.blank is None else ~self.blank

    @property
    def digests(self) -> NDArray[np.uint8]:
        """(slices, 32), SHA-256 of the slices' decoded pixels."""
        return insist(lambda: self.opened()["digests"])


def _some_slices(opened: Callable[[], Arrays], chosen: NDArray[np.bool_]) -> Arrays:
    return insist(lambda: {name: values[chosen] for name, values in opened().items() if name in BY_SLICE})


def prepare(study: LabelledStudy, *, cache: VolumeCache, preprocessing: Preprocessing) -> Scan:
    """`study` as a network with this `preprocessing` sees it, from the cache where it has been made before."""
    key = _key(study, preprocessing)
    opened = partial(_opened, key, study, cache, preprocessing)
    arrays = insist(lambda: dict(opened()))
    labels = study.label_slices(arrays)
    blank = arrays["brain"] < preprocessing.blank_below if preprocessing.blank_below else None
    if blank is not None and blank.all():
        raise DataError("none of its slices shows enough brain to be read")
    rows, columns = (float(mm) for mm in arrays["field"])
    return Scan(
        facts=ScanFacts(
            patient=study.patient,
            group=study.group,
            pixel_mm=preprocessing.pixel_mm or max(rows, columns) / preprocessing.size,
            source=study.source,
            study_uid=study.study_uid,
            revision=study.revision,
            cohort=study.facts,
            positions_mm=tuple(arrays["positions"].tolist()),
            thicknesses_mm=thicknesses_of(arrays),
            measures=by_name(arrays["measures"]),
            readers=dict(study.readers),
        ),
        labels=labels,
        study_labels=study.label_study(labels),
        opened=opened,
        volume=partial(cache.get, study.key, study.decode),
        blank=blank,
    )


def prepare_all(
    studies: Sequence[LabelledStudy],
    *,
    cache: VolumeCache,
    preprocessing: Preprocessing,
    workers: int = 1,
    told: Callable[[], None] = lambda: None,
) -> list[Scan]:
    """Every study prepared, those that cannot be decoded left out with a note; `told` is called after each.

    `workers` processes decode what the cache does not hold yet, where that is more than a few.
    """
    work = partial(_prepared_or_none, cache=cache, preprocessing=preprocessing)
    missing = sum(_key(study, preprocessing) not in cache for study in studies)
    if workers == 1 or missing < FEW * workers:
        return [scan for scan in _counted(map(work, studies), told) if scan is not None]
    with ProcessPoolExecutor(
        workers, mp_context=get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        return [scan for scan in _counted(pool.map(work, studies, chunksize=4), told) if scan is not None]


def _key(study: LabelledStudy, preprocessing: Preprocessing) -> str:
    """Of the prepared volume."""
    return volume_key(study.key, PREPARED, preprocessing.to_json())


def _prepared_or_none(study: LabelledStudy, *, cache: VolumeCache, preprocessing: Preprocessing) -> Scan | None:
    try:
        return prepare(study, cache=cache, preprocessing=preprocessing)
    except (DataError, UnreadablePixels) as error:
        log.warning("%s %s left out: %s", study.source, study.study_uid, error)
        return None


def _counted(scans: Iterable[Scan | None], told: Callable[[], None]) -> Iterator[Scan | None]:
    for scan in scans:
        told()
        yield scan


def _opened(key: str, study: LabelledStudy, cache: VolumeCache, preprocessing: Preprocessing) -> Arrays:
    found = cache.find(key)
    if found is None:
        volume = cache.get(study.key, study.decode)  # before, not while the images' place is locked
        found = cache.get(key, lambda: _images(volume, preprocessing))
    return found


def _images(volume: Arrays, preprocessing: Preprocessing) -> Arrays:
    """What is kept of a prepared volume: its images and masks, and what labels and guards need."""
    hu = torch.from_numpy(np.array(volume["hu"]))
    rows, columns = (float(mm) for mm in volume["spacing"])
    spacing = [(rows, columns)] * len(hu)
    images = preprocess.prepare(hu, pixel_spacing=spacing, preprocessing=preprocessing)
    arrays = {name: volume[name] for name in KEPT if name in volume}
    arrays |= {
        "images": images.numpy().astype(np.float16),
        "field": np.array(hu.shape[1:]) * [rows, columns],
        "measures": measured(volume),
    }
    if preprocessing.blank_below:
        arrays["brain"] = preprocess.brain_fraction(hu).numpy()
    if "masks" in volume:
        arrays["masks"] = _masks(volume["masks"], hu, spacing, preprocessing)
    return arrays


def _masks(
    bits: NDArray[np.uint8], hu: Tensor, spacing: list[tuple[float, float]], preprocessing: Preprocessing
) -> NDArray[np.uint8]:
    prepared = np.zeros((len(hu), preprocessing.size, preprocessing.size), np.uint8)
    for place in np.flatnonzero(bits.any((1, 2))).tolist():
        here = slice(place, place + 1)
        masks = preprocess.resample_masks(
            unpack(torch.tensor(bits[here])), hu[here], pixel_spacing=spacing[here], preprocessing=preprocessing
        )
        for index, mask in enumerate(masks[0].numpy()):
            prepared[place] |= (mask >= HALF).astype(np.uint8) << index
    return prepared


def sampled_volumes(
    studies: Sequence[LabelledStudy], *, cache: VolumeCache, seed: int, count: int = 100, slices: int = 8
) -> list[Tensor]:
    """Some slices of some studies, int16 (slices, rows, columns) in HU: always the same ones of the same studies.

    Raises ``DataError`` where none of the studies can be decoded.
    """
    order = sorted(
        studies, key=lambda study: hashlib.sha256(f"{seed}:{study.source}:{study.study_uid}".encode()).digest()
    )
    found: list[Tensor] = []
    for study in order:
        if len(found) == count:
            break
        try:
            hu = cache.get(study.key, study.decode)["hu"]
        except (DataError, UnreadablePixels) as error:
            log.warning("%s %s left out: %s", study.source, study.study_uid, error)
            continue
        chosen = np.unique(np.linspace(0, len(hu) - 1, slices).round().astype(int))
        found.append(torch.from_numpy(np.array(hu[chosen])))
    if not found:
        raise DataError("no study is left to train on")
    return found


def split(patients: Iterable[str], *, shares: Sequence[float], seed: int) -> list[list[str]]:
    """Patients dealt into as many groups as there are `shares` (their sum is 1), by a digest of name and seed.

    A patient's group depends on nothing but the name, the seed and the shares: adding patients moves nobody.
    """
    edges = np.cumsum(shares)
    groups: list[list[str]] = [[] for _ in shares]
    for patient in sorted(set(patients)):
        digest = hashlib.sha256(f"{seed}:{patient}".encode()).digest()
        place = int.from_bytes(digest[:8], "big") / 2**64
        groups[min(int(np.searchsorted(edges, place, side="right")), len(groups) - 1)].append(patient)
    return groups


def unpack(bits: Tensor) -> Tensor:
    """Masks (…, 5, rows, columns) of 0 and 1 from one bit for each subtype (…, rows, columns)."""
    return torch.stack([(bits >> index) & 1 for index in range(len(SUBTYPES))], -3).float()
