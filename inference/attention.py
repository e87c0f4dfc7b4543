"""Where a model looked: the masks it was trained to draw, or else Grad-CAM, on the slices' own pixels; the volume.

A second look at a study that was read, for research and for people who want to understand a model. It has its own copy
of the network, in full precision, and decodes the slices anew: nothing of it runs unless it is asked for.

Only masks that were trained as segmentations (Grewal et al. 2018, section 2.2.2) have a volume. Grad-CAM (Selvaraju et
al. 2017, section 3) shows what raised a score, not where a bleed ends.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from inference.card import ModelCard, load
from inference.errors import UnreadablePixels
from inference.image_place import Floats, ImagePlace
from inference.models import Resnet3d, ScanModel, build
from inference.neighbours import batched, windows
from inference.place import ScanSlice, SlicePlace, place_of
from inference.preprocess import brain_fraction, image_places, prepare
from inference.result import ANY, Volume
from inference.series import Stack
from inference.volume import Slice, each_slice

CHUNK = 8
"""Slices looked at together."""

INSIDE = 0.5
"""A pixel belongs to what a mask outlines from here on; the bounds of the volume are those of the two next to it."""

HELD = 16
"""Slices of one file that are decoded at a time."""

AT_LEAST, AT_MOST = 0.7, 0.3
WIDE = 1.5
"""Neighbours further apart than so many usual steps have a gap between them, which nobody saw."""


class Kind(StrEnum):
    """What a map is: the mask that a network was trained to draw, or what raised its score."""

    MASK = "mask"
    GRAD_CAM = "grad_cam"


@dataclass(frozen=True, kw_only=True, eq=False)
class SliceMap:
    """Where a model looked in one slice.

    `values` (c, h, w) in 0…1 have the network's resolution; `image` says where on the slice they lie.
    """

    place: SlicePlace
    pixel_spacing: tuple[float, float]
    values: NDArray[np.float16]
    image: ImagePlace

    def each(self) -> Floats:
        """The maps one by one, (c, rows, columns), in the slice's own pixels: of a RADnet one for each dense block."""
        return self.image.on_slice(self.values)

    def on_slice(self) -> Floats:
        """Their average (rows, columns), 0…1."""
        average = self.values.mean(0, keepdims=True, dtype=np.float32)
        over: Floats = self.image.on_slice(average)[0]
        return over


@dataclass(frozen=True, kw_only=True, eq=False)
class ScanMaps:
    """Where one model looked in one scan, from feet to head; `label` is what it was asked about."""

    kind: Kind
    label: str
    slices: tuple[SliceMap, ...]

    def volume(self) -> Volume | None:
        """What the masks enclose, with its bounds; None for maps that outline nothing."""
        if self.kind is not Kind.MASK:
            return None
        enclosed = np.zeros(3)
        for piece, extent in zip(self.slices, extents_mm([piece.place for piece in self.slices]), strict=True):
            rows, columns = piece.pixel_spacing
            seen = piece.on_slice()
            counts = [np.count_nonzero(seen >= limit) for limit in (INSIDE, AT_LEAST, AT_MOST)]
            enclosed += np.array(counts) * rows * columns * extent / 1000
        ml, low, high = enclosed.tolist()
        return Volume(ml=ml, low_ml=low, high_ml=high)


class StoredSlices:
    """The slices of a stack from feet to head, decoded anew each time somebody goes through them.

    Those that cannot be decoded are left out, as they were when the study was read. At most `HELD` are in memory.
    """

    def __init__(self, stack: Stack, paths: Mapping[str, Path]) -> None:
        self._planes = stack.in_order
        self._paths = paths

    def __iter__(self) -> Iterator[Slice]:
        for uid, planes in itertools.groupby(self._planes, key=lambda plane: plane.facts.sop_instance_uid):
            # Frames lie in a file in any order: it is gone through again for each stretch of neighbours.
            while stretch := [plane.frame for plane in itertools.islice(planes, HELD)]:
                try:
                    found = {piece.frame: piece for piece in each_slice(self._paths[uid], only=stretch)}
                except UnreadablePixels:
                    break
                yield from (found[frame] for frame in stretch if frame in found)


