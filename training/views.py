"""Descriptors of whole scans in several views: what the part of a network behind its descriptors is trained on.

Descriptors are made once, so that a training on them costs a small part of one on images. In place of augmentation
stand descriptors of changed images, each scan changed as a whole: one such description of all scans is a view.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from inference.models import ScanModel
from training.augment import Ranges, draw, grid_of, perturb, turned, warp
from training.course import SEEDS
from training.dataset import Scan
from training.described import CHUNK
from training.loop import Run, autocast

VIEWS = 7919
"""Apart from one another lie the random numbers of two views of the scans."""


def views_of(model: ScanModel, scans: Sequence[Scan], ranges: Ranges, *, count: int, run: Run) -> list[list[Tensor]]:
    """The scans' own view and `count` others; see `view`."""
    return [view(model, scans, ranges if number else None, number=number, run=run) for number in range(1 + count)]


@torch.inference_mode()
def view(model: ScanModel, scans: Sequence[Scan], ranges: Ranges | None, *, number: int, run: Run) -> list[Tensor]:
    """Descriptors (slices, d) of each scan, float16, on the CPU: of its images, or of these changed within `ranges`.

    A scan is changed as a whole. What is drawn depends on seed and number alone.
    """
    model.eval()
    found = []
    for place, scan in enumerate(scans):
        generator = torch.Generator().manual_seed((run.seed * VIEWS + number) * SEEDS + place)
        parts = []
        for images in _chunks(scan, ranges, model, generator, run.device):
            with autocast(run.device):
                parts.append(model.encode(images).half())
        found.append(torch.cat(parts).cpu())
    return found


def _chunks(
    scan: Scan, ranges: Ranges | None, model: ScanModel, generator: torch.Generator, device: torch.device
) -> Iterator[Tensor]:
    """What the encoder sees of the scan, a few slices at a time."""
    changes = draw(ranges, 1, generator=generator).to(device) if ranges else None  # the whole scan is changed alike
    upside_down = torch.rand(1, generator=generator).to(device) < (ranges.flip if ranges else 0)
    for first in range(0, len(scan), CHUNK):
        here = slice(first, min(first + CHUNK, len(scan)))
        images = torch.tensor(scan.among(here, reach=model.reach)).to(device).float()
        if changes:
            grid, fill = grid_of(changes, side=images.shape[-1]), images.amin((0, 2, 3), keepdim=True)
            images = perturb(warp(images[None], grid, fill=fill), changes)[0]
            images = turned(images, upside_down, model.reach)
        yield images


def drawn(
    scans: Sequence[Scan],
    views: Sequence[Sequence[Tensor]],
    *,
    count: int,
    flip: float,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor, Tensor]:
    """Descriptors (count, s, d), labels (count, s, 6) and study labels (count, 6) of some scans, each in one view.

    With the chance `flip` a scan is in the opposite order. Behind shorter scans their last slice stands again, of which
    nothing is known.
    """
    chosen = torch.randint(0, len(scans), (count,), generator=generator).tolist()
    seen = torch.randint(0, len(views), (count,), generator=generator).tolist()
    opposite = torch.rand(count, generator=generator) < flip
    length = max(len(scans[place]) for place in chosen)
    descriptors, labels = [], []
    for place, number, upside_down in zip(chosen, seen, opposite.tolist(), strict=True):
        rows, truth = views[number][place].float(), torch.from_numpy(scans[place].labels)
        if upside_down:
            rows, truth = rows.flip(0), truth.flip(0)
        missing = length - len(rows)
        descriptors.append(torch.cat((rows, rows[-1:].expand(missing, -1))))
        labels.append(torch.cat((truth, torch.full((missing, truth.shape[1]), torch.nan))))
    study = torch.from_numpy(np.stack([scans[place].study_labels for place in chosen]))
    return torch.stack(descriptors), torch.stack(labels), study
