"""Hounsfield units from every pixel habit and transfer syntax, and what refuses to become any."""

from __future__ import annotations

import math
import os
import random
import shutil
import subprocess
import tracemalloc
from pathlib import Path
from typing import Any

import gdcm
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from inference.attention import StoredSlices
from inference.errors import UnreadablePixels, WrappedPixels
from inference.series import facts, stacks
from inference.volume import LEFT_IN_FILE, Slice, each_slice, order, read_slices, slices_of

REAL = Path(os.environ.get("HEMONODE_HEAD_CT", Path(__file__).parents[3] / "shared" / "data" / "head_ct_ge"))
real_scan = pytest.mark.skipif(not REAL.is_dir(), reason="the real head CT is not on this machine")

CT = "1.2.840.10008.5.1.4.1.1.2"
ROWS, COLUMNS = 64, 48


def truth() -> NDArray[np.int32]:
    """A small picture in Hounsfield units: air, a ring of bone, brain, and the corners outside the scan."""
    y, x = np.mgrid[:ROWS, :COLUMNS]
    radius = np.hypot((y - 31.5) / 1.3, x - 23.5)
    picture = np.where(radius < 20, 1200, -1000)
    picture = np.where(radius < 17, 10 + (x + y) % 40, picture)
    return picture.astype(np.int32)


def corners() -> NDArray[np.bool_]:
    y, x = np.mgrid[:ROWS, :COLUMNS]
    return np.asarray(np.hypot(y - 31.5, x - 23.5) > 34)


def dataset(
    words: NDArray[Any],
    *,
    stored: int = 16,
    signed: bool = False,
    intercept: str | None = "-1024",
    slope: str | None = "1",
) -> Dataset:
    """A CT image whose 16-bit words are given."""
    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.file_meta.MediaStorageSOPClassUID = UID(CT)
    made.file_meta.MediaStorageSOPInstanceUID = UID("1.2.3.4")
    made.SOPClassUID, made.SOPInstanceUID, made.Modality = CT, "1.2.3.4", "CT"
    made.InstanceNumber = 7
    made.ImagePositionPatient, made.ImageOrientationPatient = [-10, -20, 30], [1, 0, 0, 0, 1, 0]
    made.PixelSpacing, made.SliceThickness = [0.5, 0.25], "5"
    made.SamplesPerPixel, made.PhotometricInterpretation = 1, "MONOCHROME2"
    made.Rows, made.Columns = words.shape[-2:]
    made.BitsAllocated, made.BitsStored, made.HighBit, made.PixelRepresentation = 16, stored, stored - 1, int(signed)
    if intercept is not None:
        made.RescaleIntercept = intercept
    if slope is not None:
        made.RescaleSlope = slope
    made.PixelData = (words.astype(np.int64) & 0xFFFF).astype("<u2").tobytes()
    return made


def hu(made: Dataset, **options: Any) -> NDArray[np.int16]:
    (only,) = slices_of(made, **options)
    assert only.hu.dtype == np.int16
    return only.hu


def written(made: Dataset, path: Path) -> Path:
    pydicom.dcmwrite(path, made, enforce_file_format=True)
    return path


# Habits of makers


