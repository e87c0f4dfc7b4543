"""Orthanc as the PACS: it holds the report once, shows what it says, and can send to a node itself."""

from __future__ import annotations

import io
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from highdicom.sr import MeasurementReport, srread
from pydicom.uid import Comprehensive3DSRStorage, ExplicitVRLittleEndian
from pynetdicom import AE, evt
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

from db.engine import Database
from db.states import DeliveryKind, DeliveryState
from node.config import DeliverSection, RemoteSection, Settings
from node.deliver.outbox import deliver_due
from node.deliver.store import store_report
from node.report.filing import file_report
from node.report.identifiers import report_uid
from tests.tools.orthanc import Orthanc
from tests.tools.reporting import Node, concluded, of_study, received
from tests.tools.reports import NAMES, NOT_ANALYSED, POSITIVE, STUDY_UID, Kind, a_slice, built, slices

pytestmark = pytest.mark.peer

REPORT_UID = str(report_uid(study_uid=STUDY_UID, revision=1))
AT_ONCE = DeliverSection(attempts=2, first_retry=1e-6, longest_retry=1e-6)


@pytest.fixture
def node(database: Database, tmp_path: Path) -> Node:
    archive = tmp_path / "archive"
    filing = file_report(database, archive=archive, settings=Settings(), version="0.1.0")
    return Node(database=database, archive=archive, report_for=filing)


def sent(node: Node, orthanc: Orthanc, *, ae_title: str = "ORTHANC") -> int:
    remote = RemoteSection(name="pacs", ae_title=ae_title, address="127.0.0.1", port=orthanc.port)
    return deliver_due(
        node.database,
        kind=DeliveryKind.SR,
        destination="pacs",
        act=store_report(remote=remote, own_ae_title="HEMONODE", timeout=30, report_for=node.report_for),
        policy=AT_ONCE,
        owner="d",
        stop=threading.Event(),
    )


def test_orthanc_holds_the_report_in_the_study_and_gives_it_back_as_it_was(node: Node, orthanc: Orthanc) -> None:
    received(node, *slices(PatientName="山田^太郎"))
    concluded(node, POSITIVE, "pacs")
    assert sent(node, orthanc) == 1
    assert of_study(node)[0].state is DeliveryState.SENT
    (instance,) = orthanc.find("Instance", SOPInstanceUID=REPORT_UID)
    tags = orthanc.http(f"/instances/{instance}/simplified-tags")
    assert (tags["StudyInstanceUID"], tags["Modality"], tags["PatientName"]) == (STUDY_UID, "SR", "山田^太郎")
    assert tags["SeriesDescription"].startswith("DEMONSTRATION WEIGHTS")
    held = srread(io.BytesIO(orthanc.file(instance)))
    filed = srread(node.report_for(STUDY_UID, 1))
    assert held == filed
    assert isinstance(held.content, MeasurementReport)
    assert len(held.content.get_image_measurement_groups()) == 7


def test_orthanc_shows_a_name_in_any_script(orthanc: Orthanc) -> None:
    # It keeps attributes of at most 256 bytes in its index; the longest name is longer.
    names = {f"{STUDY_UID}.{n}": name for n, name in enumerate(NAMES, start=1) if len(name.encode()) <= 256}
    for uid, name in names.items():
        kind = Kind(result=replace(NOT_ANALYSED, study_uid=uid), evidence=(a_slice(1, StudyInstanceUID=uid),))
        kind.evidence[0].PatientName = name
        orthanc.upload(built(kind))
    shown = [orthanc.http(f"/studies/{study}") for study in orthanc.http("/studies")]
    assert len(names) == len(NAMES) - 1
    assert {
        study["MainDicomTags"]["StudyInstanceUID"]: study["PatientMainDicomTags"]["PatientName"] for study in shown
    } == names


def test_a_report_sent_twice_is_held_once(node: Node, orthanc: Orthanc) -> None:
    received(node, *slices())
    concluded(node, POSITIVE, "pacs")
    act = store_report(
        remote=RemoteSection(name="pacs", ae_title="ORTHANC", address="127.0.0.1", port=orthanc.port),
        own_ae_title="HEMONODE",
        timeout=30,
        report_for=node.report_for,
    )
    (delivery,) = of_study(node)
    assert act(delivery).sop_instance_uid == act(delivery).sop_instance_uid == REPORT_UID
    assert len(orthanc.find("Instance", StudyInstanceUID=STUDY_UID)) == 1


def test_orthanc_called_by_another_name_refuses_and_the_report_is_given_up_loudly(node: Node, orthanc: Orthanc) -> None:
    received(node, *slices())
    concluded(node, POSITIVE, "pacs")
    assert sent(node, orthanc, ae_title="ELSEWHERE") + sent(node, orthanc, ae_title="ELSEWHERE") == AT_ONCE.attempts
    (delivery,) = of_study(node)
    assert delivery.state is DeliveryState.ABANDONED
    assert "rejected" in str(delivery.error)
    assert orthanc.find("Instance", StudyInstanceUID=STUDY_UID) == []


def test_orthanc_echoes_and_stores_to_whom_it_knows(node: Node, orthanc: Orthanc) -> None:
    received(node, *slices())
    concluded(node, POSITIVE)
    stored: list[str] = []

    def store(event: Any) -> int:
        stored.append(str(event.request.AffectedSOPInstanceUID))
        return 0x0000

    entity = AE("HEMONODE")
    entity.add_supported_context(Verification)
    entity.add_supported_context(Comprehensive3DSRStorage, ExplicitVRLittleEndian)
    server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, store)])
    assert server is not None
    try:
        orthanc.knows(name="hemonode", ae_title="HEMONODE", port=int(server.server_address[1]))
        orthanc.echo("hemonode")
        orthanc.send([orthanc.upload(node.report_for(STUDY_UID, 1).read_bytes())], to="hemonode")
    finally:
        server.shutdown()
    assert stored == [REPORT_UID]
