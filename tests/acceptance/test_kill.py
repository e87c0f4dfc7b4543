"""kill -9 of every part under load; `benchmarks/kill.py` does the same many more times."""

from __future__ import annotations

from pathlib import Path

from benchmarks import kill
from tests.far_side import FarSide
from tests.running_node import running_node
from tests.scanner import Exams


def test_a_killed_part_loses_nothing_that_was_acknowledged_and_doubles_nothing(
    tmp_path: Path, finding_everything: dict[str, Path], far_side: FarSide, exams: Exams
) -> None:
    with running_node(
        tmp_path, models=finding_everything, ups=[far_side.remote("ris")], destinations=[far_side.remote("pacs")]
    ) as node:
        counts = kill.run(node, far_side, exams, rounds=len(kill.PARTS), seed=7)
        assert set(counts.kills) == set(kill.PARTS)
        assert counts.acknowledged == counts.studies * 16
        assert counts.faults == {}, node.log[-30_000:]
        assert node.stop() == 0
