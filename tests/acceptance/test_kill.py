"""kill -9 of every part under load; `benchmarks/kill.py` does the same many more times."""

from __future__ import annotations

from pathlib import Path

from benchmarks import kill
from tests.far_side import FarSide
from tests.running_node import running_node, wait_for
from tests.scanner import Exams, Scanner


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


def test_a_sender_killed_as_the_far_side_accepts_sends_again_and_the_far_side_holds_it_once(
    tmp_path: Path, finding_everything: dict[str, Path], exams: Exams
) -> None:
    """The worst moment: the far side has it, and the node that sent it will never know."""
    exam, killed = exams.new(), []
    with (
        FarSide().listening() as far,
        running_node(
            tmp_path, models=finding_everything, ups=[far.remote("ris")], destinations=[far.remote("pacs")]
        ) as node,
    ):

        def kill_once(what: str) -> None:
            if what in ("N-CREATE", "C-STORE") and what not in killed:
                killed.append(what)
                node.kill("schedule")

        far.witness = kill_once
        Scanner(port=node.port).send(exam.files)
        wait_for(lambda: len(killed) == 2, what="both kills", also=lambda: node.log)
        story = node.ended(exam.study_uid)
        assert {d["state"] for d in story["deliveries"]} == {"confirmed", "sent"}
        assert all(d["attempts"] >= 2 for d in story["deliveries"] if d["destination"] in ("ris", "pacs"))
        assert len(far.items_of(exam.study_uid)) == 1
        (report,) = far.reports_of(exam.study_uid)
        assert len(far.heard_of(exam.study_uid, what="C-STORE")) == 2
        assert len(far.contents[report.SOPInstanceUID]) == 1, "the same report, to the byte"