class Looking:
    """A model that is asked where it looks.

    Parameters
    ----------
    card, network
        The network in evaluation mode, on `device`.
    """

    def __init__(self, card: ModelCard, network: ScanModel, *, device: str = "cpu") -> None:
        self.card = card
        self._network = network.eval().requires_grad_(False).to(device)
        self._device = device
        untrained = card.figures.get("untrained", ())
        self.kind = Kind.MASK if network.draws_masks and "masks" not in untrained else Kind.GRAD_CAM

    @classmethod
    def load(cls, directory: Path, *, device: str = "cpu") -> Self:
        """The model in `directory`. Raises ``ModelError`` as `inference.card.load` does."""
        card, state = load(directory)
        network = build(card)
        network.load_state_dict(state)
        return cls(card, network, device=device)

    def look(self, slices: Iterable[ScanSlice], *, label: str = "") -> ScanMaps:
        """Where the model looks in the slices of one scan, given from feet to head.

        Parameters
        ----------
        slices : iterable of ScanSlice
            Gone through twice for Grad-CAM.
        label : str
            Whose score Grad-CAM follows: when left out *any*, or the highest score of a model without it. Masks are
            of any bleeding.
        """
        if self.kind is Kind.MASK:
            return ScanMaps(kind=self.kind, label=ANY, slices=tuple(self._masks(slices)))
        asked, found = self._grad_cam(slices, label)
        return ScanMaps(kind=self.kind, label=asked, slices=found)

    def _masks(self, slices: Iterable[ScanSlice]) -> Iterator[SliceMap]:
        for batch, images in self._seen(slices):
            with torch.inference_mode():
                masks = self._network.attend(images)
            yield from (self._map(piece, mask) for piece, mask in zip(batch, masks, strict=True))

    def _grad_cam(self, slices: Iterable[ScanSlice], label: str) -> tuple[str, tuple[SliceMap, ...]]:
        """The label asked about, and a map of each slice; the scan's highest value is 1, blank slices are 0."""
        limit, blank = self.card.preprocessing.blank_below, torch.zeros(1, 1, 1)
        seen: list[SliceMap] = []
        read: list[bool] = []
        rows = []
        for batch, images in self._seen(slices):
            with torch.no_grad():
                rows.append(self._network.encode(images))
            read += [bool(brain_fraction(torch.from_numpy(piece.hu)[None]) >= limit) for piece in batch]
            seen += [self._map(piece, blank) for piece in batch]
        kept = torch.cat(rows)[torch.tensor(read, device=self._device)]
        if isinstance(self._network, Resnet3d):
            asked, maps = self._at_once(self._network, kept, label)
        else:
            asked, maps = self._one_by_one(itertools.compress(slices, read), kept, label)
        maps = maps / maps.max().clamp(min=torch.finfo(maps.dtype).tiny)
        values = iter(maps[:, None].half().cpu().numpy())
        return asked, tuple(
            replace(one, values=next(values)) if was_read else one for one, was_read in zip(seen, read, strict=True)
        )

    def _map(self, piece: ScanSlice, values: Tensor) -> SliceMap:
        pixels, spacing = torch.from_numpy(piece.hu)[None], _spacing_of(piece)
        (image,) = image_places(pixels, pixel_spacing=[spacing], preprocessing=self.card.preprocessing)
        if self.kind is Kind.GRAD_CAM:
            before, behind = self._network.beyond
            image = image.wider(size=self._network.size, before=before, behind=behind)
        values = values.half().cpu()
        return SliceMap(place=place_of(piece), pixel_spacing=spacing, values=values.numpy(), image=image)

    def _seen(self, slices: Iterable[ScanSlice]) -> Iterator[tuple[list[ScanSlice], Tensor]]:
        """A few slices at a time, and what the network sees of them and their neighbours."""
        network = self._network
        images = (zip(batch, self._images(batch), strict=True) for batch in _batches(slices))
        prepared = itertools.chain.from_iterable(images)
        for few in batched(windows(prepared, network.reach), CHUNK):
            around = torch.stack([torch.stack([image for _, image in window]) for window in few])
            yield [window[network.reach][0] for window in few], network.among(around)[:, network.reach]

    def _images(self, batch: Sequence[ScanSlice]) -> Tensor:
        pixels = torch.from_numpy(np.stack([piece.hu for piece in batch])).to(self._device)
        spacing = [_spacing_of(piece) for piece in batch]
        return prepare(pixels, pixel_spacing=spacing, preprocessing=self.card.preprocessing)

    def _label(self, logits: Tensor, label: str) -> int:
        if label:
            return self.card.labels.index(label)
        return self.card.labels.index(ANY) if ANY in self.card.labels else int(logits.amax(0).argmax())

    def _one_by_one(self, slices: Iterable[ScanSlice], rows: Tensor, label: str) -> tuple[str, Tensor]:
        """Of networks with a trunk for each slice: the score's slope at every descriptor, then at the last maps."""
        rows = rows.float().requires_grad_()
        # cuDNN's recurrent layers have no gradient in evaluation mode; torch's own have.
        with torch.backends.cudnn.flags(enabled=False):
            logits = self._network.decide(rows)
            index = self._label(logits, label)
            (slopes,) = torch.autograd.grad(logits[:, index].sum(), rows)
        found, done = [], 0
        for batch, images in self._seen(slices):
            maps, descriptors = _last_maps(self._network, partial(self._network.encode, images))
            slope = slopes[done : done + len(batch)]
            done += len(batch)
            found.append(_weighed(maps, torch.autograd.grad(descriptors, maps, slope)[0]))
        return self.card.labels[index], torch.cat(found)

    def _at_once(self, network: Resnet3d, rows: Tensor, label: str) -> tuple[str, Tensor]:
        """Of networks that see several slices from their first layer on: in stretches, where slices have logits."""
        if network.context is None:
            maps, logits = _last_maps(network, partial(network.decide, rows))
            index = self._label(logits, label)
            (found,) = _weighed(maps, torch.autograd.grad(logits[:, index].sum(), maps)[0])
            return self.card.labels[index], network.over_slices(found, slices=len(rows))
        index, parts = -1, []
        for start in range(0, len(rows), CHUNK):
            first = max(start - network.context, 0)
            stretch = rows[first : start + CHUNK + network.context]
            maps, logits = _last_maps(network, partial(network.decide, stretch))
            index = self._label(logits, label) if index < 0 else index
            weighed = _weighed(maps, torch.autograd.grad(logits[:, index].sum(), maps)[0])
            parts.append(weighed.mean(1)[start - first :][:CHUNK])
        return self.card.labels[index], torch.cat(parts)


