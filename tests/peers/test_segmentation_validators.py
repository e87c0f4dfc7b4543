"""An independent validator finds no error in a segmentation, nor in the report with the volume that goes with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
from highdicom.seg import Segmentation
from pydicom.dataset import Dataset

from inference.result import StudyResult, Volume
from node.report.segmentation import Outline, Plane, build
from node.report.sr import to_bytes
from tests.tools.check_sr import PEERS, PIXELMED, iod_errors, template_errors
from tests.tools.reports import BRIEF, DEVICE, MADE_AT, POSITIVE, Kind, an_enhanced_series, built, slices

pytestmark = pytest.mark.peer
RESULT = replace(POSITIVE, readings=(BRIEF, replace(BRIEF, name="radnet")))


def written(path: Path, planes: Sequence[Plane], *, side: int, result: StudyResult = RESULT) -> Path:
    marked = np.zeros((len(planes), side, side), bool)
    marked[4:7, side // 4 : side // 2, side // 4 : side // 2] = True
    outlines = [Outline(reading=reading, marked=marked) for reading in result.readings]
    path.write_bytes(to_bytes(build(result, outlines, planes=planes, made_at=MADE_AT, device=DEVICE)))
    return path


@pytest.mark.parametrize("thickness", ["5", ""])
def test_dciodvfy_finds_no_error_in_a_segmentation_of_slices(
    tmp_path: Path, peer: Callable[..., None], thickness: str
) -> None:
    peer("dciodvfy")
    images = slices(Rows=32, Columns=32, SliceThickness=thickness)
    assert iod_errors(written(tmp_path / "seg.dcm", [Plane(image=image) for image in images], side=32)) == []


def test_dciodvfy_finds_no_error_in_a_segmentation_of_a_multi_frame_image(
    tmp_path: Path, peer: Callable[..., None]
) -> None:
    peer("dciodvfy")
    image = an_enhanced_series(side=32)
    framed = [Plane(image=image, frame=number) for number in range(1, 13)]
    assert iod_errors(written(tmp_path / "seg.dcm", framed, side=32)) == []


def test_the_report_with_a_volume_is_valid(tmp_path: Path, peer: Callable[..., None]) -> None:
    peer("dciodvfy", "java", PIXELMED)
    reading = replace(BRIEF, volume=Volume(ml=12.34, low_ml=8.0, high_ml=20.5))
    path = tmp_path / "sr.dcm"
    path.write_bytes(built(Kind(result=replace(POSITIVE, readings=(reading,)))))
    assert iod_errors(path) == []
    assert template_errors(path) == []


def test_a_segmentation_of_a_real_head_is_valid_and_read_back(
    tmp_path: Path, head_ct: Path, peer: Callable[..., None]
) -> None:
    peer(*PEERS[:1])
    images: list[Dataset] = [pydicom.dcmread(path, stop_before_pixels=True) for path in sorted(head_ct.glob("*.dcm"))]
    study_uid, series_uid = str(images[-1].StudyInstanceUID), images[-1].SeriesInstanceUID
    planes = [Plane(image=image) for image in images if image.SeriesInstanceUID == series_uid]
    result = replace(RESULT, study_uid=study_uid, readings=(BRIEF,))
    path = written(tmp_path / "seg.dcm", planes, side=int(planes[0].image.Rows), result=result)
    assert iod_errors(path) == []
    assert Segmentation.from_dataset(pydicom.dcmread(path)).NumberOfFrames == 3
