"""What assembly and series selection need from one instance's header: no pixels, no torch."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from pydicom.dataset import Dataset

from inference.header import Header, Readable, integer, items, number, numbers, text, texts, uid
from inference.result import Json

Position = tuple[float, float, float]
Orientation = tuple[float, float, float, float, float, float]

MOST_FRAMES = 20_000
"""More frames than any CT writes: a Number of Frames above it is not believed."""
_AGE = re.compile(r"^\s*(\d{1,3})\s*([DWMY])\s*$", re.IGNORECASE)
_DAYS = {"D": 1.0, "W": 7.0, "M": 30.4375, "Y": 365.25}


@dataclass(frozen=True, kw_only=True)
class InstanceFacts(Json):
    """The header of one instance, as far as it could be read; what is missing or malformed is None (UIDs: empty).

    `positions` and `orientations` hold one entry per frame: one for an ordinary CT image, as many as Number of Frames
    for an Enhanced CT, none for an object without pixels. `temporal_positions` likewise, where frames have one.
    Lengths are in mm, angles in degrees, `patient_age_years` in years, `kvp` in kV.
    """

    study_uid: str = ""
    series_uid: str = ""
    sop_class_uid: str = ""
    sop_instance_uid: str = ""
    modality: str | None = None
    image_type: tuple[str, ...] = ()
    series_number: int | None = None
    instance_number: int | None = None
    acquisition_number: int | None = None
    images_in_acquisition: int | None = None
    number_of_frames: int | None = None
    study_description: str | None = None
    series_description: str | None = None
    protocol_name: str | None = None
    body_part: str | None = None
    kernel: str | None = None
    contrast_agent: str | None = None
    manufacturer: str | None = None
    model_name: str | None = None
    station_name: str | None = None
    frame_of_reference_uid: str = ""
    rows: int | None = None
    columns: int | None = None
    pixel_spacing: tuple[float, float] | None = None
    reconstruction_diameter: float | None = None
    thickness: float | None = None
    positions: tuple[Position | None, ...] = ()
    orientations: tuple[Orientation | None, ...] = ()
    temporal_positions: tuple[int | None, ...] = ()
    gantry_tilt: float | None = None
    patient_position: str | None = None
    patient_age_years: float | None = None
    kvp: float | None = None
    samples_per_pixel: int | None = None
    photometric_interpretation: str | None = None
    bits_allocated: int | None = None
    bits_stored: int | None = None
    pixel_representation: int | None = None
    rescale_slope: float | None = None
    rescale_intercept: float | None = None
    series_date: str | None = None
    series_time: str | None = None
    content_date: str | None = None
    content_time: str | None = None

    @property
    def has_pixels(self) -> bool:
        """Whether the header describes an image at all."""
        return bool(self.rows and self.columns)

    @property
    def frames(self) -> int:
        """How many planes the instance holds."""
        return len(self.positions)


def facts(dataset: Dataset) -> InstanceFacts:
    """What `dataset` (read without its pixels) says about itself. Never raises for what a header holds."""
    meta = getattr(dataset, "file_meta", None) or Dataset()
    return _facts(Header(dataset), Header(meta))


def _facts(dataset: Header, meta: Header) -> InstanceFacts:
    shared = _groups(dataset, "SharedFunctionalGroupsSequence", 1)
    per_frame = _groups(dataset, "PerFrameFunctionalGroupsSequence", MOST_FRAMES)
    # One value for the whole instance: from the header itself, else from the groups of all frames, else the first's.
    sources: tuple[Readable, ...] = (dataset, *shared[:1], *per_frame[:1])
    count = _frame_count(dataset, len(per_frame))
    spacing = _first_numbers(sources, "PixelMeasuresSequence", "PixelSpacing", 2)
    return InstanceFacts(
        study_uid=uid(dataset, "StudyInstanceUID"),
        series_uid=uid(dataset, "SeriesInstanceUID"),
        sop_class_uid=uid(dataset, "SOPClassUID") or uid(meta, "MediaStorageSOPClassUID"),
        sop_instance_uid=uid(dataset, "SOPInstanceUID") or uid(meta, "MediaStorageSOPInstanceUID"),
        modality=text(dataset, "Modality"),
        image_type=tuple(value.upper() for value in texts(dataset, "ImageType")),
        series_number=integer(dataset, "SeriesNumber"),
        instance_number=integer(dataset, "InstanceNumber"),
        acquisition_number=integer(dataset, "AcquisitionNumber"),
        images_in_acquisition=integer(dataset, "ImagesInAcquisition"),
        number_of_frames=integer(dataset, "NumberOfFrames"),
        study_description=text(dataset, "StudyDescription"),
        series_description=text(dataset, "SeriesDescription"),
        protocol_name=text(dataset, "ProtocolName"),
        body_part=text(dataset, "BodyPartExamined") or _body_part(sources),
        kernel=_first_text(sources, "CTReconstructionSequence", "ConvolutionKernel"),
        contrast_agent=_contrast(dataset),
        manufacturer=text(dataset, "Manufacturer"),
        model_name=text(dataset, "ManufacturerModelName"),
        station_name=text(dataset, "StationName"),
        frame_of_reference_uid=uid(dataset, "FrameOfReferenceUID"),
        rows=_positive(integer(dataset, "Rows")),
        columns=_positive(integer(dataset, "Columns")),
        pixel_spacing=(spacing[0], spacing[1]) if spacing and min(spacing) > 0 else None,
        reconstruction_diameter=_first_number(sources, "CTReconstructionSequence", "ReconstructionDiameter"),
        thickness=_first_number(sources, "PixelMeasuresSequence", "SliceThickness"),
        positions=_positions(dataset, shared, per_frame, count),
        orientations=_orientations(dataset, shared, per_frame, count),
        temporal_positions=_temporal(dataset, per_frame, count),
        gantry_tilt=_first_number(sources, "CTAcquisitionDetailsSequence", "GantryDetectorTilt"),
        patient_position=text(dataset, "PatientPosition"),
        patient_age_years=_age(text(dataset, "PatientAge")),
        kvp=_first_number(sources, "CTXRayDetailsSequence", "KVP"),
        samples_per_pixel=integer(dataset, "SamplesPerPixel"),
        photometric_interpretation=text(dataset, "PhotometricInterpretation"),
        bits_allocated=integer(dataset, "BitsAllocated"),
        bits_stored=integer(dataset, "BitsStored"),
        pixel_representation=integer(dataset, "PixelRepresentation"),
        rescale_slope=_first_number(sources, "PixelValueTransformationSequence", "RescaleSlope"),
        rescale_intercept=_first_number(sources, "PixelValueTransformationSequence", "RescaleIntercept"),
        series_date=text(dataset, "SeriesDate"),
        series_time=text(dataset, "SeriesTime"),
        content_date=text(dataset, "ContentDate"),
        content_time=text(dataset, "ContentTime"),
    )


def _groups(dataset: Readable, keyword: str, most: int) -> tuple[Dataset, ...]:
    return items(dataset, keyword)[:most]


def _frame_count(dataset: Readable, described: int) -> int:
    """Frames in the instance: what the groups describe, else what Number of Frames claims, else one per image."""
    if not integer(dataset, "Rows") or not integer(dataset, "Columns"):
        return 0
    claimed = integer(dataset, "NumberOfFrames") or 1
    return described or (claimed if 1 <= claimed <= MOST_FRAMES else 1)


def _within(sources: tuple[Readable, ...], sequence: str) -> Iterator[Readable]:
    """The header, then what it or its functional groups hold in `sequence` (PS3.3 C.7.6.16)."""
    yield sources[0]
    for source in sources:
        yield from items(source, sequence)[:1]


def _first_number(sources: tuple[Readable, ...], sequence: str, keyword: str) -> float | None:
    found = (number(place, keyword) for place in _within(sources, sequence))
    return next((value for value in found if value is not None), None)


def _first_numbers(sources: tuple[Readable, ...], sequence: str, keyword: str, count: int) -> tuple[float, ...] | None:
    found = (numbers(place, keyword, count) for place in _within(sources, sequence))
    return next((value for value in found if value is not None), None)


def _first_text(sources: tuple[Readable, ...], sequence: str, keyword: str) -> str | None:
    found = (text(place, keyword) for place in _within(sources, sequence))
    return next((value for value in found if value is not None), None)


def _positions(
    dataset: Readable, shared: tuple[Readable, ...], per_frame: tuple[Readable, ...], count: int
) -> tuple[Position | None, ...]:
    places = _each(dataset, shared, per_frame, count, "PlanePositionSequence", "ImagePositionPatient", 3)
    return tuple(None if p is None else (p[0], p[1], p[2]) for p in places)


def _orientations(
    dataset: Readable, shared: tuple[Readable, ...], per_frame: tuple[Readable, ...], count: int
) -> tuple[Orientation | None, ...]:
    ways = _each(dataset, shared, per_frame, count, "PlaneOrientationSequence", "ImageOrientationPatient", 6)
    return tuple(None if o is None else (o[0], o[1], o[2], o[3], o[4], o[5]) for o in ways)


def _each(
    dataset: Readable,
    shared: tuple[Readable, ...],
    per_frame: tuple[Readable, ...],
    count: int,
    sequence: str,
    keyword: str,
    size: int,
) -> tuple[tuple[float, ...] | None, ...]:
    """One value per frame: its own, else the shared one, else the header's. Values are `size` numbers."""
    common = next((v for p in _within((dataset, *shared), sequence) if (v := numbers(p, keyword, size))), None)
    own = (_own(frame, sequence, keyword, size) for frame in per_frame[:count])
    return tuple(value or common for value in own) if per_frame else (common,) * count


