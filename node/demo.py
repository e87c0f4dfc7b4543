"""`hemonode demo`: a real node, real associations, three phantom heads and your own files; then what became of each."""

from __future__ import annotations

import datetime as dt
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from db import parts as heartbeats
from db.engine import Database
from node import config, parts, sender, tables, views
from node.config import RemoteSection, Settings
from node.errors import HemonodeError, StartError
from node.report.identifiers import report_path

EXAM = ("localizer", "axial", "bone", "coronal")
"""The series of the exam with the bleed, in the order in which a scanner sends them."""

START_SECONDS = 180.0
STUDY_SECONDS = 300.0
ENDED = ("reported", "not_analysed", "failed")


@dataclass(frozen=True, kw_only=True)
class Case:
    """A study that the demonstration sends. `phantom` holds the arguments that make it; empty for the user's own."""

    name: str
    says: str
    folder: Path
    phantom: tuple[str, ...] = ()


def run(*, folder: Path, extra: Sequence[Path], out: Console, stop: threading.Event) -> list[dict[str, Any]]:
    """Every case was sent and its story printed; returns the stories.

    Raises
    ------
    HemonodeError
        The node did not start, or a study did not end in time.
    """
    home = folder / dt.datetime.now(dt.UTC).strftime("run-%Y%m%d-%H%M%S-%f")
    cases = _cases(home / "studies", extra)
    settings = _configure(home)
    out.print(Text(f"1. making {sum(bool(c.phantom) for c in cases)} phantom studies (synthetic heads, no patient)"))
    for case in cases:
        _make(case)
    out.print(Text(f"2. starting the node: {settings.node.ae_title} on 127.0.0.1:{settings.node.port}"))
    with _node(home) as alive, _database(settings) as database:
        _wait(
            lambda: _all_parts_alive(database, settings), alive, stop, seconds=START_SECONDS, what="the node to start"
        )
        out.print(Text("3. sending each study through its own DICOM association"))
        sent = [(case, uid) for case in cases for uid in _send(case, settings, out)]
        out.print(Text("4. waiting for the verdicts, the readings, the flags and the reports"))
        stories = [_await_story(database, uid, alive, stop) for _, uid in sent]
        for (case, _), story in zip(sent, stories, strict=True):
            _tell(case, story, settings, out)
        with database.read() as tx:
            out.print(Text(), tables.worklist(views.worklist_rows(tx)))
    out.print(Text(f"\nReports (DICOM SR): {settings.archive / 'reports'}\nLog: {home / 'node.log'}"))
    out.print(Text(f"The node has stopped. Start it again: hemonode serve --config {home / 'node.toml'}"))
    out.print(Text(tables.NOT_CLINICAL, style="bold yellow"))
    return stories


def _cases(home: Path, extra: Sequence[Path]) -> tuple[Case, ...]:
    head = ("--preset", "easy", "--size", "512", "--slices", "32")
    return (
        Case(
            name="no bleed",
            says="a head without haemorrhage",
            folder=home / "no-bleed",
            phantom=("--seed", "11", "--subtype", "none", "--maker", "siemens", *head),
        ),
        Case(
            name="bleed",
            says="a head with an intraparenchymal haemorrhage, with the other series of an exam",
            folder=home / "bleed",
            phantom=("--seed", "12", "--subtype", "intraparenchymal", "--maker", "ge", *head, *_series(EXAM)),
        ),
        Case(
            name="localizer only",
            says="scout views and nothing to read",
            folder=home / "localizer-only",
            phantom=("--seed", "13", "--size", "256", "--slices", "12", *_series(["localizer"])),
        ),
        *(Case(name=str(path), says="your own", folder=path) for path in extra),
    )


def _series(kinds: Sequence[str]) -> tuple[str, ...]:
    return tuple(argument for kind in kinds for argument in ("--series", kind))


def _configure(home: Path) -> Settings:
    home.mkdir(parents=True)
    path = home / "node.toml"
    path.write_text(
        "# Written by `hemonode demo`; every key left out has its default.\n"
        f'[node]\nport = {_free_port()}\ndata = "data"\n\n'
        "[receive]\ndisk_watermark_mb = 512\n\n"
        "# A study that can never be whole (the localizer) waits for this; at a real scanner leave the default.\n"
        "[assemble]\nquiet_time = 8\n",
        encoding="utf-8",
    )
    return config.load(path)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _make(case: Case) -> None:
    if not case.phantom:
        return
    command = [sys.executable, "-m", "training.sources.phantom", str(case.folder), *case.phantom]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise StartError(f"no phantom could be made: {done.stderr.strip().splitlines()[-1]}")


@contextmanager
def _node(home: Path) -> Iterator[Callable[[], bool]]:
    """A node of its own, stopped with SIGTERM when the block ends; yields whether it is still running."""
    command = [sys.executable, "-m", "node.cli", "serve", "--config", str(home / "node.toml")]
    with (home / "node.log").open("wb") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, env=dict(os.environ)
        )
    try:
        yield lambda: process.poll() is None
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)
        if process.returncode:
            last = (home / "node.log").read_text(errors="replace").strip().splitlines()[-3:]
            sys.stderr.write("\n".join(last) + "\n")


@contextmanager
def _database(settings: Settings) -> Iterator[Database]:
    database = parts.open_database(settings)
    try:
        yield database
    finally:
        database.close()


def _all_parts_alive(database: Database, settings: Settings) -> bool:
    with database.read() as tx:
        names = {part.name for part in heartbeats.all_parts(tx)}
    return {spec.name for spec in parts.part_specs(settings)} <= names


def _wait(
    ready: Callable[[], bool], alive: Callable[[], bool], stop: threading.Event, *, seconds: float, what: str
) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        if stop.wait(0.2):
            raise HemonodeError("stopped")
        if not alive():
            raise StartError("the node ended; its log says why")
        if time.monotonic() > deadline:
            raise HemonodeError(f"waited {seconds:.0f} s for {what}")


def _send(case: Case, settings: Settings, out: Console) -> list[str]:
    """The Study Instance UIDs that were sent, in order."""
    remote = RemoteSection(
        name="self", ae_title=settings.node.ae_title, address="127.0.0.1", port=settings.node.port
    )  # fmt: skip
    files, _ = sender.sendable([case.folder])
    sent = sender.send(remote, files, own_ae_title="DEMO-CT", timeout=30, told=lambda _: None)
    failed = [item for item in sent if item.error]
    out.print(Text(f"   {case.name} ({case.says}): {len(sent) - len(failed)} of {len(sent)} images stored"))
    for item in failed[:3]:
        out.print(Text(f"     {item.file.path.name}: {item.error}", style="yellow"))
    return list(dict.fromkeys(item.file.study_uid for item in sent if not item.error))


def _await_story(
    database: Database, study_uid: str, alive: Callable[[], bool], stop: threading.Event
) -> dict[str, Any]:
    def ended() -> bool:
        with database.read() as tx:
            story = views.story(tx, study_uid)
        return story["state"] in ENDED and all(d["state"] != "due" for d in story["deliveries"])

    _wait(ended, alive, stop, seconds=STUDY_SECONDS, what=f"study {study_uid}")
    with database.read() as tx:
        return views.story(tx, study_uid)


def _tell(case: Case, story: dict[str, Any], settings: Settings, out: Console) -> None:
    out.print(Text(f"\n── {case.name}: {case.says} ", style="bold"))
    out.print(tables.story(story))
    path = report_path(settings.archive, study_uid=story["study_uid"], revision=story["revision"])
    out.print(Text(f"SR: {path}"))
