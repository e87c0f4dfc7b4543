"""Stages a recipe is made of: train on batches, describe whole scans, train the sequence part on descriptors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from inference.models import ScanModel
from training.batches import Batch, Sampler, Sampling
from training.dataset import Scan
from training.loop import Budget, Keep, Progress, Report, autocast, fit, without_decay
from training.losses import weighted_log_loss
from training.schedules import warmup_cosine

CHUNK = 16
"""Slices that are encoded at a time."""
WARMUP = 0.05
"""Share of a stage in which the learning rate rises."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stretch of training with AdamW, a short warm-up and a cosine to zero."""

    name: str
    sampling: Sampling
    minutes: float
    steps: int = 100_000
    rate: float = 2e-3
    decay: float = 0.02


def train_stage(
    model: nn.Module,
    scans: Sequence[Scan],
    stage: Stage,
    loss: Callable[[Batch], Tensor],
    *,
    seed: int,
    folder: Path,
    report: Report | None = None,
) -> int:
    """Train every parameter of `model` by `loss` and return the number of steps; its checkpoint lies in `folder`."""
    sampler = Sampler(scans, stage.sampling)
    optimizer = torch.optim.AdamW(without_decay([model], decay=stage.decay), lr=stage.rate, fused=True)
    model.to(memory_format=torch.channels_last)
    model.train()

    def loss_at(number: int) -> Tensor:
        batch = sampler.numbered(number, seed=seed)
        with autocast():
            return loss(batch)

    return fit(
        model,
        optimizer,
        loss_at,
        budget=Budget(steps=stage.steps, minutes=stage.minutes),
        schedule=warmup_cosine(WARMUP),
        seed=seed,
        keep=Keep(path=folder / f"{stage.name}.safetensors"),
        report=report,
    )


@dataclass(frozen=True, kw_only=True)
class Described:
    """One scan with the descriptors (slices, d) of its slices."""

    scan: Scan
    descriptors: Tensor

    @property
    def shown(self) -> Tensor:
        """Descriptors of the slices that are not blank."""
        return self.descriptors if self.scan.blank is None else self.descriptors[torch.from_numpy(self.scan.shown)]

    def labels(self, count: int) -> Tensor:
        """The first `count` labels of every slice, (slices, count)."""
        return torch.from_numpy(self.scan.labels[:, :count])


@torch.inference_mode()
def describe(model: ScanModel, scans: Sequence[Scan]) -> list[Described]:
    """Every slice of every scan encoded once, as serving does it; descriptors are float32, on the CPU."""
    model.eval()
    device = next(model.parameters()).device
    described = []
    for scan in scans:
        parts = []
        for first in range(0, len(scan), CHUNK):
            here = slice(first, min(first + CHUNK, len(scan)))
            chunk = torch.tensor(scan.among(here, reach=model.reach)).to(device).float()
            with autocast(device):
                parts.append(model.encode(chunk).float())
        rows = torch.cat(parts).cpu()
        described.append(Described(scan=scan if model.per_slice else scan.as_one(), descriptors=rows))
    return described


def sequence_loss(model: ScanModel, scans: Sequence[Described]) -> float:
    """Weighted log loss over all slices of `scans`, each scan read whole."""
    model.eval()
    with torch.inference_mode():
        logits = torch.cat([model.decide(scan.descriptors[None])[0] for scan in scans])
        labels = torch.cat([scan.labels(logits.shape[-1]) for scan in scans])
        return float(weighted_log_loss(logits, labels))


def train_sequence(
    model: ScanModel,
    scans: Sequence[Described],
    validation: Sequence[Described],
    *,
    seed: int,
    steps: int = 800,
    every: int = 40,
    batch: int = 16,
    rate: float = 1e-3,
    dropout: float = 0.2,
) -> float:
    """Train what stands behind the descriptors on whole scans; keep what is best on `validation`, return its loss.

    `dropout` of the descriptors stands in for the images' augmentation, which cached descriptors cannot have.
    """
    behind = nn.ModuleList(
        [m for name, m in model.named_children() if name in {"recurrent", "classify"} and m is not None]
    )
    optimizer = torch.optim.AdamW(without_decay([behind], decay=0.02), lr=rate, fused=True)
    best, kept = sequence_loss(model, validation), {k: v.clone() for k, v in behind.state_dict().items()}

    def loss_at(step: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        descriptors, labels = _runs(scans, batch, generator)
        logits = model.decide(nn.functional.dropout(descriptors, dropout))
        return weighted_log_loss(logits, labels[..., : logits.shape[-1]])

    def keep_best(_: Progress) -> None:
        nonlocal best, kept
        found = sequence_loss(model, validation)
        if found < best:
            best, kept = found, {k: v.clone() for k, v in behind.state_dict().items()}
        model.train()

    model.train()
    fit(
        behind,
        optimizer,
        loss_at,
        budget=Budget(steps=steps),
        schedule=warmup_cosine(WARMUP),
        seed=seed,
        report=keep_best,
        report_every=every,
    )
    behind.load_state_dict(kept)
    return best


def _runs(scans: Sequence[Described], count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Descriptors (count, s, d) and labels (count, s, 6) of runs as long as the shortest scan that was drawn."""
    chosen = [scans[i] for i in torch.randint(0, len(scans), (count,), generator=generator).tolist()]
    length = min(len(one.scan) for one in chosen)
    descriptors, labels = [], []
    for one in chosen:
        first = int(torch.randint(0, len(one.scan) - length + 1, (1,), generator=generator))
        descriptors.append(one.descriptors[first : first + length])
        labels.append(torch.from_numpy(one.scan.labels[first : first + length]))
    return torch.stack(descriptors), torch.stack(labels)
