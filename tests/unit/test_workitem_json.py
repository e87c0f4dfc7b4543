"""Data sets on their way between the database, where they are JSON, and the wire."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import pytest
from pydicom import Dataset, dcmread
from pydicom.sequence import Sequence
from pynetdicom.dsutils import encode

from db.dicom_json import data_set, dataset_of, part, tag_of
from node.query.dimse import attributes_of


def of_every_kind() -> Dataset:
    code = Dataset()
    code.CodeValue, code.CodeMeaning = "1", "小"
    dataset = Dataset()
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.FrameIncrementPointer = [0x00181063, 0x00181065]
    dataset.PatientName = "Wang^XiaoDong=王^小東"
    dataset.OtherPatientNames = ["A^B", "C^D"]
    dataset.PatientSize = 1.75
    dataset.InstanceNumber = 7
    dataset.ImagePositionPatient = [0.1, -2, 1 / 3]
    dataset.Rows = 512
    dataset.PatientID = ""
    dataset.ConceptNameCodeSequence = Sequence([code, Dataset()])
    dataset.ScheduledStationNameCodeSequence = Sequence()
    dataset.EncapsulatedDocument = b"\x00\x01"
    dataset.ModalitiesInStudy = ["CT", "SR"]
    return dataset


@pytest.mark.parametrize("implicit", [True, False])
def test_every_kind_of_value_survives_the_way_into_the_database_and_back(implicit: bool) -> None:
    sent = dataset_of(attributes_of(of_every_kind()))
    wire = encode(sent, is_implicit_vr=implicit, is_little_endian=True)
    assert wire is not None
    read = dcmread(BytesIO(wire), force=True)
    assert attributes_of(read) == attributes_of(of_every_kind())


def test_an_unknown_keyword_is_an_error_and_not_an_empty_element() -> None:
    with pytest.raises(ValueError, match="PatientsName"):
        data_set(PatientsName="x")


@pytest.mark.parametrize(
    ("held", "expected"), [({}, {"vr": "LO"}), (data_set(PatientID="1"), {"vr": "LO", "Value": ["1"]})]
)
def test_a_missing_part_is_an_empty_element(held: dict[str, Any], expected: dict[str, Any]) -> None:
    assert part(held, "PatientID") == expected
    assert tag_of("PatientID") == "00100020"
