"""The public sets are read as they are given out, quirks and all."""

from __future__ import annotations

import logging
from pathlib import Path

import nibabel
import numpy as np
import pytest

from inference.metadata import FACTS
from inference.result import LABELS, SUBTYPES
from tests.public_sets import Rsna, cq500_series, cq500_table, head, physionet_table
from training.errors import DataError
from training.heads import Heads
from training.sources import cq500, physionet, rsna
from training.sources.named import open_source
from training.study import LabelledStudy, majority, patient_key, with_any


def labels(*positive: str) -> tuple[float, ...]:
    return tuple(float(name in positive) for name in LABELS)


@pytest.fixture
def challenge(tmp_path: Path) -> Rsna:
    """Two patients, one of them with two exams. File names sort against positions."""
    made = Rsna(tmp_path / "rsna")
    for place in range(4):
        made.add(f"ID_00000000{9 - place}", patient="ID_aaaaaaaa", study="ID_1111111111", z=5.0 * place)
    made.add(
        "ID_100000000", patient="ID_aaaaaaaa", study="ID_2222222222", z=0, positive=("subdural", "epidural"), rows=48
    )
    made.add("ID_100000001", patient="ID_aaaaaaaa", study="ID_2222222222", z=5, rows=48, wrapped=True)
    made.add("ID_6431af929", patient="ID_bbbbbbbb", study="ID_3333333333", z=0, cut_off=True)
    made.add("ID_200000000", patient="ID_bbbbbbbb", study="ID_3333333333", z=5, positive=("intraventricular",))
    made.add("ID_200000001", patient="ID_bbbbbbbb", study="ID_3333333333", z=10, cut_off=True)
    return made


def found(root: Path, index: Path) -> dict[str, LabelledStudy]:
    return {study.study_uid: study for study in rsna.studies(root, index=index)}


def test_rsna_studies_and_patients_come_from_the_headers_and_slices_stand_by_position(
    challenge: Rsna, tmp_path: Path
) -> None:
    studies = found(challenge.finish(again="ID_100000000"), tmp_path / "index")
    assert set(studies) == {"ID_1111111111", "ID_2222222222", "ID_3333333333"}
    assert studies["ID_1111111111"].patient == studies["ID_2222222222"].patient == patient_key("ID_aaaaaaaa")
    assert "ID_" not in studies["ID_1111111111"].patient
    volume = studies["ID_1111111111"].decode()
    assert volume["uids"].tolist() == [f"ID_00000000{9 - place}" for place in range(4)]
    assert (volume["hu"][1] == challenge.hu["ID_000000008"]).all()
    assert studies["ID_1111111111"].facts.spacing_mm == pytest.approx(5 * np.cos(np.radians(15)), abs=0.01)
    assert studies["ID_1111111111"].label_study(studies["ID_1111111111"].label_slices(volume)).tolist() == [0] * 6


def test_headers_are_read_without_pixels_and_name_the_slices_that_are_labelled(challenge: Rsna, tmp_path: Path) -> None:
    study = found(challenge.finish(), tmp_path / "index")["ID_2222222222"]
    assert study.headers is not None
    said = study.headers()
    rows = dict(zip(said["uids"].tolist(), said["header"], strict=True))
    assert [rows[name][list(FACTS).index("position_z")] for name in ("ID_100000000", "ID_100000001")] == [0, 5]
    bleeds = dict(zip(said["uids"].tolist(), study.label_slices(said)[:, 0].tolist(), strict=True))
    assert bleeds == {"ID_100000000": 1, "ID_100000001": 0}


def test_rsna_labels_are_mapped_by_name_and_doubled_rows_count_once(challenge: Rsna, tmp_path: Path) -> None:
    study = found(challenge.finish(again="ID_100000000"), tmp_path / "index")["ID_2222222222"]
    assert study.slice_labels == {
        "ID_100000000": labels("any", "subdural", "epidural"),
        "ID_100000001": labels(),
    }


def test_rsna_pixels_that_wrapped_around_are_unwrapped(challenge: Rsna, tmp_path: Path) -> None:
    volume = found(challenge.finish(), tmp_path / "index")["ID_2222222222"].decode()
    assert (volume["hu"][1] == challenge.hu["ID_100000001"]).all()
    assert volume["hu"].min() == -1000
    assert volume["hu"].shape[1:] == (48, 48)


