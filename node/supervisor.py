"""Starts, watches and restarts the parts of `serve`; drains them on stop.

Every part is an own process: one that crashes takes nothing with it and is started again after a pause that doubles
while it keeps crashing. A part that cannot start at all (exit code `CANNOT_START`) stops the whole node at once:
starting it again would not help. Parts hold the reading end of a pipe of which only the supervisor holds the writing
end: when the supervisor is killed the pipe closes, and they drain by themselves.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from node.errors import StartError
from node.log import log

CANNOT_START = 3
LIFELINE = "HEMONODE_LIFELINE"
FIRST_PAUSE = 0.5
LONGEST_PAUSE = 30.0
STEADY_AFTER = 60.0


@dataclass(frozen=True, kw_only=True)
class PartSpec:
    """One process: its name, and the arguments of `hemonode` that run it."""

    name: str
    arguments: tuple[str, ...]


@dataclass
class _Running:
    spec: PartSpec
    process: subprocess.Popen[bytes]
    started: float = field(default_factory=time.monotonic)
    pause: float = FIRST_PAUSE


class Supervisor:
    """Keeps `parts` running until told to stop.

    Parameters
    ----------
    grace : float
        Seconds a part may take to drain before it is killed.
    """

    def __init__(self, parts: Sequence[PartSpec], *, config: Path, grace: float) -> None:
        self._parts = parts
        self._config = config
        self._grace = grace
        self._lifeline, self._held_open = os.pipe()
        self._running: dict[str, _Running] = {}
        self._due: dict[str, tuple[float, PartSpec, float]] = {}

    def run(self, stop: threading.Event) -> None:
        """Returns after `stop` was set and every part has ended.

        Raises
        ------
        StartError
            A part cannot start; all others have been drained.
        """
        try:
            for spec in self._parts:
                self._start(spec, pause=FIRST_PAUSE)
            while not stop.wait(0.2):
                self._look_after()
        finally:
            self._drain()

    def _look_after(self) -> None:
        for running in list(self._running.values()):
            code = running.process.poll()
            if code is not None:
                self._ended(running, code)
        for name, (at, spec, pause) in list(self._due.items()):
            if time.monotonic() >= at:
                del self._due[name]
                self._start(spec, pause=pause)

    def _start(self, spec: PartSpec, *, pause: float) -> None:
        command = [sys.executable, "-m", "node.cli", *spec.arguments, "--config", str(self._config)]
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            pass_fds=[self._lifeline],
            env=os.environ | {LIFELINE: str(self._lifeline)},
            # Ctrl-C reaches the whole foreground group; only the supervisor decides when parts drain.
            start_new_session=True,
        )
        self._running[spec.name] = _Running(spec=spec, process=process, pause=pause)
        log().info("part_started", name=spec.name, pid=process.pid)

    def _ended(self, running: _Running, code: int) -> None:
        del self._running[running.spec.name]
        if code == CANNOT_START:
            raise StartError(f"{running.spec.name} cannot start; its own message stands above")
        steady = time.monotonic() - running.started > STEADY_AFTER
        pause = FIRST_PAUSE if steady else running.pause
        log().error("part_died", name=running.spec.name, code=code, again_in=pause)
        self._due[running.spec.name] = (time.monotonic() + pause, running.spec, min(pause * 2, LONGEST_PAUSE))

    def _drain(self) -> None:
        os.close(self._held_open)
        for running in self._running.values():
            running.process.terminate()
        deadline = time.monotonic() + self._grace
        for running in self._running.values():
            try:
                running.process.wait(timeout=max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                log().error("part_killed", name=running.spec.name, grace=self._grace)
                running.process.kill()
                running.process.wait()
        os.close(self._lifeline)


def watch_lifeline(stop: threading.Event) -> None:
    """Sets `stop` when the supervisor that started this process dies. Does nothing in a process started by hand."""
    number = os.environ.get(LIFELINE)
    if number is None:
        return

    def wait() -> None:
        while os.read(int(number), 1):
            pass
        stop.set()

    threading.Thread(target=wait, name="lifeline", daemon=True).start()
