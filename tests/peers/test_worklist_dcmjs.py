"""dcmjs-dimse, a DICOM stack of its own, as a client of the node and as what the node talks to."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from db import performed_steps
from db.commitments import PUSH_MODEL, PUSH_MODEL_INSTANCE
from db.engine import Database
from db.performed_steps import MPPS
from db.states import CommitmentState, PerformedState
from inference.result import Outcome
from node.deliver.availability import announce
from node.flag.ups import UpsChannel
from tests.committing import CT_IMAGE, TRANSACTION, checked, offering, reported, requests, settings_of
from tests.receiving import a_slice, send
from tests.tools.reporting import Node, concluded, of_study, received
from tests.tools.reports import POSITIVE, slices
from tests.worklist_node import (
    CLAIM,
    HOST,
    OWN,
    PULL,
    PUSH,
    QUERY,
    WATCH,
    a_flag,
    a_free_port,
    a_header,
    listening,
    put,
    remote,
)

HERE = Path(__file__).parent
DCMJS = Path(os.environ.get("HEMONODE_DCMJS", HERE.parents[1] / ".peers" / "node_modules" / "dcmjs-dimse"))

pytestmark = pytest.mark.peer


@pytest.fixture(autouse=True)
def _needs_dcmjs(peer: Callable[..., None]) -> None:
    peer("node", str(DCMJS))


def asked(port: int, *steps: dict[str, Any]) -> list[list[dict[str, Any]]]:
    run = subprocess.run(
        ["node", HERE / "ups_client.cjs", DCMJS, HOST, str(port), "DCMJS", OWN],
        input=json.dumps(steps).encode(), capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr.decode()
    answers: list[list[dict[str, Any]]] = json.loads(run.stdout)
    return answers


def statuses(answers: list[list[dict[str, Any]]]) -> list[int]:
    return [answer[-1]["status"] for answer in answers]


def test_a_foreign_client_finds_claims_and_gives_up_an_item(database: Database) -> None:
    put(database, a_flag(Outcome.NEGATIVE, study_uid="1.2.1"))
    item = put(database, a_flag(study_uid="1.2.2", header=a_header(name="Müller^Jörg")))
    keys = {"SOPInstanceUID": "", "ProcedureStepState": "SCHEDULED", "ProcedureStepLabel": "", "PatientName": ""}
    claim, other = ({"ProcedureStepState": "IN PROGRESS", "TransactionUID": uid} for uid in (CLAIM, "1.9.2"))
    comment = {"TransactionUID": CLAIM, "CommentsOnTheScheduledProcedureStep": "being read"}
    steps: list[dict[str, Any]] = [
        {"what": "find", "using": QUERY, "attributes": keys},
        {"what": "act", "using": PULL, "uid": item.uid, "action": 1, "attributes": claim},
        {"what": "act", "using": PULL, "uid": item.uid, "action": 1, "attributes": other},
        {"what": "set", "using": PULL, "uid": item.uid, "attributes": comment},
        {"what": "get", "using": WATCH, "uid": item.uid, "tags": ["ProcedureStepState", "PatientName"]},
        {
            "what": "act",
            "using": PULL,
            "uid": item.uid,
            "action": 1,
            "attributes": claim | {"ProcedureStepState": "CANCELED"},
        },
    ]
    with listening(database) as port:
        answers = asked(port, *steps)
    assert statuses(answers) == [0x0000, 0x0000, 0xC301, 0x0000, 0x0000, 0x0000]
    labels = [found["attributes"]["ProcedureStepLabel"] for found in answers[0][:-1]]
    assert labels == ["ICH suspected", "No ICH found"]
    assert answers[4][0]["attributes"]["ProcedureStepState"] == "IN PROGRESS"
    assert "Müller^Jörg" in json.dumps(answers[4][0]["attributes"], ensure_ascii=False)


def test_a_foreign_client_puts_an_item_on_the_list(database: Database) -> None:
    item = {
        "ScheduledProcedureStepPriority": "LOW", "ProcedureStepLabel": "Read", "InputReadinessState": "READY",
        "ScheduledProcedureStepStartDateTime": "20260714100000", "ProcedureStepState": "SCHEDULED",
    }  # fmt: skip
    steps: list[dict[str, Any]] = [
        {"what": "create", "using": PUSH, "uid": "1.5", "attributes": item},
        {"what": "create", "using": PUSH, "uid": "1.5", "attributes": item},
        {"what": "create", "using": PUSH, "uid": "1.6", "attributes": item | {"ProcedureStepState": "COMPLETED"}},
    ]
    with listening(database) as port:
        assert statuses(asked(port, *steps)) == [0x0000, 0x0111, 0xC309]


@contextmanager
def foreign_worklist() -> Iterator[int]:
    port = a_free_port()
    server = subprocess.Popen(
        ["node", HERE / "ups_server.cjs", DCMJS, str(port)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert server.stdout is not None
    assert server.stderr is not None
    try:
        assert server.stdout.readline() == b"listening\n", server.stderr.read()
        yield port
    finally:
        server.terminate()
        server.communicate(timeout=30)


def test_a_foreign_worklist_is_flagged_and_the_flag_withdrawn(database: Database) -> None:
    with foreign_worklist() as port:
        channel = UpsChannel(remote=remote(port), own_ae_title=OWN, retrieve_ae_title=OWN, timeout=10)
        raised, again, withdrawn = (
            channel.send(flag) for flag in (a_flag(), a_flag(), a_flag(Outcome.NEGATIVE, revision=2))
        )
    assert raised.confirmed
    assert "created; SCHEDULED, priority HIGH" in raised.detail
    assert again.confirmed
    assert "revised; SCHEDULED, priority HIGH" in again.detail
    assert withdrawn.confirmed
    assert "revised; SCHEDULED, priority MEDIUM" in withdrawn.detail


def test_a_foreign_scanner_reports_its_performed_procedure_step(database: Database, tmp_path: Path) -> None:
    began = {
        "ScheduledStepAttributesSequence": [{"StudyInstanceUID": "1.2.5"}], "PerformedProcedureStepID": "P1",
        "PerformedStationAETitle": "DCMJS", "PerformedProcedureStepStartDate": "20260714", "Modality": "CT",
        "PerformedProcedureStepStartTime": "1010", "PerformedProcedureStepStatus": "IN PROGRESS",
    }  # fmt: skip
    images = [{"ReferencedSOPClassUID": CT_IMAGE, "ReferencedSOPInstanceUID": f"1.2.5.1.{n}"} for n in (1, 2)]
    ended = {
        "PerformedProcedureStepStatus": "COMPLETED", "PerformedProcedureStepEndDate": "20260714",
        "PerformedProcedureStepEndTime": "1015",
        "PerformedSeriesSequence": [{"SeriesInstanceUID": "1.2.5.1", "ReferencedImageSequence": images}],
    }  # fmt: skip
    steps = [
        {"what": "create", "sop": MPPS, "uid": "1.5", "attributes": began},
        {"what": "create", "sop": MPPS, "uid": "1.5", "attributes": began},
        {"what": "set", "sop": MPPS, "uid": "1.5", "attributes": ended},
        {"what": "set", "sop": MPPS, "uid": "1.5", "attributes": ended},
        {"what": "set", "sop": MPPS, "uid": "1.6", "attributes": ended},
    ]
    with offering(settings_of(tmp_path / "data"), database) as scp:
        assert statuses(asked(scp.port, *steps)) == [0x0000, 0x0111, 0x0000, 0x0110, 0x0112]
    with database.read() as tx:
        (step,) = performed_steps.of_study(tx, "1.2.5")
    assert (step.state, step.series) == (PerformedState.COMPLETED, {"1.2.5.1": {"1.2.5.1.1", "1.2.5.1.2"}})


def test_a_foreign_scanner_asks_for_commitment_and_takes_the_report(database: Database, tmp_path: Path) -> None:
    settings = settings_of(tmp_path / "data")
    image = {"ReferencedSOPClassUID": CT_IMAGE, "ReferencedSOPInstanceUID": str(a_slice(1).SOPInstanceUID)}
    question = {"TransactionUID": TRANSACTION, "ReferencedSOPSequence": [image]}
    action = {"what": "act", "sop": PUSH_MODEL, "uid": PUSH_MODEL_INSTANCE, "action": 1, "attributes": question}
    with offering(settings, database) as scp, foreign_worklist() as port:
        assert send(scp, a_slice(1)) == [0]
        assert statuses(asked(scp.port, action)) == [0x0000]
        assert checked(database, settings) == 1
        assert reported(database, port=port, ae_title="DCMJS") == 1
    assert [request.state for request in requests(database)] == [CommitmentState.REPORTED]


def test_a_foreign_system_is_told_what_is_available_once(database: Database, tmp_path: Path) -> None:
    node = Node(database=database, archive=tmp_path, report_for=lambda _study, _revision: tmp_path)
    received(node, *slices())
    concluded(node, POSITIVE, "ris")
    with foreign_worklist() as port:
        act = announce(
            database, remote=remote(port), own_ae_title=OWN, retrieve_ae_title=OWN, timeout=10
        )  # fmt: skip
        (due,) = of_study(node)
        told = [act(due).detail for _ in range(2)]
    assert told == [f"told of {len(slices())} instances", f"told already of {len(slices())} instances"]
