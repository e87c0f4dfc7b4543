"""How fast training is fed: slices a second of loading alone, of the network alone, and of both together.

``python -m benchmarks.training --heads 24 --steps 60`` trains on phantom heads, beside MONAI's PersistentDataset and
CacheDataset with a DataLoader on the same volumes. The ratio to the slower of loading and network alone says whether
the network is kept waiting: 0.9 or more is wanted.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from inference.models import CnnLstm, CnnLstmConfig, RADnet, RadnetConfig
from inference.preprocess import Preprocessing
from training import heads
from training.augment import Ranges
from training.batches import Ahead, Batch, Loadable, Sampler, Sampling
from training.cache import VolumeCache
from training.dataset import Scan, prepare_all
from training.loop import autocast, keep_memory
from training.losses import weighted_log_loss
from training.team import ALONE, device_of

SEED = 0
WARM = 10
"""Batches until a GPU has chosen its kernels."""
Source = Callable[[int], Loadable]
"""Batch number → what becomes the batch on the device."""


class Network:
    """One network and its optimiser; `step` is a whole training step."""

    def __init__(self, family: str, side: int) -> None:
        torch.manual_seed(SEED)
        self.device = device_of(ALONE)
        trunk = CnnLstmConfig(trunk="resnet18", size=side)
        self.model: Any = RADnet(RadnetConfig(size=side)) if family == "radnet" else CnnLstm(trunk)
        self.model.to(self.device, memory_format=torch.channels_last).train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, fused=True)

    def step(self, batch: Batch) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        with autocast(self.device):
            logits, _ = self.model(batch.images)
            loss = weighted_log_loss(logits, batch.labels[..., : logits.shape[-1]])
        loss.backward()
        self.optimizer.step()


def rate(source: Source, use: Callable[[Batch], None], *, steps: int, device: torch.device) -> float:
    """Slices a second over `steps` batches, loaded to the device, after ten that do not count."""
    done, began = 0, 0.0
    for number in range(steps + WARM):
        if number == WARM:
            done, began = 0, time.perf_counter()
        batch = source(number).to(device)
        use(batch)
        if device.type == "cuda":
            torch.cuda.synchronize()
        done += batch.labels.shape[0] * batch.labels.shape[1]
    return done / (time.perf_counter() - began)


def monai_batches(scans: list[Scan], kind: str, sampling: Sampling, workers: int, folder: Path) -> Iterator[Batch]:
    """MONAI's way: one item a scan, cached in memory or on disk, a random run of slices, rotated and flipped."""
    from monai.data import CacheDataset, DataLoader, PersistentDataset
    from monai.transforms import Compose, RandAffine, RandFlip

    def load(place: int) -> torch.Tensor:
        return torch.from_numpy(scans[place].images.astype(np.float32))

    turn = Compose([RandAffine(prob=1.0, rotate_range=0.26, padding_mode="border"), RandFlip(prob=0.5, spatial_axis=1)])
    places: Any = list(range(len(scans)))
    data: Any = (
        CacheDataset(places, load, progress=False)
        if kind == "CacheDataset"
        else PersistentDataset(places, load, cache_dir=folder)
    )
    labels = [torch.from_numpy(scan.labels) for scan in scans]

    class Runs(torch.utils.data.Dataset[tuple[torch.Tensor, torch.Tensor]]):
        def __len__(self) -> int:
            return 1_000_000

        def __getitem__(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
            place = number % len(scans)
            images = data[place]
            first = int(torch.randint(0, max(1, len(images) - sampling.slices + 1), (1,)))
            run = images[first : first + sampling.slices]
            turned = turn(run.flatten(0, 1)).reshape(run.shape)  # slices as channels: one change for the run
            return torch.as_tensor(turned), labels[place][first : first + sampling.slices]

    loader = DataLoader(Runs(), batch_size=sampling.runs, num_workers=workers, shuffle=False)
    for images, found in loader:
        none = torch.zeros(())
        yield Batch(images=images, masks=none, labels=found, outlined=none)


def measure(name: str, source: Source, network: Network, steps: int, table: Table, *, alone: float) -> None:
    """One row: loading, network, together, ratio to the slower."""
    loading = rate(source, lambda _: None, steps=steps, device=network.device)
    together = rate(lambda number: source(steps + WARM + number), network.step, steps=steps, device=network.device)
    ratio = together / min(loading, alone)
    table.add_row(name, f"{loading:.1f}", f"{alone:.1f}", f"{together:.1f}", f"{ratio:.2f}")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description=__doc__)
    parser.add_argument("--heads", type=int, default=24)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--family", choices=("radnet", "cnn_lstm"), default="cnn_lstm")
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--pixels", type=int, default=512, help="rows and columns of the heads")
    parser.add_argument("--runs", type=int, default=1, help="runs a batch")
    parser.add_argument("--slices", type=int, default=16, help="slices a run")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--without-monai", action="store_true")
    asked = parser.parse_args()
    keep_memory()
    preprocessing = (
        Preprocessing.radnet(size=asked.side, pixel_mm=250 / asked.side)
        if asked.family == "radnet"
        else Preprocessing.three_windows(size=asked.side)
    )
    sampling = Sampling(runs=asked.runs, slices=asked.slices, side=asked.side, ranges=Ranges())
    torch.backends.cudnn.benchmark = True
    network = Network(asked.family, asked.side)
    population = heads.Heads(first=1, count=asked.heads, sizes=(asked.pixels,))
    table = Table("", "loading alone", "network alone", "together", "ratio to the slower", title="slices a second")
    with tempfile.TemporaryDirectory() as folder:
        cache = VolumeCache(Path(folder) / "cache")
        scans = prepare_all(
            list(heads.studies(population)), cache=cache, preprocessing=preprocessing, workers=asked.workers
        )
        sampler = Sampler(scans, sampling)
        fixed = sampler.numbered(0, seed=SEED).to(network.device)
        alone = rate(lambda _: fixed, network.step, steps=asked.steps, device=network.device)
        make = partial(sampler.loadable, seed=SEED, device=network.device)
        with Ahead(make, workers=asked.workers) as ahead:
            measure("Hemonode", ahead, network, asked.steps, table, alone=alone)
        for kind in () if asked.without_monai else ("CacheDataset", "PersistentDataset"):
            batches = monai_batches(scans, kind, sampling, asked.workers, Path(folder) / kind)
            measure(f"MONAI {kind}", lambda _, b=batches: next(b), network, asked.steps, table, alone=alone)
    Console().print(table)
    Console().print(f"{network.device}, {torch.get_num_threads()} threads, {asked.workers} workers, {asked.family}")


if __name__ == "__main__":
    main()
