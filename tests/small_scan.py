"""A small head with a bleed, slice by slice, and one model on it from its stored weights to its reading."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from inference.card import ModelCard, load, save
from inference.device import Processor
from inference.engine import Engine, LoadedModel, Rows
from inference.models import ScanModel, build
from inference.neighbours import windows
from inference.place import SlicePlace, place_of
from inference.preprocess import prepare
from inference.result import ModelReading

CPU = Processor(device="cpu", bf16=False)


@dataclass(frozen=True, kw_only=True)
class SmallSlice:
    """One slice of 96² pixels of 2 mm."""

    sop_instance_uid: str
    hu: NDArray[np.int16]
    position: tuple[float, float, float]
    frame: int | None = None
    orientation: tuple[float, ...] = (1, 0, 0, 0, 1, 0)
    pixel_spacing: tuple[float, float] = (2.0, 2.0)
    thickness: float | None = 5.0


def small_head(count: int = 9, *, side: int = 96) -> list[SmallSlice]:
    """An oval of brain in a skull in air, 5 mm apart, with noise and a bleed in its middle slices."""
    noise = np.random.default_rng(3)
    rows, columns = np.mgrid[:side, :side] / side - 0.5
    slices = []
    for i in range(count):
        radius = np.hypot(rows / 0.42, columns / 0.34) / np.sin(np.pi * (i + 2) / (count + 3))
        hu = np.where(radius < 1, 35.0, -1000.0)
        hu[(radius > 0.9) & (radius < 1)] = 1100
        if abs(i - count // 2) < 2:
            hu[np.hypot(rows - 0.1, columns - 0.1) < 0.08] = 70
        hu += noise.normal(0, 4, hu.shape)
        slices.append(
            SmallSlice(
                sop_instance_uid=f"1.2.{i}",
                hu=np.clip(hu, -1024, 3000).astype(np.int16),
                position=(0.0, 0.0, 5.0 * i),
            )
        )
    return slices


def places(slices: Sequence[SmallSlice]) -> list[SlicePlace]:
    """Where they lie."""
    return [place_of(s) for s in slices]


def images(card: ModelCard, slices: Sequence[SmallSlice]) -> torch.Tensor:
    """What the card's network sees of them, (s, channels, size, size)."""
    hu = torch.from_numpy(np.stack([s.hu for s in slices]))
    return prepare(hu, pixel_spacing=[s.pixel_spacing for s in slices], preprocessing=card.preprocessing)


def a_network(card: ModelCard, *, seed: int = 0) -> ScanModel:
    """Untrained, in evaluation mode; its batch normalisations have seen something."""
    torch.manual_seed(seed)
    network = build(card).eval()
    for name, buffer in network.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(0, 0.1)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5)
    return network


def stored(directory: Path, card: ModelCard, network: ScanModel, *, chunk: int = 8, bf16: bool = False) -> Engine:
    """An engine with the network, after its weights went to disk and came back."""
    save(directory, card, network.state_dict())
    read, state = load(directory)
    processor = Processor(device="cpu", bf16=bf16)
    return Engine([LoadedModel(name="model", card=read, state=state)], ladder=[processor], chunk=chunk)


def described(engine: Engine, slices: Sequence[SmallSlice]) -> dict[str, Rows]:
    """Descriptors (s, d) of a scan given from feet to head, for each model by name."""
    encoded = engine.encode(slices)
    for name, reach in engine.reach.items():
        encoded[name] = engine.encode_among(name, list(windows(encoded[name], reach)))
    return encoded


def read(engine: Engine, slices: Sequence[SmallSlice]) -> ModelReading:
    """The reading of the slices by the engine's one model."""
    (reading,) = engine.decide(described(engine, slices), places(slices))
    return reading


def slice_scores(reading: ModelReading) -> NDArray[np.float64]:
    """(s, labels)"""
    return np.array([list(s.scores.values()) for s in reading.slices])


def assert_one_by_one_as_at_once(engine: Engine, slices: Sequence[SmallSlice]) -> None:
    """A slice's descriptor is the same whatever stands beside it in the batch, to 1e-5 of the largest number."""
    together = engine.encode(slices)["model"]
    alone = np.concatenate([engine.encode([s])["model"] for s in slices])
    assert together.shape == alone.shape
    np.testing.assert_allclose(alone, together, atol=1e-5 * max(1.0, float(np.abs(together).max())), rtol=0)


def assert_all_learn(network: ScanModel, loss: torch.Tensor) -> None:
    """Every parameter gets a gradient that is not nought throughout."""
    loss.backward()  # type: ignore[no-untyped-call]
    idle = [n for n, p in network.named_parameters() if p.grad is None or not bool(p.grad.abs().sum() > 0)]
    assert idle == []
