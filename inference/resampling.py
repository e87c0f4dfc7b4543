"""Cutting a square out of slices and scaling it: bilinear with antialiasing, in products of small matrices.

A row of the result is a sum of the few rows over which it lies, and so is a column: whatever the ratio, 32 of them are
one product with the seventy or so they come from. The weights are those of torch's antialiased interpolation,
which takes twice as long.
"""

from __future__ import annotations

import math
from typing import NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

ROUNDING = 1e-9
"""Relative; keeps floating point from leaving a scaled image one pixel short, or reaching for one pixel more."""

BLOCK = {"cpu": 32}
"""Rows or columns made by one product, by kind of device: larger blocks multiply more noughts; a GPU makes all at once.
"""


class Cut(NamedTuple):
    """What part of a slice becomes the image: its upper left pixel, and how many of its pixels make one."""

    corner: tuple[int, int]
    step: tuple[float, float]


class _Axis(NamedTuple):
    """How one axis is scaled.

    `used` is what the result is made of; block i of the result is ``weights[i]`` (block, reach) times the `reach` rows
    of it that begin with ``starts[i]``.
    """

    used: slice
    starts: list[int]
    weights: Tensor

    @classmethod
    def scaled(cls, length: int, *, corner: int, step: float, size: int, device: torch.device) -> Self:
        """From `length` pixels to `size`. What lies before or behind the slice counts as 0."""
        extent = math.ceil(size * step - ROUNDING)
        first, behind = max(corner, 0), max(corner, 0, min(corner + extent, length))
        taps, weights = _taps(size, extent=extent, step=step)
        places = taps + (corner - first)
        inside = (places >= 0) & (places < behind - first) & (weights > 0)
        block = min(BLOCK.get(device.type, size), size)
        lasts = places[np.minimum(np.arange(block - 1, size + block - 1, block), size - 1), -1]
        starts = places[::block, 0].clip(0, behind - first)
        reach = min(max(int((lasts + 1 - starts).max()), 0), behind - first)
        starts = np.minimum(starts, behind - first - reach)
        dense = np.zeros((len(starts) * block, reach), np.float32)
        rows, _ = np.nonzero(inside)
        dense[rows, places[inside] - starts[rows // block]] = weights[inside]
        blocks = torch.from_numpy(dense.reshape(len(starts), block, reach)).to(device)
        return cls(slice(first, behind), starts.tolist(), blocks)


class Resampling(NamedTuple):
    """One cut of slices of one shape, ready to be carried out on their pixels."""

    rows: slice
    columns: slice
    size: int
    corner: tuple[int, int]
    axes: tuple[_Axis, _Axis] | None

    @classmethod
    def of(cls, cut: Cut, *, shape: tuple[int, int], size: int, device: torch.device) -> Self:
        """For slices of this shape (rows, columns), and images of (size, size)."""
        if set(cut.step) == {1.0}:
            rows, columns = (
                slice(max(begin, 0), max(begin, 0, min(begin + size, length)))
                for begin, length in zip(cut.corner, shape, strict=True)
            )
            return cls(rows, columns, size, cut.corner, None)
        down, across = (
            _Axis.scaled(length, corner=corner, step=step, size=size, device=device)
            for length, corner, step in zip(shape, cut.corner, cut.step, strict=True)
        )
        return cls(down.used, across.used, size, cut.corner, (down, across))

    def __call__(self, pixels: Tensor) -> Tensor:
        """Images (size, n, channels, size) of those rows and columns of the slices, (rows, n, channels, columns).

        Float32, contiguous. Beyond the edges of the slice is 0.
        """
        if self.axes is None:
            return self._moved(pixels)
        down, across = self.axes
        count, channels, columns = pixels.shape[1:]
        flat = pixels.view(len(pixels), count * channels * columns)
        reach, block = down.weights.shape[2], down.weights.shape[1]
        lower = flat.new_empty((self.size, flat.shape[1]))
        for i, (start, weights) in enumerate(zip(down.starts, down.weights, strict=True)):
            into = lower[i * block : (i + 1) * block]
            torch.mm(weights[: len(into)], flat[start : start + reach], out=into)
        lower = lower.view(self.size * count * channels, columns)
        reach, block = across.weights.shape[2], across.weights.shape[1]
        small = lower.new_empty((len(lower), self.size))
        for i, (start, weights) in enumerate(zip(across.starts, across.weights, strict=True)):
            into = small[:, i * block : (i + 1) * block]
            torch.mm(lower[:, start : start + reach], weights[: into.shape[1]].T, out=into)
        return small.view(self.size, count, channels, self.size)

    def _moved(self, pixels: Tensor) -> Tensor:
        """Where a pixel of the slice is one of the image."""
        if pixels.shape[0] == self.size == pixels.shape[3]:
            return pixels
        top, left = self.rows.start - self.corner[0], self.columns.start - self.corner[1]
        images = pixels.new_zeros((self.size, *pixels.shape[1:3], self.size))
        images[top : top + pixels.shape[0], :, :, left : left + pixels.shape[3]] = pixels
        return images


def _taps(size: int, *, extent: int, step: float) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Which of `extent` pixels each of `size` is a sum of, and their weights, both (size, taps).

    A triangle as wide as `step` pixels to either side, at least one; its middle is rounded as torch rounds it, so that
    images stay those of networks that were trained with its interpolation.
    """
    ratio = np.float32(step / (1 + ROUNDING))
    half = max(float(ratio), 1.0)
    middles = ((np.arange(size) + 0.5) * float(ratio)).astype(np.float32).astype(np.float64)[:, None]
    taps = np.floor(middles - half + 0.5).astype(np.int64) + np.arange(math.ceil(2 * half) + 1)
    weights = np.clip(1 - np.abs(taps + 0.5 - middles) / half, 0, None)
    weights[(taps < 0) | (taps >= extent)] = 0
    return taps, weights / weights.sum(1, keepdims=True)
