"""What the schedule process remembers of studies between two looks; none of it is missed after a restart."""

from __future__ import annotations

import bisect
import datetime as dt
import math
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from db.schema import now
from db.studies import Pending
from node.assemble.revision import Late
from node.assemble.view import StudyView

FIRST_RETRY, LONGEST_RETRY = 1.0, 60.0


@dataclass(frozen=True, kw_only=True)
class Moment:
    """One moment on two clocks: `wall` is what stored times are compared with, `steady` measures durations."""

    wall: dt.datetime
    steady: float

    @classmethod
    def now(cls) -> Moment:
        """The present."""
        return cls(wall=now(), steady=time.monotonic())


@dataclass(frozen=True, kw_only=True)
class Mark:
    """Instances up to the number `seq` came after the second `after`, in which they were not yet there, and by `by`."""

    seq: int
    after: float
    by: float


@dataclass(kw_only=True)
class Watched:
    """What is remembered of one study.

    `key` is what the last look found; `marks` when its instances were first noticed; `since` when its present
    revision was. `view`, or `late` with the instances it is about, hold for `judged_key`; nothing new is to be said
    before `until`.
    """

    key: tuple[object, ...] = ()
    marks: list[Mark] = field(default_factory=list)
    since: float = math.inf
    last_at: float = math.inf
    view: StudyView | None = None
    late: Late | None = None
    late_uids: tuple[str, ...] = ()
    judged_key: tuple[object, ...] = ()
    judged_at: float = -math.inf
    until: float = -math.inf
    failure: str = ""
    failures: int = 0
    failing_since: float = math.inf
    retry_at: float = -math.inf

    def mark(self, study: Pending, *, looked_at: float, at: Moment) -> None:
        """The instances that were not there in the second `looked_at` are known to have come since."""
        if not self.marks:
            self.marks.append(Mark(seq=study.first_seq - 1, after=-math.inf, by=at.steady))
        if study.last_seq > self.marks[-1].seq:
            self.marks.append(Mark(seq=study.last_seq, after=looked_at, by=at.steady))

    def came_at(self, *, seq: int, received_at: dt.datetime, at: Moment) -> float:
        """The second in which an instance came.

        The wall clock may have been set between its arrival and now; the looks before and after it bound the error.
        """
        supposed = at.steady - (at.wall - received_at).total_seconds()
        place = bisect.bisect_left(self.marks, seq, key=lambda mark: mark.seq)
        if place == len(self.marks):
            return min(supposed, at.steady)
        return min(max(supposed, self.marks[place].after), self.marks[place].by)

    def failed(self, told: str, at: Moment) -> None:
        """Another look has failed, as `told`; the next waits longer."""
        self.failure = told
        self.failing_since = min(self.failing_since, at.steady)
        self.retry_at = at.steady + min(LONGEST_RETRY, FIRST_RETRY * 2.0 ** min(self.failures, 10))
        self.failures += 1

    def succeeded(self) -> None:
        """Looking works (again)."""
        self.failures, self.failing_since, self.retry_at = 0, math.inf, -math.inf


class Memory:
    """What one process remembers; `node.assemble.tick` is given the same one each time."""

    def __init__(self) -> None:
        self._watched: dict[str, Watched] = {}
        self._looked_at = -math.inf

    def notice(self, pending: Iterable[Pending], at: Moment) -> None:
        """What has changed since the last look is remembered, and every study not pending any more is forgotten."""
        self._watched = {study.study_uid: self._noticed(study, at) for study in pending}
        self._looked_at = at.steady

    def of(self, study_uid: str) -> Watched:
        """What is remembered of a pending study."""
        return self._watched[study_uid]

    def _noticed(self, study: Pending, at: Moment) -> Watched:
        watched = self._watched.get(study.study_uid, Watched())
        key = (study.state, study.revision, study.uncounted, study.last_seq)
        if key == watched.key:
            return watched
        if key[:2] != watched.key[:2]:
            watched.since = at.steady
        watched.mark(study, looked_at=self._looked_at, at=at)
        watched.last_at = watched.came_at(seq=study.last_seq, received_at=study.last_received_at, at=at)
        watched.key = key
        return watched
