"""How long a patient waits for the flag: ``python -m benchmarks.end_to_end --rounds 10``.

A study is sent at the pace of a scanner to two nodes in turn, one that encodes slices while they arrive and one that
does not. Measured from the last C-STORE response at the scanner, on one monotonic clock: when the flag's N-CREATE
reaches a UPS SCP, and when the report's C-STORE reaches a Storage SCP. The settle time, which the node waits on
purpose to see whether more is coming, is taken off. Scanner, far side and both nodes share the machine.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from node.reading import PACKAGED
from tests.far_side import FarSide
from tests.running_node import RunningNode, wait_for, write_config
from tests.scanner import Exam, Exams, Scanner
from tests.small_models import small_models

TARGET_SECONDS = 1.0
STEPS = (("last slice → verdict", "verdict"), ("verdict → reading", "job_started"), ("reading → result", "result"))
DELIVERY = "result → flag at the worklist"
AS_SHIPPED: dict[str, dict[str, Any]] = {"receive": {"disk_watermark_mb": 0, "disk_reserve_mb": 0}}


@dataclass(frozen=True, kw_only=True)
class Waited:
    """Seconds after the last slice was acknowledged, without the settle time; and the steps from the timeline."""

    flag: float
    report: float
    steps: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A node with its far side."""

    name: str
    node: RunningNode
    far: FarSide


def measure(contender: Contender, exam: Exam, *, pace: float) -> Waited:
    """One study has been sent, and flag and report have come.

    Raises
    ------
    AssertionError
        They did not.
    """
    node, far = contender.node, contender.far
    last = Scanner(port=node.port, timeout=60).send(exam.files, pace=pace)
    story = node.ended(exam.study_uid)
    assert story["revision"] == 1, f"read {story['revision']} times: {story['timeline']}"
    settle = node.settings.assemble.settle_time
    (created,) = far.heard_of(exam.study_uid, what="N-CREATE")
    (stored,) = far.heard_of(exam.study_uid, what="C-STORE")
    flag, steps = created.at - last - settle, _steps(story, settle=settle)
    steps[DELIVERY] = flag - sum(steps.values())
    return Waited(flag=flag, report=stored.at - last - settle, steps=steps)


def _steps(story: Mapping[str, Any], *, settle: float) -> dict[str, float]:
    seconds = {event["event"]: event["seconds"] for event in story["timeline"]}
    steps = {name: seconds[event] for name, event in STEPS}
    return steps | {STEPS[0][0]: steps[STEPS[0][0]] - settle}


def compare(
    contenders: Sequence[Contender], exams: Exams, *, rounds: int, pace: float, told: Callable[[str], None]
) -> dict[str, list[Waited]]:
    """Every node's waits, the nodes taking turns; a first round that warms up is not counted."""
    waited: dict[str, list[Waited]] = {contender.name: [] for contender in contenders}
    for number in range(rounds + 1):
        for contender in contenders:
            seen = measure(contender, exams.new(), pace=pace)
            told(f"round {number}, {contender.name}: flag {seen.flag:.3f} s, report {seen.report:.3f} s")
            if number:
                waited[contender.name].append(seen)
    return waited


def table(waited: Mapping[str, Sequence[Waited]], *, title: str) -> Table:
    """Medians and 95th percentiles, and the ratio of the second node to the first."""
    made = Table(title=title, box=None, title_justify="left")
    made.add_column("seconds after the last slice, settle time taken off")
    for name in waited:
        made.add_column(f"{name}\nmedian", justify="right")
        made.add_column("\np95", justify="right")
    made.add_column("ratio of\nmedians", justify="right")
    rows: dict[str, Callable[[Waited], float]] = {
        "flag at the worklist": lambda w: w.flag,
        "report at the PACS": lambda w: w.report,
    }
    for step in (*(name for name, _ in STEPS), DELIVERY):
        rows[f"  {step}"] = lambda w, step=step: w.steps[step]  # type: ignore[misc]
    for what, value in rows.items():
        columns = [sorted(value(w) for w in each) for each in waited.values()]
        medians = [statistics.median(column) for column in columns]
        cells = [f"{x:.3f}" for median, column in zip(medians, columns, strict=True) for x in (median, p95(column))]
        made.add_row(what, *cells, f"{medians[1] / medians[0]:.2f}" if medians[0] > 0 else "–")
    return made


def p95(ordered: Sequence[float]) -> float:
    """The 95th percentile by the nearest rank."""
    return ordered[max(0, -(-95 * len(ordered) // 100) - 1)]


def models_of(arguments: argparse.Namespace, home: Path) -> tuple[str, dict[str, Path] | None]:
    """What the nodes read with, and how the table names it."""
    if arguments.models is not None:
        return f"the models in {arguments.models.name}", {path.name: path for path in arguments.models.iterdir()}
    shipped = (PACKAGED / "demo-radnet").is_dir() and (PACKAGED / "demo-cnn-lstm").is_dir()
    if arguments.small or not shipped:
        return "small untrained models", small_models(home / "models", threshold=0.0)
    return "the demonstration models", None


def main() -> int:
    """Run the benchmark; returns 0 when the flag came in time."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.end_to_end", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10, help="studies for each node")
    parser.add_argument("--pace", type=float, default=0.25, help="seconds from one slice to the next")
    parser.add_argument("--slices", type=int, default=40)
    parser.add_argument("--size", type=int, default=512, help="rows and columns")
    parser.add_argument("--device", default="cpu", help="as in node.toml")
    parser.add_argument("--models", type=Path, help="a directory with one directory for each model")
    parser.add_argument("--small", action="store_true", help="small untrained models instead of the demonstration's")
    arguments = parser.parse_args()
    out = Console(width=140)
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        home = Path(name)
        named, models = models_of(arguments, home)
        contenders = [
            _contender(stack, home / key, title, encode, models, device=arguments.device)
            for key, title, encode in (("early", "encoded on arrival", True), ("late", "all at the end", False))
        ]
        exams = Exams(root=home / "exams", size=arguments.size, slices=arguments.slices)
        waited = compare(contenders, exams, rounds=arguments.rounds, pace=arguments.pace, told=out.print)
    out.print(
        table(
            waited,
            title=f"{arguments.rounds} studies of {arguments.slices} slices of {arguments.size}², a slice every "
            f"{arguments.pace:g} s; {named} on {arguments.device}, {os.cpu_count()} cores",
        )
    )
    return 0 if statistics.median(w.flag for w in waited["encoded on arrival"]) <= TARGET_SECONDS else 1


def _contender(
    stack: ExitStack, home: Path, title: str, encode: bool, models: dict[str, Path] | None, *, device: str
) -> Contender:
    far = stack.enter_context(FarSide().listening())
    config = write_config(
        home,
        models=models,
        ups=[far.remote("ris")],
        destinations=[far.remote("pacs")],
        defaults=AS_SHIPPED,
        changes={"read": {"encode_on_arrival": encode, "device": device}},
    )
    node = RunningNode(config)
    stack.callback(node.close)
    node.start()
    wait_for(node.ready, what="the node")
    return Contender(name=title, node=node, far=far)


if __name__ == "__main__":
    sys.exit(main())
