"""A study that comes by STOW-RS to the real commands is read and flagged, and its report is found over DICOMweb."""

from __future__ import annotations

from pathlib import Path

import httpx
from dicomweb_client.api import DICOMwebClient
from pydicom import dcmread

from db.dicom_json import tag_of
from tests.running_node import free_port, running_node
from tests.scanner import Exams


def test_a_study_stored_over_dicomweb_is_flagged_and_its_report_is_filed(
    tmp_path: Path, finding_everything: dict[str, Path], exams: Exams
) -> None:
    port = free_port()
    with running_node(tmp_path, models=finding_everything, changes={"web": {"port": port}}) as node:
        exam = exams.new("axial")
        client = DICOMwebClient(url=f"http://127.0.0.1:{port}/dicom-web")
        told = client.store_instances([dcmread(path) for path in exam.files], exam.study_uid)
        assert len(told.ReferencedSOPSequence) == len(exam.files)
        node.ended(exam.study_uid)
        (item,) = httpx.get(f"{client.base_url}/workitems", params={"StudyInstanceUID": exam.study_uid}).json()
        assert item[tag_of("ScheduledProcedureStepPriority")]["Value"] == ["HIGH"]
        kept = client.retrieve_study(exam.study_uid, media_types=(("application/dicom", "*"),))
        assert {str(image.SOPInstanceUID) for image in kept} >= {
            str(dcmread(path, stop_before_pixels=True).SOPInstanceUID) for path in exam.files
        }
        assert {part["name"] for part in node.status()["parts"]} >= {"web"}