def test_a_slice_carries_its_place_and_size() -> None:
    (only,) = slices_of(dataset(truth() + 1024, stored=12))
    assert (only.sop_instance_uid, only.frame, only.instance_number) == ("1.2.3.4", None, 7)
    assert only.position == (-10.0, -20.0, 30.0)
    assert only.orientation == (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
    assert only.pixel_spacing == (0.5, 0.25)
    assert only.thickness == 5.0
    assert only.hu.shape == (ROWS, COLUMNS)


@pytest.mark.parametrize(
    ("stored", "signed", "intercept"),
    [
        (12, False, "-1024"),
        (16, False, "-1024"),
        (16, False, "-8192"),
        (16, True, "0"),
        (12, True, "0"),
        (16, True, "-1024"),
        (13, False, "-1000"),
    ],
)
def test_plain_values_become_hounsfield_units(stored: int, signed: bool, intercept: str) -> None:
    words = truth() - int(intercept)
    np.testing.assert_array_equal(hu(dataset(words, stored=stored, signed=signed, intercept=intercept)), truth())


@pytest.mark.parametrize("padding", [-2000, -1500, -2048, -3024, -32768])
@pytest.mark.parametrize("tagged", [True, False])
def test_padding_becomes_air_tagged_or_not(padding: int, tagged: bool) -> None:
    made = dataset(np.where(corners(), padding, truth()), signed=True, intercept="0")
    if tagged:
        made.add_new("PixelPaddingValue", "SS", padding)
    np.testing.assert_array_equal(hu(made), np.where(corners(), -1024, truth()))


@pytest.mark.parametrize("padding", [-2000, -1500, -2048])
@pytest.mark.parametrize("tagged", ["SS", "US", None])
def test_negative_padding_in_unsigned_words_becomes_air(padding: int, tagged: str | None) -> None:
    made = dataset(np.where(corners(), padding, truth() + 1024))
    if tagged:
        made.add_new("PixelPaddingValue", tagged, padding if tagged == "SS" else padding & 0xFFFF)
    np.testing.assert_array_equal(hu(made), np.where(corners(), -1024, truth()))


def test_tagged_padding_that_does_not_fit_into_bits_stored_becomes_air() -> None:
    made = dataset(np.where(corners(), -2000, truth() + 1024), stored=12)
    made.add_new("PixelPaddingValue", "US", 63536)
    np.testing.assert_array_equal(hu(made), np.where(corners(), -1024, truth()))


def test_a_range_of_padding_values_becomes_air() -> None:
    ramp = np.where(corners(), 3500 + np.arange(COLUMNS)[None, :], truth() + 1024)
    made = dataset(ramp, intercept="-1024")
    made.add_new("PixelPaddingValue", "US", 4000)
    made.add_new("PixelPaddingRangeLimit", "US", 3500)
    # 3500 − 1024 is bone as well, so it counts only outside the scanned circle.
    (only,) = slices_of(made)
    y, x = np.mgrid[:ROWS, :COLUMNS]
    outside = np.hypot(y - 31.5, x - 23.5) > 24
    np.testing.assert_array_equal(only.hu[corners() & outside], -1024)
    np.testing.assert_array_equal(only.hu[~corners()], truth()[~corners()])


def test_a_padding_value_of_zero_does_not_turn_cerebrospinal_fluid_into_air() -> None:
    picture = truth()
    picture[30:34, 20:24] = 0
    made = dataset(np.where(corners(), 0, picture), signed=True, intercept="0")
    made.add_new("PixelPaddingValue", "SS", 0)
    np.testing.assert_array_equal(hu(made), np.where(corners(), -1024, picture))


@pytest.mark.parametrize(
    ("slope", "intercept"), [("0.5", "-1024"), ("2", "-1024"), ("0.25", "-1000.5"), ("1.00001", "-1024")]
)
def test_any_slope_is_applied_and_rounded(slope: str, intercept: str) -> None:
    words = np.rint((truth() - float(intercept)) / float(slope)).astype(np.int32)
    expected = np.rint(words * float(slope) + float(intercept))
    np.testing.assert_array_equal(hu(dataset(words, slope=slope, intercept=intercept)), expected)


def test_signed_values_without_rescale_are_hounsfield_units() -> None:
    np.testing.assert_array_equal(hu(dataset(truth(), signed=True, intercept=None, slope=None)), truth())


def test_an_intercept_without_a_slope_has_slope_one() -> None:
    np.testing.assert_array_equal(hu(dataset(truth() + 1024, slope=None)), truth())


@pytest.mark.parametrize("signed", [True, False])
def test_garbage_above_bits_stored_is_dropped(signed: bool) -> None:
    offset = 0 if signed else 1024
    rng = np.random.default_rng(1)
    words = ((truth() + offset) & 0x0FFF) | (rng.integers(0, 16, truth().shape) << 12)
    made = dataset(words, stored=12, signed=signed, intercept=str(-offset))
    np.testing.assert_array_equal(hu(made), truth())


def test_values_in_the_high_bits_are_shifted_down() -> None:
    made = dataset((truth() + 1024) << 4 | 0x3, stored=12)
    made.HighBit = 15
    np.testing.assert_array_equal(hu(made), truth())


def test_values_beyond_sixteen_bits_are_clipped_not_wrapped() -> None:
    words = np.full((ROWS, COLUMNS), 60000)
    words[0, 0] = 0
    clipped = hu(dataset(words, slope="4", intercept="-5000"))
    assert (clipped[0, 0], clipped[1, 1]) == (-1024, 32767)


def test_inverted_display_changes_no_value() -> None:
    made = dataset(truth() + 1024)
    made.PhotometricInterpretation = "MONOCHROME1"
    np.testing.assert_array_equal(hu(made), truth())


@pytest.mark.parametrize("allocated", [8, 32])
def test_other_word_sizes_are_read(allocated: int) -> None:
    picture = np.clip(truth(), -100, 100) if allocated == 8 else truth()
    made = dataset(picture, signed=True, intercept="0")
    made.BitsAllocated = made.BitsStored = allocated
    made.HighBit = allocated - 1
    made.PixelData = picture.astype(f"<i{allocated // 8}").tobytes()
    np.testing.assert_array_equal(hu(made), picture)


# Wrapped values


def wrapped(picture: NDArray[np.int32]) -> NDArray[np.int32]:
    return np.where(picture < 0, picture + 4096, picture)


@pytest.mark.parametrize("intercept", ["0", "1", "-99"])
def test_wrapped_twelve_bit_values_are_refused(intercept: str) -> None:
    with pytest.raises(WrappedPixels, match="wrapped around"):
        slices_of(dataset(wrapped(truth()), stored=12, intercept=intercept))


def test_wrapped_twelve_bit_values_are_repaired_when_asked_to() -> None:
    made = dataset(wrapped(truth()), stored=12, intercept="0")
    np.testing.assert_array_equal(hu(made, repair_wrapped=True), truth())


def test_wrapped_sixteen_bit_values_are_refused_and_repaired_when_asked_to() -> None:
    made = dataset(truth(), stored=16, signed=False, intercept="0")
    with pytest.raises(WrappedPixels, match="wrapped around"):
        slices_of(made)
    np.testing.assert_array_equal(hu(made, repair_wrapped=True), truth())


def test_an_image_with_its_proper_intercept_is_not_touched_by_the_repair() -> None:
    np.testing.assert_array_equal(hu(dataset(truth() + 1024, stored=12), repair_wrapped=True), truth())


# Transfer syntaxes


HABITS = {
    "unsigned 12": {"stored": 12, "signed": False, "intercept": "-1024"},
    "unsigned 16": {"stored": 16, "signed": False, "intercept": "-1024"},
    "signed 16": {"stored": 16, "signed": True, "intercept": "0"},
    "signed 12": {"stored": 12, "signed": True, "intercept": "0"},
    "signed 13": {"stored": 13, "signed": True, "intercept": "0"},
}
habits = pytest.mark.parametrize("habit", HABITS.values(), ids=HABITS.keys())


def of_habit(habit: dict[str, Any]) -> Dataset:
    return dataset(truth() - int(habit["intercept"]), **habit)


@habits
@pytest.mark.parametrize(
    "syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian]
)
def test_uncompressed_transfer_syntaxes_are_read(habit: dict[str, Any], syntax: UID, tmp_path: Path) -> None:
    made = of_habit(habit)
    made.file_meta.TransferSyntaxUID = syntax
    if syntax == ExplicitVRBigEndian:
        made.PixelData = np.frombuffer(made.PixelData, "<u2").astype(">u2").tobytes()
    made["PixelData"].VR = "OW"
    (only,) = read_slices(written(made, tmp_path / "x.dcm"))
    np.testing.assert_array_equal(only.hu, truth())


@habits
@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless, JPEG2000Lossless])
def test_compressed_transfer_syntaxes_are_read(habit: dict[str, Any], syntax: UID, tmp_path: Path) -> None:
    made = of_habit(habit)
    made.compress(syntax)
    (only,) = read_slices(written(made, tmp_path / "x.dcm"))
    np.testing.assert_array_equal(only.hu, truth())