def extents_mm(places: Sequence[SlicePlace]) -> list[float]:
    """For how much of the head each slice stands, in mm: half of the way to either neighbour, from feet to head.

    A gap is not filled: on its side, as beyond the ends of the scan, a slice stands for half of its thickness or, where
    that is not known, of the usual step.
    """
    steps = np.diff([place.position_mm for place in places])
    usual = float(np.median(steps)) if len(steps) else 0.0
    extents = []
    for i, place in enumerate(places):
        own = place.thickness_mm or usual
        sides = [steps[i - 1] if i else own, steps[i] if i < len(steps) else own]
        extents.append(float(sum(own if side > WIDE * max(own, usual) else side for side in sides)) / 2)
    return extents


def _spacing_of(piece: ScanSlice) -> tuple[float, float]:
    """Distance of rows and of columns in mm, as plain numbers."""
    row, column = piece.pixel_spacing
    return float(row), float(column)


def _batches(slices: Iterable[ScanSlice]) -> Iterator[list[ScanSlice]]:
    """At most `CHUNK` slices at a time, all of one shape."""
    batch: list[ScanSlice] = []
    for piece in slices:
        if batch and (len(batch) == CHUNK or piece.hu.shape != batch[0].hu.shape):
            yield batch
            batch = []
        batch.append(piece)
    if batch:
        yield batch


def _last_maps(network: ScanModel, run: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
    """The network's last maps while `run` runs it, and what `run` gives as a function of them."""
    kept: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        kept.append(output.detach().requires_grad_())
        return kept[-1]

    with network.get_submodule(network.last_maps).register_forward_hook(keep):
        given = run()
    return kept[0], given


def _weighed(maps: Tensor, slopes: Tensor) -> Tensor:
    """Grad-CAM (n, …) of maps (n, c, …): their sum, each weighed by its average slope, where it is positive."""
    weights = slopes.flatten(2).mean(2).reshape(*slopes.shape[:2], *(1,) * (maps.ndim - 2))
    return functional.relu((weights * maps.detach()).sum(1))
