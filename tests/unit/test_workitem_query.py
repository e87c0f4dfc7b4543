"""The answers to a C-FIND, one by one."""

from __future__ import annotations

from typing import Any

from pydicom import Dataset

from db.dicom_json import Attributes, data_set
from node.query.dimse import found


class AQuery:
    """A C-FIND request as the handler sees it; a real one is cancelled whenever its sender likes."""

    def __init__(self, **keys: Any) -> None:
        self.identifier = Dataset()
        self.is_cancelled = False
        for keyword, value in keys.items():
            setattr(self.identifier, keyword, value)


def three(_keys: Attributes) -> list[Attributes]:
    return [data_set(PatientID=str(number), PatientName=None) for number in (1, 2, 3)]


def test_each_match_is_pending_with_what_was_asked_for() -> None:
    answers = list(found(AQuery(PatientID=""), three))  # type: ignore[arg-type]
    assert [(status, answer and answer.PatientID) for status, answer in answers] == [
        (0xFF00, "1"), (0xFF00, "2"), (0xFF00, "3"),
    ]  # fmt: skip
    assert all(answer is not None and "PatientName" not in answer for _, answer in answers)


def test_a_cancelled_query_ends_at_once_and_says_so() -> None:
    query = AQuery(PatientID="")
    answers = found(query, three)  # type: ignore[arg-type]
    assert next(answers)[0] == 0xFF00
    query.is_cancelled = True
    assert list(answers) == [(0xFE00, None)]


def test_a_list_that_cannot_be_read_is_a_failure_and_not_an_empty_answer() -> None:
    def broken(_keys: Attributes) -> list[Attributes]:
        raise OSError("disk on fire")

    assert list(found(AQuery(PatientID=""), broken)) == [(0xC000, None)]  # type: ignore[arg-type]