@habits
@pytest.mark.parametrize(
    "syntax", ["JPEGLosslessProcess14_1", "JPEGLosslessProcess14", "JPEG2000Lossless", "RLELossless"]
)
def test_what_gdcm_compresses_is_read(habit: dict[str, Any], syntax: str, tmp_path: Path) -> None:
    source, target = written(of_habit(habit), tmp_path / "x.dcm"), tmp_path / "y.dcm"
    reader = gdcm.ImageReader()
    reader.SetFileName(str(source))
    assert reader.Read()
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, syntax)))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer = gdcm.ImageWriter()
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    writer.SetFileName(str(target))
    assert writer.Write()
    (only,) = read_slices(target)
    np.testing.assert_array_equal(only.hu, truth())


@pytest.mark.peer
@habits
@pytest.mark.parametrize("command", [["dcmcjpeg", "+e1"], ["dcmcjpeg", "+el"], ["dcmcjpls", "+el"], ["dcmcrle"]])
def test_what_dcmtk_compresses_is_read(habit: dict[str, Any], command: list[str], tmp_path: Path) -> None:
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    source, target = written(of_habit(habit), tmp_path / "x.dcm"), tmp_path / "y.dcm"
    subprocess.run([*command, str(source), str(target)], check=True, timeout=60)
    (only,) = read_slices(target)
    np.testing.assert_array_equal(only.hu, truth())


