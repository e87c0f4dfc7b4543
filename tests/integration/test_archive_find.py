"""C-FIND over the archive (PS3.4 C.4.1), against both databases."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset
from pydicom.datadict import tag_for_keyword

from db.engine import Database
from node.query.archive import PATIENT_ROOT, STUDY_ROOT
from tests.archive_node import Asker, archive_node, extended, keys
from tests.receiving import a_slice, send

on_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
JAPANESE = "Yamada^Tarou=山田^太郎=やまだ^たろう"


def a_study(number: int, *, series: int = 1, slices: int = 1, **values: Any) -> list[Dataset]:
    """Slices of study 1.2.`number`, its series numbered from 1."""
    return [
        a_slice(
            i,
            StudyInstanceUID=f"1.2.{number}",
            SeriesInstanceUID=f"1.2.{number}.{s}",
            SOPInstanceUID=f"1.2.{number}.{s}.{i}",
            SeriesNumber=s,
            **values,
        )
        for s in range(1, series + 1)
        for i in range(1, slices + 1)
    ]


STUDIES = (
    *a_study(1, series=2, slices=3, PatientID="P1", AccessionNumber="A-100", StudyDate="20260101", StudyTime="235000",
             SeriesDate="20260102", SeriesDescription="axial"),
    *a_study(2, PatientID="P1", AccessionNumber="A-200", StudyDate="20260102", StudyTime="001500"),
    *a_study(3, PatientID="P2", PatientName="Müller^Jörg", SpecificCharacterSet="ISO_IR 100", AccessionNumber="B-1",
             StudyDate="20260301", StudyTime="120000", Modality="MR"),
    *a_study(4, PatientID="P3", PatientName=JAPANESE, SpecificCharacterSet=["", "ISO 2022 IR 87"],
             AccessionNumber="", StudyDate="", StudyTime=""),
    *a_study(5, PatientID="P4", PatientName="Ελένη^Α", SpecificCharacterSet="ISO_IR 192", AccessionNumber="C_1%",
             StudyDate="20260401", StudyTime="080000"),
)  # fmt: skip


@pytest.fixture
def asker(tmp_path: Path, either_database: Database) -> Iterator[Asker]:
    with archive_node(tmp_path / "data", either_database, maximum_matches=9) as node:
        assert set(send(node, *STUDIES)) == {0}
        yield Asker(node.port)


MATCHING: list[tuple[dict[str, Any], str]] = [
    ({}, "12345"),
    ({"StudyInstanceUID": "1.2.2"}, "2"),
    ({"StudyInstanceUID": ["1.2.2", "1.2.4", "1.2.99"]}, "24"),
    ({"PatientID": "P1"}, "12"),
    ({"PatientID": "p1"}, ""),
    ({"PatientID": "P?"}, "12345"),
    ({"PatientID": "*2"}, "3"),
    ({"AccessionNumber": "A-*"}, "12"),
    ({"AccessionNumber": "A-1*"}, "1"),
    ({"AccessionNumber": "C_1%"}, "5"),
    ({"AccessionNumber": "*"}, "12345"),
    ({"StudyDate": "20260101"}, "1"),
    ({"StudyDate": "20260102-20260301"}, "23"),
    ({"StudyDate": "-20260101"}, "1"),
    ({"StudyDate": "20260301-"}, "35"),
    ({"StudyDate": "20260101-20260102", "StudyTime": "000000-010000"}, "2"),
    ({"PatientName": "DOE^JANE"}, "12"),
    ({"PatientName": "doe*"}, "12"),
    ({"PatientName": "*JA?E"}, "12"),
    ({"PatientName": "müller*"}, "3"),
    ({"PatientName": "MÜLLER^JÖRG"}, "3"),
    ({"PatientName": "ΕΛΈΝΗ*"}, "5"),
    ({"PatientName": "山田*"}, "4"),
    ({"PatientName": "yamada^*"}, "4"),
    ({"PatientName": "=山田^太郎"}, "4"),
    ({"PatientName": "==やまだ*"}, "4"),
    ({"PatientName": "Yamada*=太郎*"}, ""),
    ({"ModalitiesInStudy": "MR"}, "3"),
    ({"ModalitiesInStudy": ["MR", "CT"]}, "12345"),
    ({"ModalitiesInStudy": "M*"}, "3"),
    ({"PatientID": "P1", "StudyDate": "20260102"}, "2"),
]


def test_every_kind_of_matching_finds_what_the_standard_says(asker: Asker) -> None:
    wrong = {}
    for wanted, expected in MATCHING:
        identifier = keys("STUDY", **({"StudyInstanceUID": ""} | wanted))
        identifier.SpecificCharacterSet = "ISO_IR 192"
        found = asker.values(identifier, "StudyInstanceUID")
        if found != [f"1.2.{number}" for number in expected]:
            wrong[str(wanted)] = found
    assert wrong == {}


@on_sqlite
def test_a_range_of_dates_and_times_is_one_range_where_that_was_negotiated(asker: Asker) -> None:
    night = keys("STUDY", StudyInstanceUID="", StudyDate="20260101-20260102", StudyTime="230000-010000")
    assert asker.values(night, "StudyInstanceUID") == []
    combined = [extended(STUDY_ROOT.find, 0, 1)]
    assert asker.values(night, "StudyInstanceUID", ext_neg=combined) == ["1.2.1", "1.2.2"]


def test_a_study_says_how_much_it_holds_and_where_to_get_it(asker: Asker) -> None:
    asked = keys("STUDY", StudyInstanceUID="1.2.1", ModalitiesInStudy="", NumberOfStudyRelatedSeries="",
                 NumberOfStudyRelatedInstances="", StudyDescription="")  # fmt: skip
    (match,), (pending, done) = asker.find(asked)
    assert (match.NumberOfStudyRelatedSeries, match.NumberOfStudyRelatedInstances) == (2, 6)
    assert (match.ModalitiesInStudy, match.StudyDescription) == ("CT", "")
    assert (match.QueryRetrieveLevel, match.RetrieveAETitle, match.InstanceAvailability) == (
        "STUDY",
        "HEMONODE",
        "ONLINE",
    )
    assert "PatientName" not in match, "only what was asked for"
    assert (pending.Status, done.Status) == (0xFF00, 0x0000)


def test_every_level_answers_below_its_unique_keys(asker: Asker) -> None:
    series = keys("SERIES", StudyInstanceUID="1.2.1", SeriesInstanceUID="", SeriesNumber="2", Modality="CT",
                  NumberOfSeriesRelatedInstances="", SeriesDate="20260102", SeriesDescription="ax*")  # fmt: skip
    (match,), statuses = asker.find(series)
    assert (match.SeriesInstanceUID, match.NumberOfSeriesRelatedInstances) == ("1.2.1.2", 3)
    assert (match.StudyInstanceUID, match.SeriesDescription, statuses[0].Status) == ("1.2.1", "axial", 0xFF00)
    image = keys("IMAGE", StudyInstanceUID="1.2.1", SeriesInstanceUID="1.2.1.2", SOPInstanceUID="", InstanceNumber="",
                 SOPClassUID="", Rows="", AvailableTransferSyntaxUID="")  # fmt: skip
    images, _ = asker.find(image)
    assert [i.SOPInstanceUID for i in images] == [f"1.2.1.2.{n}" for n in (1, 2, 3)]
    assert {(i.Rows, i.AvailableTransferSyntaxUID) for i in images} == {(16, "1.2.840.10008.1.2.1")}
    assert asker.values(keys("IMAGE", StudyInstanceUID="1.2.1", SeriesInstanceUID="1.2.1.2", SOPInstanceUID="",
                             InstanceNumber="3"), "SOPInstanceUID") == ["1.2.1.2.3"]  # fmt: skip


def test_the_patient_root_begins_with_patients(asker: Asker) -> None:
    patients = keys("PATIENT", PatientID="", PatientName="", NumberOfPatientRelatedStudies="",
                    NumberOfPatientRelatedInstances="")  # fmt: skip
    found, _ = asker.find(patients, model=PATIENT_ROOT.find)
    counts = {m.PatientID: (m.NumberOfPatientRelatedStudies, m.NumberOfPatientRelatedInstances) for m in found}
    assert counts == {"P1": (2, 7), "P2": (1, 1), "P3": (1, 1), "P4": (1, 1)}
    studies = keys("STUDY", PatientID="P1", StudyInstanceUID="")
    assert asker.values(studies, "StudyInstanceUID", model=PATIENT_ROOT.find) == ["1.2.1", "1.2.2"]


@on_sqlite
@pytest.mark.parametrize(
    ("identifier", "at_fault"),
    [
        (keys("SERIES", SeriesInstanceUID=""), "StudyInstanceUID"),
        (keys("SERIES", StudyInstanceUID="1.2.*"), "StudyInstanceUID"),
        (keys("IMAGE", StudyInstanceUID="1.2.1", SOPInstanceUID=""), "SeriesInstanceUID"),
        (keys("PATIENT", PatientID="P1"), "QueryRetrieveLevel"),
        (keys("", StudyInstanceUID=""), "QueryRetrieveLevel"),
    ],
)
def test_an_identifier_that_breaks_the_hierarchy_is_refused_with_the_attribute_at_fault(
    asker: Asker, identifier: Dataset, at_fault: str
) -> None:
    matches, (status,) = asker.find(identifier)
    assert (matches, status.Status) == ([], 0xA900)
    assert status.ErrorComment
    assert status.OffendingElement == tag_for_keyword(at_fault)


def test_relational_queries_cross_the_levels_where_they_were_negotiated(asker: Asker) -> None:
    relational = [extended(STUDY_ROOT.find, 1)]
    series = keys("SERIES", PatientName="doe*", SeriesInstanceUID="", SeriesNumber="1")
    assert asker.values(series, "SeriesInstanceUID", ext_neg=relational) == ["1.2.1.1", "1.2.2.1"]
    image = keys("IMAGE", SOPInstanceUID=["1.2.1.2.3", "1.2.3.1.1"])
    assert asker.values(image, "SOPInstanceUID", ext_neg=relational) == ["1.2.1.2.3", "1.2.3.1.1"]
    one = keys("SERIES", SeriesInstanceUID="1.2.1.2", StudyInstanceUID="")
    assert asker.values(one, "StudyInstanceUID", ext_neg=relational) == ["1.2.1"]


@on_sqlite
def test_a_key_that_is_not_supported_is_ignored_and_said_to_be(asker: Asker) -> None:
    asked = keys("STUDY", StudyInstanceUID="1.2.1", InstitutionName="Elsewhere", SeriesNumber="9")
    (match,), (pending, done) = asker.find(asked)
    assert (match.StudyInstanceUID, match.InstitutionName, pending.Status, done.Status) == ("1.2.1", "", 0xFF01, 0)


@on_sqlite
def test_more_matches_than_allowed_end_in_a_refusal_that_says_so(asker: Asker) -> None:
    matches, statuses = asker.find(keys("IMAGE", SOPInstanceUID=""), ext_neg=[extended(STUDY_ROOT.find, 1)])
    assert (len(matches), statuses[-1].Status) == (9, 0xA700)
    assert statuses[-1].ErrorComment == "more than 9 matches"


@on_sqlite
def test_a_query_stops_when_it_is_cancelled(asker: Asker) -> None:
    with asker.associated(STUDY_ROOT.find) as association:
        answers = association.send_c_find(keys("STUDY", StudyInstanceUID=""), STUDY_ROOT.find, msg_id=7)
        association.send_c_cancel(7, query_model=STUDY_ROOT.find)
        statuses = [status.Status for status, _ in answers]
    # The request may have been answered in full before the cancellation arrived; nothing follows it otherwise.
    assert statuses[-1] in (0xFE00, 0x0000)
    assert len(statuses) <= 6


@on_sqlite
@pytest.mark.parametrize(
    ("asked_in", "study", "answered_in"),
    [
        ("ISO_IR 100", "1.2.3", "ISO_IR 100"),
        ("ISO_IR 192", "1.2.4", "ISO_IR 192"),
        (["", "ISO 2022 IR 87"], "1.2.4", ["", "ISO 2022 IR 87"]),
        ("ISO_IR 100", "1.2.4", "ISO_IR 192"),
        (None, "1.2.3", "ISO_IR 192"),
        (None, "1.2.1", None),
    ],
)
def test_an_answer_speaks_the_askers_character_set_or_else_utf_8(
    asker: Asker, asked_in: Any, study: str, answered_in: Any
) -> None:
    asked = keys("STUDY", StudyInstanceUID=study, PatientName="")
    if asked_in:
        asked.SpecificCharacterSet = asked_in
    (match,), _ = asker.find(asked)
    names = {"1.2.1": "Doe^Jane", "1.2.3": "Müller^Jörg", "1.2.4": JAPANESE}
    assert (str(match.PatientName), match.get("SpecificCharacterSet")) == (names[study], answered_in)
