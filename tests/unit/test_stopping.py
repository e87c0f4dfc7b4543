"""How a part hears that it has to stop; each in a process of its own, whose signals and handlers are nobody else's."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from node.supervisor import LIFELINE

ROOT = Path(__file__).parents[2]
WHILE_THE_EVENT_IS_HELD = """
import os, sys
from node.cli import _until_told
stop = _until_told()
with stop._cond:  # what `wait` holds when it starts and when it returns
    os.kill(os.getpid(), int(sys.argv[1]))
sys.exit(0 if stop.wait(10) else 1)
"""
UNTIL_THE_SUPERVISOR_DIES = """
import sys
from node.cli import _until_told
stop = _until_told()
assert not stop.wait(0.1)
print("waits", flush=True)
sys.exit(0 if stop.wait(20) else 1)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_interrupts_the_event_itself_stops_the_part(number: signal.Signals) -> None:
    """The supervisor closes the lifeline and signals at once: the main thread may be on its way out of the event."""
    line = [sys.executable, "-c", WHILE_THE_EVENT_IS_HELD, str(int(number))]
    assert subprocess.run(line, cwd=ROOT, timeout=60, check=False).returncode == 0


def test_the_supervisors_death_stops_the_part() -> None:
    reading, writing = os.pipe()
    part = subprocess.Popen(
        [sys.executable, "-c", UNTIL_THE_SUPERVISOR_DIES],
        cwd=ROOT, env=os.environ | {LIFELINE: str(reading)}, pass_fds=[reading], stdout=subprocess.PIPE,
    )  # fmt: skip
    os.close(reading)
    assert part.stdout is not None
    assert part.stdout.readline() == b"waits\n"
    os.close(writing)
    assert part.wait(timeout=60) == 0
    part.stdout.close()