def test_signed_padding_survives_lossless_jpeg(tmp_path: Path) -> None:
    made = dataset(np.where(corners(), -2000, truth()), signed=True, intercept="0")
    made.compress(JPEGLSLossless)
    (only,) = read_slices(written(made, tmp_path / "x.dcm"))
    np.testing.assert_array_equal(only.hu, np.where(corners(), -1024, truth()))


# Enhanced CT


def test_each_frame_of_an_enhanced_ct_has_its_own_rescale_and_place(tmp_path: Path) -> None:
    intercepts = [-1024, -1000, -1100]
    made = dataset(np.stack([truth() - intercept for intercept in intercepts]), intercept=None, slope=None)
    made.SOPClassUID = "1.2.840.10008.5.1.4.1.1.2.1"
    made.NumberOfFrames = 3
    made.PerFrameFunctionalGroupsSequence = []
    for i, intercept in enumerate(intercepts):
        group = Dataset()
        group.PixelValueTransformationSequence = [Dataset()]
        group.PixelValueTransformationSequence[0].RescaleIntercept = str(intercept)
        group.PixelValueTransformationSequence[0].RescaleSlope = "1"
        group.PixelValueTransformationSequence[0].RescaleType = "HU"
        group.PlanePositionSequence = [Dataset()]
        group.PlanePositionSequence[0].ImagePositionPatient = [-10, -20, 5.0 * i]
        made.PerFrameFunctionalGroupsSequence.append(group)
    slices = read_slices(written(made, tmp_path / "x.dcm"))
    assert [s.frame for s in slices] == [1, 2, 3]
    assert [s.position[2] for s in slices] == [0.0, 5.0, 10.0]
    for one in slices:
        np.testing.assert_array_equal(one.hu, truth())


