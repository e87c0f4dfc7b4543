"""What was used recently, within so many bytes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Recent(Generic[K, V]):
    """Values by key, of some `size`, within `limit` bytes together; the longest unused leave first, never the last."""

    def __init__(self, *, limit: int, size: Callable[[V], int]) -> None:
        self._limit = limit
        self._size = size
        self._held = 0
        self._values: OrderedDict[K, V] = OrderedDict()

    def __contains__(self, key: K) -> bool:
        return key in self._values

    @property
    def held(self) -> int:
        """Bytes of all values."""
        return self._held

    def get(self, key: K) -> V | None:
        """The value, or None when it is not held (any more)."""
        found = self._values.get(key)
        if found is not None:
            self._values.move_to_end(key)
        return found

    def put(self, key: K, value: V) -> None:
        """The value is held, and others leave until all fit."""
        before = self._values.pop(key, None)
        self._held += self._size(value) - (0 if before is None else self._size(before))
        self._values[key] = value
        while self._held > self._limit and len(self._values) > 1:
            _, gone = self._values.popitem(last=False)
            self._held -= self._size(gone)
