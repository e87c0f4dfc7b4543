"""Who wants to know is told which instances of a study are available: real associations to a far side that listens."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from db import deliveries, instances, jobs, performed_steps, studies
from db.deliveries import NewDelivery
from db.dicom_json import data_set
from db.engine import Database
from db.states import DeliveryKind, DeliveryState
from node.conclude import conclude
from node.config import Settings
from node.deliver.availability import announce
from node.deliver.outbox import deliver_due
from node.report.filing import file_report
from tests.committing import AT_ONCE, NEVER
from tests.performing import ris
from tests.tools.reporting import LEASE, Node, concluded, of_study, received, reopened
from tests.tools.reports import POSITIVE, SERIES_UID, STUDY_UID, a_slice, slices
from tests.worklist_node import HOST, remote


@pytest.fixture
def node(database: Database, tmp_path: Path) -> Node:
    """A node that has read a study of two series, of which a notice is due."""
    archive = tmp_path / "archive"
    filing = file_report(database, archive=archive, settings=Settings(), version="0.1.0")
    node = Node(database=database, archive=archive, report_for=filing)
    scout = a_slice(99, SeriesInstanceUID=f"{STUDY_UID}.1", SOPInstanceUID=f"{STUDY_UID}.1.1")
    received(node, *slices(), scout)
    concluded(node, POSITIVE)
    with database.write() as tx:
        deliveries.enqueue(
            tx, study_uid=STUDY_UID, revision=1,
            new=[NewDelivery(kind=DeliveryKind.AVAILABILITY, destination="ris")],
        )  # fmt: skip
    return node


def told(node: Node, port: int) -> int:
    act = announce(
        node.database, remote=remote(port, ae_title="RIS"), own_ae_title="HEMONODE", retrieve_ae_title="PACS", timeout=5
    )  # fmt: skip
    return deliver_due(
        node.database, kind=DeliveryKind.AVAILABILITY, destination="ris", act=act, policy=AT_ONCE, owner="d", stop=NEVER
    )


def test_every_instance_of_the_revision_is_named_with_where_to_retrieve_it(node: Node) -> None:
    received(node, a_slice(50))  # came later, no verdict has counted it
    with ris(0x0000) as (port, heard):
        assert told(node, port) == 1
    ((uid, said),) = heard
    assert uid == of_study(node)[-1].sop_instance_uid
    assert of_study(node)[-1].state is DeliveryState.SENT
    assert said.StudyInstanceUID == STUDY_UID
    assert list(said.ReferencedPerformedProcedureStepSequence) == []
    series = {str(s.SeriesInstanceUID): s.ReferencedSOPSequence for s in said.ReferencedSeriesSequence}
    assert {uid: len(items) for uid, items in series.items()} == {SERIES_UID: len(slices()), f"{STUDY_UID}.1": 1}
    (scout,) = series[f"{STUDY_UID}.1"]
    assert (scout.ReferencedSOPInstanceUID, scout.InstanceAvailability, scout.RetrieveAETitle) == (
        f"{STUDY_UID}.1.1", "ONLINE", "PACS",
    )  # fmt: skip


def test_the_performed_procedure_step_of_the_study_is_named(node: Node) -> None:
    scheduled = data_set(ScheduledStepAttributesSequence=data_set(StudyInstanceUID=STUDY_UID))
    with node.database.write() as tx:
        performed_steps.create(tx, uid="1.9.1", ae_title="CT1", dataset=scheduled)
    with ris(0x0000) as (port, heard):
        told(node, port)
    (step,) = heard[0][1].ReferencedPerformedProcedureStepSequence
    assert (step.ReferencedSOPInstanceUID, step.ReferencedSOPClassUID) == ("1.9.1", performed_steps.MPPS)
    assert "PerformedWorkitemCodeSequence" in step


def test_a_notice_is_repeated_under_the_same_uid_until_it_is_taken(node: Node) -> None:
    with ris(0x0213, 0x0111) as (port, heard):
        while of_study(node)[-1].state is DeliveryState.DUE:
            told(node, port)
    assert [len({uid for uid, _ in heard}), len(heard)] == [1, 2]
    assert str(of_study(node)[-1].detail).startswith("told already")


def test_what_follows_from_a_result_is_what_is_configured(database: Database, node: Node) -> None:
    far = {"ae_title": "X", "address": HOST, "port": 104}
    settings = Settings.model_validate(
        {"deliver": {"destinations": [{"name": "pacs", "commitment": True, **far}, {"name": "mirror", **far}],
                     "availability": [{"name": "ris", **far}]}}
    )  # fmt: skip
    reopened(node)
    received(node, a_slice(50))
    with database.write() as tx:
        seen = [one.sop_instance_uid for one in instances.unconsidered(tx, STUDY_UID)]
        whole = {"complete": True, "reason": "whole"}
        assert studies.pronounce(tx, study_uid=STUDY_UID, completeness=whole, seen=seen, model="triage")
        job = jobs.claim(tx, owner="w", lease=LEASE)
        assert job is not None
        conclude(tx, job, replace(POSITIVE, revision=2), settings)
    follows = [(due.kind.value, due.destination) for due in of_study(node) if due.revision == 2]
    assert follows == [
        ("sr", "archive"),
        ("sr", "pacs"),
        ("sr", "mirror"),
        ("commitment", "pacs"),
        ("availability", "ris"),
    ]