def test_compressed_frames_are_decoded_one_by_one(tmp_path: Path) -> None:
    made = dataset(np.stack([truth() + 1024 + i for i in range(4)]))
    made.NumberOfFrames = 4
    made.compress(RLELossless)
    slices = read_slices(written(made, tmp_path / "x.dcm"))
    for i, one in enumerate(slices):
        np.testing.assert_array_equal(one.hu, np.clip(truth() + i, -1024, None))


def many_frames(count: int, *, shape: tuple[int, int] = (256, 256), feet_first: bool = True) -> Dataset:
    """An Enhanced CT of noise, so that no compression makes it small."""
    noise = np.random.default_rng(0).integers(0, 4096, (count, *shape))
    made = dataset(noise, stored=12)
    made.SOPClassUID = made.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2.1"
    made.NumberOfFrames = count
    made.PerFrameFunctionalGroupsSequence = []
    for i in range(count):
        group = Dataset()
        group.PlanePositionSequence = [Dataset()]
        group.PlanePositionSequence[0].ImagePositionPatient = [-10, -20, (1 if feet_first else -1) * 0.5 * i]
        made.PerFrameFunctionalGroupsSequence.append(group)
    return made


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, JPEG2000Lossless, RLELossless])
def test_of_a_file_with_many_frames_memory_holds_one_at_a_time(syntax: UID, tmp_path: Path) -> None:
    frames = 120
    made = many_frames(frames)
    expected = [piece.hu for piece in slices_of(made)]
    if syntax.is_compressed:
        made.compress(syntax)
    path = written(made, tmp_path / "x.dcm")
    assert path.stat().st_size > LEFT_IN_FILE
    tracemalloc.start()
    try:
        for i, piece in enumerate(each_slice(path)):
            assert piece.frame == i + 1
            np.testing.assert_array_equal(piece.hu, expected[i])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert i == frames - 1
    assert peak < path.stat().st_size / 3, "the file itself is not held either"
    some = list(each_slice(path, only=[3, 119]))
    assert [piece.frame for piece in some] == [3, 119]
    for piece in some:
        assert piece.frame is not None
        np.testing.assert_array_equal(piece.hu, expected[piece.frame - 1])


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, RLELossless, DeflatedExplicitVRLittleEndian])
@pytest.mark.filterwarnings("ignore")  # pydicom warns of what it cannot make sense of
def test_a_file_cut_off_among_its_frames_is_refused(syntax: UID, tmp_path: Path) -> None:
    made = many_frames(120)
    if syntax == RLELossless:
        made.compress(syntax)
    made.file_meta.TransferSyntaxUID = syntax
    whole = written(made, tmp_path / "x.dcm").read_bytes()
    assert len(read_slices(tmp_path / "x.dcm")) == 120
    (tmp_path / "y.dcm").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UnreadablePixels):
        read_slices(tmp_path / "y.dcm")


def test_a_stack_is_gone_through_from_feet_to_head_also_where_its_file_begins_with_the_head(tmp_path: Path) -> None:
    made = many_frames(40, shape=(8, 8), feet_first=False)
    made.StudyInstanceUID, made.SeriesInstanceUID = "1.2", "1.2.1"
    made.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL", "NONE"]
    path = written(made, tmp_path / "x.dcm")
    (stack,) = stacks([facts(made)])
    found = list(StoredSlices(stack, {"1.2.3.4": path}))
    assert [piece.frame for piece in found] == list(range(40, 0, -1))
    for piece, expected in zip(found, reversed(slices_of(made)), strict=True):
        np.testing.assert_array_equal(piece.hu, expected.hu)


# What cannot be read


