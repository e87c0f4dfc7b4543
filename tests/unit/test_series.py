"""Which series of an exam is read, why not the others, and headers as wild as scanners write them."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.tag import BaseTag
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from inference.kernels import Sharpness, sharpness
from inference.series import Criteria, InstanceFacts, SeriesChoice, choose, facts, select, stacks

REAL = Path(os.environ.get("HEMONODE_HEAD_CT", Path(__file__).parents[3] / "shared" / "data" / "head_ct_ge"))
real_scan = pytest.mark.skipif(not REAL.is_dir(), reason="the real head CT is not on this machine")

CT = "1.2.840.10008.5.1.4.1.1.2"
ENHANCED_CT = "1.2.840.10008.5.1.4.1.1.2.1"
AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
CORONAL = (1.0, 0.0, 0.0, 0.0, 0.0, -1.0)
SAGITTAL = (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)
CRITERIA = Criteria()

HEAD = InstanceFacts(
    study_uid="1.2.3",
    sop_class_uid=CT,
    modality="CT",
    image_type=("ORIGINAL", "PRIMARY", "AXIAL"),
    series_number=2,
    series_description="HEAD 5MM",
    body_part="HEAD",
    kernel="H30s",
    frame_of_reference_uid="1.2.3.9",
    rows=512,
    columns=512,
    pixel_spacing=(0.45, 0.45),
    thickness=5.0,
    samples_per_pixel=1,
)


def series(uid: str, *, slices: int = 30, step: float = 5.0, normal: str = "z", **changes: Any) -> list[InstanceFacts]:
    """A series of `slices` images that advance by `step` mm along one axis."""
    orientation = {"x": SAGITTAL, "y": CORONAL, "z": AXIAL}[normal]
    made = []
    for i in range(slices):
        position = tuple(i * step if axis == normal else 0.0 for axis in "xyz")
        template = dataclasses.replace(HEAD, thickness=step) if "thickness" not in changes else HEAD
        made.append(
            dataclasses.replace(
                template,
                series_uid=uid,
                sop_instance_uid=f"{uid}.{i + 1}",
                instance_number=i + 1,
                positions=((position[0], position[1], position[2]),),
                orientations=(orientation,),
                **changes,
            )
        )
    return made


def by_uid(instances: Sequence[InstanceFacts], criteria: Criteria = CRITERIA) -> dict[str, SeriesChoice]:
    return {choice.series_uid: choice for choice in choose(instances, criteria)}


# The exam


def exam() -> list[InstanceFacts]:
    """What a scanner and a workstation send of one head CT."""
    localizer = series("1.1", slices=2, normal="x", image_type=("ORIGINAL", "PRIMARY", "LOCALIZER"), series_number=1)
    return [
        *localizer,
        *series("1.2"),
        *series("1.3", slices=240, step=0.625, series_number=3, series_description="HEAD THIN"),
        *series("1.4", slices=240, step=0.625, series_number=4, kernel="H60s", series_description="HEAD BONE"),
        *series("1.5", slices=60, step=3.0, normal="y", series_number=5, image_type=("DERIVED", "SECONDARY", "MPR")),
        *series("1.6", slices=60, step=3.0, normal="x", series_number=6, image_type=("DERIVED", "SECONDARY", "MPR")),
        *series("1.7", series_number=7, contrast_agent="IOMERON 350", series_description="HEAD +C"),
        *series(
            "1.8",
            slices=1,
            series_number=999,
            sop_class_uid="1.2.840.10008.5.1.4.1.1.7",
            series_description="Dose Report",
        ),
        *series(
            "1.9", slices=1, series_number=998, sop_class_uid="1.2.840.10008.5.1.4.1.1.7", series_description="Screen"
        ),
    ]


def test_of_a_whole_exam_the_axial_soft_tissue_series_is_read_and_every_other_has_its_reason() -> None:
    choices = by_uid(random.Random(1).sample(exam(), k=len(exam())))
    assert {uid: choice.code for uid, choice in choices.items()} == {
        "1.1": "localizer",
        "1.2": "chosen",
        "1.3": "thinner_duplicate",
        "1.4": "sharp_kernel",
        "1.5": "not_axial",
        "1.6": "not_axial",
        "1.7": "contrast",
        "1.8": "dose_report",
        "1.9": "secondary_capture",
    }
    assert [choice.series_uid for choice in choices.values() if choice.chosen] == ["1.2"]
    assert choices["1.2"].rank == 1
    assert choices["1.3"].rank == 2
    assert choices["1.3"].reason == (
        "Not read, rank 2 of 2: same scan, thinner slices (0.625 mm; those of 5 mm are read)."
    )
    assert "coronal" in choices["1.5"].reason
    assert "sagittal" in choices["1.6"].reason
    assert all(choice.reason.endswith(".") and choice.instances > 0 for choice in choices.values())
    assert choices["1.4"].description == "HEAD BONE"


def test_chosen_series_come_first_then_the_ranked_ones_then_the_refused_by_number() -> None:
    assert [choice.series_uid for choice in choose(exam(), CRITERIA)] == [
        "1.2", "1.3", "1.1", "1.4", "1.5", "1.6", "1.7", "1.9", "1.8",
    ]  # fmt: skip


def test_the_order_of_arrival_changes_nothing() -> None:
    expected = choose(exam(), CRITERIA)
    for seed in range(5):
        assert choose(random.Random(seed).sample(exam(), k=len(exam())), CRITERIA) == expected


def test_a_study_of_localizers_has_nothing_to_read() -> None:
    instances = series("1.1", slices=2, normal="y", image_type=("ORIGINAL", "PRIMARY", "LOCALIZER"))
    assert [choice.code for choice in choose(instances, CRITERIA)] == ["localizer"]
    assert select(instances, CRITERIA).stacks == ()


def test_an_empty_study_has_no_choices() -> None:
    assert choose([], CRITERIA) == ()


def test_two_series_are_read_where_the_criteria_say_so() -> None:
    selection = select(exam(), Criteria(max_series=2))
    assert [choice.series_uid for choice in selection.choices if choice.chosen] == ["1.2", "1.3"]
    assert [stack.head.series_uid for stack in selection.stacks] == ["1.2", "1.3"]


# Single reasons


@pytest.mark.parametrize(
    ("code", "changes"),
    [
        ("too_few_slices", {"slices": 5}),
        ("incomplete_coverage", {"slices": 10, "step": 4.0}),
        ("too_thick", {"slices": 10, "thickness": 20.0}),
        ("not_axial", {"normal": "y"}),
        ("small_field_of_view", {"pixel_spacing": (0.2, 0.2)}),
        ("sharp_kernel", {"kernel": "BONEPLUS"}),
        ("contrast", {"contrast_agent": "Ultravist 300"}),
        ("derived", {"image_type": ("DERIVED", "SECONDARY", "AXIAL", "MIP")}),
        ("derived", {"image_type": ("DERIVED", "SECONDARY", "PROJECTION IMAGE")}),
        ("not_ct", {"modality": "MR", "sop_class_uid": "1.2.840.10008.5.1.4.1.1.4"}),
        ("not_ct", {"modality": "PT", "sop_class_uid": "1.2.840.10008.5.1.4.1.1.128"}),
        ("secondary_capture", {"sop_class_uid": "1.2.840.10008.5.1.4.1.1.7.2"}),
        ("secondary_capture", {"samples_per_pixel": 3}),
        ("other_body_part", {"body_part": "CHEST", "series_description": "THORAX 5mm"}),
        ("other_body_part", {"body_part": "ABDOMEN", "series_description": None, "pixel_spacing": (0.78, 0.78)}),
        ("other_body_part", {"body_part": "CSPINE", "series_description": "C-SPINE 2.0", "protocol_name": "Spine"}),
        ("dose_report", {"slices": 1, "series_description": "Patient Protocol"}),
        ("dose_report", {"slices": 1, "sop_class_uid": "1.2.840.10008.5.1.4.1.1.88.67", "rows": None}),
        ("structured_report", {"slices": 1, "sop_class_uid": "1.2.840.10008.5.1.4.1.1.88.33", "rows": None}),
        ("structured_report", {"slices": 1, "sop_class_uid": "1.2.840.10008.5.1.4.1.1.88.34", "rows": None}),
        ("key_object_selection", {"slices": 1, "sop_class_uid": "1.2.840.10008.5.1.4.1.1.88.59", "rows": None}),
        ("presentation_state", {"slices": 1, "sop_class_uid": "1.2.840.10008.5.1.4.1.1.11.1", "rows": None}),
        ("segmentation", {"slices": 1, "sop_class_uid": "1.2.840.10008.5.1.4.1.1.66.4"}),
        ("not_an_image", {"slices": 1, "sop_class_uid": "1.2.840.10008.5.1.4.1.1.104.1", "rows": None}),
    ],
)  # fmt: skip
def test_a_series_not_fit_to_be_read_is_refused_with_its_code(code: str, changes: dict[str, Any]) -> None:
    alone = by_uid(series("1.1", **changes))["1.1"]
    assert (alone.code, alone.chosen, alone.rank) == (code, False, None)
    beside = by_uid([*series("1.1", **changes), *series("1.2")])
    assert beside["1.1"].code == code
    assert beside["1.2"].chosen


@pytest.mark.parametrize("agent", ["", "NONE", "no", "W/O", "without", "ohne KM", "NATIV", "Non ionic: none", "-", "0"])
def test_an_agent_that_says_none_is_no_contrast(agent: str) -> None:
    assert by_uid(series("1.1", contrast_agent=agent or None))["1.1"].chosen


@pytest.mark.parametrize("degrees", [-30.0, -18.5, 0.0, 22.0, 30.0])
def test_any_gantry_tilt_is_axial(degrees: float) -> None:
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    instances = [dataclasses.replace(f, orientations=((1.0, 0.0, 0.0, 0.0, cosine, -sine),)) for f in series("1.1")]
    assert by_uid(instances)["1.1"].chosen


@pytest.mark.parametrize("orientation", [(-1.0, 0.0, 0.0, 0.0, -1.0, 0.0), (-1.0, 0.0, 0.0, 0.0, 1.0, 0.0)])
def test_prone_and_feet_first_are_axial(orientation: tuple[float, float, float, float, float, float]) -> None:
    instances = [dataclasses.replace(f, orientations=(orientation,)) for f in series("1.1")]
    assert by_uid(instances)["1.1"].chosen


def test_planes_leaning_to_the_side_are_not_axial() -> None:
    lean = (0.906, 0.0, -0.423, 0.0, 1.0, 0.0)
    instances = [dataclasses.replace(f, orientations=(lean,)) for f in series("1.1")]
    choice = by_uid(instances)["1.1"]
    assert choice.code == "not_axial"
    assert "oblique axial" in choice.reason


def test_images_without_position_cannot_be_read() -> None:
    instances = [dataclasses.replace(f, positions=(None,), orientations=(None,)) for f in series("1.1")]
    assert by_uid(instances)["1.1"].code == "no_geometry"


# Descriptions mislead


@pytest.mark.parametrize(
    "changes",
    [
        {"series_description": "CHEST 5MM"},
        {"series_description": "HEAD BONE"},
        {"series_description": "CTA HEAD"},
        {"series_description": "Scout"},
        {"body_part": "ABDOMEN", "series_description": None},
        {"series_description": None, "body_part": None, "kernel": None, "image_type": ()},
        {"kernel": "XYZ 7", "series_description": "bone"},
    ],
)
def test_a_description_alone_never_refuses_a_series(changes: dict[str, Any]) -> None:
    assert by_uid(series("1.1", **changes))["1.1"].chosen


@pytest.mark.parametrize(
    ("code", "changes"),
    [
        ("other_body_part", {"series_description": "C-SPINE"}),
        ("other_body_part", {"pixel_spacing": (0.9, 0.9)}),
        ("contrast", {"series_description": "HEAD C+"}),
        ("contrast", {"series_description": "CTA_HEAD"}),
        ("sharp_kernel", {"series_description": "HEAD BONE", "kernel": "XYZ"}),
        ("unknown_kernel", {"kernel": None}),
        ("medium_kernel", {"kernel": "DETAIL"}),
        ("derived", {"image_type": ("DERIVED", "SECONDARY", "REFORMATTED", "AVERAGE")}),
        ("thicker_duplicate", {"slices": 15, "step": 10.0}),
        ("thinner_duplicate", {"slices": 75, "step": 2.0}),
        ("incomplete_coverage", {"slices": 18}),
        ("duplicate", {"series_number": 8}),
        ("lower_rank", {"series_number": 8, "frame_of_reference_uid": "1.2.4"}),
    ],
)
def test_a_doubtful_series_ranks_second_and_says_why_whichever_arrived_first(
    code: str, changes: dict[str, Any]
) -> None:
    doubtful = series("1.1", **{"series_number": 1, **changes})
    choices = by_uid([*doubtful, *series("1.2")])
    assert choices["1.2"].chosen
    assert (choices["1.1"].code, choices["1.1"].rank) == (code, 2)


def test_what_remains_doubtful_about_the_series_read_is_said() -> None:
    reason = by_uid(series("1.1", series_description="CHEST 5MM", body_part=None))["1.1"].reason
    assert "may show another body part (series description 'CHEST 5MM')" in reason


@pytest.mark.parametrize(
    "description", ["CT W/O CONTRAST", "HEAD_WITHOUT_CONTRAST", "NON-CON HEAD", "KOPF NATIV", "C- HEAD"]
)
def test_a_description_without_contrast_is_no_doubt(description: str) -> None:
    assert "contrast" not in by_uid(series("1.1", series_description=description))["1.1"].reason


def test_a_series_with_a_gap_ranks_below_a_whole_one_and_names_the_gap() -> None:
    holed = [f for f in series("1.1", series_number=1) if f.instance_number != 12]
    choices = by_uid([*holed, *series("1.2", slices=240, step=0.625)])
    assert choices["1.2"].chosen
    assert choices["1.1"].code == "gaps"
    assert "1 slice missing at 55.0 mm, between instance 11 and instance 13" in choices["1.1"].reason


def test_a_series_with_a_gap_is_read_when_it_is_all_there_is_and_says_so() -> None:
    holed = [f for f in series("1.1") if f.instance_number != 12]
    choice = by_uid(holed)["1.1"]
    assert choice.chosen
    assert "1 slice missing at 55.0 mm" in choice.reason


# Policies


def test_contrast_and_derived_series_follow_the_policy() -> None:
    enhanced = series("1.1", contrast_agent="Ultravist")
    derived = series("1.2", image_type=("DERIVED", "SECONDARY", "REFORMATTED"))
    assert by_uid(enhanced, Criteria(contrast="last"))["1.1"].chosen
    assert by_uid([*enhanced, *series("1.3")], Criteria(contrast="last"))["1.1"].rank == 2
    assert by_uid(enhanced, Criteria(contrast="accept"))["1.1"].chosen
    assert by_uid(derived)["1.2"].chosen
    assert by_uid(derived, Criteria(derived="refuse"))["1.2"].code == "derived"


def test_a_sites_own_kernel_patterns_overrule_the_vocabularies() -> None:
    assert by_uid(series("1.1", kernel="H30s"), Criteria(rejected_kernels=(r"^H3",)))["1.1"].code == "sharp_kernel"
    assert by_uid(series("1.1", kernel="BONE"), Criteria(accepted_kernels=("bone",)))["1.1"].chosen


def test_slices_still_arriving_are_judged_without_their_number() -> None:
    few = series("1.1", slices=3)
    assert not choose(few, CRITERIA)[0].chosen
    assert choose(few, CRITERIA, arriving=True)[0].chosen
    assert not choose(series("1.2", slices=3, kernel="BONE"), CRITERIA, arriving=True)[0].chosen


# Stacks inside a series


def test_a_localizer_inside_the_series_is_left_out_of_the_stack() -> None:
    scout = dataclasses.replace(
        series("1.1", slices=1, normal="x")[0],
        sop_instance_uid="1.1.99",
        image_type=("ORIGINAL", "PRIMARY", "LOCALIZER"),
    )
    selection = select([scout, *series("1.1")], CRITERIA)
    assert "1.1.99" not in selection.stacks[0].sop_instance_uids
    assert len(selection.stacks[0].planes) == 30
    assert "one stack of 30 of the series' 31 images" in selection.choices[0].reason


def test_two_kernels_in_one_series_are_two_stacks() -> None:
    bone = [dataclasses.replace(f, sop_instance_uid=f.sop_instance_uid + "9", kernel="H60s") for f in series("1.1")]
    selection = select([*bone, *series("1.1")], CRITERIA)
    assert selection.stacks[0].head.kernel == "H30s"
    assert selection.stacks[0].geometry.dropped == ()


def test_a_scan_repeated_in_the_same_series_is_two_passes() -> None:
    first = [dataclasses.replace(f, acquisition_number=1) for f in series("1.1")]
    again = [
        dataclasses.replace(f, acquisition_number=2, sop_instance_uid=f.sop_instance_uid + "9") for f in series("1.1")
    ]
    assert [len(stack.planes) for stack in stacks([*first, *again[5:20]])] == [30, 15]


def test_step_and_shoot_acquisitions_stay_one_stack() -> None:
    numbered = [dataclasses.replace(f, acquisition_number=i // 2 + 1) for i, f in enumerate(series("1.1"))]
    assert [len(stack.planes) for stack in stacks(numbered)] == [30]


def test_one_slice_taken_again_replaces_the_first_attempt() -> None:
    again = dataclasses.replace(series("1.1")[4], sop_instance_uid="1.1.77", instance_number=77, acquisition_number=2)
    found = stacks([*series("1.1"), again])
    assert len(found) == 1
    assert "1.1.77" in found[0].sop_instance_uids
    assert "1.1.5" not in found[0].sop_instance_uids


def test_a_perfusion_series_is_refused_as_dynamic() -> None:
    times = [
        dataclasses.replace(f, sop_instance_uid=f"{f.sop_instance_uid}.{t}", instance_number=100 * t + i)
        for t in range(20)
        for i, f in enumerate(series("1.1", slices=16))
    ]
    choice = by_uid(times)["1.1"]
    assert choice.code == "dynamic"
    assert "about 20 times" in choice.reason


# Kernels


@pytest.mark.parametrize(
    ("expected", "names"),
    [
        (
            Sharpness.SOFT,
            "STANDARD STD STD+ SOFT H30s H31s H40s J30s J40s\\3 Hr40 Hr40f\\3 Hr36d Hc40f B30f Qr40 A B UA UB",
        ),
        (Sharpness.SOFT, "FC20 FC21 FC22 FC23 FC24 FC25 FC26 FC64 FC68 FC08 BRAIN H_SOFT_B Standard std+"),
        (Sharpness.MEDIUM, "DETAIL C UC H48s"),
        (
            Sharpness.SHARP,
            "BONE BONEPLUS EDGE LUNG H60s H70h J70h Hr60 Hr69h B60f B70s Bl57 Ur77u D L YA YB FC30 FC52 FC80",
        ),
        (Sharpness.SHARP, "FC81 B_SHARP_C Bone"),
        (Sharpness.UNKNOWN, "31 XYZ FC99 ???"),
    ],
)
def test_kernels_are_known_in_their_makers_vocabularies(expected: Sharpness, names: str) -> None:
    assert {name: sharpness(name) for name in names.split()} == dict.fromkeys(names.split(), expected)
    assert sharpness(None) is Sharpness.UNKNOWN
    assert sharpness("") is Sharpness.UNKNOWN


# Facts


def written(dataset: Dataset, syntax: str = ExplicitVRLittleEndian) -> Dataset:
    """The data set as a receiver reads it from a file."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = pydicom.uid.UID(syntax)
    meta.MediaStorageSOPClassUID = pydicom.uid.UID(CT)
    meta.MediaStorageSOPInstanceUID = pydicom.uid.UID("1.2.3.4")
    dataset.file_meta = meta
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, dataset, enforce_file_format=True)
    buffer.seek(0)
    return pydicom.dcmread(buffer, stop_before_pixels=True)


