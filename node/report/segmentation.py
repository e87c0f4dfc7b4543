"""Builds the DICOM Segmentation (PS3.3 A.51) of what the models' masks outline: one segment for each model.

Made only on demand: a triage device does not mark images, and everything here says that it is for research. A segment
bears the tracking UID of the finding in the report that it belongs to. Binary, because the masks' values are not
probabilities, and because every viewer shows it.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from highdicom import AlgorithmIdentificationSequence
from highdicom.seg import SegmentAlgorithmTypeValues, Segmentation, SegmentationTypeValues, SegmentDescription
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian

from inference.result import ANY, ModelReading, StudyResult
from node.errors import NoSegmentation
from node.report import codes
from node.report.content import DEMONSTRATION, FOR_RESEARCH, MANUFACTURER, Device, printable
from node.report.identifiers import (
    IMPLEMENTATION_CLASS_UID,
    derived_uid,
    segmentation_series_uid,
    segmentation_uid,
    tracking_uid,
)
from node.report.sr import IMPLEMENTATION_VERSION_NAME
from node.report.subject import subject_of

SERIES_NUMBER = 9002
CONTENT_LABEL = "HAEMORRHAGE"

# What highdicom reads of the images: which they are and where they lie. `subject_of` says whose they are.
_GEOMETRY = (
    "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID",
    "PositionReferenceIndicator", "Rows", "Columns", "NumberOfFrames", "PixelSpacing", "SliceThickness",
    "ImagePositionPatient", "ImageOrientationPatient", "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence", "DimensionOrganizationSequence", "DimensionIndexSequence",
)  # fmt: skip
_PATIENT = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyID", "StudyDate", "StudyTime",
    "AccessionNumber", "ReferringPhysicianName",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, eq=False)
class Outline:
    """What one model's masks outline: bool (slices, rows, columns), in the order of the images."""

    reading: ModelReading
    marked: NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Plane:
    """The image of one slice, without pixels, and the 1-based frame in it (None for a single-frame image)."""

    image: Dataset
    frame: int | None = None


def build(
    result: StudyResult,
    outlines: Sequence[Outline],
    *,
    planes: Sequence[Plane],
    made_at: dt.datetime,
    device: Device,
) -> Dataset:
    """The segmentation of this revision: the same input, the same bytes.

    Frames in which nothing is outlined are left out, unless nothing is outlined at all.

    Raises
    ------
    NoSegmentation
        There is nothing to outline with, the images have no frame of reference, or they differ in size.
    """
    if not outlines:
        raise NoSegmentation("no model that was read with draws masks")
    images, pixels = _images_and_pixels(planes, outlines)
    first = images[0]
    if not first.get("FrameOfReferenceUID"):
        raise NoSegmentation("the images have no Frame of Reference UID, without which no segmentation can be placed")
    document = Segmentation(
        source_images=images,
        pixel_array=pixels,
        segmentation_type=SegmentationTypeValues.BINARY,
        segment_descriptions=[_segment(n, outline.reading, result) for n, outline in enumerate(outlines, start=1)],
        series_instance_uid=segmentation_series_uid(study_uid=result.study_uid, revision=result.revision),
        series_number=SERIES_NUMBER,
        sop_instance_uid=segmentation_uid(study_uid=result.study_uid, revision=result.revision),
        instance_number=result.revision,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=MANUFACTURER,
        software_versions=device.version,
        device_serial_number=device.ae_title,
        content_label=CONTENT_LABEL,
        content_description="For research, not for clinical use",
        omit_empty_frames=bool(pixels.any()),
        series_description=_description(result),
        transfer_syntax_uid=ExplicitVRLittleEndian,
    )
    document.update(subject_of(planes[0].image))
    _as_always(document, result, made_at)
    document.file_meta.ImplementationClassUID = IMPLEMENTATION_CLASS_UID
    document.file_meta.ImplementationVersionName = IMPLEMENTATION_VERSION_NAME
    return document


