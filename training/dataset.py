"""Labelled scans ready for a network: made once by the serving's own preprocessing, then memory-mapped and sampled."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import compress
from multiprocessing import get_context
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from inference import preprocess
from inference.errors import UnreadablePixels
from inference.models.scan_model import steps_of
from inference.preprocess import Preprocessing
from inference.result import SUBTYPES, Json
from inference.threads import threads_of_one
from training.augment import Ranges, draw, draw_grid, perturb, warp
from training.cache import VolumeCache
from training.errors import DataError
from training.measures import by_name, measured, thicknesses_of
from training.study import Arrays, CohortFacts, LabelledStudy, Labels, volume_key

HALF = 0.5
"""A reduced pixel bleeds where at least this part of it does."""

SMALLEST_MM2 = 12.0
"""A bleeding smaller than this in one image is not labelled (the phantom's own rule)."""

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

    @property
    def images(self) -> NDArray[np.float16]:
        """(slices, channels, size, size)"""
        return self.opened()["images"]

    def cut(self, here: slice) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_]]:
        """Images, masks (slices, 5, size, size) and whether the masks are known, of some slices.

        They are known where there are outlines, or nothing to outline.
        """
        arrays = self.opened()
        images = arrays["images"][here].astype(np.float32)
        if "masks" in arrays:
            return images, unpack(arrays["masks"][here]), np.full(len(images), True)
        masks = np.zeros((len(images), len(SUBTYPES), *images.shape[2:]), np.float32)
        return images, masks, (self.labels[here] == 0).all(1)

    def among(self, here: slice, *, reach: int) -> NDArray[np.float32]:
        """Images of some slices as `ScanModel.among` makes them of the whole scan, (slices, seen, size, size)."""
        images = self.images
        places = np.arange(here.start, here.stop)
        planes = [images[(places + step).clip(0, len(self) - 1), :1] for step in steps_of(reach)]
        return np.concatenate((images[here], *planes), 1).astype(np.float32)

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
        return self.opened()["digests"]


def _some_slices(opened: Callable[[], Arrays], chosen: NDArray[np.bool_]) -> Arrays:
    return {name: values[chosen] for name, values in opened().items() if name in BY_SLICE}


def prepare(study: LabelledStudy, *, cache: VolumeCache, preprocessing: Preprocessing) -> Scan:
    """`study` as a network with this `preprocessing` sees it, from the cache where it has been made before."""
    key = volume_key(study.key, PREPARED, preprocessing.to_json())
    opened = partial(_opened, key, study, cache, preprocessing)
    arrays = opened()
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

    `workers` processes decode what the cache does not hold yet.
    """
    work = partial(_prepared_or_none, cache=cache, preprocessing=preprocessing)
    if workers == 1 or len(studies) < workers:
        return [scan for scan in _counted(map(work, studies), told) if scan is not None]
    with ProcessPoolExecutor(
        workers, mp_context=get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        return [scan for scan in _counted(pool.map(work, studies, chunksize=4), told) if scan is not None]


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
            torch.from_numpy(unpack(bits[here])), hu[here], pixel_spacing=spacing[here], preprocessing=preprocessing
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


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Runs of neighbouring slices."""

    images: Tensor
    """(runs, slices, channels, side, side), float32"""
    masks: Tensor
    """(runs, slices, 5, side, side), 0..1"""
    labels: Tensor
    """(runs, slices, 6), 0 or 1, NaN where nobody said"""
    outlined: Tensor
    """(runs, slices), whether the masks say where the slice bleeds"""

    def to(self, device: torch.device) -> Batch:
        """The batch on `device`."""
        images, masks, labels, outlined = (
            t.to(device, non_blocking=True) for t in (self.images, self.masks, self.labels, self.outlined)
        )
        return Batch(images=images, masks=masks, labels=labels, outlined=outlined)


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How batches are drawn."""

    runs: int
    slices: int
    side: int
    """Pixels of a side of what the network gets."""
    crop: float = 1.0
    """Side of the crop as a share of the image's side; below 1, labels follow what is inside the crop."""
    positive: float = 0.5
    """Share of the runs that are drawn around a positive slice."""
    alike: bool = True
    """Whether all subtypes are drawn alike often; else all positive slices are."""
    centred: bool = False
    """The drawn slice is the middle of its run, as far as the scan's ends allow, and not anywhere in it."""
    reach: int = 0
    """Neighbours of each slice whose first channels stand behind its own: see `ScanModel.among`."""
    ranges: Ranges = field(default_factory=Ranges)


