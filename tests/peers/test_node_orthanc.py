"""The whole node with Orthanc as the PACS: it sends a study, and holds the report a moment later."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from node.config import DestinationSection
from tests.running_node import RunningNode, running_node, wait_for
from tests.scanner import Exams
from tests.small_models import small_models
from tests.tools.orthanc import Orthanc

pytestmark = pytest.mark.peer


@pytest.fixture
def node(tmp_path: Path, orthanc: Orthanc) -> Iterator[RunningNode]:
    """A node to which every study is positive, and whose reports go to Orthanc."""
    pacs = DestinationSection(
        name="pacs", ae_title=orthanc.ae_title, address="127.0.0.1", port=orthanc.port, commitment=True
    )  # fmt: skip
    models = small_models(tmp_path / "models", threshold=0.0)
    with running_node(tmp_path / "node", models=models, destinations=[pacs]) as running:
        orthanc.knows(name="hemonode", ae_title="HEMONODE", port=running.port)
        yield running


def test_orthanc_sends_a_study_and_holds_its_report_beside_the_images(
    node: RunningNode, orthanc: Orthanc, tmp_path: Path
) -> None:
    exam = Exams(root=tmp_path / "exams").new("localizer", "axial")
    for path in exam.files:
        orthanc.upload(path.read_bytes())
    orthanc.echo("hemonode")
    (study,) = orthanc.find("Study", StudyInstanceUID=exam.study_uid)
    orthanc.send([study], to="hemonode")
    story = node.ended(exam.study_uid)
    assert (story["outcome"], story["instances"], story["calling_ae"]) == ("positive", len(exam.files), "ORTHANC")
    (series,) = orthanc.find("Series", StudyInstanceUID=exam.study_uid, Modality="SR")
    (instance,) = orthanc.http(f"/series/{series}")["Instances"]
    tags = orthanc.http(f"/instances/{instance}/simplified-tags")
    wait_for(lambda: committed(node, exam.study_uid), what="Orthanc to commit", also=lambda: node.log)
    delivery = next(
        d for d in node.story(exam.study_uid)["deliveries"] if (d["kind"], d["destination"]) == ("sr", "pacs")
    )
    assert (delivery["state"], tags["SOPInstanceUID"]) == ("confirmed", delivery["sop_instance_uid"])
    images = orthanc.find("Instance", StudyInstanceUID=exam.study_uid, Modality="CT")
    patient = {orthanc.http(f"/instances/{i}/simplified-tags")["PatientName"] for i in (*images, instance)}
    assert len(patient) == 1, "the report stands under the patient of the images"
    # The PACS sends everything it has of the study again, the node's own report with it.
    orthanc.send([study], to="hemonode")
    wait_for(lambda: noted(node, exam.study_uid), what="the note of the late report", also=lambda: node.log)
    again = node.ended(exam.study_uid)
    assert (again["revision"], again["set_aside"], again["instances"]) == (1, [], len(exam.files) + 1)


def of_pacs(node: RunningNode, study_uid: str) -> list[dict[str, Any]]:
    return [d for d in node.story(study_uid)["deliveries"] if d["destination"] == "pacs"]


def committed(node: RunningNode, study_uid: str) -> bool:
    """Whether the PACS has committed to the report."""
    return all(delivery["state"] == "confirmed" for delivery in of_pacs(node, study_uid))


def noted(node: RunningNode, study_uid: str) -> bool:
    return "late_instances" in {event["event"] for event in node.story(study_uid)["timeline"]}


def test_the_real_head_goes_through_the_whole_node(
    head_ct: Path, node: RunningNode, orthanc: Orthanc, tmp_path: Path
) -> None:
    for path in sorted(head_ct.glob("*.dcm")):
        identifier = orthanc.upload(path.read_bytes())
    study = orthanc.http(f"/instances/{identifier}/study")
    orthanc.send([study["ID"]], to="hemonode")
    story = node.ended(study["MainDicomTags"]["StudyInstanceUID"])
    assert story["outcome"] == "positive"
    readings = story["results"][-1]["readings"]
    assert [len(reading["slices"]) for reading in readings] == [28, 28]
    assert len(orthanc.find("Series", StudyInstanceUID=story["study_uid"], Modality="SR")) == 1
