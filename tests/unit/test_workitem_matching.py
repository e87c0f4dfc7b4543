"""C-FIND keys against a data set (PS3.4 C.2.2.2)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from db.dicom_json import Attributes, data_set, tag_of
from db.matching import matches, projected


def name(alphabetic: str, ideographic: str = "") -> dict[str, Any]:
    groups = {"Alphabetic": alphabetic} | ({"Ideographic": ideographic} if ideographic else {})
    return {"vr": "PN", "Value": [groups]}


CODE = data_set(CodeValue="110005", CodingSchemeDesignator="DCM", CodeMeaning="Interpretation")
OTHER = data_set(CodeValue="110004", CodingSchemeDesignator="DCM", CodeMeaning="Computer Aided Detection")
HELD = data_set(
    PatientName=name("Wang^XiaoDong", "王^小東"),
    PatientID="P1 ",
    PatientSex=None,
    StudyInstanceUID="1.2.3",
    ProcedureStepState="SCHEDULED",
    ProcedureStepLabel="ICH [suspected]",
    ScheduledProcedureStepStartDateTime="20260714101530.000000+0000",
    StudyDate="20260714",
    StudyTime="101530",
    NumberOfFrames=3,
    ModalitiesInStudy=["CT", "SR"],
    ScheduledWorkitemCodeSequence=[OTHER, CODE],
    ScheduledStationNameCodeSequence=None,
)


@pytest.fixture(autouse=True)
def _in_new_york(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "America/New_York")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


MATCHING: list[tuple[dict[str, Any], bool]] = [
    # universal
    ({"PatientID": None}, True),
    ({"PatientSex": None}, True),
    ({"PatientWeight": None}, True),
    ({"ScheduledStationNameCodeSequence": None}, True),
    # single value
    ({"PatientID": "P1"}, True),
    ({"PatientID": "p1"}, False),
    ({"PatientID": "P"}, False),
    ({"PatientSex": "F"}, False),
    ({"NumberOfFrames": 3}, True),
    ({"NumberOfFrames": 4}, False),
    ({"ModalitiesInStudy": "SR"}, True),
    ({"ModalitiesInStudy": "MR"}, False),
    # wild cards
    ({"PatientID": "P*"}, True),
    ({"PatientID": "?1"}, True),
    ({"PatientID": "?"}, False),
    ({"PatientID": "*"}, True),
    ({"PatientSex": "*"}, True),
    ({"PatientSex": "?"}, False),
    ({"ProcedureStepState": "SCHED*"}, True),
    ({"ProcedureStepLabel": "ICH [s*"}, True),
    ({"ProcedureStepLabel": "ICH [x]*"}, False),
    # person names: any component group, any case
    ({"PatientName": name("wang^xiaodong")}, True),
    ({"PatientName": name("WANG*")}, True),
    ({"PatientName": name("王^*")}, True),
    ({"PatientName": name("Wang^XiaoDong", "王^小東")}, True),
    ({"PatientName": name("*Dong")}, True),
    ({"PatientName": name("Wang^XiaoDong^^")}, True),
    ({"PatientName": name("Li*")}, False),
    # lists of UIDs
    ({"StudyInstanceUID": ["1.2.4", "1.2.3"]}, True),
    ({"StudyInstanceUID": "1.2"}, False),
    ({"SeriesInstanceUID": "1.2.3"}, False),
    # dates
    ({"StudyDate": "20260714"}, True),
    ({"StudyDate": "2026.07.14"}, True),
    ({"StudyDate": "20260701-20260714"}, True),
    ({"StudyDate": "20260715-"}, False),
    ({"StudyDate": "-20260714"}, True),
    ({"StudyDate": "-20260713"}, False),
    ({"StudyDate": "yesterday"}, False),
    ({"PatientBirthDate": "19500101-"}, False),
    # times, by meaning
    ({"StudyTime": "1015"}, True),
    ({"StudyTime": "101530.000"}, True),
    ({"StudyTime": "1016"}, False),
    ({"StudyTime": "1000-1015"}, True),
    ({"StudyTime": "-1014"}, False),
    # moments, by meaning: without an offset in the local time zone, here four hours behind UTC
    ({"ScheduledProcedureStepStartDateTime": "20260714101530+0000"}, True),
    ({"ScheduledProcedureStepStartDateTime": "20260714061530"}, True),
    ({"ScheduledProcedureStepStartDateTime": "20260714101530"}, False),
    ({"ScheduledProcedureStepStartDateTime": "20260714061530-0400"}, True),
    ({"ScheduledProcedureStepStartDateTime": "20260714"}, True),
    ({"ScheduledProcedureStepStartDateTime": "2026"}, True),
    ({"ScheduledProcedureStepStartDateTime": "202606-202607"}, True),
    ({"ScheduledProcedureStepStartDateTime": "202601-202606"}, False),
    ({"ScheduledProcedureStepStartDateTime": "20260714061500-0400-20260714061600-0400"}, True),
    ({"ScheduledProcedureStepStartDateTime": "20260714061600-"}, False),
    ({"ScheduledProcedureStepStartDateTime": "-20260714"}, True),
    ({"ScheduledProcedureStepStartDateTime": "00010101-"}, False),
    # sequences
    ({"ScheduledWorkitemCodeSequence": {}}, True),
    ({"ScheduledWorkitemCodeSequence": data_set(CodeValue="110005")}, True),
    ({"ScheduledWorkitemCodeSequence": data_set(CodeValue="110005", CodingSchemeDesignator="99")}, False),
    ({"ScheduledWorkitemCodeSequence": data_set(CodeMeaning=None)}, True),
    ({"ScheduledStationNameCodeSequence": data_set(CodeValue=None)}, True),
    ({"ScheduledStationNameCodeSequence": data_set(CodeValue="X")}, False),
    # never matched
    ({"SpecificCharacterSet": "ISO_IR 100"}, True),
    ({"TimezoneOffsetFromUTC": "+0900"}, True),
]


@pytest.mark.parametrize(("keys", "expected"), MATCHING, ids=[str(keys)[:70] for keys, _ in MATCHING])
def test_a_key_matches_as_the_standard_says(keys: dict[str, Any], expected: bool) -> None:
    assert matches(data_set(**keys), HELD) is expected


def test_all_keys_must_match() -> None:
    assert not matches(data_set(PatientID="P1", StudyDate="20200101"), HELD)


@pytest.mark.parametrize(
    ("dates", "times", "expected"),
    [
        ("20260713-20260715", "1200-0600", True),  # from the 13th, 12:00, to the 15th, 06:00
        ("20260714-20260715", "1200-0600", False),
        ("20260713-20260714", "0600-1000", False),
        ("20260714-", "1000-", True),
        ("-20260714", "-1000", False),
        ("20260714-20260714", "1000-1100", True),
    ],
)
def test_a_range_of_dates_and_a_range_of_times_are_one_range_where_paired(
    dates: str, times: str, expected: bool
) -> None:
    pairs = ((tag_of("StudyDate"), tag_of("StudyTime")),)
    assert matches(data_set(StudyDate=dates, StudyTime=times), HELD, pairs=pairs) is expected


def answered(**keys: Any) -> Attributes:
    return projected(data_set(**keys), HELD)


def test_the_answer_holds_what_was_asked_for_and_nothing_else() -> None:
    asked = answered(PatientID="P*", PatientSex=None, PatientWeight=None, SpecificCharacterSet="ISO_IR 100")
    assert asked == data_set(PatientID="P1 ", PatientSex=None, PatientWeight=None)


def test_of_a_sequence_only_the_matching_items_are_answered_with_the_requested_attributes() -> None:
    asked = answered(ScheduledWorkitemCodeSequence=data_set(CodeValue="110005", CodeMeaning=None))
    item = data_set(CodeValue="110005", CodeMeaning="Interpretation")
    assert asked == data_set(ScheduledWorkitemCodeSequence=item)


@pytest.mark.parametrize("key", [None, {}])
def test_a_sequence_asked_for_without_keys_is_answered_whole(key: Any) -> None:
    assert answered(ScheduledWorkitemCodeSequence=key) == data_set(ScheduledWorkitemCodeSequence=[OTHER, CODE])
