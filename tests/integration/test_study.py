"""One study from files to a result, with small untrained models of both families."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread

from inference.combination import Combination
from inference.engine import Engine
from inference.result import Completeness, Outcome, StudyResult
from inference.series import Criteria, facts, select
from inference.study import EncodedCache, Stored, StudyReader
from tests.small_models import small_models
from training.sources.phantom import EASY, MAKERS, make_study, write_study

WHOLE = Completeness(complete=True, reason="whole")


@pytest.fixture(scope="module")
def exam(tmp_path_factory: pytest.TempPathFactory) -> list[Stored]:
    study = make_study(seed=3, spec=replace(EASY, size=128, slices=20), subtypes=("intraparenchymal",))
    folder = tmp_path_factory.mktemp("exam")
    return stored(write_study(study, folder, maker=MAKERS["ge"], series=("localizer", "axial", "bone", "coronal")))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return small_models(tmp_path_factory.mktemp("models"), threshold=0.0)


def stored(paths: Iterable[Path]) -> list[Stored]:
    return [
        Stored(
            facts=facts(dcmread(path, stop_before_pixels=True)),
            path=path,
            digest=hashlib.sha256(path.read_bytes()).hexdigest(),
        )
        for path in paths
    ]


def reader_of(models: dict[str, Path], *, cache_bytes: int = 2**24) -> StudyReader:
    engine = Engine.load(models, device="cpu", precision="fp32")
    cache = EncodedCache(limit=cache_bytes)
    return StudyReader(engine, criteria=Criteria(), combination=Combination(), cache=cache)


def read(reader: StudyReader, exam: list[Stored]) -> StudyResult:
    return reader.read(study_uid=exam[0].facts.study_uid, revision=1, instances=exam, completeness=WHOLE)


def scores(result: StudyResult) -> list[float]:
    return [s for reading in result.readings for piece in reading.slices for s in piece.scores.values()]


def test_the_axial_series_is_read_and_every_other_one_has_its_reason(
    exam: list[Stored], models: dict[str, Path]
) -> None:
    result = read(reader_of(models), exam)
    assert result.outcome is Outcome.POSITIVE
    assert {reading.name for reading in result.readings} == {"radnet", "cnn-lstm"}
    assert {choice.code for choice in result.series} == {"chosen", "localizer", "sharp_kernel", "not_axial"}
    assert len(result.readings[0].slices) == 20


def test_slices_encoded_while_they_arrive_give_the_same_numbers(exam: list[Stored], models: dict[str, Path]) -> None:
    at_once = read(reader_of(models), exam)
    reader = reader_of(models)
    for count in range(1, len(exam) + 1):
        reader.encode_arrivals(exam[:count], limit=4)
    while reader.encode_arrivals(exam, limit=4):
        pass
    early = read(reader, exam)
    np.testing.assert_allclose(scores(early), scores(at_once), atol=1e-5, rtol=0)
    assert early.timings_ms["encode"] < at_once.timings_ms["encode"]


def test_a_cache_smaller_than_the_study_changes_nothing(exam: list[Stored], models: dict[str, Path]) -> None:
    small = read(reader_of(models, cache_bytes=1), exam)
    assert scores(small) == pytest.approx(scores(read(reader_of(models), exam)), abs=1e-5)


def test_a_damaged_image_is_named_and_the_rest_is_read(
    exam: list[Stored], models: dict[str, Path], tmp_path: Path
) -> None:
    (stack,) = select([instance.facts for instance in exam], Criteria()).stacks
    middle = stack.sop_instance_uids[len(stack.planes) // 2]
    victim = next(instance for instance in exam if instance.facts.sop_instance_uid == middle)
    damaged = tmp_path / "damaged.dcm"
    damaged.write_bytes(victim.path.read_bytes()[:-5000])
    broken = [replace(i, path=damaged, digest="damaged") if i is victim else i for i in exam]
    reader = reader_of(models)
    result = read(reader, broken)
    assert result.outcome is Outcome.POSITIVE
    assert not result.completeness.complete
    assert f"image {victim.facts.instance_number} cannot be decoded" in result.warnings[0]
    assert reader.encode_arrivals(broken, limit=100) == 0, "an undecodable image is not tried again and again"


def test_a_study_of_damaged_images_is_not_analysed(exam: list[Stored], models: dict[str, Path], tmp_path: Path) -> None:
    broken = []
    for number, instance in enumerate(exam):
        path = tmp_path / f"{number}.dcm"
        path.write_bytes(instance.path.read_bytes()[:-5000])
        broken.append(replace(instance, path=path, digest=str(number)))
    result = read(reader_of(models), broken)
    assert result.outcome is Outcome.NOT_ANALYSED
    assert "cannot be decoded" in result.reason


def test_a_study_that_is_not_a_head_is_not_analysed(
    exam: list[Stored], models: dict[str, Path], tmp_path: Path
) -> None:
    water = []
    for number, instance in enumerate(exam):
        image = dcmread(instance.path)
        image.PixelData = np.full((image.Rows, image.Columns), image.get("PixelPaddingValue", 0), np.int16).tobytes()
        image.save_as(tmp_path / f"{number}.dcm")
        water.append(replace(instance, path=tmp_path / f"{number}.dcm", digest=f"water {number}"))
    result = read(reader_of(models), water)
    assert result.outcome is Outcome.NOT_ANALYSED
    assert "not_a_head" in {choice.code for choice in result.series}


def test_a_localizer_alone_is_not_analysed_and_says_why(exam: list[Stored], models: dict[str, Path]) -> None:
    localizer = [instance for instance in exam if "LOCALIZER" in instance.facts.image_type]
    result = read(reader_of(models), localizer)
    assert result.outcome is Outcome.NOT_ANALYSED
    assert "localizer" in result.reason
    assert result.readings == ()


def test_the_real_head_is_read(head_ct: Path, models: dict[str, Path]) -> None:
    exam = stored(sorted(head_ct.glob("*.dcm")))
    result = read(reader_of(models), exam)
    assert result.outcome is Outcome.POSITIVE
    assert [choice.code for choice in result.series if choice.chosen] == ["chosen"]
    assert len(result.readings[0].slices) == 28
