"""DCMTK's findscu as a worklist client: the positive study stands first, and names survive."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable

import pytest

from db.engine import Database
from inference.result import Outcome
from tests.worklist_node import OWN, a_flag, a_header, listening, put

pytestmark = pytest.mark.peer


def findscu(port: int, *keys: str) -> list[dict[str, str]]:
    """The answers of `findscu -W`: for each, the value of every attribute by tag."""
    arguments = [part for key in keys for part in ("-k", key)]
    run = subprocess.run(
        ["findscu", "-v", "-W", "-aet", "FINDSCU", "-aec", OWN, *arguments, "127.0.0.1", str(port)],
        capture_output=True, timeout=60, check=True,
    )  # fmt: skip
    said = (run.stdout + run.stderr).decode("utf-8")
    assert "Status=0x0000" in said or "Final Find Response (Success)" in said, said
    answers = re.split(r"Find Response: ?\d+|Find Response \d+", said)[1:]
    found = (re.findall(r"\((\w{4},\w{4})\) \w\w \[?([^\]#\n]*?)\]? *#", answer) for answer in answers)
    return [{tag: value.strip(" \0") for tag, value in elements} for elements in found]


STEP = ("ScheduledProcedureStepSequence[0].Modality=CT", "ScheduledProcedureStepSequence[0].ScheduledProcedureStepID")


def test_findscu_shows_the_positive_studies_first(database: Database, peer: Callable[..., None]) -> None:
    peer("findscu")
    for number, outcome in enumerate((Outcome.NEGATIVE, Outcome.POSITIVE, Outcome.NOT_ANALYSED, Outcome.POSITIVE)):
        put(database, a_flag(outcome, study_uid=f"1.2.{number}"))
    with listening(database) as port:
        answers = findscu(port, *STEP, "StudyInstanceUID", "RequestedProcedurePriority", "PatientName")
    assert [(a["0020,000d"], a["0040,1003"]) for a in answers] == [
        ("1.2.1", "HIGH"), ("1.2.3", "HIGH"), ("1.2.0", "MEDIUM"), ("1.2.2", "MEDIUM"),
    ]  # fmt: skip
    assert {a["0008,0060"] for a in answers} == {"CT"}


@pytest.mark.parametrize(
    ("key", "found"),
    [("PatientName=Müller*", 1), ("PatientName=Smith*", 0), ("AccessionNumber=A7", 1), ("PatientID=P?", 1)],
)
def test_findscu_finds_by_name_and_number_in_utf_8(
    database: Database, peer: Callable[..., None], key: str, found: int
) -> None:
    peer("findscu")
    put(database, a_flag(header=a_header(name="Müller^Jörg", patient_id="P7", accession="A7")))
    with listening(database) as port:
        answers = findscu(port, "SpecificCharacterSet=ISO_IR 192", "PatientName", key, *STEP)
    assert [a["0010,0010"] for a in answers] == ["Müller^Jörg"] * found
