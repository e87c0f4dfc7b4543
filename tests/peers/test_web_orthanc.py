"""Orthanc's DICOMweb client as a far system: it stores to this node, asks it, and fetches from it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydicom.uid import JPEGLSLossless

from db.engine import Database
from tests.receiving import a_slice, encoded, part_10, stored
from tests.tools.orthanc import Orthanc, running_orthanc
from tests.web_node import Web, web_node

PLUGIN = "/usr/share/orthanc/plugins/libOrthancDicomWeb.so"
STUDY = "1.2.826.0.1.99.1"


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory: pytest.TempPathFactory, peer: Callable[..., None]) -> Iterator[Orthanc]:
    peer("Orthanc", PLUGIN)
    settings = {"Plugins": [PLUGIN], "DicomWeb": {"Enable": True, "EnableWado": False}}
    with running_orthanc(tmp_path_factory.mktemp("far") / "orthanc", **settings) as running:
        yield running


@pytest.fixture
def web(tmp_path: Path, database: Database, orthanc: Orthanc) -> Iterator[Web]:
    with web_node(tmp_path, database) as node:
        orthanc.http("/dicom-web/servers/node", {"Url": f"{node.url}/", "HasDelete": False}, method="PUT")
        yield node


def asked(orthanc: Orthanc, uri: str, **arguments: str) -> Any:
    return orthanc.http("/dicom-web/servers/node/qido", {"Uri": uri, "Arguments": arguments})


def test_orthanc_stores_a_study_finds_it_and_fetches_it_back(orthanc: Orthanc, web: Web, database: Database) -> None:
    slices = [a_slice(n) for n in (1, 2, 3)]
    held = [orthanc.upload(part_10(dataset)) for dataset in slices]
    orthanc.http("/dicom-web/servers/node/stow", {"Resources": held, "Synchronous": True})
    assert sorted(row.sop_instance_uid for row in stored(database)) == [str(d.SOPInstanceUID) for d in slices]
    (study,) = asked(orthanc, "/studies", PatientID="P1")
    assert study["0020000D"]["Value"] == STUDY
    assert len(asked(orthanc, f"/studies/{STUDY}/instances", InstanceNumber="2")) == 1
    for instance in held:
        orthanc.http(f"/instances/{instance}", method="DELETE")
    orthanc.http("/dicom-web/servers/node/retrieve", {"Resources": [{"Study": STUDY}], "Synchronous": True})
    assert sorted(orthanc.find("Instance", StudyInstanceUID=STUDY)) == sorted(held)


def test_orthanc_stores_what_is_compressed_as_it_is(orthanc: Orthanc, web: Web, database: Database) -> None:
    dataset = a_slice(9)
    part_10(dataset)
    dataset.compress(JPEGLSLossless, generate_instance_uid=False)
    held = orthanc.upload(part_10(dataset, JPEGLSLossless))
    orthanc.http("/dicom-web/servers/node/stow", {"Resources": [held], "Synchronous": True})
    (row,) = stored(database)
    assert row.transfer_syntax_uid == JPEGLSLossless
    assert row.size > len(encoded(dataset, JPEGLSLossless)) // 2
