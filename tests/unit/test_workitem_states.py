"""The state machine of a Unified Procedure Step, cell by cell (PS3.4 table CC.1.1-2)."""

from __future__ import annotations

import datetime as dt

import pytest

from db.dicom_json import Attributes, data_set, first, items, tag_of
from db.procedure_step import PROGRESS, canceled, transition, unmet
from db.states import WorkItemState

HELD = "1.2.3"
SCHEDULED, IN_PROGRESS, COMPLETED, CANCELED = WorkItemState
STATES = (SCHEDULED, IN_PROGRESS, COMPLETED, CANCELED)
# Requested state and whether the Transaction UID is correct → the answer in each of the four states.
TABLE = {
    (IN_PROGRESS, True): (0x0000, 0xC302, 0xC300, 0xC300),
    (IN_PROGRESS, False): (0xC301, 0xC301, 0xC301, 0xC301),
    (SCHEDULED, True): (0xC303, 0xC303, 0xC303, 0xC303),
    (SCHEDULED, False): (0xC303, 0xC303, 0xC303, 0xC303),
    (COMPLETED, True): (0xC310, 0x0000, 0xB306, 0xC300),
    (COMPLETED, False): (0xC301, 0xC301, 0xC301, 0xC301),
    (CANCELED, True): (0xC310, 0x0000, 0xC300, 0xB304),
    (CANCELED, False): (0xC301, 0xC301, 0xC301, 0xC301),
}
CELLS = [(s, to, ok, row[i]) for (to, ok), row in TABLE.items() for i, s in enumerate(STATES)]


@pytest.mark.parametrize(("state", "to", "correct", "answer"), CELLS)
def test_a_change_of_state_is_answered_as_the_standards_table_says(
    state: WorkItemState, to: WorkItemState, correct: bool, answer: int
) -> None:
    held = None if state is SCHEDULED else HELD
    wrong = "" if state is SCHEDULED else "9.9.9"
    assert transition(state, to, held=held, given=HELD if correct else wrong) == answer


def test_an_item_that_the_scp_canceled_itself_has_no_correct_transaction_uid() -> None:
    assert transition(CANCELED, CANCELED, held=None, given="") == 0xC301


def performed(**changed: object) -> Attributes:
    code = data_set(CodeValue="1", CodingSchemeDesignator="99", CodeMeaning="x")
    item = data_set(
        **{
            "PerformedStationNameCodeSequence": code,
            "PerformedProcedureStepStartDateTime": "20260714",
            "PerformedWorkitemCodeSequence": code,
            "PerformedProcedureStepEndDateTime": "20260714",
            "OutputInformationSequence": None,
        }
        | changed
    )
    return data_set(UnifiedProcedureStepPerformedProcedureSequence=item)


def test_a_performed_procedure_without_output_may_be_completed() -> None:
    assert unmet(performed()) == ()


def test_nothing_performed_cannot_be_completed() -> None:
    assert unmet({}) == ("UnifiedProcedureStepPerformedProcedureSequence",)


@pytest.mark.parametrize(
    "keyword",
    [
        "PerformedStationNameCodeSequence",
        "PerformedProcedureStepStartDateTime",
        "PerformedWorkitemCodeSequence",
        "PerformedProcedureStepEndDateTime",
    ],
)
def test_each_attribute_of_a_final_state_is_asked_for_by_name(keyword: str) -> None:
    assert unmet(performed(**{keyword: None})) == (keyword,)


def test_output_information_may_be_empty_but_not_absent() -> None:
    dataset = performed()
    del dataset[tag_of("UnifiedProcedureStepPerformedProcedureSequence")]["Value"][0]["00404033"]
    assert unmet(dataset) == ("OutputInformationSequence",)


def test_cancelling_fills_when_and_why() -> None:
    at = dt.datetime(2026, 7, 14, 10, tzinfo=dt.UTC)
    progress = items(canceled({}, at=at), PROGRESS)[0]
    assert first(progress, tag_of("ProcedureStepCancellationDateTime")) == "20260714100000.000000+0000"
    reason = items(progress, tag_of("ProcedureStepDiscontinuationReasonCodeSequence"))[0]
    assert first(reason, "00080100") == "110513"


def test_what_the_performer_said_about_the_cancellation_is_kept() -> None:
    why = data_set(CodeValue="110514", CodingSchemeDesignator="DCM", CodeMeaning="Incorrect worklist entry selected")
    said = data_set(ProcedureStepCancellationDateTime="20260101", ProcedureStepDiscontinuationReasonCodeSequence=why)
    held = data_set(ProcedureStepProgressInformationSequence=said)
    assert canceled(held, at=dt.datetime.now(dt.UTC)) == held


def test_who_asked_for_the_cancellation_can_be_reached() -> None:
    request = data_set(ReasonForCancellation="wrong patient", ContactURI="tel:1", ContactDisplayName="Ward 1")
    progress = items(canceled({}, at=dt.datetime.now(dt.UTC), request=request), PROGRESS)[0]
    contact = items(progress, tag_of("ProcedureStepCommunicationsURISequence"))[0]
    assert first(progress, tag_of("ReasonForCancellation")) == "wrong patient"
    assert (first(contact, tag_of("ContactURI")), first(contact, tag_of("ContactDisplayName"))) == ("tel:1", "Ward 1")
