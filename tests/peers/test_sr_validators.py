"""Two independent validators find no error in any kind of report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pydicom
import pytest

from inference.result import SliceReading
from tests.tools.check_sr import PEERS, PIXELMED, iod_errors, template_errors, template_errors_of
from tests.tools.reports import BRIEF, KINDS, NAMES, NOT_ANALYSED, POSITIVE, Kind, built, slices

pytestmark = pytest.mark.peer


def written(folder: Path, kinds: dict[str, Kind]) -> list[Path]:
    paths = [folder / f"{name}.dcm" for name in kinds]
    for path, kind in zip(paths, kinds.values(), strict=True):
        path.write_bytes(built(kind))
    return paths


def named(name: str) -> Kind:
    return Kind(result=NOT_ANALYSED, evidence=tuple(slices(PatientName=name)))


def test_dciodvfy_finds_no_error_in_any_kind_of_report(tmp_path: Path, peer: Callable[..., None]) -> None:
    peer("dciodvfy")
    found = {path.stem: iod_errors(path) for path in written(tmp_path, KINDS)}
    assert not any(found.values()), found


def test_dicomsrvalidator_finds_no_error_in_any_kind_of_report(tmp_path: Path, peer: Callable[..., None]) -> None:
    peer("java", PIXELMED)
    found = template_errors_of(written(tmp_path, KINDS))
    assert not any(found.values()), found


def test_no_script_of_a_name_is_an_error_to_dciodvfy(tmp_path: Path, peer: Callable[..., None]) -> None:
    peer("dciodvfy")
    # It allows a name 64 bytes, where PS3.5 table 6.2-1 allows 64 characters to each component group.
    short = [name for name in NAMES if len(name.encode()) <= 64]
    found = [iod_errors(path) for path in written(tmp_path, {str(n): named(name) for n, name in enumerate(short)})]
    assert len(short) == len(NAMES) - 1
    assert not any(found), found


def test_the_longest_name_is_no_error_to_dicomsrvalidator(tmp_path: Path, peer: Callable[..., None]) -> None:
    peer("java", PIXELMED)
    (path,) = written(tmp_path, {"long": named(max(NAMES, key=len))})
    assert template_errors(path) == []


def test_the_validators_do_find_what_is_wrong(tmp_path: Path, peer: Callable[..., None]) -> None:
    peer(*PEERS)
    (path,) = written(tmp_path, {"broken": Kind(result=NOT_ANALYSED)})
    report = pydicom.dcmread(path)
    del report.CompletionFlag
    # A procedure reported that is not in context group 100, as row 4 of TID 1500 demands.
    names = [item.ConceptNameCodeSequence[0].CodeMeaning for item in report.ContentSequence]
    report.ContentSequence[names.index("Procedure reported")].ConceptCodeSequence[0].CodeValue = "24725-4"
    report.save_as(path)
    assert iod_errors(path)
    assert template_errors(path)


def test_a_report_on_a_real_head_ct_is_valid(tmp_path: Path, head_ct: Path, peer: Callable[..., None]) -> None:
    peer(*PEERS)
    images = [pydicom.dcmread(path, stop_before_pixels=True) for path in sorted(head_ct.glob("*.dcm"))]
    uids = tuple(str(image.SOPInstanceUID) for image in images[10:13])
    real = tuple(SliceReading(sop_instance_uid=uid, position_mm=0.0, scores=BRIEF.slices[4].scores) for uid in uids)
    reading = replace(BRIEF, key_slices=uids, slices=real)
    result = replace(POSITIVE, study_uid=str(images[0].StudyInstanceUID), readings=(reading,))
    (path,) = written(tmp_path, {"real": Kind(result=result, evidence=tuple(images[10:13]))})
    assert iod_errors(path) == []
    assert template_errors(path) == []
