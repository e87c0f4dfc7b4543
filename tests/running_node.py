"""A node under test: the real commands as subprocesses, and what its database says while it runs."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy.exc

from db.engine import Database
from db.errors import UnknownStudy
from node import config, parts, views
from node.config import PeerSection, RemoteSection, Section

ROOT = Path(__file__).parents[1]
ENDED = ("reported", "not_analysed", "failed")
START_SECONDS = 120.0
T = TypeVar("T")

QUICK: dict[str, dict[str, Any]] = {
    "receive": {"disk_watermark_mb": 0, "disk_reserve_mb": 0},
    "assemble": {"settle_time": 0.3, "quiet_time": 2.5, "limit": 60, "tick": 0.1},
    "read": {"device": "cpu", "workers": 1, "lease": 6, "attempts": 5},
    "deliver": {"attempts": 8, "first_retry": 0.2, "longest_retry": 1, "timeout": 5, "lease": 6},
}
"""Settings under which nothing waits longer than a test should."""


def free_port() -> int:
    """A loopback port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def write_config(
    home: Path,
    *,
    models: Mapping[str, Path] | None = None,
    ups: Sequence[RemoteSection] = (),
    destinations: Sequence[RemoteSection] = (),
    availability: Sequence[RemoteSection] = (),
    peers: Sequence[PeerSection] = (),
    changes: Mapping[str, Mapping[str, Any]] | None = None,
    defaults: Mapping[str, Mapping[str, Any]] = QUICK,
) -> Path:
    """Write a node.toml in `home` and return its path.

    Parameters
    ----------
    models : mapping, optional
        The directory of each model; the demonstration weights when left out.
    changes, defaults : mapping of tables
        What this node has otherwise than all, and what all have otherwise than the program's own defaults.
    """
    tables: dict[str, dict[str, Any]] = {"node": {"port": free_port(), "data": "data"}}
    for given in (defaults, changes or {}):
        for name, values in given.items():
            tables[name] = tables.get(name, {}) | dict(values)
    for name, directory in (models or {}).items():
        tables[f"read.models.{name}"] = {"weights": str(directory), "trigger": True}
    lines = [line for name, values in tables.items() for line in _table(f"[{name}]", values)]
    several: dict[str, Sequence[Section]] = {
        "flag.ups": ups, "deliver.destinations": destinations, "deliver.availability": availability, "peers": peers,
    }  # fmt: skip
    for name, sections in several.items():
        for section in sections:
            lines += _table(f"[[{name}]]", section.model_dump(exclude_none=True))
    home.mkdir(parents=True, exist_ok=True)
    (home / "node.toml").write_text("\n".join(lines), encoding="utf-8")
    return home / "node.toml"


def _table(head: str, values: Mapping[str, Any]) -> list[str]:
    # Every JSON string, number, boolean and array of these is TOML as well.
    return [head, *(f"{key} = {json.dumps(value)}" for key, value in values.items()), ""]


def command(*arguments: str | Path, within: float = 120) -> subprocess.CompletedProcess[str]:
    """One `hemonode` command has run to its end, however that was."""
    return subprocess.run(
        [sys.executable, "-m", "node.cli", *map(str, arguments)],
        cwd=ROOT, capture_output=True, text=True, timeout=within, check=False,
    )  # fmt: skip


def wait_for(condition: Callable[[], T], *, what: str, within: float = 60.0, also: Callable[[], str] = str) -> T:
    """What `condition` gives as soon as that is true; at the deadline an ``AssertionError`` that says `also` this."""
    deadline = time.monotonic() + within
    while not (result := condition()):
        assert time.monotonic() < deadline, f"waited {within:.0f} s for {what}\n{also()}"
        time.sleep(0.02)
    return result