def header() -> Dataset:
    dataset = Dataset()
    dataset.SOPClassUID = CT
    dataset.SOPInstanceUID = "1.2.3.4"
    dataset.StudyInstanceUID = "1.2.3"
    dataset.SeriesInstanceUID = "1.2.3.5"
    dataset.Modality = "CT"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.Manufacturer = "SIEMENS"
    dataset.SeriesNumber = 4
    dataset.InstanceNumber = 17
    dataset.AcquisitionNumber = 2
    dataset.SeriesDescription = "Schädel nativ"
    dataset.SpecificCharacterSet = "ISO_IR 100"
    dataset.PatientAge = "006M"
    dataset.KVP = "120"
    dataset.ConvolutionKernel = ["Hr40f", "3"]
    dataset.SliceThickness = "5.0"
    dataset.GantryDetectorTilt = "-12.5"
    dataset.ImagePositionPatient = [-120.5, -130.25, 42.0]
    dataset.ImageOrientationPatient = list(AXIAL)
    dataset.PixelSpacing = [0.45, 0.5]
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.Rows = 512
    dataset.Columns = 256
    dataset.BitsAllocated = 16
    dataset.BitsStored = 12
    dataset.HighBit = 11
    dataset.PixelRepresentation = 0
    dataset.RescaleIntercept = "-1024"
    dataset.RescaleSlope = "1"
    return dataset


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian, None])
def test_facts_are_the_same_in_every_encoding_and_in_memory(syntax: str | None) -> None:
    read = facts(header() if syntax is None else written(header(), syntax))
    assert read == InstanceFacts(
        study_uid="1.2.3",
        series_uid="1.2.3.5",
        sop_class_uid=CT,
        sop_instance_uid="1.2.3.4",
        modality="CT",
        image_type=("ORIGINAL", "PRIMARY", "AXIAL"),
        series_number=4,
        instance_number=17,
        acquisition_number=2,
        series_description="Schädel nativ",
        kernel="Hr40f\\3",
        manufacturer="SIEMENS",
        rows=512,
        columns=256,
        pixel_spacing=(0.45, 0.5),
        thickness=5.0,
        positions=((-120.5, -130.25, 42.0),),
        orientations=(AXIAL,),
        gantry_tilt=-12.5,
        patient_age_years=0.5,
        kvp=120.0,
        samples_per_pixel=1,
        photometric_interpretation="MONOCHROME2",
        bits_allocated=16,
        bits_stored=12,
        pixel_representation=0,
        rescale_slope=1.0,
        rescale_intercept=-1024.0,
    )
    assert InstanceFacts.from_json(json.loads(json.dumps(read.to_json()))) == read


