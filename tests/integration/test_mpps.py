"""Scanners report their performed procedure steps: every status of the state machine, over real associations."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pynetdicom.association import Association

from db import audit, performed_steps
from db.engine import Database
from db.performed_steps import MPPS, PerformedStep
from db.schema import now
from db.states import PerformedState
from node.receive.mpps import LARGEST
from tests.committing import offering, settings_of
from tests.performing import ENDED, STEP, STUDY, begun, completed, create, data, made, update
from tests.worklist_node import associated


@pytest.fixture
def scanner(tmp_path: Path, database: Database) -> Iterator[Association]:
    """The association of a scanner with the node."""
    with offering(settings_of(tmp_path / "data"), database) as scp, associated(scp.port, MPPS, calling="CT1") as open_:
        yield open_


def found(database: Database, uid: str = STEP) -> PerformedStep | None:
    with database.read() as tx:
        return performed_steps.find(tx, uid)


def test_a_step_begins_grows_and_is_completed_with_the_list_of_what_was_made(
    scanner: Association, database: Database
) -> None:
    assert create(scanner, begun()).Status == 0x0000
    assert update(scanner, data(PerformedSeriesSequence=made("1.5.1"))).Status == 0x0000
    assert update(scanner, completed("1.5.1", "1.5.2")).Status == 0x0000
    step = found(database)
    assert step is not None
    assert (step.state, step.ae_title) == (PerformedState.COMPLETED, "CT1")
    assert step.series == {"1.5": {"1.5.1", "1.5.2"}}
    with database.read() as tx:
        assert [step.uid for step in performed_steps.of_study(tx, STUDY)] == [STEP]
        assert [event.event for event in audit.timeline(tx, STUDY)] == ["step_in_progress", "step_completed"]


def test_an_examination_that_was_broken_off_may_have_made_nothing(scanner: Association, database: Database) -> None:
    create(scanner, begun())
    broken_off = data(PerformedProcedureStepStatus="DISCONTINUED", **ENDED)
    assert update(scanner, broken_off).Status == 0x0000
    step = found(database)
    assert step is not None
    assert (step.state, step.series) == (PerformedState.DISCONTINUED, {})


@pytest.mark.parametrize("end", ["COMPLETED", "DISCONTINUED"])
def test_a_step_that_has_ended_is_never_changed_again(scanner: Association, database: Database, end: str) -> None:
    create(scanner, begun())
    update(scanner, completed(PerformedProcedureStepStatus=end))
    for state in PerformedState:
        answer = update(scanner, completed("1.5.9", PerformedProcedureStepStatus=str(state)))
        assert (answer.Status, answer.ErrorID) == (0x0110, 0xA710)
    step = found(database)
    assert step is not None
    assert (step.state, step.series) == (end, {"1.5": {"1.5.1"}})


def test_a_step_that_is_known_is_not_created_twice_and_an_unknown_one_not_changed(
    scanner: Association, database: Database
) -> None:
    create(scanner, begun())
    assert create(scanner, begun(PerformedProcedureStepID="OTHER")).Status == 0x0111
    step = found(database)
    assert step is not None
    assert step.dataset["00400253"]["Value"] == ["PPS1"]
    assert update(scanner, completed(), uid="1.9.2").Status == 0x0112


def test_a_scanner_that_names_no_instance_is_told_its_uid(scanner: Association, database: Database) -> None:
    answer = create(scanner, begun(), uid=None)
    assert answer.Status == 0x0000
    with database.read() as tx:
        (step,) = performed_steps.of_study(tx, STUDY)
    assert update(scanner, completed(), uid=step.uid).Status == 0x0000


@pytest.mark.parametrize(
    ("changes", "status", "blamed"),
    [
        ({"PerformedProcedureStepStatus": "COMPLETED"}, 0x0106, "PerformedProcedureStepStatus"),
        ({"PerformedProcedureStepStatus": None}, 0x0120, "PerformedProcedureStepStatus"),
        ({"PerformedStationAETitle": None}, 0x0120, "PerformedStationAETitle"),
        ({"Modality": ""}, 0x0121, "Modality"),
        ({"ScheduledStepAttributesSequence": None}, 0x0120, "ScheduledStepAttributesSequence"),
        ({"ScheduledStepAttributesSequence": []}, 0x0121, "ScheduledStepAttributesSequence"),
        ({"ScheduledStepAttributesSequence": [data(AccessionNumber="A1")]}, 0x0120, "StudyInstanceUID"),
        ({"ScheduledStepAttributesSequence": [data(StudyInstanceUID="1.2.x")]}, 0x0106, "StudyInstanceUID"),
        ({"ScheduledStepAttributesSequence": [data(StudyInstanceUID="")]}, 0x0121, "StudyInstanceUID"),
        ({"PerformedSeriesSequence": [data(ProtocolName="Head")]}, 0x0120, "SeriesInstanceUID"),
    ],
)
def test_a_step_that_lacks_what_the_standard_demands_is_refused(
    scanner: Association, database: Database, changes: dict[str, Any], status: int, blamed: str
) -> None:
    answer = create(scanner, begun(**changes))
    assert answer.Status == status
    assert blamed in answer.ErrorComment
    assert found(database) is None


def test_what_may_be_empty_may_be_absent_and_stands_as_empty(scanner: Association, database: Database) -> None:
    assert create(scanner, begun(PatientName=None, PatientID=None)).Status == 0x0000
    step = found(database)
    assert step is not None
    assert step.dataset["00100010"] == {"vr": "PN"}


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"PerformedProcedureStepStatus": "SCHEDULED"}, 0x0106),
        ({"PerformedProcedureStepEndDate": None}, 0x0121),
        ({"PerformedProcedureStepEndTime": ""}, 0x0121),
        ({"PerformedSeriesSequence": None}, 0x0121),
        ({"PerformedSeriesSequence": []}, 0x0121),
    ],
)
def test_a_step_does_not_end_without_what_its_end_demands(
    scanner: Association, database: Database, changes: dict[str, Any], status: int
) -> None:
    create(scanner, begun())
    assert update(scanner, completed(**changes)).Status == status
    step = found(database)
    assert step is not None
    assert step.state is PerformedState.IN_PROGRESS
    assert update(scanner, completed()).Status == 0x0000


def test_what_may_not_be_changed_may_be_sent_again_and_is_left_as_it_was(
    scanner: Association, database: Database
) -> None:
    create(scanner, begun())
    assert update(scanner, data(PatientID="P1", Modality="CT")).Status == 0x0000
    answer = update(scanner, completed(PatientID="P2"))
    assert (answer.Status, answer.ErrorComment) == (0x0107, "PatientID")
    step = found(database)
    assert step is not None
    assert (step.state, step.dataset["00100020"]["Value"]) == (PerformedState.COMPLETED, ["P1"])


def test_a_step_of_several_studies_belongs_to_each(scanner: Association, database: Database) -> None:
    scheduled = [data(StudyInstanceUID=uid) for uid in (STUDY, "1.2.9", STUDY)]
    create(scanner, begun(ScheduledStepAttributesSequence=scheduled))
    with database.read() as tx:
        news = performed_steps.news(tx, [STUDY, "1.2.9", "1.2.10"])
    assert set(news) == {STUDY, "1.2.9"}
    assert {(n.listed, n.final) for n in news.values()} == {(0, False)}


def test_an_attribute_list_that_is_too_large_is_refused(scanner: Association, database: Database) -> None:
    large = begun()
    large.add_new(0x00091010, "OB", b"\0" * (LARGEST + 2))
    assert create(scanner, large).Status == 0x0213
    assert create(scanner, None).Status == 0x0120
    assert found(database) is None


def test_steps_pass_through_either_database_and_are_forgotten(either_database: Database) -> None:
    dataset = begun().to_json_dict()
    with either_database.write() as tx:
        assert performed_steps.create(tx, uid=STEP, ae_title="CT1", dataset=dataset)
        assert not performed_steps.create(tx, uid=STEP, ae_title="CT2", dataset=dataset)
        step = performed_steps.find(tx, STEP)
        assert step is not None
        performed_steps.update(tx, step, changes=completed("1.5.1", "1.5.2").to_json_dict())
    with either_database.read() as tx:
        news = performed_steps.news(tx, [STUDY])[STUDY]
        assert (news.listed, news.final) == (2, True)
        assert news.at == performed_steps.of_study(tx, STUDY)[0].updated_at
    with either_database.write() as tx:
        performed_steps.forget(tx, before=now())
        assert performed_steps.news(tx, [STUDY]) == {}
