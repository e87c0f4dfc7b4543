"""Runs the configured models on one processor: encodes slices as they come, decides the scan at the end, retreats."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from inference import reading
from inference.backends import BackendFailed, accelerated, chosen
from inference.card import ModelCard, ModelError, load, load_watch
from inference.device import DeviceLost, Processor, is_lost, is_out_of_memory, processors, usable_threads
from inference.models import ScanModel, build
from inference.novelty import Watch
from inference.place import ScanSlice, SlicePlace
from inference.preprocess import brain_fraction, prepare
from inference.result import ModelReading
from inference.threads import at_most

CHUNK = {"cpu": 8, "cuda": 64}
"""Slices encoded together, by kind of device: enough to keep it busy, on a CPU few enough for its caches."""

STRETCH = 4
"""Chunks of slices decided together where that is costly: their neighbours are then a small part of the work."""

FEW_THREADS = 4
"""For deciding, where that is not costly: an LSTM is twice as fast with two as with one, and gains little from more."""

NAMED = ("compile", "openvino")
"""Backends that a reading names beside its device; torch as it is goes without saying."""

T = TypeVar("T")

Rows = NDArray[np.floating[Any]]
"""Descriptors (n, d), one row for each slice: float32, or float16 where they are images.

Where a card leaves out blank slices, a last column says 1 for slices that are to be read and 0 for blank ones.
Where a model's encoder looks at a slice's neighbours, `Engine.encode` gives its image (channels · size²) in float16,
and `Engine.encode_among` the descriptor.
"""

Encode = Callable[[ScanModel, Tensor, Processor], Tensor]
"""Descriptors (n, d) of images (n, channels, size, size) that lie on the processor's device."""


class NoBrain(ModelError):
    """Every slice is one of those that a model leaves out as blank."""


class NotFinite(ModelError):
    """A network gave values that are no numbers; its reading would mean nothing."""


def encode_images(network: ScanModel, images: Tensor, processor: Processor) -> Tensor:
    """`ScanModel.encode`; the network's backend has seen to the processor's precision."""
    return network.encode(images)


@dataclass(frozen=True, kw_only=True, eq=False)
class LoadedModel:
    """A model as it came from its directory, under its name in node.toml. `state` stays in the CPU's memory."""

    name: str
    card: ModelCard
    state: dict[str, Tensor]
    watch: Watch | None = None

    def on(self, processor: Processor) -> ScanModel:
        """The network with its weights on the processor, ready to run."""
        with torch.device("meta"):
            network = build(self.card)
        network.load_state_dict(self.state, assign=True)
        network.eval().requires_grad_(False)
        return network.to(processor.device).to(memory_format=network.memory_format)


@dataclass(frozen=True, kw_only=True, eq=False)
class _BlankSlice:
    """Air, as a scanner would send it."""

    sop_instance_uid: str = ""
    frame: int | None = None
    hu: NDArray[np.int16] = field(default_factory=lambda: np.full((512, 512), -1000, dtype=np.int16))
    position: tuple[float, ...] = (0, 0, 0)
    orientation: tuple[float, ...] = (1, 0, 0, 0, 1, 0)
    pixel_spacing: tuple[float, float] = (0.45, 0.45)
    thickness: float | None = None


