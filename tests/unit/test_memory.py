"""What the schedule process remembers between two looks: when instances came, and which studies fail."""

from __future__ import annotations

import dataclasses
import datetime as dt
import math

import pytest

from db.states import StudyState
from db.studies import Pending
from node.assemble.memory import LONGEST_RETRY, Memory, Moment, Watched

EIGHT = dt.datetime(2026, 1, 1, 8, tzinfo=dt.UTC)
HOUR = dt.timedelta(hours=1)
STUDY = Pending(
    study_uid="1",
    state=StudyState.RECEIVING,
    revision=1,
    first_received_at=EIGHT,
    last_received_at=EIGHT,
    calling_ae="CT1",
    uncounted=10,
    first_seq=101,
    last_seq=110,
)


def moment(seconds: float, *, clock_set_by: dt.timedelta = dt.timedelta(0)) -> Moment:
    """So many seconds after eight; the monotonic clock began at 1000."""
    return Moment(wall=EIGHT + dt.timedelta(seconds=seconds) + clock_set_by, steady=1000.0 + seconds)


def came(watched: Watched, seq: int, at: Moment, *, stored: float = 0.0) -> float:
    return watched.came_at(seq=seq, received_at=EIGHT + dt.timedelta(seconds=stored), at=at) - 1000.0


def noticed(*moments: Moment) -> Watched:
    """A study of which ten instances more were noticed at each moment after the first, in which there was none."""
    memory = Memory()
    memory.notice((), moments[0])
    for number, at in enumerate(moments[1:]):
        memory.notice((dataclasses.replace(STUDY, last_seq=110 + 10 * number, uncounted=10 + 10 * number),), at)
    return memory.of("1")


def test_an_instance_came_when_its_stored_time_says() -> None:
    watched = noticed(moment(0), moment(5))
    assert came(watched, 105, moment(20), stored=3) == 3


@pytest.mark.parametrize("step", [HOUR, -HOUR])
def test_a_clock_that_was_set_moves_an_arrival_no_further_than_the_looks_around_it(step: dt.timedelta) -> None:
    watched = noticed(moment(0), moment(5), moment(10))
    later = moment(20, clock_set_by=step)
    assert 0 <= came(watched, 110, later, stored=3) <= 5
    assert 5 <= came(watched, 111, later, stored=7) <= 10


def test_what_came_before_the_first_look_is_as_old_as_its_stored_time_says() -> None:
    memory = Memory()
    memory.notice((STUDY,), moment(600))
    assert came(memory.of("1"), 105, moment(600), stored=3) == 3


def test_what_a_verdict_counted_long_ago_is_not_taken_for_new() -> None:
    watched = noticed(moment(500), moment(505))
    assert came(watched, 7, moment(505), stored=3) == 3


def test_nothing_comes_in_the_future() -> None:
    watched = noticed(moment(0), moment(5))
    assert came(watched, 999, moment(6), stored=3600) == 6


def test_a_study_that_is_not_pending_any_more_is_forgotten() -> None:
    memory = Memory()
    memory.notice((STUDY,), moment(0))
    memory.notice((), moment(1))
    with pytest.raises(KeyError):
        memory.of("1")


def test_a_study_that_fails_is_looked_at_less_and_less_often_but_never_given_up() -> None:
    watched = Watched()
    waits = []
    for _ in range(2000):
        watched.failed("TypeError: no", moment(0))
        waits.append(watched.retry_at - 1000.0)
    assert waits[:4] == [1, 2, 4, 8]
    assert waits == sorted(waits)
    assert waits[-1] == LONGEST_RETRY
    watched.succeeded()
    assert watched.retry_at == -math.inf
