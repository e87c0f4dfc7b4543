"""The DICOM Segmentation holds what the masks outline, where the images are, and says whose word that is."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from highdicom.seg import Segmentation
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.dataset import Dataset

from node.errors import NoSegmentation
from node.report.content import DEMONSTRATION, FOR_RESEARCH
from node.report.segmentation import Outline, Plane, build
from node.report.sr import to_bytes
from tests.tools.reports import DEVICE, MADE_AT, POSITIVE, a_reading, an_enhanced_series, slices

SIDE = 64
RESULT = replace(POSITIVE, readings=(a_reading(name="radnet", labels=("any",), present=("any",)), a_reading()))


def outlines(*, seed: int = 1, models: int = 1) -> list[Outline]:
    """Blobs in the middle slices of twelve."""
    noise = np.random.default_rng(seed)
    made = []
    for reading in RESULT.readings[:models]:
        marked = np.zeros((12, SIDE, SIDE), bool)
        marked[4:7] = noise.random((3, SIDE, SIDE)) > 0.8
        made.append(Outline(reading=reading, marked=marked))
    return made


def planes(images: Sequence[Dataset]) -> list[Plane]:
    return [Plane(image=image) for image in images]


def images(**attributes: object) -> list[Dataset]:
    return slices(Rows=SIDE, Columns=SIDE, **attributes)


def read_back(content: bytes, images: Sequence[Dataset], *, segment: int = 1) -> NDArray[np.bool_]:
    """The voxels of a segment, found as PS3.3 C.7.6.16 says: each frame by its segment and its source image."""
    found = dcmread(io.BytesIO(content))
    order = {str(image.SOPInstanceUID): i for i, image in enumerate(images)}
    voxels = np.zeros((len(images), SIDE, SIDE), bool)
    (shared,) = found.SharedFunctionalGroupsSequence
    for frame, groups in zip(found.pixel_array, found.PerFrameFunctionalGroupsSequence, strict=True):
        named = groups if "SegmentIdentificationSequence" in groups else shared
        if named.SegmentIdentificationSequence[0].ReferencedSegmentNumber == segment:
            source = groups.DerivationImageSequence[0].SourceImageSequence[0]
            slot = order[source.ReferencedSOPInstanceUID]
            voxels[slot] = frame
            assert groups.PlanePositionSequence[0].ImagePositionPatient == images[slot].ImagePositionPatient
    return voxels


def test_the_same_voxels_come_back_with_and_without_highdicom() -> None:
    source, drawn = images(), outlines(models=2)
    content = to_bytes(build(RESULT, drawn, planes=planes(source), made_at=MADE_AT, device=DEVICE))
    for number, outline in enumerate(drawn, start=1):
        np.testing.assert_array_equal(read_back(content, source, segment=number), outline.marked)
    segmentation = Segmentation.from_dataset(dcmread(io.BytesIO(content)))
    uids = [str(image.SOPInstanceUID) for image in source]
    voxels = segmentation.get_pixels_by_source_instance(uids, assert_missing_frames_are_empty=True)
    np.testing.assert_array_equal(voxels, np.stack([outline.marked for outline in drawn], axis=-1))
    assert segmentation.NumberOfFrames == 6


def test_each_segment_names_its_algorithm_and_says_that_it_is_for_research() -> None:
    made = build(RESULT, outlines(models=2), planes=planes(images()), made_at=MADE_AT, device=DEVICE)
    first, second = made.SegmentSequence
    assert (first.SegmentLabel, second.SegmentLabel) == ("radnet", "cnn-lstm")
    assert first.SegmentedPropertyTypeCodeSequence[0].CodeValue == "1386000"
    algorithm = first.SegmentationAlgorithmIdentificationSequence[0]
    assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == ("radnet (radnet)", "1.0")
    assert first.SegmentDescription == f"{DEMONSTRATION}. {FOR_RESEARCH}"
    assert first.TrackingUID != second.TrackingUID
    assert made.SeriesDescription.startswith("DEMO WEIGHTS")
    assert len(made.SeriesDescription) <= 64


def test_it_belongs_to_the_patient_and_study_of_the_images_whatever_their_values_are() -> None:
    made = build(RESULT, outlines(), planes=planes(images(PatientSex="X")), made_at=MADE_AT, device=DEVICE)
    assert (made.PatientID, made.PatientSex, str(made.PatientName)) == ("4711", "X", "Doe^Jane")
    assert made.StudyInstanceUID == RESULT.study_uid
    assert made.FrameOfReferenceUID == images()[0].FrameOfReferenceUID


def test_the_same_input_gives_the_same_bytes_and_another_revision_another_object() -> None:
    def made(revision: int) -> Dataset:
        result = replace(RESULT, revision=revision)
        return build(result, outlines(), planes=planes(images()), made_at=MADE_AT, device=DEVICE)

    assert to_bytes(made(1)) == to_bytes(made(1))
    assert made(1).SOPInstanceUID != made(2).SOPInstanceUID
    assert made(1).SeriesInstanceUID != made(2).SeriesInstanceUID


def test_frames_of_a_multi_frame_image_are_outlined_where_they_are() -> None:
    image = an_enhanced_series(side=SIDE)
    framed = [Plane(image=image, frame=number) for number in range(12, 0, -1)]  # from feet to head, stored head first
    (drawn,) = outlines()
    made = build(RESULT, [drawn], planes=framed, made_at=MADE_AT, device=DEVICE)
    segmentation = Segmentation.from_dataset(dcmread(io.BytesIO(to_bytes(made))))
    voxels = segmentation.get_pixels_by_source_frame(
        str(image.SOPInstanceUID), list(range(1, 13)), assert_missing_frames_are_empty=True
    )
    np.testing.assert_array_equal(voxels[::-1, ..., 0], drawn.marked)


def test_masks_that_outline_nothing_are_a_segmentation_of_empty_frames() -> None:
    source = images()
    empty = [Outline(reading=RESULT.readings[0], marked=np.zeros((12, SIDE, SIDE), bool))]
    made = build(RESULT, empty, planes=planes(source), made_at=MADE_AT, device=DEVICE)
    assert made.NumberOfFrames == 12
    assert not read_back(to_bytes(made), source).any()


@pytest.mark.parametrize(
    ("attributes", "models", "message"),
    [
        ({}, 0, "no model that was read with draws masks"),
        ({"FrameOfReferenceUID": ""}, 1, "no Frame of Reference UID"),
        ({"Rows": 32}, 1, "differ in size"),
    ],
)
def test_what_cannot_be_outlined_is_refused_with_the_reason(
    attributes: dict[str, object], models: int, message: str
) -> None:
    source = images()
    for keyword, value in attributes.items():
        setattr(source[0], keyword, value)
    with pytest.raises(NoSegmentation, match=message):
        build(RESULT, outlines(models=models), planes=planes(source), made_at=MADE_AT, device=DEVICE)
