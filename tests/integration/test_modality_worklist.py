"""The reading list for clients that know only the Modality Worklist, over real associations."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from pydicom import Dataset
from pydicom.sequence import Sequence

from db import worklist
from db.engine import Database
from db.schema import now
from db.states import WorkItemState
from inference.result import Outcome
from tests.worklist_node import CLAIM, MODALITY_WORKLIST, a_flag, a_header, associated, listening, put


@pytest.fixture
def port(database: Database) -> Iterator[int]:
    with listening(database) as port:
        yield port


def keys(*, step: dict[str, Any] | None = None, **values: Any) -> Dataset:
    """The keys that a modality sends, with some of them given."""
    wanted, inner = Dataset(), Dataset()
    for keyword in ("ScheduledStationAETitle", "ScheduledProcedureStepStartDate", "ScheduledProcedureStepStartTime",
                    "Modality", "ScheduledPerformingPhysicianName", "ScheduledProcedureStepDescription",
                    "ScheduledProcedureStepID", "ScheduledProcedureStepStatus"):  # fmt: skip
        setattr(inner, keyword, (step or {}).get(keyword, ""))
    wanted.ScheduledProcedureStepSequence = Sequence([inner])
    for keyword in ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "AccessionNumber",
                    "StudyInstanceUID", "RequestedProcedureID", "RequestedProcedureDescription",
                    "RequestedProcedurePriority", "RequestedProcedureComments", "PatientWeight"):  # fmt: skip
        setattr(wanted, keyword, values.get(keyword, ""))
    if "SpecificCharacterSet" in values:
        wanted.SpecificCharacterSet = values["SpecificCharacterSet"]
    return wanted


def find(port: int, wanted: Dataset) -> list[Dataset]:
    with associated(port, MODALITY_WORKLIST) as association:
        answers = list(association.send_c_find(wanted, MODALITY_WORKLIST))
    assert answers[-1][0].Status == 0x0000
    return [identifier for _, identifier in answers[:-1] if identifier is not None]


def test_the_positive_study_stands_first_and_the_list_says_that_it_is_for_reading(
    database: Database, port: int
) -> None:
    put(database, a_flag(Outcome.NEGATIVE, study_uid="1.2.1"))
    put(database, a_flag(Outcome.POSITIVE, study_uid="1.2.2"))
    entries = find(port, keys())
    assert [(e.StudyInstanceUID, e.RequestedProcedurePriority) for e in entries] == [
        ("1.2.2", "HIGH"),
        ("1.2.1", "MEDIUM"),
    ]
    assert entries[0].RequestedProcedureDescription == "Reading: ICH suspected"
    assert entries[0].RequestedProcedureComments.startswith("Reading list: no acquisition is ordered.")
    assert "not for clinical use" in entries[0].RequestedProcedureComments


def test_an_entry_holds_what_a_worklist_client_must_have(database: Database, port: int) -> None:
    put(database, a_flag(header=a_header(name="Müller^Jörg", patient_id="P7", accession="A7")))
    (entry,) = find(port, keys())
    step = entry.ScheduledProcedureStepSequence[0]
    assert (entry.SpecificCharacterSet, entry.PatientName) == ("ISO_IR 192", "Müller^Jörg")
    assert (entry.PatientID, entry.AccessionNumber, entry.RequestedProcedureID) == ("P7", "A7", "RP1")
    assert (step.Modality, step.ScheduledStationAETitle, step.ScheduledProcedureStepStatus) == (
        "CT", "HEMONODE", "READY",
    )  # fmt: skip
    assert step.ScheduledProcedureStepID
    assert len(step.ScheduledProcedureStepID) <= 16
    assert entry.PatientWeight is None  # asked for, not known


TODAY = now().astimezone().strftime("%Y%m%d")


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (keys(PatientName="doe*"), 1),
        (keys(PatientName="Roe*"), 0),
        (keys(PatientID="P1"), 1),
        (keys(PatientID="P2"), 0),
        (keys(AccessionNumber="A1"), 1),
        (keys(step={"Modality": "CT"}), 1),
        (keys(step={"Modality": "MR"}), 0),
        (keys(step={"ScheduledStationAETitle": "HEMONODE"}), 1),
        (keys(step={"ScheduledStationAETitle": "CT1"}), 0),
        (keys(step={"ScheduledProcedureStepStartDate": f"20260101-{TODAY[:4]}1231"}), 1),
        (keys(step={"ScheduledProcedureStepStartDate": "20200101"}), 0),
        (keys(step={"ScheduledProcedureStepStartDate": "-20200101"}), 0),
        (keys(step={"ScheduledProcedureStepStartDate": "20200101-29991231",
                    "ScheduledProcedureStepStartTime": "235959-000000"}), 1),
        (keys(RequestedProcedurePriority="HIGH"), 1),
        (keys(RequestedProcedurePriority="MEDIUM"), 0),
    ],
)  # fmt: skip
def test_keys_select_as_they_do_on_any_worklist(database: Database, port: int, wanted: Dataset, found: int) -> None:
    put(database, a_flag())
    assert len(find(port, wanted)) == found


def test_what_is_being_read_says_so_and_what_has_been_read_is_gone(database: Database, port: int) -> None:
    item = put(database, a_flag())
    with database.write() as tx:
        worklist.change_state(tx, uid=item.uid, to=WorkItemState.IN_PROGRESS, transaction_uid=CLAIM)
    (entry,) = find(port, keys())
    assert entry.ScheduledProcedureStepSequence[0].ScheduledProcedureStepStatus == "STARTED"
    with database.write() as tx:
        worklist.change_state(tx, uid=item.uid, to=WorkItemState.CANCELED, transaction_uid=CLAIM)
    assert find(port, keys()) == []


def test_an_item_that_somebody_else_made_with_hardly_anything_in_it_is_listed(database: Database, port: int) -> None:
    dataset = {"00741200": {"vr": "CS", "Value": ["HIGH"]}, "00741204": {"vr": "LO", "Value": ["Read"]}}
    with database.write() as tx:
        worklist.create(tx, uid="1.5", dataset=dataset)
    (entry,) = find(port, keys())
    assert (entry.RequestedProcedureDescription, entry.PatientName) == ("Reading: Read", "")
    assert entry.RequestedProcedureID