def _stat(pid: int) -> list[str]:
    """State, parent and more of a process (proc(5)); empty when there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _parent(pid: int) -> int | None:
    stat = _stat(pid)
    return int(stat[1]) if stat else None


class RunningNode:
    """`hemonode serve` with one configuration."""

    def __init__(self, config_path: Path) -> None:
        self.config = config_path
        self.settings = config.load(config_path)
        self.port = self.settings.node.port
        self.log_path = config_path.parent / "node.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._database: Database | None = None

    @property
    def pid(self) -> int:
        """The process ID of `serve`."""
        assert self._process is not None
        return self._process.pid

    @property
    def log(self) -> str:
        """Everything the node has said."""
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def launch(self) -> None:
        """`serve` has been started and may not be ready yet."""
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "node.cli", "serve", "--config", str(self.config)],
                cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def start(self) -> None:
        """Every part of the node is at work, at the first attempt."""
        self.launch()

        def started() -> bool:
            assert self.running(), f"serve ended\n{self.log}"
            assert "part_died" not in self.log, self.log
            return self.ready()

        wait_for(started, what="the node to start", within=START_SECONDS, also=lambda: self.log)

    def ready(self) -> bool:
        """Whether every part of this very `serve`, and not of one before it, is at work."""
        if not self.running():
            return False
        own = {pid for pid in self.processes() if _parent(pid) == self.pid}
        alive = {part["name"] for part in self.status()["parts"] if part["pid"] in own}
        return alive == {spec.name for spec in parts.part_specs(self.settings)}

    def running(self) -> bool:
        """Whether `serve` runs."""
        return self._process is not None and self._process.poll() is None

    def processes(self) -> dict[int, str]:
        """Every living process of this node: its ID, and the command it runs (serve, receive, schedule, work)."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                words = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
            except OSError:
                continue
            if "node.cli" in words and str(self.config) in words:
                found[int(folder.name)] = words[words.index("node.cli") + 1]
        return found

    def zombies(self) -> list[int]:
        """Children of `serve` that have ended and were not waited for."""
        everybody = (int(folder.name) for folder in Path("/proc").glob("[0-9]*"))
        return [pid for pid in everybody if _parent(pid) == self.pid and _stat(pid)[0] == "Z"]

    def kill(self, part: str) -> int:
        """How many processes running `part` have been killed with SIGKILL."""
        victims = [pid for pid, name in self.processes().items() if name == part]
        for pid in victims:
            os.kill(pid, signal.SIGKILL)
        if part == "serve":
            self.wait(within=10)
        return len(victims)

    def tell(self, number: signal.Signals) -> None:
        """`serve` has been sent a signal."""
        assert self._process is not None
        self._process.send_signal(number)

    def wait(self, *, within: float = 60) -> int:
        """The exit code of `serve`, once it has ended."""
        assert self._process is not None
        process = self._process
        wait_for(lambda: process.poll() is not None, what="serve to end", within=within, also=lambda: self.log)
        return int(process.returncode)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """The exit code of `serve` after it was told to stop."""
        self.tell(number)
        return self.wait()

    def close(self) -> None:
        """Nothing of the node runs any more, whatever happened."""
        try:
            if self.running():
                self.stop()
        finally:
            for pid in self.processes():
                os.kill(pid, signal.SIGKILL)
            if self._database is not None:
                self._database.close()
                self._database = None

    def run(self, name: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """One command with this node's configuration has run to its end."""
        return command(name, *arguments, "--config", self.config)

    def json(self, name: str, *arguments: str | Path) -> Any:
        """What one command says with ``--json``; it has to succeed."""
        done = self.run(name, *arguments, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def status(self) -> dict[str, Any]:
        """What `hemonode status --json` says, without the time that starting it takes."""
        return self._view(lambda tx: views.status(tx, self.settings), otherwise={"parts": []})

    def story(self, study_uid: str) -> dict[str, Any]:
        """What `hemonode show STUDY --json` says; empty while the study is unknown."""
        return self._view(lambda tx: views.story(tx, study_uid), otherwise={})

    def database(self) -> Database:
        """The node's own database, opened once."""
        if self._database is None:
            self._database = Database(self.settings.database_url)
        return self._database

    def _view(self, look: Callable[[Any], T], *, otherwise: T) -> T:
        if not (self.settings.node.data / "hemonode.db").exists():
            return otherwise
        try:
            with self.database().read() as tx:
                return look(tx)
        except (UnknownStudy, sqlalchemy.exc.OperationalError):
            return otherwise

    def ended(self, study_uid: str, *, revision: int = 1) -> dict[str, Any]:
        """The study's story, once this revision has its statement and nothing is due any more."""

        def over() -> dict[str, Any]:
            story = self.story(study_uid)
            over = bool(story) and story["state"] in ENDED and story["revision"] >= revision
            return story if over and all(d["state"] != "due" for d in story["deliveries"]) else {}

        return wait_for(over, what=f"the end of study {study_uid}", also=lambda: self._told(study_uid))

    def _told(self, study_uid: str) -> str:
        return json.dumps(self.story(study_uid), indent=1) + "\n" + self.log[-20_000:]


@contextmanager
def running_node(home: Path, **configuration: Any) -> Iterator[RunningNode]:
    """A node that is ready, configured as `write_config` is told; nothing of it is left afterwards."""
    node = RunningNode(write_config(home, **configuration))
    try:
        node.start()
        yield node
    finally:
        node.close()