def test_an_empty_data_set_has_facts() -> None:
    assert facts(Dataset()) == InstanceFacts()


def raw(text: bytes) -> Dataset:
    """A data set of one hand-made explicit little-endian file body."""
    return pydicom.dcmread(io.BytesIO(text), force=True, stop_before_pixels=True)


def element(group: int, number: int, vr: bytes, value: bytes) -> bytes:
    value += b" " * (len(value) % 2)
    return group.to_bytes(2, "little") + number.to_bytes(2, "little") + vr + len(value).to_bytes(2, "little") + value


WILD = [
    b"", b" ", b"\0", b"abc", b"1\\2\\3\\4", b"NaN", b"1e400", b"-Infinity", b"99999999999999999999", b"1,5", b"12.0",
    b"\xff\xfe\xfd", b"--5", b"5 mm", b"\\", b"\\\\\\\\\\", b"0x10", b"9" * 4000,
]  # fmt: skip


@pytest.mark.parametrize("value", WILD)
def test_no_header_value_raises_or_warns(value: bytes) -> None:
    numeric = [
        (0x0018, 0x0050, b"DS"), (0x0018, 0x0060, b"DS"), (0x0018, 0x1120, b"DS"), (0x0020, 0x0011, b"IS"),
        (0x0020, 0x0012, b"IS"), (0x0020, 0x0013, b"IS"), (0x0020, 0x0032, b"DS"), (0x0020, 0x0037, b"DS"),
        (0x0020, 0x1002, b"IS"), (0x0028, 0x0008, b"IS"), (0x0028, 0x0010, b"US"), (0x0028, 0x0011, b"US"),
        (0x0028, 0x0030, b"DS"), (0x0028, 0x1052, b"DS"), (0x0028, 0x1053, b"DS"),
    ]  # fmt: skip
    text = [
        (0x0008, 0x0008, b"CS"), (0x0008, 0x0016, b"UI"), (0x0008, 0x0060, b"CS"),
        (0x0008, 0x103E, b"LO"), (0x0010, 0x1010, b"AS"), (0x0018, 0x0010, b"LO"), (0x0018, 0x1210, b"SH"),
    ]  # fmt: skip
    dataset = raw(b"".join(element(*where, value) for where in sorted(numeric + text)))
    # pydicom itself warns of a wild character set while it reads a file; here it comes after.
    dataset[0x00080005] = RawDataElement(BaseTag(0x00080005), "CS", len(value), value, 0, False, True)
    read = facts(dataset)
    assert json.loads(json.dumps(read.to_json(), allow_nan=False))
    assert choose([read], CRITERIA)