def test_rsna_images_that_are_cut_off_are_left_out_with_a_note(
    challenge: Rsna, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    study = found(challenge.finish(), tmp_path / "index")["ID_3333333333"]
    with caplog.at_level(logging.WARNING):
        assert study.decode()["uids"].tolist() == ["ID_200000000"]
    assert study.slice_labels is not None
    assert "ID_6431af929" not in study.slice_labels
    assert "ID_200000001.dcm left out: short pixel data" in caplog.text


def test_rsna_contradictions_and_gaps_in_the_table_are_errors_with_their_place(challenge: Rsna, tmp_path: Path) -> None:
    root = challenge.finish()
    table = root / "stage_2_train.csv"
    whole = table.read_text()
    table.write_text(whole + "ID_000000009_any,1\n")
    with pytest.raises(DataError, match=r"line 56: ID_000000009_any stands there twice with different labels"):
        rsna.read_labels(table)
    table.write_text(whole + "ID_000000019_any,1\n")
    with pytest.raises(DataError, match=r"ID_000000019 has not all"):
        rsna.read_labels(table)
    table.write_text(whole + "ID_000000009_stroke,1\n")
    with pytest.raises(DataError, match=r"line 56, column ID"):
        rsna.read_labels(table)
    table.write_text("Label,Id\n")
    with pytest.raises(DataError, match="no column ID"):
        rsna.read_labels(table)


def test_a_folder_is_indexed_once_until_a_file_comes(challenge: Rsna, tmp_path: Path) -> None:
    root, index = challenge.finish(), tmp_path / "index"
    before = found(root, index)
    (kept,) = index.iterdir()
    written = kept.stat().st_mtime_ns
    assert set(found(root, index)) == set(before)
    assert kept.stat().st_mtime_ns == written
    challenge.add("ID_300000000", patient="ID_cccccccc", study="ID_4444444444", z=0)
    assert "ID_4444444444" in found(challenge.finish(), index)


@pytest.fixture
def scans_of_cq500(tmp_path: Path) -> Path:
    root = tmp_path / "cq500"
    bleeds, sees_none = {"ICH": 1, "IPH": 1}, {"ICH": 0}
    cq500_table(
        root / "reads.csv",
        {
            310: (bleeds, {"ICH": 1, "SDH": 1, "IPH": 1}, sees_none),
            7: (sees_none, sees_none, {"ICH": 0, "SAH": 1}),
            172: (bleeds, bleeds, bleeds),
            8: (bleeds, bleeds, bleeds),
        },
    )
    cq500_series(root, 310, "CT Plain")
    cq500_series(root, 310, "CT BONE", ConvolutionKernel="BONE")
    cq500_series(root, 310, "CT POST CONTRAST 3MM", step=3.0, slices=40)
    cq500_series(root, 7, "CT PRE CONTRAST 5MM STD")
    cq500_series(root, 172, "CT Thin Plain")
    cq500_series(root, 8, "CT Plain", slices=3)
    cq500_series(root, 99, "CT Plain")
    return root


def test_cq500_labels_are_the_majority_of_three_readers_and_each_reader_is_kept(
    scans_of_cq500: Path, tmp_path: Path
) -> None:
    studies = {s.study_uid: s for s in cq500.studies(scans_of_cq500, index=tmp_path / "index")}
    assert studies["CQ500-CT-310"].labels == labels("any", "intraparenchymal")
    assert studies["CQ500-CT-310"].readers["R2"] == labels("any", "intraparenchymal", "subdural")
    assert studies["CQ500-CT-7"].labels == labels()
    assert studies["CQ500-CT-7"].readers["R3"] == labels("subarachnoid"), "as the reader wrote it"
    assert studies["CQ500-CT-7"].patient == patient_key("CQ500-CT-7")


def test_cq500_reads_the_plain_series_and_never_bone_contrast_or_the_chest(
    scans_of_cq500: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        studies = {s.study_uid: s for s in cq500.studies(scans_of_cq500, index=tmp_path / "index")}
    assert {uid: s.series_uid for uid, s in studies.items()} == {
        "CQ500-CT-310": "CT Plain",
        "CQ500-CT-7": "CT PRE CONTRAST 5MM STD",
    }
    assert studies["CQ500-CT-310"].facts.thickness_mm == 8
    volume = studies["CQ500-CT-310"].decode()
    assert volume["hu"].shape == (12, 128, 128)
    assert (volume["hu"][3] == head(3, rows=128)).all(), "by position, against the instance numbers"
    assert np.isnan(studies["CQ500-CT-310"].label_slices(volume)[:, 0]).all()
    for said in (
        "a bone series",
        "a series with contrast",
        "reported to show a chest",
        "CQ500-CT-8 left out",
        "-99 left",
    ):
        assert said in caplog.text


def write_nifti(path: Path, values: np.ndarray, *, upside_down: bool = False) -> None:
    """`values` (slices, rows, columns) as a scanner has them, in NIfTI's axes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = values[:, ::-1, ::-1].transpose(2, 1, 0)
    affine = np.diag([0.5, 0.6, 5.0, 1.0])
    if upside_down:
        stored, affine = stored[:, :, ::-1], np.diag([0.5, 0.6, -5.0, 1.0])
    nibabel.save(nibabel.Nifti1Image(stored.astype(np.int16), affine), path)


@pytest.fixture
def ct_ich(tmp_path: Path) -> Path:
    root = tmp_path / "ct-ich"
    physionet_table(
        root / "hemorrhage_diagnosis.csv", {49: ["", "Subdural", "Epidural"], 50: ["Intraventricular", "", ""]}
    )
    volume = np.stack([head(place) for place in range(3)])
    for number in (49, 50):
        mask = np.zeros_like(volume)
        mask[1, 20:24, 40:44] = 255
        write_nifti(root / "ct_scans" / f"{number:03d}.nii", volume, upside_down=number == 50)
        write_nifti(root / "masks" / f"{number:03d}.nii", mask, upside_down=number == 50)
    physionet_table(root / "hemorrhage_diagnosis_raw_ct.csv", {49: [""] * 9})
    return root


def test_physionet_slices_are_numbered_from_one_and_labelled_by_name(ct_ich: Path) -> None:
    study = next(physionet.studies(ct_ich))
    volume = study.decode()
    assert volume["uids"].tolist() == ["1", "2", "3"]
    assert (volume["hu"] == np.stack([head(place) for place in range(3)])).all()
    assert volume["spacing"].tolist() == pytest.approx([0.6, 0.5])
    assert study.label_slices(volume).tolist() == [
        list(labels()),
        list(labels("any", "subdural")),
        list(labels("any", "epidural")),
    ]


def test_physionet_outlines_count_for_the_kinds_of_their_slice(ct_ich: Path) -> None:
    masks = next(physionet.studies(ct_ich)).decode()["masks"]
    assert set(np.unique(masks)) == {0, 1 << SUBTYPES.index("subdural")}
    assert np.argwhere(masks)[0].tolist() == [1, 20, 40]


def test_a_nifti_file_from_head_to_feet_keeps_its_labels(ct_ich: Path) -> None:
    _, study = physionet.studies(ct_ich)
    volume = study.decode()
    assert volume["uids"].tolist() == ["3", "2", "1"]
    assert study.label_slices(volume)[:, LABELS.index("intraventricular")].tolist() == [0, 0, 1]


def test_the_tables_of_physionets_two_releases_are_not_mixed(ct_ich: Path) -> None:
    (ct_ich / "hemorrhage_diagnosis_raw_ct.csv").rename(ct_ich / "hemorrhage_diagnosis.csv")
    with pytest.raises(DataError, match="raw_ct"):
        list(physionet.studies(ct_ich))


def test_a_physionet_row_that_contradicts_itself_is_an_error(ct_ich: Path) -> None:
    table = ct_ich / "hemorrhage_diagnosis.csv"
    table.write_text(table.read_text().replace("49,1,0,0,0,0,0,1,0", "49,1,0,0,0,0,0,0,0"))
    with pytest.raises(DataError, match="line 2, column No_Hemorrhage"):
        physionet.read_labels(table)


def test_labels_follow_from_each_other_where_they_can() -> None:
    assert with_any(dict.fromkeys(SUBTYPES, 0.0)) == labels()
    assert with_any({"subdural": 1.0}) == (1, None, None, None, 1, None)
    assert with_any({}, bleeding=0) == labels()
    assert with_any({"subdural": 0.0}) == (None, None, None, None, 0, None)
    assert majority([(1.0,) * 6, (0.0,) * 6]) == (None,) * 6


def test_sources_are_opened_by_name(challenge: Rsna, tmp_path: Path) -> None:
    root = challenge.finish()
    assert len(open_source(f"rsna:{root}", index=tmp_path)) == 3
    heads = open_source("phantom:count=3,first=5,presets=easy+real,sizes=64,thicknesses=20", index=tmp_path)
    assert [study.patient for study in heads] == ["phantom-5", "phantom-6", "phantom-7"]
    assert Heads(first=5, count=3).spec(5)[0] in {"easy", "real"}
    for wrong, said in (
        ("kaggle:/x", "no source"),
        ("rsna", "needs a path"),
        ("phantom:colour=red", "no colour"),
        ("phantom:presets=nice", "no preset nice"),
        ("phantom:count=many", "many"),
        (f"cq500:{root}", "reads.csv does not exist"),
        (f"archive:{root / 'stage_2_train.csv'}", "no frozen data set"),
    ):
        with pytest.raises(DataError, match=said):
            open_source(wrong, index=tmp_path)
