"""One study from files to a result, with small untrained models of both families."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.uid import UID, CTImageStorage, EnhancedCTImageStorage, ExplicitVRLittleEndian, RLELossless

from inference.combination import Combination
from inference.decoding import Stored
from inference.engine import Engine
from inference.result import Completeness, Outcome, StudyResult
from inference.series import Criteria, select
from inference.study import EncodedCache, StudyReader
from node.reading import PACKAGED
from tests.small_models import small_models
from tests.stored import stored
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


def test_a_study_read_before_another_that_fills_up_its_batch_has_the_same_numbers(
    exam: list[Stored], models: dict[str, Path], tmp_path: Path
) -> None:
    other = make_study(seed=3, spec=replace(EASY, size=128, slices=20), subtypes=("subdural",))
    following = stored(write_study(other, tmp_path / "other", maker=MAKERS["ge"], series=("axial",)))
    broken = tmp_path / "broken.dcm"
    broken.write_bytes(following[0].path.read_bytes()[:-5000])
    following[0] = replace(following[0], path=broken, digest="broken")
    alone, after = read(reader_of(models), exam), read(reader_of(models), following)
    reader = reader_of(models)
    joined = reader.read(
        study_uid=exam[0].facts.study_uid,
        revision=1,
        instances=exam,
        completeness=WHOLE,
        following=reader.to_encode(following),
    )
    assert after.outcome is Outcome.POSITIVE
    left = len(reader.to_encode(following))
    assert left < 20 - 1, "the last batch of the first study took some of the second along"
    assert joined.warnings == ()
    np.testing.assert_allclose(scores(joined), scores(alone), atol=1e-5, rtol=0)
    np.testing.assert_allclose(scores(read(reader, following)), scores(after), atol=1e-5, rtol=0)
    assert "cannot be decoded" in after.warnings[0]


BF16_MARGIN = 0.02

PEAK = """
import json, re, sys
from pathlib import Path
from pydicom import dcmread
from inference.combination import Combination
from inference.decoding import Stored
from inference.engine import Engine
from inference.result import Completeness
from inference.series import Criteria, facts
from inference.study import EncodedCache, StudyReader
engine = Engine.load({"radnet": Path(sys.argv[2])}, device="cpu", precision="fp32")
engine.warm_up()
exam = [
    Stored(facts=facts(dcmread(p, stop_before_pixels=True)), path=p, digest=p.name)
    for p in sorted(Path(sys.argv[1]).iterdir())
]
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
Path("/proc/self/clear_refs").write_text("5")  # the peak so far, the warming up's, is forgotten
before = peak()
reader = StudyReader(engine, criteria=Criteria(), combination=Combination(), cache=EncodedCache(limit=2**24))
whole = Completeness(complete=True, reason="whole")
result = reader.read(study_uid="1.2", revision=1, instances=exam, completeness=whole)
after = peak()
print(json.dumps([len(result.readings[0].slices), (after - before) / 1024]))
"""


def peak_mb(folder: Path, model: Path) -> tuple[int, float]:
    """Slices read, and by how many MiB that raised the peak of a process that did nothing else.

    Not by getrusage, whose peak a process inherits from the one that started it.
    """
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(folder), str(model)], check=True, capture_output=True, text=True, timeout=200
    )
    slices, growth = json.loads(done.stdout)
    return slices, growth


def test_two_thousand_thin_slices_take_hardly_more_memory_than_two_hundred(
    exam: list[Stored], models: dict[str, Path], tmp_path: Path
) -> None:
    (stack,) = select([i.facts for i in exam], Criteria()).stacks
    by_uid = {i.facts.sop_instance_uid: i for i in exam}
    planes = [dcmread(by_uid[uid].path) for uid in stack.sop_instance_uids]
    grown = {}
    for count in (200, 2000):
        folder = tmp_path / str(count)
        folder.mkdir()
        for i in range(count):
            image = planes[i * len(planes) // count]
            pixels = image.pixel_array.repeat(2, 0).repeat(2, 1)
            image.Rows, image.Columns = pixels.shape
            image.PixelData = pixels.tobytes()
            image.PixelSpacing = [0.9, 0.9]
            image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.{count}.{i}"
            image.InstanceNumber = i + 1
            image.SliceThickness = 160 / count
            image.ImagePositionPatient = [-115, -115, i * 160 / count]
            image.save_as(folder / f"{i:04}.dcm")
            image.PixelData, image.Rows, image.Columns = pixels[::2, ::2].tobytes(), image.Rows // 2, image.Columns // 2
        grown[count] = peak_mb(folder, models["radnet"])
    assert [slices for slices, _ in grown.values()] == [200, 2000]
    pixels_mb = 1800 * planes[0].Rows * 2 * planes[0].Columns * 2 * 2 / 2**20
    assert grown[2000][1] - grown[200][1] < pixels_mb / 4, grown


def thin_slices_in_one_file(exam: list[Stored], path: Path, *, count: int, syntax: UID) -> Dataset:
    """The exam as one Enhanced CT of so many thin slices, written to `path`."""
    (stack,) = select([i.facts for i in exam], Criteria()).stacks
    by_uid = {i.facts.sop_instance_uid: i for i in exam}
    planes = [dcmread(by_uid[uid].path) for uid in stack.sop_instance_uids]
    frames = [planes[i * len(planes) // count].pixel_array.repeat(4, 0).repeat(4, 1) for i in range(count)]
    made = planes[0]
    made.SOPClassUID = made.file_meta.MediaStorageSOPClassUID = EnhancedCTImageStorage
    made.NumberOfFrames = count
    made.Rows, made.Columns = frames[0].shape
    made.PixelSpacing, made.SliceThickness = [0.45, 0.45], 160 / count
    del made.ImagePositionPatient
    made.PerFrameFunctionalGroupsSequence = []
    for i in range(count):
        group = Dataset()
        group.PlanePositionSequence = [Dataset()]
        group.PlanePositionSequence[0].ImagePositionPatient = [-115, -115, i * 160 / count]
        made.PerFrameFunctionalGroupsSequence.append(group)
    made.PixelData = np.stack(frames).tobytes()
    if syntax.is_compressed:
        made.compress(syntax, generate_instance_uid=False)
    path.parent.mkdir()
    made.save_as(path)
    return made


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, RLELossless])
def test_many_frames_in_one_file_take_hardly_more_memory_than_few(
    exam: list[Stored], models: dict[str, Path], tmp_path: Path, syntax: UID
) -> None:
    grown = {}
    for count in (60, 600):
        made = thin_slices_in_one_file(exam, tmp_path / str(count) / "x.dcm", count=count, syntax=syntax)
        grown[count] = peak_mb(tmp_path / str(count), models["radnet"])
    assert [slices for slices, _ in grown.values()] == [60, 600]
    pixels_mb = 540 * made.Rows * made.Columns * 2 / 2**20
    assert grown[600][1] - grown[60][1] < pixels_mb / 4, grown


def test_frames_read_in_pieces_give_what_they_give_as_files_of_their_own(
    exam: list[Stored], models: dict[str, Path], tmp_path: Path
) -> None:
    count = 60
    made = thin_slices_in_one_file(exam, tmp_path / "one" / "x.dcm", count=count, syntax=ExplicitVRLittleEndian)
    (tmp_path / "many").mkdir()
    positions = [group.PlanePositionSequence[0].ImagePositionPatient for group in made.PerFrameFunctionalGroupsSequence]
    frames = made.pixel_array
    del made.PerFrameFunctionalGroupsSequence, made.NumberOfFrames
    made.SOPClassUID = made.file_meta.MediaStorageSOPClassUID = CTImageStorage
    for i in range(count):
        made.PixelData, made.ImagePositionPatient = frames[i].tobytes(), positions[i]
        made.SOPInstanceUID = made.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.{i}"
        made.save_as(tmp_path / "many" / f"{i:04}.dcm")
    reader = reader_of(models, cache_bytes=2**28)
    given = []
    for folder in ("one", "many"):
        instances = stored(sorted((tmp_path / folder).iterdir()))
        done: list[int] = []
        result = reader.read(study_uid="1.2", revision=1, instances=instances, completeness=WHOLE, progress=done.append)
        assert sum(done) == len(instances)
        assert reader.to_encode(instances) == []
        given.append(scores(result))
    assert len(given[0]) >= count
    np.testing.assert_allclose(given[0], given[1], atol=1e-6)


def test_a_file_with_a_damaged_frame_is_not_read_by_half(
    exam: list[Stored], models: dict[str, Path], tmp_path: Path
) -> None:
    path = tmp_path / "one" / "x.dcm"
    thin_slices_in_one_file(exam, path, count=60, syntax=ExplicitVRLittleEndian)
    made = dcmread(path)
    del made.PerFrameFunctionalGroupsSequence[50].PlanePositionSequence
    header = stored([path])
    made.save_as(path)
    reader = reader_of(models)
    result = read(reader, header)
    assert result.outcome is Outcome.NOT_ANALYSED
    assert "frame 51" in result.reason
    assert reader.to_encode(header) == [], "and is not tried again"


def shipped(exam: list[Stored], *, precision: str) -> StudyResult:
    """What the demonstration weights say."""
    models = {name: PACKAGED / name for name in ("demo-radnet", "demo-cnn-lstm")}
    engine = Engine.load(models, device="cpu", precision=precision, backend="auto" if precision == "bf16" else "torch")
    cache = EncodedCache(limit=2**24)
    return read(StudyReader(engine, criteria=Criteria(), combination=Combination(), cache=cache), exam)


def assert_bfloat16_changes_nothing_that_matters(exam: list[Stored]) -> None:
    """No score moves by more than the margin, and no finding flips but one as close to its threshold."""
    full, half = (shipped(exam, precision=precision) for precision in ("fp32", "bf16"))
    for a, b in zip(full.readings, half.readings, strict=True):
        for slice_a, slice_b in zip(a.slices, b.slices, strict=True):
            assert list(slice_b.scores.values()) == pytest.approx(list(slice_a.scores.values()), abs=BF16_MARGIN)
        assert (a.precision, b.precision) == ("fp32", "bf16")
        for found, again in zip(a.findings, b.findings, strict=True):
            assert found.present == again.present or abs(found.score - found.threshold) <= BF16_MARGIN


def test_bfloat16_reads_a_phantom_as_full_precision_does(exam: list[Stored]) -> None:
    assert_bfloat16_changes_nothing_that_matters(exam)


def test_bfloat16_reads_the_real_head_as_full_precision_does(head_ct: Path) -> None:
    assert_bfloat16_changes_nothing_that_matters(stored(sorted(head_ct.glob("*.dcm"))))