class Engine:
    """The models of one process on one processor.

    When memory runs out the batch is halved. When the device fails, or cannot hold a single slice, the next processor
    takes over for good. Either holds from then on, and stands as a warning in every reading that follows.

    Not for use by several threads at once.

    Parameters
    ----------
    models : sequence of LoadedModel
        Read in this order.
    ladder : sequence of Processor
        The one to run on, then those to fall back on.
    chunk : int, optional
        Slices encoded together; None takes what suits the processor.
    backend : str
        What runs the networks: one of `inference.backends.BACKENDS`.
    encode : callable
        How a network encodes images on a processor.
    """

    def __init__(
        self,
        models: Sequence[LoadedModel],
        *,
        ladder: Sequence[Processor],
        chunk: int | None = None,
        backend: str = "torch",
        encode: Encode = encode_images,
    ) -> None:
        self._models = tuple(models)
        self._ladder = list(ladder)
        self._chunk = chunk or CHUNK[torch.device(self.processor.device).type]
        self._backend = backend
        self._encode_images = encode
        self._conditions: list[str] = []
        self._eager: set[str] = set()
        self._move()

    @classmethod
    def load(
        cls,
        models: Mapping[str, Path],
        *,
        device: str = "auto",
        precision: str = "auto",
        threads: int | None = None,
        chunk: int | None = None,
        backend: str = "torch",
    ) -> Self:
        """An engine with the models in these directories, by name; `device` and `precision` as for `processors`.

        `threads` sets the number of CPU threads of this whole process; None takes every core it may use.

        Raises ``ModelError``: a missing or wrong model (see `inference.card.load`), or a device or backend that is not
        there.
        """
        torch.set_num_threads(threads or usable_threads())
        ladder = processors(device, precision=precision)
        loaded = []
        for name, directory in models.items():
            card, state = load(directory)
            loaded.append(LoadedModel(name=name, card=card, state=state, watch=load_watch(directory, card)))
        return cls(loaded, ladder=ladder, chunk=chunk, backend=backend)

    @property
    def processor(self) -> Processor:
        """Where the networks run now."""
        return self._ladder[0]

    @property
    def chunk(self) -> int:
        """Slices encoded together: as configured, or fewer since memory ran out."""
        return self._chunk

    @property
    def conditions(self) -> tuple[str, ...]:
        """What is no longer as configured, one sentence each: a smaller batch, another device."""
        return tuple(self._conditions)

    @property
    def backends(self) -> dict[str, str]:
        """What runs each model's network now, by name: "torch", "compile" or "openvino"."""
        return {model.name: self._backend_of(model) for model in self._models}

    @property
    def cards(self) -> dict[str, ModelCard]:
        """The card of each model by name, in reading order."""
        return {model.name: model.card for model in self._models}

    @property
    def reach(self) -> dict[str, int]:
        """How many neighbours on either side the encoder of each model sees, by name; models that see none left out."""
        return {name: network.reach for name, network in self._networks.items() if network.reach}

    @property
    def watches(self) -> dict[str, Watch]:
        """The out-of-distribution guard of each model that has one, by name."""
        return {model.name: model.watch for model in self._models if model.watch is not None}

    def warm_up(self) -> None:
        """Has run every network, with a full batch and with one slice, so that the first study does not pay for it."""
        for count in (self._chunk, 1):
            descriptors = self.encode([_BlankSlice()] * count)
            for model in self._models:
                rows = descriptors[model.name]
                if reach := self.reach.get(model.name):
                    rows = self.encode_among(model.name, [[row] * (2 * reach + 1) for row in rows])
                rows = rows[:, : self._networks[model.name].descriptor_size]
                self._retreating(partial(self._logits, model, rows))

    def encode(self, slices: Sequence[ScanSlice], *, among: bool = False) -> dict[str, Rows]:
        """Descriptors (n, d) of n slices for each model by name. A slice's row does not depend on the other slices.

        `among` leaves out the models that do not look at neighbours.

        Raises ``DeviceLost`` when the last processor failed.
        """
        models = [model for model in self._models if not among or model.name in self.reach]
        rows = {model.name: [self._no_rows(model)] for model in models}
        waiting = list(slices) if rows else []
        while waiting:
            encoded = self._retreating(partial(self._encode_first, waiting, models))
            for name, descriptors in encoded.items():
                rows[name].append(descriptors)
            del waiting[: len(descriptors)]
        return {name: np.concatenate(parts) for name, parts in rows.items()}

    def encode_among(self, name: str, windows: Sequence[Sequence[Rows]]) -> Rows:
        """Descriptors (n, d) that the model `name`, which looks at neighbours, gives the slices amid n windows.

        A window is the images (channels · size²,) of a slice and all its neighbours within reach, from feet to head.
        """
        (model,) = (model for model in self._models if model.name == name)
        network = self._networks[name]
        plane = network.size**2
        seen = np.empty((len(windows), network.seen * plane), np.float16)
        for row, window in zip(seen, windows, strict=True):
            beside = [image[:plane] for place, image in enumerate(window) if place != network.reach]
            np.concatenate((window[network.reach], *beside), out=row)
        images = torch.from_numpy(seen.reshape(-1, network.seen, network.size, network.size))
        parts: list[Rows] = []
        while len(images):
            parts.append(self._retreating(partial(self._encode_first_seen, model, images)))
            images = images[len(parts[-1]) :]
        return np.concatenate(parts)

    def decide(self, descriptors: Mapping[str, Rows], places: Sequence[SlicePlace]) -> tuple[ModelReading, ...]:
        """Every model's reading of one scan, from the descriptors (n, d) of its n slices, in any order.

        Raises ``ModelError`` for a scan without slices, ``NoBrain`` for one of which a model leaves out every slice,
        ``NotFinite`` where a network's values are no numbers.
        """
        if not places:
            raise ModelError("a scan without slices cannot be read")
        order = sorted(range(len(places)), key=lambda i: places[i].position_mm)
        ordered = [places[i] for i in order]
        return tuple(self._read(model, descriptors[model.name][order], ordered) for model in self._models)

    def _move(self) -> None:
        """The networks are on the processor, and their twins run with the backend on batches of at most a chunk."""
        self._networks = {model.name: model.on(self.processor) for model in self._models}
        self._running = {model.name: self._accelerated(model) for model in self._models}

    def _accelerated(self, model: LoadedModel) -> ScanModel:
        try:
            return self._accelerated_with(self._backend_of(model), model)
        except BackendFailed as error:
            return self._without_backend(model, error)

    def _accelerated_with(self, backend: str, model: LoadedModel) -> ScanModel:
        network = self._networks[model.name]
        return accelerated(network, backend=backend, processor=self.processor, batch=self._chunk)

    def _backend_of(self, model: LoadedModel) -> str:
        if model.name in self._eager:
            return "eager"
        return chosen(self._backend, family=model.card.family, processor=self.processor)

    def _run(self, model: LoadedModel, work: Callable[[ScanModel], T]) -> T:
        """What `work` gives with the model's network, as it runs now or, where its backend fails, without backend."""
        try:
            return work(self._running[model.name])
        except BackendFailed as error:
            self._running[model.name] = self._without_backend(model, error)
            return work(self._running[model.name])

    def _without_backend(self, model: LoadedModel, error: BackendFailed) -> ScanModel:
        """The network run by torch alone, which every reading from now on says."""
        self._conditions.append(f"{model.name}: {error}; running with torch as it is instead")
        self._eager.add(model.name)
        return self._accelerated_with("eager", model)

    def _no_rows(self, model: LoadedModel) -> Rows:
        network = self._networks[model.name]
        if network.reach:
            return np.empty((0, network.channels * network.size**2), np.float16)
        columns = network.descriptor_size + bool(model.card.preprocessing.blank_below)
        rows: Rows = torch.empty((0, columns), dtype=network.descriptor_type).numpy()
        return rows

    def _encode_first(self, slices: Sequence[ScanSlice], models: Sequence[LoadedModel]) -> dict[str, Rows]:
        """Descriptors of the first slices: one batch, all of the first one's shape."""
        batch = [slices[0]]
        for scan_slice in slices[1 : self._chunk]:
            if scan_slice.hu.shape != batch[0].hu.shape:
                break
            batch.append(scan_slice)
        spacing = [(float(row), float(column)) for row, column in (s.pixel_spacing for s in batch)]
        return self._encode([s.hu for s in batch], spacing, models)

    def _encode(
        self,
        hu: Sequence[NDArray[np.int16]],
        spacing: Sequence[tuple[float, float]],
        models: Sequence[LoadedModel],
    ) -> dict[str, Rows]:
        """One batch through every network. The pixels travel to the device once, as they are."""
        pixels = self._on_device(torch.from_numpy(np.stack(hu)))
        encoded: dict[str, Rows] = {}
        with torch.inference_mode():
            for model in models:
                images = prepare(pixels, pixel_spacing=spacing, preprocessing=model.card.preprocessing)
                if self._networks[model.name].reach:
                    encoded[model.name] = images.flatten(1).half().cpu().numpy()
                    continue
                descriptors = self._run(model, partial(self._descriptors, images=images))
                if limit := model.card.preprocessing.blank_below:
                    descriptors = torch.cat((descriptors, (brain_fraction(pixels) >= limit)[:, None]), 1)
                encoded[model.name] = descriptors.cpu().numpy()
        return encoded

    def _encode_first_seen(self, model: LoadedModel, images: Tensor) -> Rows:
        with torch.inference_mode():
            seen = self._on_device(images[: self._chunk]).float()
            rows: Rows = self._run(model, partial(self._descriptors, images=seen)).cpu().numpy()
        return rows

    def _on_device(self, pixels: Tensor) -> Tensor:
        """From memory that the kernel cannot move, a GPU fetches the pixels itself while the next ones are decoded."""
        if torch.device(self.processor.device).type == "cuda":
            return pixels.pin_memory().to(self.processor.device, non_blocking=True)
        return pixels

    def _descriptors(self, network: ScanModel, images: Tensor) -> Tensor:
        return self._encode_images(network, images, self.processor).to(network.descriptor_type)

    def _scores(self, model: LoadedModel, descriptors: Rows) -> NDArray[np.float64]:
        """Scores (s, labels) in positional order, 0 for blank slices; or (1, labels) of the scan as a whole."""
        if not model.card.preprocessing.blank_below:
            return self._probabilities(model, descriptors)
        read = descriptors[:, -1] > 0
        if not read.any():
            raise NoBrain(f"{model.name}: none of the {len(read)} slices shows enough brain to be read")
        scores = np.zeros((len(read), len(model.card.labels)))
        scores[read] = self._probabilities(model, descriptors[read, :-1])
        return scores

    def _probabilities(self, model: LoadedModel, descriptors: Rows) -> NDArray[np.float64]:
        logits = self._retreating(partial(self._logits, model, descriptors))
        if not np.isfinite(logits).all():
            raise NotFinite(f"{model.name}: the network gave values that are not finite")
        return model.card.calibration.slice_scores(logits, labels=model.card.labels)

    def _logits(self, model: LoadedModel, descriptors: Rows) -> NDArray[np.float32]:
        """Logits (s, labels) or (1, labels)."""
        with torch.inference_mode():
            return self._run(model, partial(self._logits_by, descriptors=descriptors))

    def _logits_by(self, network: ScanModel, descriptors: Rows) -> NDArray[np.float32]:
        if network.costly_decide and network.context is not None:
            return self._logits_by_stretches(network, descriptors, network.context)
        if network.costly_decide:
            return self._logits_of(network, descriptors)
        with at_most(FEW_THREADS):
            return self._logits_of(network, descriptors)

    def _logits_by_stretches(self, network: ScanModel, descriptors: Rows, context: int) -> NDArray[np.float32]:
        """A few chunks at a time, between the neighbours on which their logits depend."""
        parts = []
        length = STRETCH * self._chunk
        for start in range(0, len(descriptors), length):
            first = max(start - context, 0)
            logits = self._logits_of(network, descriptors[first : start + length + context])
            parts.append(logits[start - first :][:length])
        return np.concatenate(parts)

    def _logits_of(self, network: ScanModel, descriptors: Rows) -> NDArray[np.float32]:
        rows = torch.from_numpy(np.ascontiguousarray(descriptors)).to(self.processor.device)
        logits: NDArray[np.float32] = network.decide(rows).float().cpu().numpy()
        return logits

    def _retreating(self, work: Callable[[], T]) -> T:
        """What `work` gives, after as many retreats as it needs. Any other error passes through."""
        while True:
            try:
                return work()
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) and not is_lost(error):
                    raise
                self._retreat(error)

    def _retreat(self, error: RuntimeError | MemoryError) -> None:
        """Smaller batches from now on, or the next processor. Raises ``DeviceLost`` where there is none."""
        failed = self.processor.device
        if is_out_of_memory(error) and self._chunk > 1:
            self._chunk //= 2
            self._conditions.append(f"out of memory on {failed}: batch size reduced to {self._chunk}")
            self._running = {model.name: self._accelerated(model) for model in self._models}
            return
        reason = "out of memory for a single slice" if is_out_of_memory(error) else "device lost"
        if len(self._ladder) == 1:
            raise DeviceLost(f"{failed}: {reason}, and no other device is left: {error}") from error
        self._ladder.pop(0)
        self._move()
        self._conditions.append(f"{failed}: {reason}; running on {self.processor.device} instead")

    def _ran_on(self, model: LoadedModel) -> str:
        backend = self._backend_of(model)
        return f"{self.processor.device}, {backend}" if backend in NAMED else self.processor.device

    def _read(self, model: LoadedModel, descriptors: Rows, places: Sequence[SlicePlace]) -> ModelReading:
        """One model's reading; descriptors and places in positional order."""
        began = time.monotonic()
        card = model.card
        scores = self._scores(model, descriptors)
        per_slice = self._networks[model.name].per_slice
        said = reading.of_slices(card, scores, places) if per_slice else reading.of_whole(card, scores)
        return ModelReading(
            name=model.name,
            family=card.family,
            version=card.version,
            digest=card.sha256,
            demonstration=card.demonstration,
            rule=said.rule,
            findings=said.findings,
            slices=said.slices,
            key_slices=said.key_slices,
            device=self._ran_on(model),
            precision=self.processor.precision,
            seconds=time.monotonic() - began,
            warnings=self.conditions,
        )