class Ahead:
    """Batches made in other threads before they are asked for, so that the network never waits for them.

    Batch `number` is `make(number)`, whoever makes it and whenever; a member of a team asks for every `stride`-th.
    """

    def __init__(self, make: Callable[[int], Batch], *, workers: int = 2, stride: int = 1) -> None:
        self._make, self._stride = make, stride
        self._ahead = 2 * workers
        self._pool = threads_of_one("batches", workers)
        self._coming: dict[int, Future[Batch]] = {}

    def __call__(self, number: int) -> Batch:
        """Batch `number`; those that follow are begun."""
        for place in range(self._ahead + 1):
            following = number + place * self._stride
            if following not in self._coming:
                self._coming[following] = self._pool.submit(self._make, following)
        return self._coming.pop(number).result()

    def close(self) -> None:
        """Nothing more is made."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Sampler:
    """Draws random batches of runs from scans; the same generator state gives the same batch.

    No run is drawn around a slice that is blank, or of which nobody said whether it bleeds. `positives` counts those
    that bleed.
    """

    def __init__(self, scans: Sequence[Scan], sampling: Sampling) -> None:
        self.scans, self.sampling = scans, sampling
        bears = np.concatenate([(scan.labels == 1) & scan.shown[:, None] for scan in scans])
        clean = np.concatenate([(scan.labels[:, 0] == 0) & scan.shown for scan in scans])
        place = [(i, s) for i, scan in enumerate(scans) for s in range(len(scan))]
        bleeding = bears.any(1)
        unnamed = bleeding & ~bears[:, 1:].any(1)
        kinds = [*bears[:, 1:].T, unnamed] if sampling.alike else [bleeding]
        self._positive = [[place[k] for k in np.flatnonzero(kind)] for kind in kinds if kind.any()]
        self._negative = [place[k] for k in np.flatnonzero(clean)]
        self.positives = int(bleeding.sum())
        if not self._positive or not (self._negative or sampling.positive == 1):
            raise DataError("training needs slices labelled with and slices labelled without bleeding")

    def numbered(self, number: int, *, seed: int) -> Batch:
        """Batch `number` of a run with this `seed`: the same in every process and after every restart."""
        return self.batch(torch.Generator().manual_seed(seed * 1_000_003 + number))

    def batch(self, generator: torch.Generator) -> Batch:
        """The next batch; `generator` alone decides which."""
        chosen = [self._choose(generator) for _ in range(self.sampling.runs)]
        length = min(self.sampling.slices, *(len(self.scans[scan]) for scan, _, _ in chosen))
        parts = [self._run(scan, middle, length, positive, generator) for scan, middle, positive in chosen]
        return Batch(
            images=torch.stack([part[0] for part in parts]),
            masks=torch.stack([part[1] for part in parts]),
            labels=torch.stack([part[2] for part in parts]),
            outlined=torch.stack([part[3] for part in parts]),
        )

    def _choose(self, generator: torch.Generator) -> tuple[int, int, bool]:
        positive = float(torch.rand(1, generator=generator)) < self.sampling.positive
        places = self._positive[_below(len(self._positive), generator)] if positive else self._negative
        scan, middle = places[_below(len(places), generator)]
        return scan, middle, positive

    def _run(
        self, index: int, middle: int, length: int, positive: bool, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        scan, sampling = self.scans[index], self.sampling
        before = length // 2 if sampling.centred else _below(length, generator)
        first = min(max(0, middle - before), len(scan) - length)
        here = slice(first, first + length)
        images, masks, outlined = (torch.from_numpy(part) for part in scan.cut(here))
        if sampling.reach:
            images = torch.from_numpy(scan.among(here, reach=sampling.reach))
        centre = _centre(images[middle - first], masks[middle - first] if positive else None, sampling.crop, generator)
        transform = draw(sampling.ranges, generator=generator, centre=centre, zoom=sampling.crop)
        grid = draw_grid(sampling.ranges, transform, side=sampling.side, generator=generator)
        fill = images.amin((0, 2, 3), keepdim=True)[0]
        images = perturb(warp(images, grid, fill=fill), sampling.ranges, generator=generator)
        masks = warp(masks, grid)
        labels = torch.from_numpy(scan.labels[first : first + length])
        if sampling.crop < 1:
            pixel = (scan.facts.pixel_mm * scan.images.shape[-1] * sampling.crop / sampling.side) ** 2
            inside = (masks.sum((2, 3)) * pixel >= SMALLEST_MM2).float()
            cropped = torch.cat([inside.amax(1, keepdim=True), inside], 1)
            # A crop of a slice that bleeds nobody knows where may hold the bleeding or not.
            elsewhere = labels.where(labels == 0, torch.nan)
            labels = torch.where(outlined[:, None], cropped, elsewhere)
        return images, masks, labels, outlined


def unpack(bits: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Masks (slices, 5, rows, columns) of 0 and 1 from one bit for each subtype."""
    planes = [(bits >> index) & 1 for index in range(len(SUBTYPES))]
    return np.stack(planes, 1).astype(np.float32)


def _below(count: int, generator: torch.Generator) -> int:
    return int(torch.randint(0, count, (1,), generator=generator))


def _centre(images: Tensor, masks: Tensor | None, crop: float, generator: torch.Generator) -> tuple[float, float]:
    """Where a crop looks: near a pixel of the bleeding, or of the head; the middle when nothing is cropped or there."""
    plane = masks.sum(0) if masks is not None and bool(masks.any()) else images[0] - images.min()
    pixels = torch.nonzero(plane > 0)
    if crop >= 1 or not len(pixels):
        return 0.0, 0.0
    row, column = pixels[_below(len(pixels), generator)].tolist()
    jitter = ((2 * torch.rand(2, generator=generator) - 1) * crop * 0.7).tolist()
    side, reach = images.shape[-1], 1 - crop
    x, y = (2 * (column + 0.5) / side - 1 + jitter[0], 2 * (row + 0.5) / side - 1 + jitter[1])
    return min(max(x, -reach), reach), min(max(y, -reach), reach)
