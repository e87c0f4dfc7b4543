"""Descriptors of slices between their neighbours, for models whose encoder sees these, while slices still come.

A slice can be encoded once its neighbours are there, and must be again if others turn up between them. So its prepared
image waits here, within bounds, and its descriptor is remembered under the neighbours it was made between. Whatever is
missing in the end, because it left or never was here, is made from the stored files again: what comes out is always
what one pass over the whole scan gives.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from inference.models.scan_model import steps_of
from inference.recent import Recent

if TYPE_CHECKING:
    from inference.engine import Engine, Rows

HELD = 2**27
"""Bytes of waiting images, and again of descriptors, at most: images of some 300 slices of 256² pixels, 80 of 512²."""

Key = tuple[str, int | None]
"""Which slice it is, by its content: the digest of its instance, and the frame in it."""

Window = tuple[Key, ...]
"""A slice in the middle of its neighbours, from feet to head; beyond the ends of the scan its last slice stands again.
"""

Again = Callable[[list[Key]], Mapping[Key, Mapping[str, "Rows"]]]
"""The images of some slices made once more, by key and model."""

T = TypeVar("T")


class Neighbourhood:
    """What one engine's models that look at neighbours make of slices that come in any order.

    Parameters
    ----------
    limit : int
        Bytes of images, and again of descriptors, that are held; the longest unused leave first.
    """

    def __init__(self, engine: Engine, *, limit: int = HELD) -> None:
        self._engine = engine
        self._images: Recent[tuple[str, Key], Rows] = Recent(limit=limit, size=_bytes)
        self._made: Recent[tuple[str, Window], Rows] = Recent(limit=limit, size=_bytes)

    def keep(self, key: Key, images: Mapping[str, Rows]) -> None:
        """The images of a slice wait for its neighbours, one for each model that looks at them."""
        for name, image in images.items():
            self._images.put((name, key), image)

    def advance(self, order: Sequence[Key], fresh: Collection[Key]) -> None:
        """Encodes what the `fresh` slices, just kept, make possible in a scan of this order, from feet to head."""
        places = {key: place for place, key in enumerate(order)}
        for name, reach in self._engine.reach.items():
            touched = {places[key] + step for key in fresh if key in places for step in (0, *steps_of(reach))}
            around = [_window(order, place, reach) for place in sorted(touched) if 0 <= place < len(order)]
            ready = [w for w in around if (name, w) not in self._made and self._has(name, w)]
            for few in batched(ready, self._engine.chunk):
                self._encode(name, few, {key: self._images.get((name, key)) for window in few for key in window})

    def rows(self, order: Sequence[Key], again: Again) -> dict[str, Rows]:
        """Each model's descriptors (s, d) of the slices of a scan, from feet to head, which is their `order`.

        Of slices whose images are not held any more, a few at a time are made `again`.
        """
        rows = {}
        for name, reach in self._engine.reach.items():
            windows = [_window(order, place, reach) for place in range(len(order))]
            found = {w: row for w in windows if (row := self._made.get((name, w))) is not None}
            for few in batched([w for w in windows if w not in found], self._engine.chunk):
                images = {key: self._images.get((name, key)) for window in few for key in window}
                if lacking := [key for key, image in images.items() if image is None]:
                    images |= {key: made[name] for key, made in again(lacking).items()}
                found |= self._encode(name, few, images)
            rows[name] = np.stack([found[w] for w in windows])
        return rows

    def _has(self, name: str, window: Window) -> bool:
        return all((name, key) in self._images for key in window)

    def _encode(self, name: str, windows: Sequence[Window], images: Mapping[Key, Rows | None]) -> dict[Window, Rows]:
        """Descriptors (d,) of the slices in the middle of `windows`, which are remembered."""
        seen = [[image for key in window if (image := images[key]) is not None] for window in windows]
        found = {w: row.copy() for w, row in zip(windows, self._engine.encode_among(name, seen), strict=True)}
        for window, row in found.items():
            self._made.put((name, window), row)
        return found


def windows(items: Iterable[T], reach: int) -> Iterator[tuple[T, ...]]:
    """Each item in the middle of its neighbours; beyond either end the last item stands again."""
    waiting: deque[T] = deque(maxlen=2 * reach + 1)
    for item in items:
        waiting.extend([item] * (1 if waiting else 1 + reach))
        if len(waiting) == waiting.maxlen:
            yield tuple(waiting)
    for _ in range(reach if waiting else 0):
        waiting.append(waiting[-1])
        if len(waiting) == waiting.maxlen:
            yield tuple(waiting)


def batched(items: Iterable[T], count: int) -> Iterator[tuple[T, ...]]:
    """At most `count` items at a time (`itertools.batched` of Python 3.12)."""
    left = iter(items)
    while few := tuple(islice(left, count)):
        yield few


def _window(order: Sequence[Key], place: int, reach: int) -> Window:
    return tuple(order[min(max(place + step, 0), len(order) - 1)] for step in range(-reach, reach + 1))


def _bytes(row: Rows) -> int:
    return row.nbytes