def broken(**changes: Any) -> Dataset:
    made = dataset(truth() + 1024)
    for keyword, value in changes.items():
        if value is None:
            delattr(made, keyword)
        else:
            setattr(made, keyword, value)
    return made


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"PixelData": b"\0" * 100}, "short pixel data: 100 bytes where 6144 are needed"),
        ({"PixelData": None}, "holds no pixels"),
        ({"Rows": None}, "holds no pixels"),
        ({"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"}, "colour image"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "colour image"),
        ({"BitsAllocated": 12}, "cannot be read"),
        ({"RescaleSlope": "0"}, "Rescale Slope is zero"),
        ({"RescaleIntercept": None}, "without Rescale Intercept"),
        ({"RescaleType": "Z_EFF"}, "not Hounsfield units"),
        ({"PixelSpacing": None}, "Pixel Spacing"),
        ({"ImagePositionPatient": None}, "Image Position"),
        ({"ImageOrientationPatient": None}, "Image Orientation"),
    ],
)
def test_what_cannot_become_hounsfield_units_is_refused_with_a_sentence(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UnreadablePixels, match=sentence):
        slices_of(broken(**changes))


def test_a_modality_lookup_table_is_refused() -> None:
    made = dataset(truth() + 1024)
    made.ModalityLUTSequence = [Dataset()]
    with pytest.raises(UnreadablePixels, match="Modality LUT"):
        slices_of(made)


def test_unknown_and_video_transfer_syntaxes_are_refused() -> None:
    for syntax in ("1.2.840.10008.1.2.4.102", "1.2.3.4.5"):
        made = dataset(truth() + 1024)
        made.file_meta.TransferSyntaxUID = UID(syntax)
        with pytest.raises(UnreadablePixels, match="transfer syntax"):
            slices_of(made)


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless, JPEG2000Lossless])
@pytest.mark.parametrize("cut", [0.1, 0.5])
@pytest.mark.filterwarnings("ignore")  # decoders warn before they fail
def test_cut_off_compressed_pixels_are_refused(syntax: UID, cut: float) -> None:
    made = dataset(truth() + 1024)
    made.compress(syntax)
    frame = next(pydicom.encaps.generate_frames(made.PixelData, number_of_frames=1))
    made.PixelData = pydicom.encaps.encapsulate([frame[: int(len(frame) * cut)]])
    with pytest.raises(UnreadablePixels, match="cannot be decoded"):
        slices_of(made)


def test_a_panic_inside_the_decoder_is_a_refusal() -> None:
    made = dataset(truth() + 1024)
    made.compress(RLELossless)
    frame = bytearray(next(pydicom.encaps.generate_frames(made.PixelData, number_of_frames=1)))
    frame[80:200] = b"\x7f" * 120  # literal runs that reach beyond the segment
    made.PixelData = pydicom.encaps.encapsulate([bytes(frame)])
    with pytest.raises(UnreadablePixels, match="cannot be decoded"):
        slices_of(made)


