"""Orthanc as the viewer's PACS: it queries the archive and has studies sent to itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from db.engine import Database
from node.config import RemoteSection
from tests.archive_node import archive_node
from tests.receiving import a_slice, send
from tests.tools.orthanc import Orthanc

pytestmark = pytest.mark.peer

STUDY = "1.2.826.0.1.99.1"
JAPANESE = "Yamada^Tarou=山田^太郎=やまだ^たろう"


@pytest.fixture
def asking(tmp_path: Path, database: Database, orthanc: Orthanc) -> Iterator[Orthanc]:
    """Orthanc, which knows the archive as `hemonode` and may be moved to."""
    pacs = RemoteSection(name="orthanc", ae_title=orthanc.ae_title, address="127.0.0.1", port=orthanc.port)
    with archive_node(tmp_path / "data", database, destinations=[pacs]) as node:
        slices = [a_slice(n, PatientName=JAPANESE, SpecificCharacterSet=["", "ISO 2022 IR 87"]) for n in range(1, 5)]
        assert set(send(node, *slices)) == {0}
        orthanc.knows(name="hemonode", ae_title="HEMONODE", port=node.port)
        yield orthanc


def query(orthanc: Orthanc, level: str, **wanted: str) -> tuple[str, list[dict[str, Any]]]:
    """The identifier of a query in Orthanc, and its answers by keyword."""
    made = orthanc.http("/modalities/hemonode/query", {"Level": level, "Query": wanted})["ID"]
    answers = orthanc.http(f"/queries/{made}/answers")
    return made, [orthanc.http(f"/queries/{made}/answers/{a}/content?simplify") for a in answers]


def test_orthanc_finds_a_study_and_has_it_sent_to_itself(asking: Orthanc) -> None:
    made, (answer,) = query(asking, "Study", PatientName="山田*", StudyInstanceUID="", ModalitiesInStudy="")
    assert (answer["StudyInstanceUID"], answer["ModalitiesInStudy"]) == (STUDY, "CT")
    asking.http(f"/queries/{made}/retrieve", {"TargetAet": asking.ae_title, "Synchronous": True})
    images = asking.find("Instance", StudyInstanceUID=STUDY)
    assert len(images) == 4
    tags = asking.http(f"/instances/{images[0]}/simplified-tags")
    assert tags["PatientName"] == JAPANESE


def test_orthanc_finds_series_and_instances(asking: Orthanc) -> None:
    _, (series,) = query(asking, "Series", StudyInstanceUID=STUDY, SeriesInstanceUID="", Modality="CT")
    assert series["SeriesInstanceUID"] == f"{STUDY}.1"
    _, images = query(
        asking, "Instance", StudyInstanceUID=STUDY, SeriesInstanceUID=f"{STUDY}.1", SOPInstanceUID="", InstanceNumber=""
    )
    assert sorted(image["InstanceNumber"] for image in images) == ["1", "2", "3", "4"]
