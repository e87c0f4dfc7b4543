"""A site that turns locations on, for research: volume in the report, a segmentation beside it, and both say so."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from highdicom.seg import Segmentation

from node.report.content import FOR_RESEARCH
from tests.far_side import SEGMENTATION, FarSide
from tests.running_node import RunningNode, running_node
from tests.scanner import Exams, Scanner


@pytest.fixture
def node(tmp_path: Path, finding_everything: dict[str, Path], far_side: FarSide) -> Iterator[RunningNode]:
    """A node to which every study is positive, with locations."""
    with running_node(
        tmp_path,
        models=finding_everything,
        ups=[far_side.remote("ris")],
        destinations=[far_side.remote("pacs")],
        changes={"report": {"locations": True}},
    ) as running:
        yield running


def test_a_positive_study_has_its_volume_in_the_report_and_a_segmentation_beside_it(
    node: RunningNode, exams: Exams, far_side: FarSide
) -> None:
    exam = exams.new()
    Scanner(port=node.port).send(exam.files)
    story = node.ended(exam.study_uid)
    states = {(d["kind"], d["destination"]): d["state"] for d in story["deliveries"]}
    assert states["seg", "archive"] == "confirmed"
    assert states["seg", "pacs"] == states["sr", "pacs"] == "sent"
    by_class = {str(made.SOPClassUID): made for made in far_side.reports_of(exam.study_uid)}
    segmentation = Segmentation.from_dataset(by_class.pop(SEGMENTATION))
    (report,) = by_class.values()
    assert {FOR_RESEARCH, "118565006"} <= set(text_of(report.to_json_dict()))
    (described,) = segmentation.SegmentSequence
    assert FOR_RESEARCH in described.SegmentDescription
    assert described.TrackingUID in text_of(report.to_json_dict()), "the finding in the report that it belongs to"
    readings = {reading["name"]: reading for reading in story["results"][0]["readings"]}
    assert readings["cnn-lstm"]["volume"] is None, "Grad-CAM outlines nothing"
    step = np.median(np.diff([piece["position_mm"] for piece in readings["radnet"]["slices"]]))
    rows, columns = segmentation.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing
    marked = np.count_nonzero(segmentation.pixel_array) * rows * columns * step / 1000
    assert marked == pytest.approx(readings["radnet"]["volume"]["ml"], rel=0.05)


def text_of(value: object) -> Iterator[str]:
    """Every string in plain JSON values."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from text_of(item)
