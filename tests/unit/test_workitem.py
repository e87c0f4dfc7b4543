"""The reading work item as a Unified Procedure Step."""

from __future__ import annotations

import datetime as dt
import warnings
from io import BytesIO

import pytest
from pydicom import Dataset, dcmread
from pydicom.uid import UID
from pynetdicom.dsutils import encode

from db.dicom_json import data_set
from inference.result import Outcome
from node.flag.flag import Flag, Reference, flag_of
from node.flag.workitem import OWN, reading, uid_of, workitem
from node.query.attributes import TYPE_1, TYPE_2, refusal_to_create
from node.query.dimse import attributes_of
from tests.worklist_node import a_flag, a_header, a_result

AT = dt.datetime(2026, 7, 14, 10, 15, 30, tzinfo=dt.UTC)


def made(flag: Flag) -> Dataset:
    return workitem(flag, at=AT, retrieve_ae_title="HEMONODE")


def test_it_is_an_interpretation_with_the_flags_priority_and_label() -> None:
    item = made(a_flag())
    code = item.ScheduledWorkitemCodeSequence[0]
    assert (code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning) == ("110005", "DCM", "Interpretation")
    assert (item.ScheduledProcedureStepPriority, item.ProcedureStepLabel) == ("HIGH", "ICH suspected")
    assert (item.ProcedureStepState, item.InputReadinessState) == ("SCHEDULED", "READY")
    assert item.ScheduledProcedureStepStartDateTime == "20260714101530.000000+0000"


@pytest.mark.parametrize("keyword", [*TYPE_1, *TYPE_2, "ProcedureStepState", "TransactionUID"])
def test_every_attribute_that_n_create_requires_is_there(keyword: str) -> None:
    assert keyword in made(a_flag())


def test_it_is_what_our_own_scp_would_accept() -> None:
    assert refusal_to_create(attributes_of(made(a_flag()))) is None


def test_it_says_why_and_that_the_weights_are_for_demonstration() -> None:
    item = made(a_flag())
    assert item.CommentsOnTheScheduledProcedureStep == (
        "RADnet: 5 consecutive slices at or above 0.50. Demonstration weights, not for clinical use. Study revision 1."
    )
    assert "demonstration" in item.WorklistLabel


def test_it_says_whose_study_it_is_and_which_request_it_answers() -> None:
    item = made(a_flag(header=a_header(name="Müller^Jörg", patient_id="P7", accession="A7")))
    request = item.ReferencedRequestSequence[0]
    assert (item.PatientName, item.PatientID) == ("Müller^Jörg", "P7")
    assert (request.AccessionNumber, request.StudyInstanceUID, request.RequestedProcedureID) == ("A7", "1.2.3", "RP1")


def test_it_names_every_instance_by_series() -> None:
    instances = [
        Reference(series_uid=f"1.2.3.{s}", sop_class_uid="1.2.840.10008.5.1.4.1.1.2", sop_instance_uid=f"1.2.3.{s}.{n}")
        for s, n in ((1, 1), (1, 2))
    ]
    series = made(flag_of(a_result(), header={}, instances=instances)).InputInformationSequence
    assert [(s.TypeOfInstances, s.SeriesInstanceUID, s.DICOMRetrievalSequence[0].RetrieveAETitle) for s in series] == [
        ("DICOM", "1.2.3.1", "HEMONODE")
    ]
    assert [i.ReferencedSOPInstanceUID for i in series[0].ReferencedSOPSequence] == ["1.2.3.1.1", "1.2.3.1.2"]


def test_a_study_without_a_header_still_has_a_complete_item() -> None:
    item = made(a_flag(header={}))
    assert refusal_to_create(attributes_of(item)) is None
    assert item.PatientName == ""


def test_names_in_every_script_survive_the_wire() -> None:
    name = {"vr": "PN", "Value": [{"Alphabetic": "Wang^XiaoDong", "Ideographic": "王^小東"}]}
    item = made(a_flag(header=a_header() | {"00100010": name}))
    wire = encode(item, is_implicit_vr=True, is_little_endian=True)
    assert wire is not None
    read = dcmread(BytesIO(wire), force=True)
    read.file_meta.TransferSyntaxUID = UID("1.2.840.10008.1.2")
    assert str(read.PatientName) == "Wang^XiaoDong=王^小東"


def test_values_that_break_their_rules_are_sent_as_they_are_and_nothing_quotes_them() -> None:
    odd = data_set(PatientID="P" * 80, PatientSex="female!", PatientBirthDate="1950-13-77", AccessionNumber="A" * 40)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        item = made(a_flag(header=a_header(name="A" * 80) | odd))
        wire = encode(item, is_implicit_vr=False, is_little_endian=True)
    assert wire is not None
    assert all(value in wire for value in (b"P" * 80, b"female!", b"1950-13-77", b"A" * 80))


def test_its_uid_is_the_same_every_time_and_for_nothing_else() -> None:
    def uid(ae: str = "HEMONODE", study: str = "1.2", to: str = "ris", revision: int | None = None) -> str:
        return uid_of(ae_title=ae, study_uid=study, destination=to, revision=revision)

    uids = {uid(), uid(ae="OTHER"), uid(study="1.3"), uid(to=OWN), uid(revision=2)}
    assert len(uids) == 5
    assert uid() in uids
    assert all(UID(one).is_valid and one.startswith("2.25.") for one in uids)


def test_a_negative_study_asks_for_a_reading_but_does_not_insist() -> None:
    new = reading(a_flag(Outcome.NEGATIVE, revision=3), ae_title="HEMONODE", at=AT, retrieve_ae_title="PACS")
    assert (str(new.priority), new.raised, new.revision) == ("MEDIUM", False, 3)
    assert new.uid != new.further_uid
