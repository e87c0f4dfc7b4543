"""From a node's archive to labelled studies: labels from tables, frozen data sets, and what training reads of them."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import dcmread

from db import labels, studies
from db.engine import Database
from db.instances import NewInstance, add
from db.labels import Given, NewLabel
from db.states import LabelSource
from inference.metadata import FACTS
from inference.result import LABELS
from inference.series import Criteria, facts
from node.labels import LabelsRefused, import_table
from node.labels import read as read_table
from tests.scanner import Exam, Exams, _identity
from training.errors import DataError, DigestError
from training.sources.archive import freeze as freezing
from training.sources.archive import frozen
from training.sources.archive.freeze import Query
from training.study import patient_key

ROOT = Path(__file__).parents[2]


def store(database: Database, exam: Exam, archive: Path, *, patient: str = "") -> None:
    """The exam as the node has it: files below the archive, rows, and a verdict."""
    uids = []
    for path in exam.files:
        header = dcmread(path, stop_before_pixels=True)
        _, digest = _identity(path)
        new = NewInstance(
            sop_instance_uid=str(header.SOPInstanceUID),
            sop_class_uid=str(header.SOPClassUID),
            series_uid=str(header.SeriesInstanceUID),
            study_uid=exam.study_uid,
            transfer_syntax_uid="1.2.840.10008.1.2.1",
            path=str(path.relative_to(archive)),
            size=path.stat().st_size,
            digest=digest,
            association_id="a",
            calling_ae="CT1",
            facts=facts(header).to_json(),
            header={"00100020": {"vr": "LO", "Value": [patient or exam.study_uid]}},
        )
        uids.append(new.sop_instance_uid)
        with database.write() as tx:
            assert add(tx, new) is None
    with database.write() as tx:
        assert studies.pronounce(
            tx, study_uid=exam.study_uid, completeness={"complete": True, "reason": "whole"}, seen=uids, model="triage"
        )


@pytest.fixture
def exams(tmp_path: Path) -> Exams:
    return Exams(root=tmp_path / "archive", size=64, slices=16)


def said(study_uid: str, label: str, value: int, **where: Any) -> NewLabel:
    given = {"reader": "r1", "source": LabelSource.READER} | where
    return NewLabel(study_uid=study_uid, label=label, value=value, **given)


def test_a_label_given_twice_stands_once_and_a_changed_mind_counts(either_database: Database) -> None:
    first = said("1.2", "any", 1)
    for new, given in (
        ([first, said("1.2", "any", 1, reader="r2")], Given(added=2)),
        ([first, replace(first, value=0, reader="r2")], Given(changed=1, unchanged=1)),
        ([replace(first, sop_instance_uid="1.2.3", frame=2)], Given(added=1)),
    ):
        with either_database.write() as tx:
            assert labels.give(tx, new) == given
    with either_database.read() as tx:
        assert [(label.reader, label.value, label.frame) for label in labels.of_study(tx, "1.2")] == [
            ("r1", 1, 0),
            ("r2", 0, 0),
            ("r1", 1, 2),
        ]
        assert labels.labelled_studies(tx) == (), "a study that was never received"


def table(folder: Path, text: str) -> Path:
    path = folder / "labels.csv"
    path.write_text(text)
    return path


def test_a_table_has_a_column_for_each_label_or_label_and_value(tmp_path: Path) -> None:
    wide = table(tmp_path, "study_uid,subdural,any,reader\n1.2,,1,anna\n1.3,0,0,\n")
    found = read_table(wide, reader="table", source=LabelSource.CSV)
    assert [(x.study_uid, x.label, x.value, x.reader) for x in found.labels] == [
        ("1.2", "any", 1, "anna"),
        ("1.3", "any", 0, "table"),
        ("1.3", "subdural", 0, "table"),
    ]
    long = table(tmp_path, "value,study_uid,label,sop_instance_uid,frame\n1,1.2,epidural,1.2.3,4\n")
    (one,) = read_table(long, reader="t", source=LabelSource.REPORT).labels
    assert (one.label, one.sop_instance_uid, one.frame, one.source) == ("epidural", "1.2.3", 4, LabelSource.REPORT)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("uid,any\n1.2,1\n", "no column study_uid"),
        ("study_uid,any,stroke\n1.2,1,1\n", "column stroke is not known"),
        ("study_uid,reader\n1.2,a\n", "expected the columns label and value"),
        ("study_uid,any\n1.2,1\n1.3,yes\n", "line 3, column any: 'yes', expected 0 or 1"),
        ("study_uid,any\nabc,1\n", "line 2, column study_uid: 'abc' is no UID"),
        ("study_uid,label,value\n1.2,stroke,1\n", "line 2, column label: 'stroke', expected one of any"),
        ("study_uid,any,frame\n1.2,1,3\n", "line 2, column frame"),
        ("study_uid,any\n1.2,1\n1.2,0\n", "line 3, column any: contradicts line 2"),
        ("study_uid,any\n1.2,1,4\n", "line 2 has more cells"),
    ],
)
def test_what_is_wrong_in_a_table_is_named_by_line_and_column(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(LabelsRefused, match=message):
        read_table(table(tmp_path, text), reader="t", source=LabelSource.CSV)


def test_a_table_with_one_unknown_study_changes_nothing(database: Database, exams: Exams, tmp_path: Path) -> None:
    exam = exams.new()
    store(database, exam, tmp_path / "archive")
    path = table(tmp_path, f"study_uid,any\n{exam.study_uid},1\n1.2.99,1\n")
    read = read_table(path, reader="t", source=LabelSource.CSV)
    with pytest.raises(LabelsRefused, match=r"no study 1\.2\.99"), database.write() as tx:
        import_table(tx, path, read)
    with database.read() as tx:
        assert labels.of_study(tx, exam.study_uid) == ()


def freeze(database: Database, archive: Path, **query: Any) -> dict[str, Any]:
    return freezing.freeze(database.url, archive=archive, name="v1", query=Query(**query), criteria=Criteria())


def test_a_frozen_data_set_is_read_from_its_list_and_files_alone(
    either_database: Database, exams: Exams, tmp_path: Path
) -> None:
    database, archive = either_database, tmp_path / "archive"
    bleeding, clear = exams.new("localizer", "axial", "bone"), exams.new()
    for exam in (bleeding, clear):
        store(database, exam, archive, patient="HB-77")
    axial = sorted(path for path in bleeding.files if "02_" in path.name)
    middle = str(dcmread(axial[5], stop_before_pixels=True).SOPInstanceUID)
    with database.write() as tx:
        labels.give(
            tx,
            [
                said(bleeding.study_uid, "any", 1, reader="r1"),
                said(bleeding.study_uid, "any", 1, reader="r2"),
                said(bleeding.study_uid, "any", 0, reader="r3"),
                said(bleeding.study_uid, "any", 0, reader="list", source=LabelSource.CSV),
                said(bleeding.study_uid, "intraparenchymal", 1, sop_instance_uid=middle),
                said(clear.study_uid, "any", 0, source=LabelSource.REPORT),
            ],
        )
    content = freeze(database, archive)
    path = freezing.write(content, tmp_path / "v1.json")
    assert "HB-77" not in path.read_text()
    with database.write() as tx:
        labels.give(tx, [said(clear.study_uid, "any", 1)])
    first, second = frozen.studies(path)
    assert (first.study_uid, first.revision, first.patient) == (bleeding.study_uid, 1, patient_key("HB-77"))
    assert second.patient == first.patient
    assert first.labels[0] == 1, "two readers of three, and readers before tables"
    assert set(first.readers) == {"r1", "r2", "r3"}
    assert second.labels == (0.0,) * 6, "as it was when frozen"
    volume = first.decode()
    assert len(volume["hu"]) == 16
    assert np.all(np.diff(volume["positions"]) > 0)
    place = volume["uids"].tolist().index(middle)
    found = first.label_slices(volume)
    assert found[place, LABELS.index("intraparenchymal")] == found[place, 0] == 1
    assert np.isnan(np.delete(found[:, 0], place)).all()
    assert first.headers is not None
    headers = first.headers()
    assert set(headers["uids"].tolist()) == set(volume["uids"].tolist())
    assert headers["header"].shape == (16, len(FACTS))
    assert first.label_slices(headers)[headers["uids"].tolist().index(middle), 0] == 1
    assert first.facts.manufacturer == "GE MEDICAL SYSTEMS"
    with pytest.raises(DataError, match="a frozen data set is not changed"):
        freezing.write(content, path)


def test_a_query_picks_studies_and_says_what_it_left_out(database: Database, exams: Exams, tmp_path: Path) -> None:
    archive, exam = tmp_path / "archive", exams.new()
    store(database, exam, archive)
    with database.write() as tx:
        labels.give(tx, [said(exam.study_uid, "any", 1, source=LabelSource.CSV)])
    assert len(freeze(database, archive, scanner="^ge med", since="2020-01-01")["studies"]) == 1
    for query, why in (
        ({"scanner": "siemens"}, "another scanner"),
        ({"modality": "MR"}, "modality CT"),
        ({"labels": ("reader",)}, "no label from the sources asked for"),
        ({"until": "2020-01-01"}, "left out: none"),
        ({"since": "yesterday"}, "is no day"),
        ({"labels": ("rumour",)}, "rumour"),
    ):
        with pytest.raises(DataError, match=why):
            freeze(database, archive, **query)


def test_a_changed_list_or_file_stops_the_reading(database: Database, exams: Exams, tmp_path: Path) -> None:
    archive, exam = tmp_path / "archive", exams.new()
    store(database, exam, archive)
    with database.write() as tx:
        labels.give(tx, [said(exam.study_uid, "any", 1)])
    path = freezing.write(freeze(database, archive), tmp_path / "v1.json")
    (study,) = frozen.studies(path)
    whole = exam.files[4].read_bytes()
    exam.files[4].write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(DigestError, match="is not the file that was frozen"):
        study.decode()
    exam.files[4].unlink()
    with pytest.raises(DigestError, match="cannot be read"):
        study.decode()
    changed = json.loads(path.read_text())
    changed["studies"][0]["labels"][0] = 0.0
    path.write_text(json.dumps(changed))
    with pytest.raises(DigestError, match="was changed since it was frozen"):
        list(frozen.studies(path))


def test_the_commands_lead_from_a_table_to_a_frozen_data_set(exams: Exams, tmp_path: Path) -> None:
    config = tmp_path / "node.toml"
    config.write_text(f'[node]\ndata = "{tmp_path}"\n[database]\nurl = "sqlite:///{tmp_path / "node.db"}"\n')
    database = Database(f"sqlite:///{tmp_path / 'node.db'}")
    database.upgrade()
    exam = exams.new()
    store(database, exam, tmp_path / "archive")
    database.close()
    path = table(tmp_path, f"study_uid,any\n{exam.study_uid},1\n")

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "node.cli", *arguments, "--config", str(config)]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)

    dry, first, again = (
        json.loads(run("labels", "import", str(path), "--json", *more).stdout) for more in (["--dry-run"], [], [])
    )
    assert (dry["added"], first["added"], again["added"], again["unchanged"]) == (1, 1, 0, 1)
    done = run("dataset", "freeze", "v1", "--out", str(tmp_path / "sets"), "--since", "2020-01-01")
    assert done.returncode == 0, done.stderr
    assert "v1.json: 1 studies, SHA-256" in done.stdout
    assert len(list(frozen.studies(tmp_path / "sets" / "v1.json"))) == 1
    assert run("dataset", "freeze", "v2", "--scanner", "nobody").returncode == 1
