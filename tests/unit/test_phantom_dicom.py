"""The phantom's files: what they hold is what was drawn, under every maker's habits."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from inference.series import Criteria, facts, select
from inference.volume import order, read_slices
from training.sources.phantom import (
    EXAM,
    MAKERS,
    REAL,
    Exam,
    PhantomStudy,
    instances,
    make_study,
    write_localizer_only_study,
    write_study,
)
from training.sources.phantom.__main__ import main
from training.sources.phantom.dicom import outside_circle

SMALL = replace(REAL, size=96, slices=7, subplanes=1)
TILTED = replace(SMALL, tilt_degrees=(15.0, 18.0), p_tilt=1.0)


@pytest.fixture(scope="module")
def study() -> PhantomStudy:
    return make_study(seed=11, spec=TILTED)


def by_height(paths: list[Path]) -> list[pydicom.FileDataset]:
    return sorted((pydicom.dcmread(path) for path in paths), key=lambda ds: float(ds.ImagePositionPatient[2]))


def hounsfield(ds: pydicom.FileDataset) -> np.ndarray:
    return ds.pixel_array * float(ds.RescaleSlope) + float(ds.RescaleIntercept)


@pytest.mark.parametrize("key", MAKERS)
def test_what_a_maker_writes_loads_back_to_the_same_hounsfield_units(
    key: str, study: PhantomStudy, tmp_path: Path
) -> None:
    files = by_height(write_study(study, tmp_path, maker=MAKERS[key]))
    loaded = np.stack([hounsfield(ds) for ds in files])
    inside = ~outside_circle(study.hu.shape[1:])
    assert np.array_equal(loaded[:, inside], study.hu[:, inside])


@pytest.mark.parametrize("key", MAKERS)
def test_the_node_chooses_the_axial_series_of_every_maker_and_reads_what_was_drawn(key: str, tmp_path: Path) -> None:
    study = make_study(seed=12, spec=replace(TILTED, slices=26, cut=0.0, child=0.0))
    paths = write_study(study, tmp_path, maker=MAKERS[key], series=("localizer", "axial", "bone"))
    by_path = {path: facts(pydicom.dcmread(path, stop_before_pixels=True)) for path in paths}
    (chosen,) = (choice for choice in select(list(by_path.values()), Criteria()).choices if choice.chosen)
    assert chosen.series_uid == Exam(study=study, maker=MAKERS[key]).series_uid("axial")
    pieces = [piece for path in paths if by_path[path].series_uid == chosen.series_uid for piece in read_slices(path)]
    volume = order(pieces)
    inside = ~outside_circle(study.hu.shape[1:])
    assert np.array_equal(volume.stacked()[:, inside], study.hu[:, inside])
    assert [piece.position for piece in volume.slices] == [tuple(p) for p in study.positions.tolist()]


@pytest.mark.parametrize("key", MAKERS)
def test_the_corners_hold_the_makers_padding_and_only_some_admit_it(
    key: str, study: PhantomStudy, tmp_path: Path
) -> None:
    maker = MAKERS[key]
    ds = by_height(write_study(study, tmp_path, maker=maker))[0]
    assert ("PixelPaddingValue" in ds) == maker.padding_tagged
    if maker.padding is not None:
        assert (ds.pixel_array[outside_circle(study.hu.shape[1:])] == maker.padding).all()


@pytest.mark.parametrize(
    "syntax",
    [
        ImplicitVRLittleEndian,
        DeflatedExplicitVRLittleEndian,
        RLELossless,
        JPEGLSLossless,
        JPEG2000Lossless,
        JPEGLosslessSV1,
    ],
)
def test_a_lossless_transfer_syntax_changes_neither_pixels_nor_uids(
    syntax: str, study: PhantomStudy, tmp_path: Path
) -> None:
    maker = MAKERS["ge"]
    plain = by_height(write_study(study, tmp_path / "plain", maker=maker))
    coded = by_height(write_study(study, tmp_path / "coded", maker=maker, transfer_syntax=syntax))
    assert coded[0].file_meta.TransferSyntaxUID == syntax
    assert [ds.SOPInstanceUID for ds in coded] == [ds.SOPInstanceUID for ds in plain]
    assert all(np.array_equal(a.pixel_array, b.pixel_array) for a, b in zip(plain, coded, strict=True))


def test_a_tilted_gantry_leans_the_planes_while_the_table_moves_along_z(study: PhantomStudy, tmp_path: Path) -> None:
    files = by_height(write_study(study, tmp_path, maker=MAKERS["siemens"]))
    steps = np.diff([[float(c) for c in ds.ImagePositionPatient] for ds in files], axis=0)
    assert np.abs(steps[:, :2]).max() == 0
    assert (steps[:, 2] > 0).all()
    orientation = np.array([float(c) for c in files[0].ImageOrientationPatient])
    normal = np.cross(orientation[:3], orientation[3:])
    lean = np.rad2deg(np.arcsin(orientation[5]))
    assert lean == pytest.approx(study.truth["tilt_degrees"], abs=1e-5)
    assert float(files[0].GantryDetectorTilt) == pytest.approx(-lean, abs=1e-5)
    # Slices touch along the normal: the table moves further than a slice is thick.
    assert steps @ normal == pytest.approx(study.thickness[1:], abs=1e-3)
    assert steps[0, 2] > study.thickness[0]


def test_some_makers_lean_the_gantry_without_saying_so(study: PhantomStudy, tmp_path: Path) -> None:
    ds = by_height(write_study(study, tmp_path, maker=MAKERS["philips"]))[0]
    assert "GantryDetectorTilt" not in ds
    assert float(ds.ImageOrientationPatient[5]) != 0


def test_instance_numbers_follow_the_makers_order(study: PhantomStudy, tmp_path: Path) -> None:
    numbers = {
        key: [int(ds.InstanceNumber) for ds in by_height(write_study(study, tmp_path / key, maker=MAKERS[key]))]
        for key in ("siemens", "ge", "canon")
    }
    up = list(range(1, len(study.hu) + 1))
    assert numbers["siemens"] == up
    assert numbers["ge"] == up[::-1]
    assert sorted(numbers["canon"]) == up
    assert numbers["canon"] not in (up, up[::-1])


def test_a_whole_exam_shares_its_study_and_separates_its_series(study: PhantomStudy) -> None:
    exam = list(instances(study, maker=MAKERS["ge"], series=EXAM))
    assert len({ds.StudyInstanceUID for ds in exam}) == 1
    assert len({ds.SeriesInstanceUID for ds in exam}) == len(EXAM)
    assert len({ds.SOPInstanceUID for ds in exam}) == len(exam)
    kinds = {ds.SeriesNumber: ds for ds in exam}
    assert kinds[1].ImageType[2] == "LOCALIZER"
    assert kinds[3].ConvolutionKernel == "BONEPLUS"
    assert [float(c) for c in kinds[4].ImageOrientationPatient] == [1, 0, 0, 0, 0, -1]
    assert [float(c) for c in kinds[5].ImageOrientationPatient] == [0, 1, 0, 0, 0, -1]
    assert kinds[6].SOPClassUID == "1.2.840.10008.5.1.4.1.1.7"


def test_reformats_show_the_head_upright_although_the_gantry_leaned() -> None:
    level, leaned = (
        make_study(seed=11, spec=replace(SMALL, slices=24, p_tilt=p, tilt_degrees=(18.0, 18.0), noise_hu=(1.0, 1.0)))
        for p in (0.0, 1.0)
    )
    shown = []
    for study in (level, leaned):
        images = list(instances(study, maker=MAKERS["siemens"], series=("sagittal",)))
        image = images[len(images) // 2]
        hu = image.pixel_array + float(image.RescaleIntercept)
        rows, columns = np.nonzero(hu > 300)
        y, z = (float(c) for c in image.ImagePositionPatient[1:])
        # The inner vault above the sella: the highest bone and how far back it lies.
        shown.append((z - rows.min(), y + columns[rows == rows.min()].mean()))
    assert shown[0] == pytest.approx(shown[1], abs=9)


def test_the_same_salt_makes_the_same_uids_and_another_salt_others(study: PhantomStudy) -> None:
    one, again, other = (
        [str(ds.SOPInstanceUID) for ds in instances(study, maker=MAKERS["ge"], salt=salt)] for salt in ("a", "a", "b")
    )
    assert one == again
    assert not set(one) & set(other)
    assert all(uid.startswith("2.25.") and len(uid) <= 64 for uid in one)


def test_the_patient_is_plainly_synthetic_and_the_time_can_be_given(study: PhantomStudy) -> None:
    ds = next(iter(instances(study, maker=MAKERS["ge"], when=datetime(2025, 3, 4, 5, 6, 7))))  # noqa: DTZ001
    assert str(ds.PatientName) == "PHANTOM^SEED0000011"
    assert (ds.StudyDate, ds.StudyTime) == ("20250304", "050607.000000")
    assert len(ds.AccessionNumber) <= 16


def test_an_exam_can_end_after_its_localizers(study: PhantomStudy, tmp_path: Path) -> None:
    files = [pydicom.dcmread(path) for path in write_localizer_only_study(study, tmp_path)]
    assert len(files) == 2
    assert all("LOCALIZER" in ds.ImageType for ds in files)


def test_an_unknown_kind_of_series_is_refused(study: PhantomStudy) -> None:
    with pytest.raises(ValueError, match="perfusion"):
        list(instances(study, maker=MAKERS["ge"], series=("perfusion",)))


@pytest.mark.peer
@pytest.mark.parametrize("key", MAKERS)
def test_dciodvfy_finds_no_error_in_any_series(
    key: str, study: PhantomStudy, tmp_path: Path, peer: Callable[..., None]
) -> None:
    peer("dciodvfy")
    series = EXAM if key == "ge" else ("axial", "bone")
    files = write_study(study, tmp_path, maker=MAKERS[key], series=series)
    first = {path.name[:2]: path for path in reversed(files)}
    assert len(first) == len(series)
    for path in first.values():
        said = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, check=False, timeout=60)
        assert "Error" not in said.stderr, said.stderr


def test_the_command_writes_one_folder_for_each_study(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wanted = "--seed 5 --count 2 --subtype subdural --preset easy --size 64 --slices 3 --maker philips --series axial"
    assert main([str(tmp_path), *wanted.split()]) == 0
    assert "phantom-6: 3 files, subdural" in capsys.readouterr().out
    files = sorted(tmp_path.glob("*/*.dcm"))
    assert len(files) == 6
    assert {pydicom.dcmread(path).Manufacturer for path in files} == {"Philips"}


def test_the_command_can_ask_for_a_head_without_blood(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path), "--subtype", "none", "--size", "64", "--slices", "3"]) == 0
    assert "no haemorrhage" in capsys.readouterr().out