@pytest.mark.parametrize("content", [b"", b"hello", b"\0" * 128 + b"DICM", b"\0" * 200, os.urandom(4000)])
@pytest.mark.filterwarnings("ignore")  # pydicom warns of what it cannot make sense of
def test_a_file_that_is_no_dicom_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.dcm"
    path.write_bytes(content)
    with pytest.raises(UnreadablePixels):
        read_slices(path)
    with pytest.raises(UnreadablePixels, match="cannot be read"):
        read_slices(tmp_path / "absent.dcm")


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.filterwarnings("ignore")  # pydicom warns of what it cannot make sense of
def test_a_damaged_file_is_read_or_refused_but_never_breaks_the_reader(seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    content = bytearray(written(dataset(truth() + 1024, stored=12), tmp_path / "x.dcm").read_bytes())
    for _ in range(20):
        content[rng.randrange(132, 900)] = rng.randrange(256)
    (tmp_path / "y.dcm").write_bytes(bytes(content[: rng.randrange(200, len(content))]))
    try:
        assert all(one.hu.dtype == np.int16 for one in read_slices(tmp_path / "y.dcm"))
    except UnreadablePixels as refused:
        assert str(refused)  # noqa: PT017 - either end is right, a third is not


# Stacks


def one(z: float, *, number: int | None = None, tilt: float = 0.0, rows: int = 4) -> Slice:
    cosine, sine = math.cos(math.radians(tilt)), math.sin(math.radians(tilt))
    return Slice(
        sop_instance_uid=f"1.{z}.{number}",
        instance_number=number,
        hu=np.full((rows, 4), round(z), np.int16),
        position=(0.0, 0.0, z),
        orientation=(1.0, 0.0, 0.0, 0.0, cosine, -sine),
        pixel_spacing=(0.5, 0.5),
        thickness=5.0,
    )


def test_slices_are_stacked_from_feet_to_head_with_one_for_each_position() -> None:
    volume = order([one(10), one(0), one(5, number=1), one(15), one(5, number=9)])
    assert [s.position[2] for s in volume.slices] == [0, 5, 10, 15]
    assert volume.slices[1].instance_number == 9
    assert volume.positions_mm == (0.0, 5.0, 10.0, 15.0)
    assert volume.stacked().shape == (4, 4, 4)
    assert volume.stacked()[:, 0, 0].tolist() == [0, 5, 10, 15]
    assert volume.geometry.whole


def test_slices_of_two_sizes_cannot_be_one_array() -> None:
    volume = order([one(0), one(5), one(10, rows=8)])
    with pytest.raises(UnreadablePixels, match="different numbers of rows"):
        volume.stacked()


def test_no_slices_are_an_empty_volume() -> None:
    assert order([]).stacked().shape == (0, 0, 0)


# Files of others


@pytest.mark.parametrize("name", ["CT_small.dcm", "MR_small.dcm"])
def test_a_bundled_file_has_the_values_pydicom_decodes(name: str) -> None:
    path = get_testdata_file(name, download=False)
    assert path is not None
    reference = pydicom.dcmread(str(path))
    if "RescaleIntercept" not in reference:
        reference.RescaleIntercept, reference.RescaleSlope = "0", "1"
    expected = reference.pixel_array.astype(np.float64) * reference.RescaleSlope + reference.RescaleIntercept
    (only,) = slices_of(reference)
    np.testing.assert_array_equal(only.hu, np.clip(expected, -1024, 32767))


@pytest.mark.parametrize(
    "name",
    [
        "MR_small_RLE.dcm",
        "MR_small_jp2klossless.dcm",
        "MR_small_jpeg_ls_lossless.dcm",
        "MR_small_bigendian.dcm",
        "MR_small_implicit.dcm",
        "MR_small_expb.dcm",
        "MR_small_padded.dcm",
    ],
)
def test_bundled_files_of_one_image_are_the_same_in_every_transfer_syntax(name: str) -> None:
    plain, other = get_testdata_file("MR_small.dcm", download=False), get_testdata_file(name, download=False)
    assert plain is not None
    assert other is not None
    (expected,), (found,) = read_slices(str(plain)), read_slices(str(other))
    np.testing.assert_array_equal(found.hu, expected.hu)


@real_scan
def test_the_real_scan_has_hounsfield_units() -> None:
    volume = order([s for path in sorted(REAL.glob("*.dcm")) for s in read_slices(path)])
    assert volume.geometry.whole
    values = volume.stacked()
    assert values.shape == (28, 512, 512)
    assert values.min() == -1024
    middle = values[20, 200:312, 200:312]
    assert 20 < np.median(middle) < 45  # brain
    assert np.count_nonzero(values[20] > 500) > 5000  # skull
    outside = values[20][(values[20] > -1024) & (values[20] < -900)]
    assert -1010 < np.median(outside) < -980  # the air around the head
    raw = pydicom.dcmread(REAL / "21.dcm")
    inside = raw.pixel_array > -1024
    np.testing.assert_array_equal(values[20][inside], raw.pixel_array[inside])
