"""Prepared scans of grey heads with bright squares, for networks that learn in seconds."""

from __future__ import annotations

from functools import partial

import numpy as np

from training.dataset import Scan, ScanFacts


def square_scans(count: int = 4, *, channels: int = 1, slices: int = 6, side: int = 32) -> list[Scan]:
    """Grey heads; the middle slices of each have a bright square, subdural by name."""
    rng = np.random.default_rng(0)
    made = []
    for number in range(count):
        images = 0.4 + 0.05 * rng.standard_normal((slices, channels, side, side))
        masks, labels = np.zeros((slices, side, side), np.uint8), np.zeros((slices, 6), np.float32)
        row, column = rng.integers(side // 8, side * 5 // 8, 2)
        images[2:5, :, row : row + side // 4, column : column + side // 4] += 0.5
        masks[2:5, row : row + side // 4, column : column + side // 4] = 1 << 3
        labels[2:5, [0, 4]] = 1
        facts = ScanFacts(patient=f"p{number}", group="squares", pixel_mm=4.0)
        arrays = {"images": images.astype(np.float16), "masks": masks}
        made.append(Scan(facts=facts, labels=labels, study_labels=labels.max(0), opened=partial(dict, arrays)))
    return made
