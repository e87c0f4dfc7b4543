"""Batches of runs of neighbouring slices: drawn and cut out of the cache on the CPU, changed on the training device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from inference.result import SUBTYPES
from inference.threads import threads_of_one
from training.augment import Changes, Ranges, draw, grid_of, perturb, warp
from training.dataset import Scan, unpack
from training.errors import DataError

CPU = torch.device("cpu")

SMALLEST_MM2 = 12.0
"""A bleeding smaller than this in one image is not labelled (the phantom's own rule)."""


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


class Loadable(Protocol):
    """A batch, or what becomes one on the device on which the network is trained."""

    def to(self, device: torch.device) -> Batch:
        """The batch on `device`."""


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
    outlines: bool = False
    """Whether masks are wanted; without them they are nought, and no slice is outlined."""
    ranges: Ranges = field(default_factory=Ranges)


@dataclass(frozen=True, kw_only=True)
class Cut:
    """The runs of a batch as they lie in the cache, and how each of them is to be changed.

    images : float16 (runs, slices, seen, size, size); masks : uint8 (runs, slices, size, size), one bit for each
    subtype, or None where none are wanted; pixel_mm2 : float32 (runs,), area of one pixel of the result.
    """

    images: Tensor
    masks: Tensor | None
    labels: Tensor
    outlined: Tensor
    pixel_mm2: Tensor
    changes: Changes
    side: int
    cropped: bool

    @torch.no_grad()
    def to(self, device: torch.device) -> Batch:
        """The batch on `device`, where its images are changed."""
        images = self.images.to(device, non_blocking=True).float()
        labels, outlined = (part.to(device, non_blocking=True) for part in (self.labels, self.outlined))
        changes = self.changes.to(device)
        grid = grid_of(changes, side=self.side)
        changed = perturb(warp(images, grid, fill=images.amin((1, 3, 4), keepdim=True)), changes)
        masks = changed.new_zeros(()).expand(*changed.shape[:2], len(SUBTYPES), self.side, self.side)
        if self.masks is not None:
            masks = masks.contiguous()
            bleeding = self.masks.flatten(1).any(1).nonzero().flatten()
            bits = self.masks[bleeding].to(device)
            bleeding = bleeding.to(device)
            masks[bleeding] = warp(unpack(bits), grid[bleeding])
        if self.cropped:
            labels = self._inside(labels, masks, outlined)
        return Batch(images=changed, masks=masks, labels=labels, outlined=outlined)

    def _inside(self, labels: Tensor, masks: Tensor, outlined: Tensor) -> Tensor:
        """What is known of crops: a crop of a slice that bleeds nobody knows where may hold the bleeding or not."""
        area = masks.sum((3, 4)) * self.pixel_mm2.to(masks.device)[:, None, None]
        inside = (area >= SMALLEST_MM2).float()
        cropped = torch.cat([inside.amax(2, keepdim=True), inside], 2)
        return torch.where(outlined[..., None], cropped, labels.where(labels == 0, torch.nan))


@dataclass(frozen=True, kw_only=True)
class Uploaded:
    """A batch that a GPU is making in a stream of its own."""

    batch: Batch
    done: torch.cuda.Event

    def to(self, device: torch.device) -> Batch:
        """The batch, for whom the current stream waits."""
        stream = torch.cuda.current_stream(device)
        stream.wait_event(self.done)
        for tensor in (self.batch.images, self.batch.masks, self.batch.labels, self.batch.outlined):
            tensor.record_stream(stream)  # its memory is in use until this stream is done with it
        return self.batch


class Ahead:
    """Batches made in other threads before they are asked for, so that the network never waits for them.

    Batch `number` is `make(number)`, whoever makes it and whenever; a member of a team asks for every `stride`-th.
    """

    def __init__(self, make: Callable[[int], Loadable], *, workers: int = 2, stride: int = 1) -> None:
        self._make, self._stride = make, stride
        self._ahead = 2 * workers
        self._pool = threads_of_one("batches", workers)
        self._coming: dict[int, Future[Loadable]] = {}

    def __call__(self, number: int) -> Loadable:
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
        """Batch `number` of a run with this `seed`, on the CPU: the same in every process and after every restart."""
        return self.batch(_generator(number, seed))

    def loadable(self, number: int, *, seed: int, device: torch.device) -> Loadable:
        """The same for `device`. A GPU changes the images itself, beside what it computes for others meanwhile."""
        if device.type == "cpu":
            return self.numbered(number, seed=seed)
        cut = self.cut(_generator(number, seed), pinned=True)
        with torch.cuda.stream(torch.cuda.Stream(device)):  # type: ignore[no-untyped-call]
            batch, done = cut.to(device), torch.cuda.Event()  # type: ignore[no-untyped-call]
            done.record()
        return Uploaded(batch=batch, done=done)

    def batch(self, generator: torch.Generator) -> Batch:
        """The next batch, on the CPU; `generator` alone decides which."""
        return self.cut(generator).to(CPU)

    def cut(self, generator: torch.Generator, *, pinned: bool = False) -> Cut:
        """The next batch as it lies in the cache; `pinned`, in memory that a GPU copies while others compute."""
        sampling = self.sampling
        u = torch.rand(sampling.runs, 4, generator=generator, dtype=torch.float64).tolist()
        drawn = [self._place(*each[:3]) for each in u]
        length = min(sampling.slices, *(len(scan) for scan, _ in drawn))
        befores = [length // 2 if sampling.centred else int(each[3] * length) for each in u]
        runs = [
            (scan, middle, _around(middle, len(scan), length, before))
            for (scan, middle), before in zip(drawn, befores, strict=True)
        ]
        images = _stacked([scan.among(here, reach=sampling.reach) for scan, _, here in runs], pinned=pinned)
        masks, outlined = None, torch.full((len(runs), length), False)
        if sampling.outlines:
            found = [scan.outlines(here) for scan, _, here in runs]
            masks = _stacked([bits for bits, _ in found], pinned=pinned)
            outlined = _stacked([known for _, known in found])
        centres = None
        if sampling.crop < 1:
            middles = [middle - here.start for _, middle, here in runs]
            centres = _centres(images, masks, middles, sampling.crop, generator)
        zoom = images.shape[-1] * sampling.crop / sampling.side
        return Cut(
            images=images,
            masks=masks,
            labels=_stacked([scan.labels[here] for scan, _, here in runs]),
            outlined=outlined,
            pixel_mm2=torch.tensor([scan.facts.pixel_mm * zoom for scan, _, _ in runs]).square(),
            changes=draw(sampling.ranges, len(runs), generator=generator, centres=centres, zoom=sampling.crop),
            side=sampling.side,
            cropped=sampling.crop < 1,
        )

    def _place(self, positive: float, kind: float, place: float) -> tuple[Scan, int]:
        """A scan and a slice of it, from three numbers in 0..1."""
        places = self._negative
        if positive < self.sampling.positive:
            places = self._positive[int(kind * len(self._positive))]
        scan, middle = places[int(place * len(places))]
        return self.scans[scan], middle


def _generator(number: int, seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed * 1_000_003 + number)


def _around(middle: int, slices: int, length: int, before: int) -> slice:
    """`length` neighbouring slices, `before` of them before `middle` as far as the scan's ends allow."""
    first = min(max(0, middle - before), slices - length)
    return slice(first, first + length)


def _stacked(arrays: Sequence[NDArray[Any]], *, pinned: bool = False) -> Tensor:
    """The arrays as one tensor; `pinned`, in memory that a GPU can take from by itself."""
    kind = torch.from_numpy(np.empty(0, arrays[0].dtype)).dtype
    stacked = torch.empty(len(arrays), *arrays[0].shape, dtype=kind, pin_memory=pinned)
    np.stack(arrays, out=stacked.numpy())
    return stacked


def _centres(
    images: Tensor, masks: Tensor | None, middles: Sequence[int], crop: float, generator: torch.Generator
) -> Tensor:
    """Where crops look, (runs, 2): near a pixel of the bleeding where the slice has some, or else of the head."""
    side, reach = images.shape[-1], 1 - crop
    u = torch.rand(len(images), 3, generator=generator, dtype=torch.float64)
    found = torch.zeros(len(images), 2)
    for number, middle in enumerate(middles):
        plane = images[number, middle, 0].float()
        blood = masks[number, middle] if masks is not None else None
        pixels = torch.nonzero(blood if blood is not None and bool(blood.any()) else plane > plane.min())
        if len(pixels):
            row, column = pixels[int(u[number, 0] * len(pixels))].tolist()
            jitter = ((2 * u[number, 1:] - 1) * crop * 0.7).tolist()
            found[number, 0] = 2 * (column + 0.5) / side - 1 + jitter[0]
            found[number, 1] = 2 * (row + 0.5) / side - 1 + jitter[1]
    return found.clamp(-reach, reach)