def test_an_empty_element_of_an_unknown_representation_is_none() -> None:
    assert facts(raw(element(0x0008, 0x0060, b"CS", b"CT") + element(0x0020, 0x0011, b"IB", b""))).series_number is None


def test_wild_numbers_are_read_where_they_make_sense_and_none_where_not() -> None:
    dataset = raw(
        element(0x0018, 0x0050, b"DS", b"5,0 ")
        + element(0x0020, 0x0011, b"IS", b"3.0")
        + element(0x0020, 0x0013, b"IS", b"7.5")
        + element(0x0020, 0x0032, b"DS", b"1\\2")
        + element(0x0028, 0x0030, b"DS", b"0\\0")
    )
    read = facts(dataset)
    assert (read.thickness, read.series_number, read.instance_number) == (5.0, 3, None)
    assert read.positions == ()
    assert read.pixel_spacing is None


def test_a_file_of_the_public_challenge_without_sop_class_is_a_ct_image() -> None:
    dataset = header()
    for keyword in ("SOPClassUID", "InstanceNumber", "SliceThickness", "ImageType", "ConvolutionKernel"):
        delattr(dataset, keyword)
    read = facts(dataset)
    assert read.sop_class_uid == ""
    many = [dataclasses.replace(read, sop_instance_uid=f"1.{i}", positions=((0.0, 0.0, 5.0 * i),)) for i in range(30)]
    assert choose(many, CRITERIA)[0].chosen