def _images_and_pixels(planes: Sequence[Plane], outlines: Sequence[Outline]) -> tuple[list[Dataset], NDArray[np.uint8]]:
    """The images as highdicom wants them, and pixels (frames, rows, columns, segments)."""
    marked = np.stack([outline.marked for outline in outlines], axis=-1).astype(np.uint8)
    uids = {str(plane.image.SOPInstanceUID) for plane in planes}
    if planes[0].frame is None:
        if any((plane.image.Rows, plane.image.Columns) != marked.shape[1:3] for plane in planes):
            raise NoSegmentation("the images differ in size")
        return _with_thickness([_placed(plane.image) for plane in planes]), marked
    if len(uids) > 1:
        raise NoSegmentation("the slices lie in several multi-frame images")
    image = _placed(planes[0].image)
    pixels = np.zeros((int(image.NumberOfFrames), *marked.shape[1:]), np.uint8)
    for plane, slices in zip(planes, marked, strict=True):
        pixels[(plane.frame or 1) - 1] = slices
    return [image], pixels


def _placed(image: Dataset) -> Dataset:
    placed = Dataset()
    for keyword in _GEOMETRY:
        if keyword in image:
            placed[keyword] = image[keyword]
    for keyword in _PATIENT:
        setattr(placed, keyword, "")
    return placed


def _with_thickness(images: list[Dataset]) -> list[Dataset]:
    """Slice Thickness of an image may be empty (PS3.3 C.7.6.2), of a segmentation not: then it is the first step."""
    ends = [np.array(image.ImagePositionPatient, dtype=float) for image in images[:2]]
    for image in images:
        if not image.get("SliceThickness"):
            image.SliceThickness = f"{np.linalg.norm(ends[-1] - ends[0]) or 1:.6g}"
    return images


def _segment(number: int, reading: ModelReading, result: StudyResult) -> SegmentDescription:
    meant = codes.HAEMORRHAGES[ANY]
    described = SegmentDescription(
        segment_number=number,
        segment_label=printable(reading.name)[:64],
        segmented_property_category=codes.ABNORMAL_STRUCTURE.coded(),
        segmented_property_type=meant.finding.coded(),
        algorithm_type=SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=AlgorithmIdentificationSequence(
            name=printable(f"{reading.name} ({reading.family})"),
            family=codes.ARTIFICIAL_INTELLIGENCE.coded(),
            version=printable(reading.version),
            source=MANUFACTURER,
            parameters={"weights sha256": reading.digest},
        ),
        tracking_uid=tracking_uid(study_uid=result.study_uid, subject=reading.name, label=reading.findings[0].label),
        tracking_id=f"{reading.name}/{reading.findings[0].label}",
        anatomic_regions=[codes.BRAIN.coded()],
    )
    described.SegmentDescription = f"{DEMONSTRATION}. {FOR_RESEARCH}" if reading.demonstration else FOR_RESEARCH
    return described


def _description(result: StudyResult) -> str:
    said = "Suspected haemorrhage, outlined for research"
    return f"DEMO WEIGHTS: {said}" if result.demonstration else said


def _as_always(document: Dataset, result: StudyResult, made_at: dt.datetime) -> None:
    """What highdicom takes from the clock and from chance follows from the result and from when it was made."""
    document.InstanceCreationDate = document.ContentDate = document.SeriesDate = made_at.strftime("%Y%m%d")
    document.InstanceCreationTime = document.ContentTime = document.SeriesTime = made_at.strftime("%H%M%S.%f")
    for equipment in document.ContributingEquipmentSequence:
        equipment.ContributionDateTime = made_at.strftime("%Y%m%d%H%M%S.%f")
    organization = derived_uid("seg-dimensions", result.study_uid, result.revision)
    for item in (*document.DimensionOrganizationSequence, *document.DimensionIndexSequence):
        item.DimensionOrganizationUID = organization
