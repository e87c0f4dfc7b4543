"""A decoded volume as serving sees it: its slices, and what the out-of-distribution guard measures of them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from inference.headcheck import check_head
from inference.novelty import WORDS, measure
from inference.study import thumbnail
from inference.volume import Slice
from training.study import Arrays

NAMES = tuple(WORDS)
"""What is measured, in the order in which it is kept."""


def slices_of(volume: Arrays) -> tuple[Slice, ...]:
    """The slices as a reader would have them from their files, but for the gantry's tilt, which the volume forgot."""
    rows, columns = (float(mm) for mm in volume["spacing"])
    thicknesses = thicknesses_of(volume) or (None,) * len(volume["hu"])
    return tuple(
        Slice(
            sop_instance_uid=str(uid),
            hu=hu,
            position=(0.0, 0.0, float(at)),
            orientation=(1.0, 0.0, 0.0, 0.0, 1.0, 0.0),
            pixel_spacing=(rows, columns),
            thickness=thickness,
        )
        for uid, hu, at, thickness in zip(
            volume["uids"], volume["hu"], volume["positions"], thicknesses, strict=True
        )
    )  # fmt: skip


def thicknesses_of(arrays: Arrays) -> tuple[float | None, ...]:
    """The thickness of each slice in mm, None where its file does not say; empty where nothing is known of any."""
    return tuple(None if np.isnan(mm) else float(mm) for mm in arrays.get("thickness", ()))


def measured(volume: Arrays) -> NDArray[np.float64]:
    """What `inference.novelty.measure` finds in the volume, in the order of `NAMES`; NaN for what it does not find."""
    thumbnails = [thumbnail(piece) for piece in slices_of(volume)]
    found = measure(thumbnails, check_head(thumbnails))
    return np.array([found.get(name, np.nan) for name in NAMES])


def by_name(values: NDArray[np.float64]) -> dict[str, float]:
    """What `measured` found, by name."""
    return {name: float(value) for name, value in zip(NAMES, values, strict=True) if not np.isnan(value)}
