"""Orthanc asks this node to commit to what it sent, and commits to the report that this node sent it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread
from pydicom.uid import Comprehensive3DSRStorage

from db import deliveries
from db.deliveries import NewDelivery
from db.engine import Database
from db.states import DeliveryKind, DeliveryState
from node.config import CommitmentSection, RemoteSection, Settings
from node.deliver.commitment import ask, settle
from node.deliver.outbox import deliver_due
from node.deliver.store import store_report
from node.report.filing import file_report
from tests.committing import AT_ONCE, CT_IMAGE, NEVER, checked, offering, reported, settings_of
from tests.receiving import a_slice, part_10, stored, wait_until
from tests.tools.orthanc import Orthanc
from tests.tools.reporting import Node, concluded, of_study, received
from tests.tools.reports import POSITIVE, STUDY_UID, slices
from tests.worklist_node import HOST

pytestmark = pytest.mark.peer

ONE, TWO = (str(a_slice(number).SOPInstanceUID) for number in (1, 2))


def asked(orthanc: Orthanc, body: dict[str, Any]) -> str:
    """Orthanc has asked the node to commit; returns where its REST API tells what came of it."""
    return str(orthanc.http("/modalities/hemonode/storage-commitment", body)["Path"])


def answer(orthanc: Orthanc, path: str) -> dict[str, Any]:
    found: dict[str, Any] = wait_until(lambda: (r := orthanc.http(path))["Status"] != "Pending" and r)
    return found


def test_orthanc_is_told_that_what_it_sent_is_held_and_that_what_it_did_not_is_not(
    database: Database, orthanc: Orthanc, tmp_path: Path
) -> None:
    settings = settings_of(tmp_path / "data")
    with offering(settings, database) as scp:
        orthanc.knows(name="hemonode", ae_title="HEMONODE", port=scp.port)
        orthanc.send([orthanc.upload(part_10(a_slice(1)))], to="hemonode")
        path = asked(orthanc, {"DicomInstances": [{"SOPClassUID": CT_IMAGE, "SOPInstanceUID": ONE}]})
        assert checked(database, settings) == 1
        assert reported(database, port=orthanc.port, ae_title="ORTHANC") == 1
        report = answer(orthanc, path)
        assert (report["Status"], report["RemoteAET"]) == ("Success", "HEMONODE")
        assert [item["SOPInstanceUID"] for item in report["Success"]] == [ONE]

        (settings.archive / stored(database)[0].path).unlink()
        both = [{"SOPClassUID": CT_IMAGE, "SOPInstanceUID": uid} for uid in (ONE, TWO)]
        path = asked(orthanc, {"DicomInstances": both})
        assert checked(database, settings) == 1
        assert reported(database, port=orthanc.port, ae_title="ORTHANC") == 1
        report = answer(orthanc, path)
        assert report["Status"] == "Failure"
        assert {item["SOPInstanceUID"]: item["FailureReason"] for item in report["Failures"]} == {
            ONE: 0x0112,
            TWO: 0x0112,
        }


@pytest.fixture
def node(database: Database, tmp_path: Path) -> Node:
    """A node whose report is due at a PACS that is to commit to it."""
    archive = tmp_path / "archive"
    filing = file_report(database, archive=archive, settings=Settings(), version="0.1.0")
    node = Node(database=database, archive=archive, report_for=filing)
    received(node, *slices())
    concluded(node, POSITIVE, "pacs")
    with database.write() as tx:
        promise = NewDelivery(kind=DeliveryKind.COMMITMENT, destination="pacs")
        deliveries.enqueue(tx, study_uid=STUDY_UID, revision=1, new=[promise])
    return node


def deliver(node: Node, orthanc: Orthanc, *kinds: DeliveryKind) -> None:
    remote = RemoteSection(name="pacs", ae_title="ORTHANC", address=HOST, port=orthanc.port)
    quick = CommitmentSection(hold=0.001)
    acts = {
        DeliveryKind.SR: store_report(
            remote=remote, own_ae_title="HEMONODE", timeout=30, report_for=node.report_for
        ),
        DeliveryKind.COMMITMENT: ask(
            node.database, remote=remote, own_ae_title="HEMONODE", timeout=30, commitment=quick
        ),
    }  # fmt: skip
    for kind in kinds:
        deliver_due(node.database, kind=kind, destination="pacs", act=acts[kind], policy=AT_ONCE, owner="d", stop=NEVER)
    settle(node.database, remote=remote, policy=AT_ONCE, commitment=quick)


def states(node: Node) -> dict[str, DeliveryState]:
    return {delivery.kind.value: delivery.state for delivery in of_study(node)}


def test_orthanc_commits_to_the_report_and_the_delivery_is_confirmed(
    node: Node, orthanc: Orthanc, tmp_path: Path
) -> None:
    with offering(settings_of(tmp_path / "data"), node.database) as scp:
        orthanc.knows(name="hemonode", ae_title="HEMONODE", port=scp.port)
        deliver(node, orthanc, DeliveryKind.SR, DeliveryKind.COMMITMENT)
        wait_until(lambda: deliver(node, orthanc) or states(node)["commitment"] is DeliveryState.CONFIRMED)
    assert states(node) == {"sr": DeliveryState.CONFIRMED, "commitment": DeliveryState.CONFIRMED}
    (instance,) = orthanc.find("Instance", StudyInstanceUID=STUDY_UID)
    assert (
        orthanc.http(f"/instances/{instance}/simplified-tags")["SOPInstanceUID"] == of_study(node)[0].sop_instance_uid
    )


def test_a_report_that_orthanc_lost_is_stored_there_again_and_then_confirmed(
    node: Node, orthanc: Orthanc, tmp_path: Path
) -> None:
    with offering(settings_of(tmp_path / "data"), node.database) as scp:
        orthanc.knows(name="hemonode", ae_title="HEMONODE", port=scp.port)
        deliver(node, orthanc, DeliveryKind.SR)
        (study,) = orthanc.find("Study", StudyInstanceUID=STUDY_UID)
        orthanc.http(f"/studies/{study}", method="DELETE")
        deliver(node, orthanc, DeliveryKind.COMMITMENT)
        wait_until(lambda: deliver(node, orthanc) or states(node)["sr"] is DeliveryState.DUE)
        deliver(node, orthanc, DeliveryKind.SR, DeliveryKind.COMMITMENT)
        wait_until(lambda: deliver(node, orthanc) or states(node)["commitment"] is DeliveryState.CONFIRMED)
    report = dcmread(node.report_for(STUDY_UID, 1))
    assert report.SOPClassUID == Comprehensive3DSRStorage
    assert len(orthanc.find("Instance", SOPInstanceUID=str(report.SOPInstanceUID))) == 1
