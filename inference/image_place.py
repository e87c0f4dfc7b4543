"""Where a prepared image lies on its slice: the way back from the network's pixels to the scanner's."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class ImagePlace:
    """The part of a slice that became an image.

    Attributes
    ----------
    shape : (rows, columns)
        Of the slice.
    corner : (row, column)
        The slice's pixel that is the upper left one of the part; it may lie outside of the slice.
    extent : (rows, columns)
        How many of the slice's pixels the part reaches down and to the right, not always a whole number.
    """

    shape: tuple[int, int]
    corner: tuple[float, float]
    extent: tuple[float, float]

    def wider(self, *, size: int, before: int, behind: int) -> ImagePlace:
        """The place of a map that reaches beyond an image of `size` pixels by so many of them on either side."""
        step = [extent / size for extent in self.extent]
        top, left = (corner - before * s for corner, s in zip(self.corner, step, strict=True))
        rows, columns = (extent + (before + behind) * s for extent, s in zip(self.extent, step, strict=True))
        return ImagePlace(shape=self.shape, corner=(top, left), extent=(rows, columns))

    def on_slice(self, maps: NDArray[np.floating]) -> Floats:
        """Maps (c, rows, columns) over the slice from maps (c, h, w) that cover the image evenly; 0 outside of it.

        Linear between the maps' pixels; where those are finer than the slice's, averaged under a triangle as wide as
        the slice's pixels, as `inference.preprocess` does it on the way there.
        """
        rows, columns = (
            _weights(self.shape[axis], count, corner=self.corner[axis], extent=self.extent[axis])
            for axis, count in enumerate(maps.shape[1:])
        )
        over: Floats = rows @ maps.astype(np.float32) @ columns.T
        return over


def _weights(length: int, count: int, *, corner: float, extent: float) -> Floats:
    """What each of `length` pixels of the slice takes from each of `count` of the map, (length, count)."""
    step = extent / count
    at = (np.arange(length) + 0.5 - corner) / step
    near = np.clip(at, 0.5, count - 0.5)  # beyond its outermost pixels' middles, a map goes on as it ends
    distance = np.abs(near[:, None] - (np.arange(count) + 0.5)) / max(1.0, 1 / step)
    weights = np.clip(1 - distance, 0, None)
    weights /= weights.sum(1, keepdims=True)
    weights[(at < 0) | (at > count)] = 0
    single: Floats = weights.astype(np.float32)
    return single
