"""The worklist as a UPS SCP, asked over real associations by a client that knows only the Standard."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from pydicom import Dataset
from pydicom.sequence import Sequence
from pydicom.tag import Tag

from db import worklist
from db.engine import Database
from db.states import WorkItemState
from inference.result import Outcome
from tests.worklist_node import CLAIM, PULL, PUSH, QUERY, WATCH, a_flag, a_header, associated, listening, put

OTHER_CLAIM = "1.9.2"


@pytest.fixture
def port(database: Database) -> Iterator[int]:
    with listening(database) as port:
        yield port


def code(value: str, scheme: str, meaning: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item


def an_item(**changed: Any) -> Dataset:
    """An attribute list as PS3.4 table CC.2.5-3 wants it, spelled out."""
    item = Dataset()
    item.SpecificCharacterSet = "ISO_IR 100"
    item.TransactionUID = ""
    item.ScheduledProcedureStepPriority = "MEDIUM"
    item.ProcedureStepLabel = "Read CT"
    item.WorklistLabel = "CT list"
    item.ScheduledProcessingParametersSequence = Sequence()
    item.ScheduledStationNameCodeSequence = Sequence()
    item.ScheduledStationClassCodeSequence = Sequence()
    item.ScheduledStationGeographicLocationCodeSequence = Sequence()
    item.ScheduledProcedureStepStartDateTime = "20260714100000"
    item.ScheduledWorkitemCodeSequence = Sequence([code("110005", "DCM", "Interpretation")])
    item.CommentsOnTheScheduledProcedureStep = ""
    item.InputReadinessState = "READY"
    item.InputInformationSequence = Sequence()
    item.StudyInstanceUID = "1.2.3"
    item.PatientName = "Müller^Jörg"
    item.PatientID = "P9"
    item.IssuerOfPatientID = ""
    item.IssuerOfPatientIDQualifiersSequence = Sequence()
    item.OtherPatientIDsSequence = Sequence()
    item.PatientBirthDate = "19600102"
    item.PatientSex = "M"
    item.AdmissionID = ""
    item.IssuerOfAdmissionIDSequence = Sequence()
    item.AdmittingDiagnosesDescription = ""
    item.AdmittingDiagnosesCodeSequence = Sequence()
    item.ReferencedRequestSequence = Sequence()
    item.ProcedureStepState = "SCHEDULED"
    item.ProcedureStepProgressInformationSequence = Sequence()
    item.UnifiedProcedureStepPerformedProcedureSequence = Sequence()
    for keyword, value in changed.items():
        if value is None:
            delattr(item, keyword)
        else:
            setattr(item, keyword, value)
    return item


def create(port: int, uid: str = "1.5", **changed: Any) -> Dataset:
    with associated(port, PUSH) as association:
        status, _ = association.send_n_create(an_item(**changed), PUSH, uid)
    return status


def change_state(port: int, state: str, transaction_uid: str, *, uid: str = "1.5") -> Dataset:
    wanted = Dataset()
    wanted.ProcedureStepState = state
    if transaction_uid:
        wanted.TransactionUID = transaction_uid
    with associated(port, PULL) as association:
        status, _ = association.send_n_action(wanted, 1, PUSH, uid)
    return status


def set_attributes(port: int, *, uid: str = "1.5", transaction_uid: str = "", **values: Any) -> Dataset:
    changes = Dataset()
    if transaction_uid:
        changes.TransactionUID = transaction_uid
    for keyword, value in values.items():
        setattr(changes, keyword, value)
    with associated(port, PULL) as association:
        status, _ = association.send_n_set(changes, PUSH, uid)
    return status


def get(port: int, *tags: int, uid: str = "1.5", syntax: str = WATCH) -> tuple[int, Dataset]:
    with associated(port, syntax) as association:
        status, dataset = association.send_n_get([Tag(tag) for tag in tags], PUSH, uid)
    return status.Status, dataset or Dataset()


def find(port: int, keys: Dataset, *, syntax: str = PULL) -> list[Dataset]:
    with associated(port, syntax) as association:
        answers = list(association.send_c_find(keys, syntax))
    assert answers[-1][0].Status == 0x0000
    return [identifier for _, identifier in answers[:-1] if identifier is not None]


def performed() -> Dataset:
    item = Dataset()
    item.PerformedStationNameCodeSequence = Sequence([code("WS1", "99LOCAL", "Workstation 1")])
    item.PerformedProcedureStepStartDateTime = "20260714101000"
    item.PerformedWorkitemCodeSequence = Sequence([code("110005", "DCM", "Interpretation")])
    item.PerformedProcedureStepEndDateTime = "20260714101500"
    item.OutputInformationSequence = Sequence()
    return item


def test_what_was_created_can_be_got_in_utf_8_whatever_it_was_sent_in(port: int) -> None:
    assert create(port).Status == 0x0000
    status, item = get(port)
    assert status == 0x0000
    assert (item.SpecificCharacterSet, item.PatientName) == ("ISO_IR 192", "Müller^Jörg")
    assert (item.ProcedureStepState, item.ScheduledProcedureStepPriority) == ("SCHEDULED", "MEDIUM")


@pytest.mark.parametrize("syntax", [PUSH, WATCH, PULL])
def test_an_item_is_of_the_push_class_in_every_context(port: int, syntax: str) -> None:
    create(port)
    assert get(port, syntax=syntax)[0] == 0x0000


def test_the_transaction_uid_is_nobodys_to_see(port: int) -> None:
    create(port)
    change_state(port, "IN PROGRESS", CLAIM)
    status, item = get(port, 0x00081195, 0x00741000)
    assert status == 0x0001  # a requested attribute is not given
    assert "TransactionUID" not in item
    assert item.ProcedureStepState == "IN PROGRESS"
    assert "TransactionUID" not in get(port)[1]


def test_only_the_attributes_asked_for_are_got(port: int) -> None:
    create(port)
    status, item = get(port, 0x00741200, 0x00741204)
    assert status == 0x0000
    assert {e.keyword for e in item} == {
        "SpecificCharacterSet", "ScheduledProcedureStepPriority", "ProcedureStepLabel",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "status", "comment"),
    [
        ({"ProcedureStepState": "IN PROGRESS"}, 0xC309, ""),
        ({"ProcedureStepState": ""}, 0xC309, ""),
        ({"ProcedureStepState": None}, 0x0120, "ProcedureStepState"),
        ({"TransactionUID": CLAIM}, 0x0106, "TransactionUID"),
        ({"ScheduledProcedureStepPriority": None}, 0x0120, "ScheduledProcedureStepPriority"),
        ({"ScheduledProcedureStepPriority": ""}, 0x0121, "ScheduledProcedureStepPriority"),
        ({"ScheduledProcedureStepPriority": "STAT"}, 0x0106, "HIGH, MEDIUM, LOW"),
        ({"ProcedureStepLabel": None}, 0x0120, "ProcedureStepLabel"),
        ({"ScheduledProcedureStepStartDateTime": ""}, 0x0121, "ScheduledProcedureStepStartDateTime"),
        ({"InputReadinessState": "SOON"}, 0x0106, "READY"),
        ({"InputReadinessState": None}, 0x0120, "InputReadinessState"),
        ({"UnifiedProcedureStepPerformedProcedureSequence": Sequence([performed()])}, 0x0106, "Performed"),
    ],
)
def test_an_item_that_breaks_the_rules_is_not_created(
    port: int, changed: dict[str, Any], status: int, comment: str
) -> None:
    answer = create(port, **changed)
    assert answer.Status == status
    assert comment in answer.get("ErrorComment", "")
    assert get(port)[0] == 0xC307


def test_absent_attributes_of_type_2_are_taken_as_empty_and_a_worklist_is_named(port: int) -> None:
    assert create(port, WorklistLabel=None, AdmissionID=None, ReferencedRequestSequence=None).Status == 0x0000
    _, item = get(port)
    assert item.AdmissionID == ""
    assert len(item.ReferencedRequestSequence) == 0
    assert item.WorklistLabel != ""


def test_the_same_uid_again_is_a_duplicate_and_changes_nothing(port: int) -> None:
    create(port)
    assert create(port, ProcedureStepLabel="Another").Status == 0x0111
    assert get(port)[1].ProcedureStepLabel == "Read CT"


def test_the_creator_must_name_the_instance(port: int) -> None:
    with associated(port, PUSH) as association:
        status, _ = association.send_n_create(an_item(), PUSH)
    assert status.Status == 0x0117


def test_an_attribute_list_that_is_too_large_is_refused(port: int) -> None:
    parameter = Dataset()
    parameter.TextValue = "x" * 50_000
    assert create(port, ScheduledProcessingParametersSequence=Sequence([parameter] * 100)).Status == 0x0213


def test_a_reading_goes_its_whole_way(port: int) -> None:
    create(port)
    assert change_state(port, "IN PROGRESS", CLAIM).Status == 0x0000
    unmet = change_state(port, "COMPLETED", CLAIM)
    assert (unmet.Status, unmet.ErrorComment) == (0xC304, "no UnifiedProcedureStepPerformedProcedureSequence")
    done = Sequence([performed()])
    answer = set_attributes(port, transaction_uid=CLAIM, UnifiedProcedureStepPerformedProcedureSequence=done)
    assert answer.Status == 0x0000
    assert change_state(port, "COMPLETED", CLAIM).Status == 0x0000
    _, item = get(port)
    assert item.ProcedureStepState == "COMPLETED"
    station = item.UnifiedProcedureStepPerformedProcedureSequence[0].PerformedStationNameCodeSequence[0]
    assert station.CodeMeaning == "Workstation 1"


def in_state(port: int, state: str) -> None:
    create(port)
    if state == "SCHEDULED":
        return
    change_state(port, "IN PROGRESS", CLAIM)
    if state == "COMPLETED":
        done = Sequence([performed()])
        set_attributes(port, transaction_uid=CLAIM, UnifiedProcedureStepPerformedProcedureSequence=done)
    if state != "IN PROGRESS":
        assert change_state(port, state, CLAIM).Status == 0x0000


@pytest.mark.parametrize(
    ("state", "transaction_uid", "status"),
    [
        ("SCHEDULED", "", 0x0000),
        ("SCHEDULED", CLAIM, 0xC310),
        ("IN PROGRESS", "", 0xC301),
        ("IN PROGRESS", OTHER_CLAIM, 0xC301),
        ("IN PROGRESS", CLAIM, 0x0000),
        ("COMPLETED", CLAIM, 0xC300),
        ("CANCELED", CLAIM, 0xC300),
    ],
)
def test_who_may_set_attributes_depends_on_the_state(port: int, state: str, transaction_uid: str, status: int) -> None:
    in_state(port, state)
    answer = set_attributes(port, transaction_uid=transaction_uid, ProcedureStepLabel="New")
    assert answer.Status == status
    assert get(port)[1].ProcedureStepLabel == ("New" if status == 0x0000 else "Read CT")


@pytest.mark.parametrize(
    ("values", "status"),
    [
        ({"ProcedureStepState": "COMPLETED"}, 0x0106),
        ({"PatientID": "P10"}, 0x0106),
        ({"PatientID": "P9"}, 0x0000),  # as it is
        ({"ScheduledProcedureStepPriority": "URGENT"}, 0x0106),
        ({"ScheduledProcedureStepPriority": ""}, 0x0121),
        ({"ProcedureStepLabel": ""}, 0x0121),
    ],
)
def test_a_forbidden_change_spoils_the_whole_request(port: int, values: dict[str, Any], status: int) -> None:
    create(port)
    assert set_attributes(port, CommentsOnTheScheduledProcedureStep="new", **values).Status == status
    said = get(port)[1].CommentsOnTheScheduledProcedureStep
    assert said == ("new" if status == 0x0000 else "")


@pytest.mark.parametrize(
    ("state", "status", "after"),
    [
        ("SCHEDULED", 0x0000, "CANCELED"),
        ("IN PROGRESS", 0xC312, "IN PROGRESS"),
        ("COMPLETED", 0xC311, "COMPLETED"),
        ("CANCELED", 0xB304, "CANCELED"),
    ],
)
def test_a_request_to_cancel_is_answered_by_state(port: int, state: str, status: int, after: str) -> None:
    in_state(port, state)
    with associated(port, WATCH) as association:
        answer, _ = association.send_n_action(None, 2, PUSH, "1.5")
    assert answer.Status == status
    assert get(port)[1].ProcedureStepState == after


def test_who_cancelled_and_why_is_in_the_item(port: int) -> None:
    create(port)
    why = Dataset()
    why.ReasonForCancellation = "duplicate order"
    with associated(port, PUSH) as association:
        association.send_n_action(why, 2, PUSH, "1.5")
    progress = get(port)[1].ProcedureStepProgressInformationSequence[0]
    assert progress.ReasonForCancellation == "duplicate order"
    assert progress.ProcedureStepCancellationDateTime
    assert progress.ProcedureStepDiscontinuationReasonCodeSequence[0].CodeValue == "110513"


@pytest.mark.parametrize(
    ("action", "uid", "status"),
    [(1, "1.6", 0xC307), (2, "1.6", 0xC307), (1, "1.5", 0x0115), (6, "1.5", 0x0123), (0, "1.5", 0x0123)],
)
def test_an_action_on_nothing_or_of_no_kind_is_refused(port: int, action: int, uid: str, status: int) -> None:
    create(port)
    wanted = Dataset()
    wanted.ProcedureStepState = "CANCELED" if uid == "1.6" else "PAUSED"
    with associated(port, PULL) as association:
        answer, _ = association.send_n_action(wanted, action, PUSH, uid)
    assert answer.Status == status


def test_of_many_simultaneous_claims_exactly_one_succeeds(either_database: Database) -> None:
    with listening(either_database) as port:
        create(port)
        answers = claims_at_once(port)
    assert sorted(answers) == [0x0000, *[0xC301] * 7]


def claims_at_once(port: int) -> list[int]:
    ready, answers = threading.Barrier(8), []

    def claim(number: int) -> None:
        wanted = Dataset()
        wanted.ProcedureStepState = "IN PROGRESS"
        wanted.TransactionUID = f"1.9.{number + 1}"
        with associated(port, PULL, calling=f"WS{number}") as association:
            ready.wait(timeout=30)
            status, _ = association.send_n_action(wanted, 1, PUSH, "1.5")
        answers.append(status.Status)

    claimants = [threading.Thread(target=claim, args=(number,)) for number in range(8)]
    for claimant in claimants:
        claimant.start()
    for claimant in claimants:
        claimant.join(timeout=60)
    return answers


def worklist_keys(**values: Any) -> Dataset:
    keys = Dataset()
    keys.SOPInstanceUID = ""
    keys.SOPClassUID = ""
    keys.ProcedureStepState = ""
    keys.ScheduledProcedureStepPriority = ""
    keys.ProcedureStepLabel = ""
    keys.PatientName = ""
    for keyword, value in values.items():
        setattr(keys, keyword, value)
    return keys


@pytest.mark.parametrize("syntax", [PULL, WATCH, QUERY])
def test_the_list_is_found_with_the_positive_study_first_then_the_longest_waiting(
    either_database: Database, syntax: str
) -> None:
    for number, outcome in enumerate([Outcome.NEGATIVE, Outcome.NOT_ANALYSED, Outcome.POSITIVE, Outcome.POSITIVE]):
        put(either_database, a_flag(outcome, study_uid=f"1.2.{number}", reason="no axial series"))
    with listening(either_database) as port:
        labels = [i.ProcedureStepLabel for i in find(port, worklist_keys(), syntax=syntax)]
    assert labels == ["ICH suspected", "ICH suspected", "No ICH found", "Not analysed: no axial series"]


def test_what_has_been_read_comes_after_what_is_still_to_be_read(port: int) -> None:
    create(port, "1.5", ScheduledProcedureStepPriority="HIGH")
    create(port, "1.6", ScheduledProcedureStepPriority="LOW")
    create(port, "1.7", ScheduledProcedureStepPriority="MEDIUM")
    change_state(port, "IN PROGRESS", CLAIM, uid="1.5")
    change_state(port, "CANCELED", CLAIM, uid="1.5")
    assert [i.SOPInstanceUID for i in find(port, worklist_keys())] == ["1.7", "1.6", "1.5"]


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ({"ScheduledProcedureStepPriority": "HIGH"}, 1),
        ({"ScheduledProcedureStepPriority": "LOW"}, 0),
        ({"ProcedureStepState": "SCHEDULED"}, 2),
        ({"ProcedureStepState": "SCHED*"}, 2),
        ({"ProcedureStepState": "COMPLETED"}, 0),
        ({"PatientName": "M*ller*"}, 1),
        ({"PatientName": "müller^*", "SpecificCharacterSet": "ISO_IR 192"}, 1),
        ({"ProcedureStepLabel": "*suspected"}, 1),
        ({"ScheduledWorkitemCodeSequence": Sequence([code("110005", "DCM", "")])}, 2),
        ({"ScheduledWorkitemCodeSequence": Sequence([code("110004", "DCM", "")])}, 0),
        ({"ScheduledProcedureStepStartDateTime": "20200101-"}, 2),
        ({"ScheduledProcedureStepStartDateTime": "-20200101"}, 0),
        ({"SOPInstanceUID": ["1.2.3", "1.5"]}, 0),
    ],
)
def test_keys_of_every_kind_select(database: Database, port: int, values: dict[str, Any], found: int) -> None:
    put(database, a_flag(study_uid="1.2.1", header=a_header(name="Müller^Jörg")))
    put(database, a_flag(Outcome.NEGATIVE, study_uid="1.2.2"))
    assert len(find(port, worklist_keys(**values))) == found


def test_a_match_holds_what_was_asked_for_and_the_push_class(database: Database, port: int) -> None:
    item = put(database, a_flag(header=a_header(name="Müller^Jörg")))
    keys = worklist_keys()
    request = Dataset()
    request.AccessionNumber = ""
    keys.ReferencedRequestSequence = Sequence([request])
    (match,) = find(port, keys, syntax=QUERY)
    assert (match.SOPClassUID, match.SOPInstanceUID) == (PUSH, item.uid)
    assert (match.SpecificCharacterSet, match.PatientName) == ("ISO_IR 192", "Müller^Jörg")
    assert [e.keyword for e in match.ReferencedRequestSequence[0]] == ["AccessionNumber"]
    assert match.ReferencedRequestSequence[0].AccessionNumber == "A1"
    assert "PatientID" not in match


def test_without_any_key_nothing_matches(database: Database, port: int) -> None:
    put(database, a_flag())
    keys = Dataset()
    keys.SpecificCharacterSet = "ISO_IR 192"
    assert find(port, keys) == []


def test_a_claimed_item_is_claimed_in_the_database(database: Database, port: int) -> None:
    item = put(database, a_flag())
    change_state(port, "IN PROGRESS", CLAIM, uid=item.uid)
    with database.read() as tx:
        claimed = worklist.find(tx, item.uid)
    assert claimed is not None
    assert (claimed.state, claimed.transaction_uid) == (WorkItemState.IN_PROGRESS, CLAIM)
