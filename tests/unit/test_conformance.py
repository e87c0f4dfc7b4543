"""The conformance statement says of the services for scanners and PACS what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydicom.datadict import dictionary_description, tag_for_keyword

from db.commitments import PUSH_MODEL, PUSH_MODEL_INSTANCE
from db.engine import Database
from db.performed_steps import MPPS
from node.deliver.availability import AVAILABILITY, TOLD
from node.dimse import PROCESSING_FAILURE, SYNTAXES
from node.receive import commitment, mpps
from node.receive.held import Failure
from node.receive.mpps import (
    FINAL,
    NOT_SET,
    SCHEDULED,
    SERIES,
    TYPE_1,
    TYPE_1_OF_SCHEDULED,
    TYPE_1_OF_SERIES,
    TYPE_2,
)
from node.service import Service

TEXT = (Path(__file__).parents[2] / "docs/conformance.md").read_text(encoding="utf-8")
COMMITMENT, STEPS = "### Storage Commitment Push Model", "### Modality Performed Procedure Step"


def section(heading: str) -> str:
    """The text from this heading to the next one."""
    return re.split(r"\n##", TEXT.split(f"\n{heading}")[1])[0]


def codes(text: str, head: str) -> list[int]:
    """The first column of the table under a heading row, as status codes."""
    rows = text.split(f"| {head} |")[1].split("\n\n")[0]
    return [int(code, 16) for code in re.findall(r"^\| ([0-9A-F]{4})", rows, re.MULTILINE)]


def statuses(module: object) -> list[int]:
    """The DIMSE statuses that a module names."""
    named = {name: value for name, value in vars(module).items() if name.isupper() and isinstance(value, int)}
    not_statuses = {"LARGEST", "REQUEST_COMMITMENT", "MAY_NO_LONGER_BE_UPDATED", "NO_SUCH_EVENT"}
    return sorted({value for name, value in named.items() if name not in not_statuses} | {PROCESSING_FAILURE})


def tagged(keyword: str) -> str:
    tag = tag_for_keyword(keyword)
    assert tag is not None
    return f"{dictionary_description(tag)} ({tag >> 16:04X},{tag & 0xFFFF:04X})"


def attribute_rows() -> list[str]:
    """The attribute table as the code has it."""
    rows = []
    for keyword in (*TYPE_1, *TYPE_2):
        set_ = "not changed" if keyword in NOT_SET else "needed to end" if keyword in FINAL else "changed"
        set_ = "needed to be COMPLETED" if keyword == SERIES else set_
        rows.append(f"| {tagged(keyword)} | {1 if keyword in TYPE_1 else 2} | {set_} |")
        inner = {SCHEDULED: TYPE_1_OF_SCHEDULED, SERIES: TYPE_1_OF_SERIES}.get(keyword, ())
        below = "not changed" if keyword in NOT_SET else "changed"
        rows += [f"| > {tagged(one)} | 1 | {below} |" for one in inner]
    return rows


def test_the_attributes_of_a_performed_procedure_step_are_those_that_are_checked() -> None:
    shown = re.findall(r"^\|.*\([0-9A-F]{4},[0-9A-F]{4}\) \|.*\|$", section(STEPS), re.MULTILINE)
    assert shown == attribute_rows()


def test_the_statuses_are_those_that_are_answered() -> None:
    assert codes(section(STEPS), "status | meaning here") == statuses(mpps)
    assert codes(section(COMMITMENT), "N-ACTION status | meaning here") == statuses(commitment)
    assert codes(section(COMMITMENT), "failure reason | meaning here") == sorted(Failure)
    assert f"{commitment.NO_SUCH_EVENT:04X}" in TEXT
    assert f"Error ID {mpps.MAY_NO_LONGER_BE_UPDATED:04X}" in section(STEPS)
    assert f"{commitment.LARGEST // 2**20} MiB" in section(COMMITMENT)
    assert f"{mpps.LARGEST // 2**20} MiB" in section(STEPS)
    assert all(f"{status:04X}" in TEXT for status in TOLD)


@pytest.mark.parametrize("offered", [commitment.service, mpps.service])
def test_the_classes_and_syntaxes_are_those_that_are_offered(offered: object, database: Database) -> None:
    service = offered(database=database)  # type: ignore[operator]
    assert isinstance(service, Service)
    ((syntax, transfer_syntaxes),) = service.contexts
    assert transfer_syntaxes == SYNTAXES
    assert re.search(
        rf"^\| .* \| {re.escape(syntax)} \| implicit and explicit VR little endian \|$", TEXT, re.MULTILINE
    )


def test_every_class_is_named() -> None:
    assert all(uid in TEXT for uid in (PUSH_MODEL, PUSH_MODEL_INSTANCE, MPPS, AVAILABILITY))
