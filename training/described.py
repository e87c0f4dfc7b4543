"""Whole scans as a network describes them, slice by slice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from inference.models import ScanModel
from training.dataset import Scan
from training.loop import autocast

CHUNK = 16
"""Slices that are encoded at a time."""


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
