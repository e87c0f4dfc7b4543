"""Negative studies, and far sides that are down or refuse: what fails is retried, given up loudly, and requeued."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.far_side import FarSide
from tests.running_node import RunningNode, free_port, running_node, wait_for
from tests.scanner import Exam, Exams, Scanner


@pytest.fixture(scope="module")
def away() -> FarSide:
    """A PACS that is down until a test lets it listen."""
    return FarSide(ae_title="AWAY", port=free_port())


@pytest.fixture(scope="module")
def full() -> Iterator[FarSide]:
    """A PACS whose disk is full: it refuses every report."""
    with FarSide(ae_title="FULL", refusing=True).listening() as far:
        yield far


@pytest.fixture(scope="module")
def node(
    tmp_path_factory: pytest.TempPathFactory,
    finding_nothing: dict[str, Path],
    far_side: FarSide,
    away: FarSide,
    full: FarSide,
) -> Iterator[RunningNode]:
    """A node to which every study is negative, with three PACS of which only one takes reports."""
    with running_node(
        tmp_path_factory.mktemp("node"),
        models=finding_nothing,
        ups=[far_side.remote("ris"), away.remote("ris-away")],
        changes={"deliver": {"attempts": 3}},
        destinations=[far_side.remote("pacs"), away.remote("pacs-away"), full.remote("pacs-full")],
    ) as running:
        yield running


@pytest.fixture(scope="module")
def study(node: RunningNode, exams: Exams) -> Exam:
    """A negative study; whoever did not answer has been given up."""
    exam = exams.new()
    Scanner(port=node.port).send(exam.files)
    node.ended(exam.study_uid)
    return exam


def states(story: dict[str, Any]) -> dict[tuple[str, str], str]:
    return {(d["kind"], d["destination"]): d["state"] for d in story["deliveries"]}


def test_a_negative_study_is_flagged_medium_and_its_report_is_stored(
    node: RunningNode, study: Exam, far_side: FarSide
) -> None:
    story = node.json("show", study.study_uid)
    assert (story["state"], story["outcome"]) == ("reported", "negative")
    (item,) = far_side.items_of(study.study_uid)
    assert (item.ScheduledProcedureStepPriority, item.ProcedureStepLabel) == ("MEDIUM", "No ICH found")
    assert len(far_side.reports_of(study.study_uid)) == 1
    assert [row["priority"] for row in node.json("worklist")] == ["MEDIUM"]


def test_a_far_side_that_is_down_delays_no_other_and_is_given_up_loudly(
    node: RunningNode, study: Exam, far_side: FarSide
) -> None:
    assert states(node.json("show", study.study_uid)) == {
        ("flag", "ris"): "confirmed",
        ("flag", "ris-away"): "abandoned",
        ("sr", "archive"): "confirmed",
        ("sr", "pacs"): "sent",
        ("sr", "pacs-away"): "abandoned",
        ("sr", "pacs-full"): "abandoned",
    }
    abandoned = {d["destination"]: d for d in node.json("status")["abandoned"]}
    assert set(abandoned) == {"ris-away", "pacs-away", "pacs-full"}
    assert all(d["attempts"] == 3 for d in abandoned.values())
    assert "0xA700" in abandoned["pacs-full"]["error"]
    assert "ABANDONED" in node.run("status").stdout
    assert node.log.count("event=delivery_abandoned") == 3
    stored = far_side.heard_of(study.study_uid, what="C-STORE")
    assert len(stored) == 1, "nothing is sent twice to who has it"


def test_requeue_tries_again_what_was_abandoned(
    node: RunningNode, study: Exam, away: FarSide, full: FarSide, far_side: FarSide
) -> None:
    full.refusing = False
    with away.listening():
        assert "3 deliveries" in node.run("requeue", study.study_uid).stdout
        wait_for(
            lambda: set(states(node.story(study.study_uid)).values()) == {"confirmed", "sent"},
            what="every delivery",
            also=lambda: node.log,
        )
    for far in (away, full):
        assert len(far.reports_of(study.study_uid)) == 1
    assert len(away.items_of(study.study_uid)) == 1
    assert len(far_side.heard_of(study.study_uid, what="C-STORE")) == 1
    assert node.json("status")["abandoned"] == []
