"""Positive studies through the whole node: received, read, flagged, reported, told; late slices, order, privacy."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread

from tests.far_side import FarSide
from tests.running_node import RunningNode, running_node, wait_for
from tests.scanner import Exam, Exams, Scanner

SR = "1.2.840.10008.5.1.4.1.1.88.34"
HOST = "127.0.0.1"


@pytest.fixture(scope="module")
def node(
    tmp_path_factory: pytest.TempPathFactory, finding_everything: dict[str, Path], far_side: FarSide
) -> Iterator[RunningNode]:
    """A node to which every study is positive, with one far worklist and one far PACS."""
    with running_node(
        tmp_path_factory.mktemp("node"),
        models=finding_everything,
        ups=[far_side.remote("ris")],
        destinations=[far_side.remote("pacs")],
    ) as running:
        yield running


@pytest.fixture(scope="module")
def localizers(node: RunningNode, exams: Exams) -> Exam:
    """A study of localizers only, of which everything has been done."""
    return done(node, exams.new("localizer"))


@pytest.fixture(scope="module")
def whole(node: RunningNode, exams: Exams, localizers: Exam) -> Exam:
    """A positive study of which everything has been done; the localizers came before it."""
    return done(node, exams.new("localizer", "axial", "bone"))


def done(node: RunningNode, exam: Exam) -> Exam:
    Scanner(port=node.port).send(exam.files)
    node.ended(exam.study_uid)
    return exam


def events(story: dict[str, Any]) -> list[str]:
    return [event["event"] for event in story["timeline"]]


def revisions_reported(far_side: FarSide, exam: Exam) -> int:
    return len(far_side.reports_of(exam.study_uid))


def test_the_flag_is_high_and_reaches_the_worklist_before_the_report_reaches_the_pacs(
    whole: Exam, far_side: FarSide
) -> None:
    created = far_side.heard_of(whole.study_uid, what="N-CREATE")
    stored = far_side.heard_of(whole.study_uid, what="C-STORE")
    assert (len(created), len(stored)) == (1, 1)
    assert created[0].at < stored[0].at
    (item,) = far_side.items_of(whole.study_uid)
    assert (item.ScheduledProcedureStepPriority, item.ProcedureStepLabel) == ("HIGH", "ICH suspected")
    assert item.ScheduledWorkitemCodeSequence[0].CodeValue == "110005"
    assert far_side.heard_of(whole.study_uid, what="N-GET"), "the flag is read back"


def test_the_report_at_the_pacs_is_the_one_in_the_archive(node: RunningNode, whole: Exam, far_side: FarSide) -> None:
    (report,) = far_side.reports_of(whole.study_uid)
    deliveries = [d for d in node.json("show", whole.study_uid)["deliveries"] if d["kind"] == "sr"]
    assert {(d["destination"], d["state"]) for d in deliveries} == {("archive", "confirmed"), ("pacs", "sent")}
    assert {d["sop_instance_uid"] for d in deliveries} == {report.SOPInstanceUID}
    filed = [dcmread(path) for path in (node.settings.archive / "reports").rglob("*.dcm")]
    assert [found for found in filed if found.SOPInstanceUID == report.SOPInstanceUID] == [report]
    assert (report.SOPClassUID, report.StudyInstanceUID, report.Modality) == (SR, whole.study_uid, "SR")


def test_the_story_tells_every_step_in_order(node: RunningNode, whole: Exam) -> None:
    story = node.json("show", whole.study_uid)
    steps = ["first_instance", "last_instance", "verdict", "job_started", "result", "flag"]
    told = events(story)
    assert [event for event in told if event in steps] == steps
    assert told.index("flag") < told.index("flag_confirmed")
    assert told.index("flag_confirmed") < told.index("sr_sent")
    assert "sr_confirmed" in told
    assert (story["state"], story["outcome"], story["revision"]) == ("reported", "positive", 1)
    assert story["completeness"]["complete"]
    chosen = {choice["code"]: choice["reason"] for choice in story["results"][0]["series"]}
    assert set(chosen) == {"chosen", "localizer", "sharp_kernel"}
    assert all(chosen.values()), "every series has its reason"
    assert all(event["seconds"] >= 0 for event in story["timeline"])


def test_show_prints_the_story_for_people_and_says_that_the_weights_are_for_demonstration(
    node: RunningNode, whole: Exam
) -> None:
    text = " ".join(node.run("show", whole.study_uid[-12:]).stdout.split())
    for words in ("positive", "timeline", "flag confirmed", "sr sent", "Not read: a localizer", "NOT FOR CLINICAL USE"):
        assert words in text


def test_localizers_alone_are_not_analysed_flagged_medium_and_reported(
    node: RunningNode, localizers: Exam, far_side: FarSide
) -> None:
    story = node.json("show", localizers.study_uid)
    assert (story["state"], story["outcome"]) == ("not_analysed", "not_analysed")
    assert "localizer" in story["reason"]
    (item,) = far_side.items_of(localizers.study_uid)
    assert item.ScheduledProcedureStepPriority == "MEDIUM"
    assert item.ProcedureStepLabel.startswith("Not analysed")
    assert revisions_reported(far_side, localizers) == 1


def test_the_worklist_has_high_first_whatever_came_first(node: RunningNode, localizers: Exam, whole: Exam) -> None:
    rows = node.json("worklist")
    order = [row["study_uid"] for row in rows]
    assert order.index(whole.study_uid) < order.index(localizers.study_uid)
    assert [row["priority"] for row in rows] == sorted((row["priority"] for row in rows), key=["HIGH", "MEDIUM"].index)
    assert "ICH suspected" in node.run("worklist").stdout


def test_a_late_slice_opens_revision_2_whose_report_names_the_first_and_the_flag_is_updated(
    node: RunningNode, exams: Exams, far_side: FarSide
) -> None:
    exam = exams.new()
    scanner = Scanner(port=node.port)
    scanner.send(exam.files[:-1])
    assert node.ended(exam.study_uid)["revision"] == 1
    scanner.send(exam.files[-1:])
    story = node.ended(exam.study_uid, revision=2)
    assert [len(result["readings"][0]["slices"]) for result in story["results"]] == [15, 16]
    first, second = far_side.reports_of(exam.study_uid)
    (predecessor,) = second.PredecessorDocumentsSequence
    named = predecessor.ReferencedSeriesSequence[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID
    assert named == first.SOPInstanceUID
    (item,) = far_side.items_of(exam.study_uid)
    assert "revision 2" in item.CommentsOnTheScheduledProcedureStep
    assert [row["study_uid"] for row in node.json("worklist")].count(exam.study_uid) == 1


def test_a_study_with_a_gap_is_read_as_incomplete_and_says_where(
    node: RunningNode, exams: Exams, far_side: FarSide
) -> None:
    exam = exams.new()
    Scanner(port=node.port).send([path for number, path in enumerate(exam.files) if number != 8])
    story = node.ended(exam.study_uid)
    assert not story["completeness"]["complete"]
    (missing,) = story["completeness"]["missing"]
    assert "1 slice" in missing
    (item,) = far_side.items_of(exam.study_uid)
    assert (item.ScheduledProcedureStepPriority, item.ProcedureStepLabel) == (
        "HIGH",
        "ICH suspected (incomplete study)",
    )
    assert missing in item.CommentsOnTheScheduledProcedureStep


def test_the_report_that_comes_back_from_the_pacs_and_slices_sent_again_change_nothing(
    node: RunningNode, whole: Exam, far_side: FarSide, tmp_path: Path
) -> None:
    (report,) = far_side.reports_of(whole.study_uid)
    report.save_as(tmp_path / "report.dcm", enforce_file_format=True)
    before = node.story(whole.study_uid)
    Scanner(port=node.port, ae_title="PACS").send([tmp_path / "report.dcm", *whole.files])
    wait_for(lambda: node.story(whole.study_uid)["instances"] == before["instances"] + 1, what="the report's row")
    wait_for(lambda: "late_instances" in events(node.story(whole.study_uid)), what="the note of the late report")
    after = node.story(whole.study_uid)
    assert (after["revision"], after["state"], after["set_aside"]) == (1, "reported", [])
    assert revisions_reported(far_side, whole) == 1


def test_two_scanners_send_at_once_and_each_study_gets_its_own_flag_and_report(
    node: RunningNode, exams: Exams, far_side: FarSide
) -> None:
    both = [exams.new(), exams.new()]
    scanners = [Scanner(port=node.port, ae_title=title) for title in ("CT1", "CT2")]
    threads = [
        threading.Thread(target=scanner.send, args=(exam.files,)) for scanner, exam in zip(scanners, both, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for exam, scanner in zip(both, scanners, strict=True):
        story = node.ended(exam.study_uid)
        assert (story["instances"], story["calling_ae"]) == (16, scanner.ae_title)
        assert len(far_side.items_of(exam.study_uid)) == revisions_reported(far_side, exam) == 1


def test_the_send_command_sends_a_folder_and_studies_lists_it_first(node: RunningNode, exams: Exams) -> None:
    exam = exams.new()
    (exam.folder / "notes.txt").write_text("no DICOM")
    facts = node.json("send", exam.folder)
    assert (facts["sent"], facts["failed"]) == (16, [])
    assert [Path(path).name for path in facts["not_dicom"]] == ["notes.txt"]
    node.ended(exam.study_uid)
    row = node.json("studies", "--limit", "1")
    assert [(r["study_uid"], r["outcome"], r["instances"]) for r in row] == [(exam.study_uid, "positive", 16)]


def test_the_real_head_is_read_flagged_and_reported(node: RunningNode, head_ct: Path, far_side: FarSide) -> None:
    files = sorted(head_ct.glob("*.dcm"))
    Scanner(port=node.port).send(files)
    study_uid = str(dcmread(files[0], stop_before_pixels=True).StudyInstanceUID)
    story = node.ended(study_uid)
    assert [len(reading["slices"]) for reading in story["results"][-1]["readings"]] == [28, 28]
    (item,) = far_side.items_of(study_uid)
    assert item.ScheduledProcedureStepPriority == "HIGH"
    assert len(far_side.reports_of(study_uid)) == 1


def test_status_shows_every_part_alive_and_nothing_left_over(node: RunningNode, whole: Exam) -> None:
    facts = node.json("status")
    assert {part["name"]: part["alive"] for part in facts["parts"]} == dict.fromkeys(
        ("receive", "schedule", "work-0"), True
    )
    assert (facts["abandoned"], facts["set_aside"], facts["jobs"].get("failed", 0)) == ([], 0, 0)
    assert f"HEMONODE on {HOST}:{node.port}" in node.run("status").stdout


def test_echo_answers_here_and_says_in_one_line_who_does_not(node: RunningNode) -> None:
    assert "answers" in node.run("echo").stdout
    refused = node.run("echo", "--to", f"SOMEONE@{HOST}:{node.port}")
    assert refused.returncode == 1
    assert "Called AE title not recogni" in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1


def test_what_receives_and_schedules_has_no_torch_in_it(node: RunningNode) -> None:
    maps = {
        name: Path(f"/proc/{pid}/maps").read_text() for pid, name in node.processes().items() if name != "serve"
    }  # fmt: skip
    assert {name for name, text in maps.items() if "libtorch" in text} == {"work"}
    assert set(maps) == {"receive", "schedule", "work"}


def test_the_log_names_no_patient(node: RunningNode, whole: Exam, localizers: Exam) -> None:
    header = dcmread(whole.files[0], stop_before_pixels=True)
    private = (header.PatientID, "PHANTOM^", str(header.PatientBirthDate), header.AccessionNumber)
    assert whole.study_uid in node.log
    assert [text for text in private if text in node.log] == []
    assert re.findall(r"level=(?:error|critical)\b.*", node.log) == []


def test_nothing_that_says_where_a_bleed_is_leaves_or_is_even_made(
    node: RunningNode, whole: Exam, far_side: FarSide
) -> None:
    (report,) = far_side.reports_of(whole.study_uid)
    text = report.to_json()
    assert not [word for word in ("Volume", "Segment", "118565006", "SCOORD") if word in text]
    story = node.json("show", whole.study_uid)
    assert {delivery["kind"] for delivery in story["deliveries"]} == {"flag", "sr"}
    assert all(reading["volume"] is None for reading in story["results"][0]["readings"])
    assert list((node.settings.archive / "reports").rglob("*segmentation*")) == []
