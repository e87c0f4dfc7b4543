"""How a part hears that it has to stop."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from node.cli import _until_told
from node.supervisor import LIFELINE


@pytest.fixture(autouse=True)
def _handlers_stay_as_they_were() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.timeout(30)
def test_a_signal_that_interrupts_the_event_itself_stops_the_part(number: signal.Signals) -> None:
    """The supervisor closes the lifeline and signals at once: the main thread may be on its way out of the event."""
    stop = _until_told()
    with stop._cond:  # type: ignore[attr-defined]  # what `wait` holds when it starts and when it returns
        os.kill(os.getpid(), number)
    assert stop.wait(20)


@pytest.mark.timeout(30)
def test_the_supervisors_death_stops_the_part(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    monkeypatch.setenv(LIFELINE, str(reading))
    stop = _until_told()
    assert not stop.wait(0.1)
    os.close(writing)
    assert stop.wait(20)
    os.close(reading)