def _own(frame: Readable, sequence: str, keyword: str, size: int) -> tuple[float, ...] | None:
    return next((v for item in items(frame, sequence)[:1] if (v := numbers(item, keyword, size))), None)


def _temporal(dataset: Readable, per_frame: tuple[Readable, ...], count: int) -> tuple[int | None, ...]:
    """The temporal position of each frame; empty where there is none, as in nearly every head CT."""
    if not per_frame:
        own = integer(dataset, "TemporalPositionIdentifier")
        return () if own is None else (own,) * count
    contents = (items(frame, "FrameContentSequence")[:1] for frame in per_frame)
    indices = tuple(integer(c[0], "TemporalPositionIndex") if c else None for c in contents)
    return indices if any(index is not None for index in indices) else ()


def _body_part(sources: tuple[Readable, ...]) -> str | None:
    """The anatomic region of an Enhanced CT, whose header has no Body Part Examined (PS3.3 C.7.6.16.2.8)."""
    for place in _within(sources, "FrameAnatomySequence"):
        for region in items(place, "AnatomicRegionSequence")[:1]:
            return text(region, "CodeMeaning")
    return None


def _contrast(dataset: Readable) -> str | None:
    """The contrast agent, in a CT Image's element or an Enhanced CT's sequence."""
    agents = items(dataset, "ContrastBolusAgentSequence")
    return text(dataset, "ContrastBolusAgent") or next((text(a, "CodeMeaning") or "agent" for a in agents), None)


def _age(value: str | None) -> float | None:
    match = _AGE.match(value or "")
    return None if match is None else round(int(match[1]) * _DAYS[match[2].upper()] / 365.25, 2)


def _positive(value: int | None) -> int | None:
    return value if value is not None and value > 0 else None
