"""`hemonode infer`: a folder read without a node, for people, as JSON and as a Structured Report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydicom import dcmread

from tests.running_node import command, write_config
from tests.scanner import Exams


@pytest.fixture
def config(tmp_path: Path, finding_everything: dict[str, Path]) -> Path:
    return write_config(tmp_path, models=finding_everything)


def test_a_folder_is_read_and_its_report_written(config: Path, exams: Exams, tmp_path: Path) -> None:
    exam = exams.new("localizer", "axial")
    done = command("infer", exam.folder, "--config", config, "--sr", tmp_path / "sr.dcm", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["study_uid"], result["outcome"]) == (exam.study_uid, "positive")
    assert {choice["code"] for choice in result["series"]} == {"chosen", "localizer"}
    report = dcmread(tmp_path / "sr.dcm")
    assert (report.StudyInstanceUID, report.Modality) == (exam.study_uid, "SR")


def test_what_cannot_be_read_is_said_with_its_reason(config: Path, exams: Exams) -> None:
    done = command("infer", exams.new("localizer").folder, "--config", config)
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stdout.split())
    assert "not_analysed" in said
    assert "a localizer" in said


def test_a_folder_without_images_is_an_error_of_one_line(config: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = command("infer", tmp_path / "empty", "--config", config)
    assert (done.returncode, len(done.stderr.strip().splitlines())) == (2, 1)
    assert "no DICOM" in done.stderr


def test_the_real_head_is_read_and_reported(head_ct: Path, config: Path, tmp_path: Path) -> None:
    done = command("infer", head_ct, "--config", config, "--sr", tmp_path / "sr.dcm", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["outcome"] == "positive"
    assert all(len(reading["slices"]) == 28 for reading in result["readings"])
    assert dcmread(tmp_path / "sr.dcm").StudyInstanceUID == result["study_uid"]
