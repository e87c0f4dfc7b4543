"""Group commit: whoever comes while one group is being made durable rides with the next."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")


class _Seat(Generic[Item, Outcome]):
    def __init__(self, item: Item) -> None:
        self.item = item
        self.called = threading.Lock()  # held until called: one wake-up, where an Event takes three locks
        self.called.acquire()
        self.leads = False
        self.outcome: Outcome | Exception | None = None


class Group(Generic[Item, Outcome]):
    """Threads that want the same costly thing done share it. One of them does it for all; no thread of its own.

    Parameters
    ----------
    commit : callable
        Does it for several items and returns an outcome for each, an exception where that one failed. Called by one
        thread at a time. What it raises is every item's outcome.
    most : int
        The most items at a time.
    """

    def __init__(self, commit: Callable[[Sequence[Item]], Sequence[Outcome | Exception]], *, most: int) -> None:
        self._commit = commit
        self._most = most
        self._lock = threading.Lock()
        self._waiting: list[_Seat[Item, Outcome]] = []
        self._busy = False

    def join(self, item: Item) -> Outcome:
        """The outcome for this item, once it was committed with whoever waited too. Raises what the commit raised."""
        seat: _Seat[Item, Outcome] = _Seat(item)
        with self._lock:
            self._waiting.append(seat)
            seat.leads, self._busy = not self._busy, True
        if not seat.leads:
            seat.called.acquire()
        if seat.leads:
            self._lead()
        if isinstance(seat.outcome, Exception):
            raise seat.outcome
        return seat.outcome  # type: ignore[return-value]  # committed: the outcome is there

    @property
    def waiting(self) -> int:
        """How many wait for the next commit."""
        with self._lock:
            return len(self._waiting)

    def _lead(self) -> None:
        # Who leads came first, and is therefore in the group that it commits.
        with self._lock:
            group, self._waiting = self._waiting[: self._most], self._waiting[self._most :]
        outcomes: Sequence[Outcome | Exception]
        try:
            outcomes = self._commit([seat.item for seat in group])
        except Exception as error:  # noqa: BLE001 — each member's own thread raises it
            outcomes = [error] * len(group)
        with self._lock:
            successor = self._waiting[0] if self._waiting else None
            self._busy = successor is not None
        if successor is not None:
            successor.leads = True
            successor.called.release()
        for seat, outcome in zip(group, outcomes, strict=True):
            seat.outcome = outcome
        for seat in group[1:]:  # all but ourselves
            seat.called.release()
