"""A database and an archive with studies in it, received, read and waiting for their reports to go out."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from db import deliveries, instances, jobs, results, studies
from db.deliveries import Delivery, NewDelivery
from db.engine import Database
from db.instances import NewInstance
from db.states import DeliveryKind, DeliveryState
from inference.result import StudyResult
from tests.tools.reports import STUDY_UID

LEASE = dt.timedelta(minutes=1)


@dataclass(frozen=True, kw_only=True)
class Node:
    """A database, an archive, and what files reports into it."""

    database: Database
    archive: Path
    report_for: Callable[[str, int], Path]


def received(node: Node, *images: Dataset) -> None:
    """The images lie in the archive and stand in its index."""
    for image in images:
        path = Path("files") / f"{image.SOPInstanceUID}.dcm"
        image.file_meta = FileMetaDataset()
        image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        (node.archive / path).parent.mkdir(parents=True, exist_ok=True)
        image.save_as(node.archive / path, enforce_file_format=True)
        header = Dataset()
        header.PatientName, header.PatientID = image.get("PatientName", ""), image.get("PatientID", "")
        new = NewInstance(
            sop_instance_uid=image.SOPInstanceUID, sop_class_uid=image.SOPClassUID,
            series_uid=image.SeriesInstanceUID, study_uid=image.StudyInstanceUID,
            transfer_syntax_uid=ExplicitVRLittleEndian, path=str(path), size=1, digest="d", association_id="a",
            calling_ae="CT1", facts={}, header=header.to_json_dict(),
        )  # fmt: skip
        with node.database.write() as tx:
            assert instances.add(tx, new) is None


def concluded(node: Node, result: StudyResult, *destinations: str) -> None:
    """The study is pronounced whole, read, and its report is due at every destination."""
    follow = [NewDelivery(kind=DeliveryKind.SR, destination=name) for name in destinations]
    with node.database.write() as tx:
        seen = [i.sop_instance_uid for i in instances.unconsidered(tx, STUDY_UID)]
        whole = {"complete": True, "reason": "whole", "missing": []}
        assert studies.pronounce(tx, study_uid=STUDY_UID, completeness=whole, seen=seen, model="triage")
        job = jobs.claim(tx, owner="w", lease=LEASE)
        assert job is not None
        payload = json.loads(json.dumps(result.to_json()))
        results.record(tx, job, outcome=result.outcome, payload=payload, follow=follow)


def reopened(node: Node) -> None:
    """The study is received from again, as its next revision."""
    with node.database.write() as tx:
        assert studies.reopen(tx, STUDY_UID, reason="a late slice") is not None


def of_study(node: Node) -> tuple[Delivery, ...]:
    """The deliveries of the study."""
    with node.database.read() as tx:
        return deliveries.of_study(tx, STUDY_UID)


def states(node: Node) -> list[tuple[str, int, DeliveryState]]:
    """Destination, revision and state of each delivery."""
    return [(d.destination, d.revision, d.state) for d in of_study(node)]
