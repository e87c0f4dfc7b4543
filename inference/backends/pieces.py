"""Many images in pieces of few sizes: memory stays bounded, and what is made for one shape is made seldom."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional

from inference.backends.run import Run


class InPieces:
    """Runs at most `largest` images at a time.

    Parameters
    ----------
    make : callable
        Gives what runs one size of piece; called once for every size.
    smallest : int, optional
        Pieces then have this size or two, four, … times it, and the last one is filled up with noughts. Without it
        they have any size, and nothing is filled up.
    """

    def __init__(self, make: Callable[[], Run], *, largest: int, smallest: int | None = None) -> None:
        self._make = make
        self._largest = largest
        self._smallest = smallest
        self._runs: dict[int, Run] = {}

    def __call__(self, images: Tensor) -> Tensor:
        """Features (n, d) of images (n, …)."""
        parts = []
        start = 0
        for size in self._sizes(len(images)):
            piece = images[start : start + size]
            missing = size - len(piece)
            filled = functional.pad(piece, (0, 0) * (piece.ndim - 1) + (0, missing)) if missing else piece
            parts.append(self._run_of(size)(filled)[: len(piece)])
            start += size
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _sizes(self, count: int) -> Iterator[int]:
        """The largest sizes first, so that forty images are 32 and 8 rather than 64."""
        while count > 0:
            size = min(count, self._largest)
            if self._smallest is not None:
                size = self._smallest
                while 2 * size <= min(count, self._largest):
                    size *= 2
            yield size
            count -= size

    def _run_of(self, size: int) -> Run:
        key = size if self._smallest is not None else 0
        if key not in self._runs:
            self._runs[key] = self._make()
        return self._runs[key]
