"""What scanners and PACS expect besides storage, from the real commands: commitment through kill -9, MPPS, notice."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from pydicom import Dataset, dcmread

from db.performed_steps import MPPS
from node.config import PeerSection
from tests.committing import CT_IMAGE, Scanner, requested, requests
from tests.far_side import HOST
from tests.performing import begun, completed, create, ris, update
from tests.running_node import RunningNode, free_port, running_node, wait_for
from tests.scanner import Exam, Exams
from tests.scanner import Scanner as Sender
from tests.worklist_node import associated, remote

PATIENT = {"assemble": {"settle_time": 30, "quiet_time": 60, "limit": 90}, "commitment": {"grace": 1, "hold": 60}}
"""Only the scanner's own list makes a study complete before a test ends."""
Notices = list[tuple[str, Dataset]]


@pytest.fixture(scope="module")
def site(
    tmp_path_factory: pytest.TempPathFactory, finding_everything: dict[str, Path]
) -> Iterator[tuple[RunningNode, int, Notices]]:
    """A node, the port on which CT1 is called, and what an information system has been told."""
    port = free_port()
    peer = PeerSection(ae_title="CT1", addresses=(HOST,), port=port)
    with (
        ris(0x0000) as (ris_port, notices),
        running_node(
            tmp_path_factory.mktemp("site"), models=finding_everything, peers=[peer], changes=PATIENT,
            availability=[remote(ris_port, ae_title="RIS")],
        ) as node,
    ):  # fmt: skip
        yield node, port, notices


def uids(exam: Exam) -> list[str]:
    return [str(dcmread(path, stop_before_pixels=True).SOPInstanceUID) for path in exam.files]


def state(node: RunningNode) -> list[str]:
    return [request.state.value for request in requests(node.database())]


def test_a_request_to_commit_outlives_kill_9_between_action_and_event(
    site: tuple[RunningNode, int, Notices], exams: Exams
) -> None:
    node, port, _ = site
    exam, scanner = exams.new(), Scanner()
    Sender(port=node.port).send(exam.files)
    assert scanner.ask(node.port, *uids(exam), "1.2.3.4") == 0x0000
    assert (node.kill("schedule"), node.kill("receive")) == (1, 1)
    assert scanner.told == []
    with scanner.listening(port):
        assert scanner.heard.wait(60), node.log[-10_000:]
        wait_for(lambda: state(node) == ["reported"], what="the report to be recorded", also=lambda: node.log)
    report = scanner.told[0]
    assert report.held == dict.fromkeys(uids(exam), CT_IMAGE)
    assert report.failed == {"1.2.3.4": 0x0112}


def test_a_scanner_that_reports_its_step_has_its_study_read_at_once_and_is_told_by_return(
    site: tuple[RunningNode, int, Notices], exams: Exams
) -> None:
    node, _, notices = site
    exam, scanner = exams.new(), Scanner()
    began, made = begun(), completed(*uids(exam))
    began.ScheduledStepAttributesSequence[0].StudyInstanceUID = exam.study_uid
    made.PerformedSeriesSequence[0].SeriesInstanceUID = dcmread(exam.files[0]).SeriesInstanceUID
    wait_for(node.ready, what="every part to be back", also=lambda: node.log)
    with associated(node.port, MPPS, calling="CT1") as reporting:
        assert create(reporting, began).Status == 0x0000
        Sender(port=node.port).send(exam.files)
        assert update(reporting, made).Status == 0x0000
    story = node.ended(exam.study_uid)
    assert story["completeness"]["complete"]
    assert "performed procedure step lists have come" in story["completeness"]["reason"]
    assert [notice.StudyInstanceUID for _, notice in notices] == [exam.study_uid]
    with scanner.associated(node.port) as association:
        assert requested(association, *uids(exam), transaction="1.9.8") == 0x0000
        assert scanner.heard.wait(30), node.log[-10_000:]
    assert scanner.told[0].event_type == 1