def enhanced(frames: int = 30, *, times: int = 1) -> Dataset:
    """An Enhanced CT: what all frames share, and what each has for itself (PS3.3 C.7.6.16)."""
    dataset = header()
    for keyword in (
        "ImagePositionPatient",
        "ImageOrientationPatient",
        "PixelSpacing",
        "SliceThickness",
        "ConvolutionKernel",
    ):
        delattr(dataset, keyword)
    dataset.SOPClassUID = ENHANCED_CT
    dataset.NumberOfFrames = frames * times
    shared = Dataset()
    shared.PixelMeasuresSequence = [Dataset()]
    shared.PixelMeasuresSequence[0].PixelSpacing = [0.45, 0.45]
    shared.PixelMeasuresSequence[0].SliceThickness = "5.0"
    shared.PlaneOrientationSequence = [Dataset()]
    shared.PlaneOrientationSequence[0].ImageOrientationPatient = list(AXIAL)
    shared.CTReconstructionSequence = [Dataset()]
    shared.CTReconstructionSequence[0].ConvolutionKernel = "FC26"
    dataset.SharedFunctionalGroupsSequence = [shared]
    groups = []
    for time in range(times):
        for i in range(frames):
            frame = Dataset()
            frame.PlanePositionSequence = [Dataset()]
            frame.PlanePositionSequence[0].ImagePositionPatient = [-120.0, -120.0, 5.0 * i]
            frame.FrameContentSequence = [Dataset()]
            frame.FrameContentSequence[0].TemporalPositionIndex = time + 1
            groups.append(frame)
    dataset.PerFrameFunctionalGroupsSequence = groups
    return dataset


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian])
def test_an_enhanced_ct_is_one_instance_with_a_stack_of_frames(syntax: str) -> None:
    read = facts(written(enhanced(), syntax))
    assert read.frames == 30
    assert read.positions[3] == (-120.0, -120.0, 15.0)
    assert set(read.orientations) == {AXIAL}
    assert (read.pixel_spacing, read.thickness, read.kernel) == ((0.45, 0.45), 5.0, "FC26")
    selection = select([read], CRITERIA)
    assert selection.choices[0].chosen
    assert [plane.frame for plane in selection.stacks[0].in_order] == list(range(1, 31))
    assert InstanceFacts.from_json(json.loads(json.dumps(read.to_json()))) == read


