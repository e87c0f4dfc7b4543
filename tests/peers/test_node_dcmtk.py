"""The whole node with DCMTK as scanner, as test button and as worklist client."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.running_node import RunningNode, running_node
from tests.scanner import Exam, Exams
from tests.small_models import small_models

pytestmark = pytest.mark.peer


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory, peer: Callable[..., None]) -> Iterator[RunningNode]:
    """A node to which every study is positive."""
    peer("storescu", "dcmsend", "echoscu", "findscu")
    models = small_models(tmp_path_factory.mktemp("models"), threshold=0.0)
    with running_node(tmp_path_factory.mktemp("node"), models=models) as running:
        yield running


@pytest.fixture(scope="module")
def exams(tmp_path_factory: pytest.TempPathFactory) -> Exams:
    return Exams(root=tmp_path_factory.mktemp("exams"))


def dcmtk(program: str, node: RunningNode, *options: str, paths: tuple[Path, ...] = ()) -> str:
    """What a DCMTK client says that calls the node and succeeds."""
    done = subprocess.run(
        [program, "-v", "-aec", "HEMONODE", *options, "127.0.0.1", str(node.port), *map(str, paths)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_echoscu_is_answered(node: RunningNode) -> None:
    assert "Received Echo Response (Success)" in dcmtk("echoscu", node)


@pytest.mark.parametrize(("program", "options"), [("storescu", ("+sd", "+r")), ("dcmsend", ("+sd", "+r"))])
def test_a_study_sent_by_dcmtk_is_read_whole(
    node: RunningNode, exams: Exams, program: str, options: tuple[str, ...]
) -> None:
    exam = exams.new("axial", "bone")
    dcmtk(program, node, *options, paths=(exam.folder,))
    story = node.ended(exam.study_uid)
    assert (story["instances"], story["outcome"], story["revision"]) == (32, "positive", 1)
    assert story["completeness"]["complete"]


def test_findscu_sees_the_worklist_with_the_positive_study_first(node: RunningNode, exams: Exams) -> None:
    order: list[Exam] = [exams.new("localizer"), exams.new()]
    for exam in order:
        dcmtk("storescu", node, "+sd", paths=(exam.folder,))
        node.ended(exam.study_uid)
    keys = ("ScheduledProcedureStepSequence[0].Modality=CT", "StudyInstanceUID", "RequestedProcedurePriority")
    said = dcmtk("findscu", node, "-W", *(part for key in keys for part in ("-k", key)))
    rows = list(zip(values(said, "0020,000d"), values(said, "0040,1003"), strict=True))
    assert rows.index((order[1].study_uid, "HIGH")) < rows.index((order[0].study_uid, "MEDIUM"))
    assert [study_uid for study_uid, _ in rows] == [row["study_uid"] for row in node.json("worklist")]


def test_findscu_finds_in_the_archive_what_was_sent(node: RunningNode, exams: Exams) -> None:
    exam = exams.new()
    dcmtk("storescu", node, "+sd", paths=(exam.folder,))
    keys = ("QueryRetrieveLevel=STUDY", f"StudyInstanceUID={exam.study_uid}", "NumberOfStudyRelatedInstances")
    said = dcmtk("findscu", node, "-S", *(part for key in keys for part in ("-k", key)))
    assert values(said, "0020,000d") == [exam.study_uid]
    assert int(values(said, "0020,1208")[0]) >= len(exam.files)


def values(said: str, tag: str) -> list[str]:
    """The value of an attribute in each answer, in the order in which they came."""
    answers = said.partition("Find Response")[2]
    return [value.strip(" \0") for value in re.findall(rf"\({tag}\) \w\w \[?([^\]#\n]*?)\]? *#", answers)]
