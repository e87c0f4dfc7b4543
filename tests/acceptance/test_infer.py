"""`hemonode infer`: a folder read without a node, for people, as JSON and as a Structured Report."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread

from tests.running_node import command, write_config
from tests.scanner import Exams


@pytest.fixture
def config(tmp_path: Path, finding_everything: dict[str, Path]) -> Path:
    return write_config(tmp_path, models=finding_everything)


def test_every_study_of_a_folder_is_read_and_what_cannot_be_is_said_with_its_reason(config: Path, exams: Exams) -> None:
    localizers, whole = exams.new("localizer"), exams.new("localizer", "axial")
    for path in localizers.files:
        path.rename(whole.folder / f"other-{path.name}")
    done = command("infer", whole.folder, "--config", config, "--json")
    assert done.returncode == 0, done.stderr
    results = {result["study_uid"]: result for result in json.loads(done.stdout)}
    assert set(results) == {localizers.study_uid, whole.study_uid}
    assert results[whole.study_uid]["outcome"] == "positive"
    assert {choice["code"] for choice in results[whole.study_uid]["series"]} == {"chosen", "localizer"}
    assert results[localizers.study_uid]["outcome"] == "not_analysed"
    assert "localizer" in results[localizers.study_uid]["reason"]


def test_a_study_is_told_to_people_and_its_report_written(config: Path, exams: Exams, tmp_path: Path) -> None:
    exam = exams.new()
    done = command("infer", exam.folder, "--config", config, "--sr", tmp_path / "sr.dcm")
    assert done.returncode == 0, done.stderr
    assert "positive" in done.stdout
    assert "NOT FOR CLINICAL USE" in done.stdout
    report = dcmread(tmp_path / "sr.dcm")
    assert (report.StudyInstanceUID, report.Modality) == (exam.study_uid, "SR")


def test_a_folder_without_images_is_an_error_of_one_line(config: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = command("infer", tmp_path / "empty", "--config", config)
    assert (done.returncode, len(done.stderr.strip().splitlines())) == (2, 1)
    assert "no DICOM" in done.stderr


def test_the_real_head_is_read_and_reported(head_ct: Path, config: Path, tmp_path: Path) -> None:
    done = command("infer", head_ct, "--config", config, "--sr", tmp_path / "sr.dcm", "--json")
    assert done.returncode == 0, done.stderr
    (result,) = json.loads(done.stdout)
    assert result["outcome"] == "positive"
    assert all(len(reading["slices"]) == 28 for reading in result["readings"])
    assert dcmread(tmp_path / "sr.dcm").StudyInstanceUID == result["study_uid"]


def test_any_model_reads_a_folder_by_name_or_by_directory(
    config: Path, exams: Exams, finding_nothing: dict[str, Path]
) -> None:
    exam = exams.new()
    chosen = ("--model", "radnet", "--model", finding_nothing["cnn-lstm"], "--json")
    done = command("infer", exam.folder, "--config", config, *chosen)
    assert done.returncode == 0, done.stderr
    (result,) = json.loads(done.stdout)
    found = {reading["name"]: reading["findings"][0]["present"] for reading in result["readings"]}
    assert found == {"radnet": True, "cnn-lstm": False}
    assert result["outcome"] == "positive"


def test_an_unknown_model_is_an_error_that_names_the_known_ones(config: Path, exams: Exams) -> None:
    done = command("infer", exams.new().folder, "--config", config, "--model", "unet")
    assert done.returncode == 2
    assert "radnet, cnn-lstm, demo-cnn-lstm, demo-radnet" in " ".join(done.stderr.split())


def test_where_the_models_looked_becomes_pictures_and_a_segmentation(
    config: Path, exams: Exams, tmp_path: Path
) -> None:
    exam = exams.new("localizer", "axial")
    folder, seg = tmp_path / "pictures", tmp_path / "seg.dcm"
    done = command("infer", exam.folder, "--config", config, "--overlay", folder, "--seg", seg, "--json")
    assert done.returncode == 0, done.stderr
    (result,) = json.loads(done.stdout)
    volumes = {reading["name"]: reading["volume"] for reading in result["readings"]}
    assert volumes["cnn-lstm"] is None
    assert volumes["radnet"]["low_ml"] <= volumes["radnet"]["ml"] <= volumes["radnet"]["high_ml"]
    for name in ("radnet", "cnn-lstm"):
        assert len(list((folder / name).glob("*.png"))) == 16
        with Image.open(folder / f"{name}.png") as sheet:
            assert sheet.format == "PNG"
    with Image.open(folder / "radnet" / "0008.png") as picture:
        red, green, blue = np.asarray(picture.convert("RGB"), dtype=int)[:128, :128].reshape(-1, 3).T
    assert ((red > blue + 20) & (red >= green)).any(), "a colour that no CT has"
    segmentation = dcmread(seg)
    assert (segmentation.Modality, segmentation.StudyInstanceUID) == ("SEG", exam.study_uid)


def test_models_that_draw_no_masks_have_no_segmentation(config: Path, exams: Exams, tmp_path: Path) -> None:
    done = command(
        "infer", exams.new().folder, "--config", config, "--model", "cnn-lstm", "--seg", tmp_path / "seg.dcm"
    )
    assert done.returncode == 1
    assert "no model that was read with draws masks" in done.stderr
    assert not (tmp_path / "seg.dcm").exists()
