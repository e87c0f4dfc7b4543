"""Labelled scans on disk, ready for a network: made once by the serving's own preprocessing, then memory-mapped."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from inference import preprocess
from inference.preprocess import Preprocessing
from inference.result import SUBTYPES, Json
from training.augment import Ranges, draw, perturb, warp
from training.errors import DataError, LeakageError

HALF = 0.5
"""A reduced pixel bleeds where at least this part of it does."""

SMALLEST_MM2 = 12.0
"""A bleeding smaller than this in one image is not labelled (the phantom's own rule)."""


class LabelledStudy(Protocol):
    """What every source yields: a volume, what bleeds in it, and whose it is."""

    @property
    def hu(self) -> NDArray[np.int16]:
        """Hounsfield units, (slices, rows, columns)."""

    @property
    def masks(self) -> NDArray[np.bool_]:
        """One mask for each subtype, (5, slices, rows, columns)."""

    @property
    def labels(self) -> NDArray[np.floating]:
        """0 or 1 for each slice, *any* first, (slices, 6)."""

    @property
    def pixel_spacing(self) -> tuple[float, float]:
        """Distance of rows and of columns in mm."""


@dataclass(frozen=True, kw_only=True)
class ScanFacts(Json):
    """What the folder of a prepared scan says about it."""

    patient: str
    """Two scans of one patient never stand on both sides of a split."""
    group: str
    """What figures are also given separately for, such as the preset of a phantom."""
    pixel_mm: float
    """Side of one pixel of the prepared images."""
    positions_mm: tuple[float, ...] = ()
    """Where each slice lies along the normal; empty where only their order is known."""
    measures: dict[str, float] = field(default_factory=dict)
    """What `inference.novelty.measure` finds in the scan as it came."""


@dataclass(frozen=True, kw_only=True)
class Scan:
    """One prepared scan; the arrays are memory-mapped."""

    facts: ScanFacts
    images: NDArray[np.float16]
    """(slices, channels, size, size)"""
    masks: NDArray[np.uint8]
    """(slices, size, size), one bit for each subtype"""
    labels: NDArray[np.float32]
    """(slices, 6)"""

    def __len__(self) -> int:
        return len(self.labels)


def prepare(
    study: LabelledStudy,
    folder: Path,
    *,
    patient: str,
    group: str,
    preprocessing: Preprocessing,
    positions_mm: tuple[float, ...] = (),
    measures: Mapping[str, float] | None = None,
) -> None:
    """Write `study` to `folder` as a network with this `preprocessing` sees it, masks included."""
    folder.mkdir(parents=True, exist_ok=True)
    hu = torch.from_numpy(study.hu)
    spacing = [study.pixel_spacing] * len(hu)
    images = preprocess.prepare(hu, pixel_spacing=spacing, preprocessing=preprocessing)
    bits = np.zeros((len(hu), preprocessing.size, preprocessing.size), np.uint8)
    for place in np.flatnonzero(study.masks.any((0, 2, 3))).tolist():
        here = slice(place, place + 1)
        masks = torch.from_numpy(study.masks[:, place])[None]
        masks = preprocess.resample_masks(masks, hu[here], pixel_spacing=spacing[here], preprocessing=preprocessing)
        for index, mask in enumerate(masks[0].numpy()):
            bits[place] |= (mask >= HALF).astype(np.uint8) << index
    np.save(folder / "images.npy", images.numpy().astype(np.float16))
    np.save(folder / "masks.npy", bits)
    np.save(folder / "labels.npy", np.asarray(study.labels, np.float32))
    widest = max(pixels * step for pixels, step in zip(study.hu.shape[1:], study.pixel_spacing, strict=True))
    facts = ScanFacts(
        patient=patient,
        group=group,
        pixel_mm=preprocessing.pixel_mm or widest / preprocessing.size,
        positions_mm=positions_mm,
        measures=dict(measures or {}),
    )
    (folder / "scan.json").write_text(json.dumps(facts.to_json()))


def load(folder: Path) -> Scan:
    """The scan that `prepare` wrote to `folder`."""
    return Scan(
        facts=ScanFacts.from_json(json.loads((folder / "scan.json").read_text())),
        images=np.load(folder / "images.npy", mmap_mode="r"),
        masks=np.load(folder / "masks.npy", mmap_mode="r"),
        labels=np.load(folder / "labels.npy"),
    )


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


def refuse_overlap(first: Sequence[Scan], second: Sequence[Scan]) -> None:
    """Raise `LeakageError` when a patient has scans on both sides."""
    common = {scan.facts.patient for scan in first} & {scan.facts.patient for scan in second}
    if common:
        raise LeakageError(f"{len(common)} patients are on both sides of the split, for example {min(common)}")


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Runs of neighbouring slices."""

    images: Tensor
    """(runs, slices, channels, side, side), float32"""
    masks: Tensor
    """(runs, slices, 5, side, side), 0..1"""
    labels: Tensor
    """(runs, slices, 6), 0 or 1"""


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
    """Share of the runs that are drawn around a positive slice, all subtypes alike often."""
    ranges: Ranges = field(default_factory=Ranges)


class Sampler:
    """Draws random batches of runs from scans; the same generator state gives the same batch."""

    def __init__(self, scans: Sequence[Scan], sampling: Sampling) -> None:
        self.scans, self.sampling = scans, sampling
        labels = np.concatenate([scan.labels for scan in scans])
        place = [(i, s) for i, scan in enumerate(scans) for s in range(len(scan))]
        self._positive = [[place[k] for k in np.flatnonzero(labels[:, 1 + c])] for c in range(len(SUBTYPES))]
        self._positive = [places for places in self._positive if places]
        self._negative = [place[k] for k in np.flatnonzero(labels[:, 0] == 0)]
        if not self._positive or not self._negative:
            raise DataError("training needs slices with and slices without bleeding")

    def batch(self, generator: torch.Generator) -> Batch:
        """The next batch; `generator` alone decides which."""
        chosen = [self._choose(generator) for _ in range(self.sampling.runs)]
        length = min(self.sampling.slices, *(len(self.scans[scan]) for scan, _, _ in chosen))
        parts = [self._run(scan, middle, length, positive, generator) for scan, middle, positive in chosen]
        return Batch(
            images=torch.stack([part[0] for part in parts]),
            masks=torch.stack([part[1] for part in parts]),
            labels=torch.stack([part[2] for part in parts]),
        )

    def _choose(self, generator: torch.Generator) -> tuple[int, int, bool]:
        positive = float(torch.rand(1, generator=generator)) < self.sampling.positive
        places = self._positive[_below(len(self._positive), generator)] if positive else self._negative
        scan, middle = places[_below(len(places), generator)]
        return scan, middle, positive

    def _run(
        self, index: int, middle: int, length: int, positive: bool, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        scan, sampling = self.scans[index], self.sampling
        first = min(max(0, middle - _below(length, generator)), len(scan) - length)
        images = torch.from_numpy(scan.images[first : first + length].astype(np.float32))
        masks = unpack(scan.masks[first : first + length])
        centre = _centre(images[middle - first], masks[middle - first] if positive else None, sampling.crop, generator)
        transform = draw(sampling.ranges, generator=generator, centre=centre, zoom=sampling.crop)
        fill = images.amin((0, 2, 3), keepdim=True)[0]
        images = perturb(warp(images, transform, side=sampling.side, fill=fill), sampling.ranges, generator=generator)
        masks = warp(masks, transform, side=sampling.side)
        labels = torch.from_numpy(scan.labels[first : first + length])
        if sampling.crop < 1:
            pixel = (scan.facts.pixel_mm * scan.images.shape[-1] * sampling.crop / sampling.side) ** 2
            inside = (masks.sum((2, 3)) * pixel >= SMALLEST_MM2).float()
            labels = torch.cat([inside.amax(1, keepdim=True), inside], 1)
        return images, masks, labels


def unpack(bits: NDArray[np.uint8]) -> Tensor:
    """Masks (slices, 5, rows, columns) of 0 and 1 from one bit for each subtype."""
    planes = [(bits >> index) & 1 for index in range(len(SUBTYPES))]
    return torch.from_numpy(np.stack(planes, 1).astype(np.float32))


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
