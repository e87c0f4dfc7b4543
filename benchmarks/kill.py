"""kill -9 of every part of a node under load: ``python -m benchmarks.kill --rounds 60``.

Each round, three scanners send a study each, and one part of the node (receive, schedule, work or the supervisor) is
killed at a random moment. The scanners send again what was not acknowledged; a killed supervisor is started again, as
an init system would. When the node has come to rest, everything is counted: instances that were acknowledged against
the archive, and flags and reports at the far side against the results.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from db import instances, studies
from tests.far_side import FarSide
from tests.running_node import ENDED, START_SECONDS, RunningNode, wait_for, write_config
from tests.scanner import Exam, Exams, Scanner, data_set_of
from tests.small_models import small_models

PARTS = ("receive", "schedule", "work", "serve")
SCANNERS = 3
LATEST_KILL_SECONDS = 3.0
REST_SECONDS = 120.0


@dataclass(kw_only=True)
class Counts:
    """What was seen. Everything from `missing` on has to be zero."""

    rounds: int = 0
    kills: Counter[str] = field(default_factory=Counter)
    acknowledged: int = 0
    associations_repeated: int = 0
    studies: int = 0
    revisions: int = 0
    reports: int = 0
    flags: int = 0
    sent_twice: int = 0
    missing: int = 0
    altered: int = 0
    without_report: int = 0
    without_flag: int = 0
    duplicate_reports: int = 0
    duplicate_flags: int = 0
    stuck: int = 0

    @property
    def faults(self) -> dict[str, int]:
        """What should be zero and is not."""
        names = (
            "missing",
            "altered",
            "without_report",
            "without_flag",
            "duplicate_reports",
            "duplicate_flags",
            "stuck",
        )
        return {name: value for name, value in asdict(self).items() if name in names and value}


def victims(rng: random.Random) -> Iterator[str]:
    """Every part once in random order, again and again."""
    while True:
        yield from rng.sample(PARTS, len(PARTS))


def run(
    node: RunningNode,
    far: FarSide,
    exams: Exams,
    *,
    rounds: int,
    seed: int,
    until: float = float("inf"),
    told: Callable[[Counts], None] = lambda _: None,
) -> Counts:
    """Kill a part of a running node `rounds` times, at most until that monotonic second, and count.

    Raises
    ------
    AssertionError
        The node did not come up again.
    """
    rng = random.Random(seed)
    counts = Counts()
    for _, victim in zip(range(rounds), victims(rng), strict=False):
        if time.monotonic() > until:
            break
        _round(node, far, exams, victim, rng, counts)
        told(counts)
    return counts


def _round(node: RunningNode, far: FarSide, exams: Exams, victim: str, rng: random.Random, counts: Counts) -> None:
    sent = [exams.new() for _ in range(SCANNERS)]
    scanners = [Scanner(port=node.port, ae_title=f"CT{number}") for number, _ in enumerate(sent)]
    threads = [
        threading.Thread(target=scanner.send, args=(exam.files,), kwargs={"pace": rng.uniform(0, 0.1)})
        for scanner, exam in zip(scanners, sent, strict=True)
    ]
    for thread in threads:
        thread.start()
    threading.Event().wait(rng.uniform(0, LATEST_KILL_SECONDS))
    wait_for(lambda: node.kill(victim), what=f"a process to kill: {victim}", also=lambda: node.log[-5000:])
    if victim == "serve":
        come_back(node)
    for thread in threads:
        thread.join()
    counts.rounds += 1
    counts.kills[victim] += 1
    counts.stuck += not _rests(node, {exam.study_uid for exam in sent})
    for exam, scanner in zip(sent, scanners, strict=True):
        _count(node, far, exam, scanner, counts)


def come_back(node: RunningNode) -> None:
    """The node is at work again, started as often as an init system would that restarts on failure.

    While the parts of a killed supervisor drain they still hold the port, and a new node says so and ends.
    """

    def up() -> bool:
        if not node.running():
            node.launch()
        return node.ready()

    wait_for(up, what="the node to come back", within=START_SECONDS, also=lambda: node.log[-5000:])


def _rests(node: RunningNode, study_uids: set[str]) -> bool:
    deadline = time.monotonic() + REST_SECONDS
    while time.monotonic() < deadline:
        if _at_rest(node, study_uids):
            return True
        threading.Event().wait(0.05)
    return False


def _at_rest(node: RunningNode, study_uids: set[str]) -> bool:
    facts = node.status()
    busy = {facts["jobs"].get(state, 0) for state in ("todo", "doing")} | {facts["deliveries"].get("due", 0)}
    with node.database().read() as tx:
        waiting = studies.pending(tx)
    if busy != {0} or facts["associations_open"] or waiting:
        return False
    return all(node.story(uid).get("state") in ENDED for uid in study_uids)


def _count(node: RunningNode, far: FarSide, exam: Exam, scanner: Scanner, counts: Counts) -> None:
    story = node.story(exam.study_uid)
    counts.studies += 1
    counts.revisions += len(story["results"])
    counts.acknowledged += len(scanner.acknowledged)
    counts.associations_repeated += scanner.associations - 1
    for uid, acknowledged in scanner.acknowledged.items():
        state = kept(node, uid, acknowledged.digest)
        counts.missing += state == "missing"
        counts.altered += state == "altered"
    _count_reports(far, story, counts)
    _count_flags(far, story, counts)


def kept(node: RunningNode, sop_instance_uid: str, digest: str) -> str:
    """What the archive says of an acknowledged instance: "kept", "missing" or "altered"."""
    with node.database().read() as tx:
        row = instances.find(tx, sop_instance_uid)
    path = None if row is None else node.settings.archive / row.path
    if row is None or path is None or not path.exists():
        return "missing"
    on_disk = hashlib.sha256(data_set_of(path.read_bytes())).hexdigest()
    return "kept" if row.digest == digest == on_disk else "altered"


def _count_reports(far: FarSide, story: dict[str, Any], counts: Counts) -> None:
    reports = {str(report.SOPInstanceUID) for report in far.reports_of(story["study_uid"])}
    due = [d for d in story["deliveries"] if d["kind"] == "sr" and d["destination"] == "pacs"]
    sent = [d["sop_instance_uid"] for d in due if d["state"] in ("sent", "confirmed")]
    superseded = sum(d["state"] == "superseded" for d in due)
    counts.reports += len(reports)
    counts.without_report += len(story["results"]) - superseded - len(set(sent) & reports)
    # A report that had been sent when its sender was killed may be superseded afterwards; one for each revision.
    counts.duplicate_reports += max(0, len(reports - set(sent)) - superseded)
    counts.duplicate_reports += sum(len(far.contents[uid]) - 1 for uid in reports)
    counts.sent_twice += len(far.heard_of(story["study_uid"], what="C-STORE")) - len(reports)


def _count_flags(far: FarSide, story: dict[str, Any], counts: Counts) -> None:
    items = far.items_of(story["study_uid"])
    last = f"revision {story['revision']}."
    counts.flags += len(items)
    counts.without_flag += not any(last in item.CommentsOnTheScheduledProcedureStep for item in items)
    counts.duplicate_flags += max(0, len(items) - 1)


def table(counts: Counts, *, seconds: float) -> Table:
    """The counts as a table for people, and for ``docs/results/kill.md``."""
    made = Table(title=f"kill -9 under load: {counts.rounds} rounds in {seconds:.0f} s", box=None, title_justify="left")
    made.add_column("what")
    made.add_column("count", justify="right")
    kills = ", ".join(f"{name} {number}" for name, number in sorted(counts.kills.items()))
    for name, value in asdict(counts).items():
        made.add_row(name.replace("_", " "), kills if name == "kills" else str(value))
    return made


def main() -> int:
    """Run the benchmark; returns 0 when nothing was lost, doubled or stuck."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kill", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=60, help="how many kills")
    parser.add_argument("--minutes", type=float, default=30, help="no round begins after this")
    parser.add_argument("--seed", type=int, default=1, help="of the moments and the order")
    arguments = parser.parse_args()
    out = Console(width=100)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as name, FarSide().listening() as far:
        home = Path(name)
        config = write_config(
            home,
            models=small_models(home / "models", threshold=0.0),
            ups=[far.remote("ris")],
            destinations=[far.remote("pacs")],
        )
        node = RunningNode(config)
        try:
            node.start()
            counts = run(
                node,
                far,
                Exams(root=home / "exams"),
                rounds=arguments.rounds,
                seed=arguments.seed,
                until=began + 60 * arguments.minutes,
                told=lambda c: out.print(
                    f"round {c.rounds}: {c.acknowledged} acknowledged, faults {c.faults or 'none'}"
                ),
            )
        finally:
            node.close()
        out.print(table(counts, seconds=time.monotonic() - began))
    return 1 if counts.faults else 0


if __name__ == "__main__":
    sys.exit(main())