def test_the_times_of_an_enhanced_ct_are_stacks_of_their_own() -> None:
    found = stacks([facts(enhanced(times=3))])
    assert [len(stack.planes) for stack in found] == [30, 30, 30]


@pytest.mark.parametrize(
    "name",
    [
        "CT_small.dcm",
        "MR_small.dcm",
        "JPEG2000.dcm",
        "examples_palette.dcm",
        "rtplan.dcm",
        "reportsi.dcm",
        "rtdose.dcm",
    ],
)
def test_other_objects_have_facts_and_a_reason(name: str) -> None:
    path = get_testdata_file(name, download=False)
    assert path is not None
    read = facts(pydicom.dcmread(str(path), stop_before_pixels=True))
    assert read.sop_instance_uid
    assert not choose([read], CRITERIA)[0].chosen


@real_scan
def test_the_real_scan_is_chosen() -> None:
    instances = [facts(pydicom.dcmread(path, stop_before_pixels=True)) for path in sorted(REAL.glob("*.dcm"))]
    choices = choose(instances, CRITERIA)
    assert len(choices) == 1
    assert choices[0].chosen
    assert "soft-tissue kernel STD+, 28 slices over 150 mm, spacing 4 and 7 mm, tilt 18.5°" in choices[0].reason
    assert len(select(instances, CRITERIA).stacks[0].planes) == 28
