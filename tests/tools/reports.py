"""Results and images to report on, made up, one for each kind of report."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from pydicom.dataset import Dataset
from pydicom.uid import (
    CTImageStorage,
    EnhancedCTImageStorage,
    SecondaryCaptureImageStorage,
)

from inference.result import (
    LABELS,
    Completeness,
    Finding,
    ModelReading,
    Novelty,
    OperatingPoint,
    Outcome,
    Rate,
    SeriesChoice,
    SliceReading,
    StudyResult,
)
from node.report.content import Device
from node.report.sr import Predecessor, build, to_bytes

STUDY_UID = "1.2.826.0.1.3680043.10.543.7.1"
SERIES_UID = f"{STUDY_UID}.2"
MADE_AT = dt.datetime(2026, 3, 4, 5, 6, 7, 89, tzinfo=dt.UTC)
DEVICE = Device(ae_title="HEMONODE", version="0.1.0", institution="Sankt Jürgen", department="Neuroradiologie")


def a_slice(number: int, **attributes: object) -> Dataset:
    """The header of one axial CT slice; `attributes` replace or add values by keyword."""
    image = Dataset()
    image.SpecificCharacterSet = "ISO_IR 192"
    image.SOPClassUID = CTImageStorage
    image.SOPInstanceUID = f"{SERIES_UID}.{number}"
    image.StudyInstanceUID = STUDY_UID
    image.SeriesInstanceUID = SERIES_UID
    image.FrameOfReferenceUID = f"{STUDY_UID}.9"
    image.Modality = "CT"
    image.PatientName = "Doe^Jane"
    image.PatientID = "4711"
    image.PatientBirthDate = "19610203"
    image.PatientSex = "F"
    image.StudyDate = "20260304"
    image.StudyTime = "040506"
    image.ReferringPhysicianName = "Roe^Richard"
    image.StudyID = "1"
    image.AccessionNumber = "A1"
    image.Rows = image.Columns = 512
    image.PixelSpacing = [0.45, 0.45]
    image.SliceThickness = 5
    image.ImagePositionPatient = [-115, -115, 5 * number]
    image.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    for keyword, value in attributes.items():
        setattr(image, keyword, value)
    return image


def slices(**attributes: object) -> list[Dataset]:
    """A series of twelve axial CT slices, numbered from 1."""
    return [a_slice(number, **attributes) for number in range(1, 13)]


def an_enhanced_series(*, side: int) -> Dataset:
    """The header of one Enhanced CT image of twelve frames, 5 mm apart, stored from head to feet."""
    image = a_slice(1, SOPClassUID=EnhancedCTImageStorage, NumberOfFrames=12, Rows=side, Columns=side)
    for keyword in ("PixelSpacing", "SliceThickness", "ImagePositionPatient", "ImageOrientationPatient"):
        delattr(image, keyword)
    shared, measures, orientation = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [0.45, 0.45], 5
    orientation.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [orientation]
    image.SharedFunctionalGroupsSequence = [shared]
    image.PerFrameFunctionalGroupsSequence = []
    for number in range(12, 0, -1):
        frame, position = Dataset(), Dataset()
        position.ImagePositionPatient = [-115, -115, 5 * number]
        frame.PlanePositionSequence = [position]
        image.PerFrameFunctionalGroupsSequence.append(frame)
    return image


OPERATING_POINT = OperatingPoint(
    name="balanced",
    threshold=0.5,
    sensitivity=Rate(hits=41, cases=45, value=41 / 45, low=0.79, high=0.97),
    specificity=Rate(hits=50, cases=55, value=50 / 55, low=0.80, high=0.96),
    on="100 scans of a site",
)


def a_reading(
    *,
    name: str = "cnn-lstm",
    labels: Sequence[str] = LABELS,
    present: Sequence[str] = ("any", "subdural", "subarachnoid"),
    calibrated: bool = False,
    demonstration: bool = True,
    keys: Sequence[str] = (f"{SERIES_UID}.4", f"{SERIES_UID}.5", f"{SERIES_UID}.6"),
) -> ModelReading:
    """A model's reading of the twelve slices; the labels `present` have 0.9 on slices 4 to 6, all else 0.1."""
    return ModelReading(
        name=name,
        family=name.replace("-", "_"),
        version="1.0",
        digest="ab" * 32,
        demonstration=demonstration,
        rule="the maximum over the slices",
        findings=tuple(
            Finding(
                label=label,
                present=label in present,
                score=0.9 if label in present else 0.1,
                threshold=0.5,
                calibrated=calibrated,
                probability=(0.85 if label in present else 0.05) if calibrated else None,
                prevalence=0.12 if calibrated else None,
                operating_point=OPERATING_POINT if calibrated else None,
            )
            for label in labels
        ),
        slices=tuple(
            SliceReading(
                sop_instance_uid=f"{SERIES_UID}.{n}",
                position_mm=5.0 * n,
                scores={label: 0.9 if label in present and 4 <= n <= 6 else 0.1 for label in labels},
            )
            for n in range(1, 13)
        ),
        key_slices=tuple(keys) if present else (),
        warnings=("the batch was halved to 4",) if demonstration else (),
    )


CHOSEN = SeriesChoice(
    series_uid=SERIES_UID, chosen=True, rank=1, code="chosen", reason="axial, soft-tissue kernel, covers the head"
)
LOCALIZER = SeriesChoice(
    series_uid=f"{STUDY_UID}.1", chosen=False, code="localizer", reason="a localizer (scout view), not a slice"
)
SHORT = SeriesChoice(
    series_uid=f"{STUDY_UID}.3", chosen=False, code="incomplete_coverage", reason="covers only 40 mm of the head"
)
WHOLE = Completeness(complete=True, reason="geometrically whole, association released", evidence=("12 slices, 5 mm",))
GAPPY = Completeness(
    complete=False,
    reason="the limit of 600 s passed",
    missing=("1 slice missing at 42.5 mm, between instance 8 and instance 9", "the vertex is missing"),
)

BRIEF = a_reading(labels=("any", "subdural"), present=("any", "subdural"))
"""A reading of two labels: validating one of six takes PixelMed three times as long."""
BRIEF_NEGATIVE = a_reading(labels=("any", "subdural"), present=())

POSITIVE = StudyResult(
    study_uid=STUDY_UID,
    revision=1,
    outcome=Outcome.POSITIVE,
    reason="RADnet: 3 consecutive slices at or above 0.50",
    completeness=WHOLE,
    series=(CHOSEN, LOCALIZER),
    readings=(a_reading(name="radnet", labels=("any",), present=("any",)), a_reading()),
    warnings=("the GPU was lost; read on the CPU",),
)
NEGATIVE = replace(
    POSITIVE,
    outcome=Outcome.NEGATIVE,
    reason="no model found anything",
    readings=(a_reading(labels=("any", "epidural"), present=()),),
)
NOT_ANALYSED = StudyResult(
    study_uid=STUDY_UID,
    revision=1,
    outcome=Outcome.NOT_ANALYSED,
    reason="no series can be read: localizer, incomplete coverage",
    completeness=WHOLE,
    series=(LOCALIZER, SHORT),
)

UNLIKE = Novelty(
    unlike=True,
    sentence="noise (HU) 21, usual are 2 to 7",
    input_distance=2.8,
    input_limit=0.4,
    measures={"noise": 21.0},
)
ABSTAINED = replace(
    NEGATIVE,
    outcome=Outcome.NOT_ANALYSED,
    reason=f"not analysed: the scan is unlike those the models were trained on (cnn-lstm: {UNLIKE.sentence})",
    readings=(replace(BRIEF_NEGATIVE, novelty=UNLIKE, warnings=("the scan is unlike those of training",)),),
)
"""A study in which nothing was found, by a model that abstains from scans unlike those it was trained on."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind of report: what it is made of."""

    result: StudyResult
    evidence: tuple[Dataset, ...] = field(default_factory=lambda: tuple(slices()))
    predecessor: Predecessor | None = None


def built(kind: Kind) -> bytes:
    """The report of this kind as a PS3.10 file."""
    document = build(kind.result, evidence=kind.evidence, made_at=MADE_AT, device=DEVICE, predecessor=kind.predecessor)
    return to_bytes(document)


def _approved() -> StudyResult:
    reading = a_reading(labels=("any", "subdural"), calibrated=True, demonstration=False)
    return replace(POSITIVE, readings=(reading,), warnings=())


def _multiframe() -> Kind:
    image = a_slice(1, SOPClassUID=EnhancedCTImageStorage, NumberOfFrames=12)
    uid = str(image.SOPInstanceUID)
    reading = replace(BRIEF, key_slices=(uid,))
    framed = tuple(replace(s, sop_instance_uid=uid, frame=n) for n, s in enumerate(reading.slices, start=1))
    return Kind(result=replace(POSITIVE, readings=(replace(reading, slices=framed),)), evidence=(image,))


def _bare() -> Dataset:
    image = Dataset()
    image.SOPClassUID = CTImageStorage
    image.SOPInstanceUID = f"{SERIES_UID}.1"
    image.StudyInstanceUID = STUDY_UID
    image.SeriesInstanceUID = SERIES_UID
    return image


KINDS: dict[str, Kind] = {
    "positive with demonstration weights": Kind(result=POSITIVE),
    "positive with calibrated weights of a site": Kind(result=_approved()),
    "positive on a multi-frame image": _multiframe(),
    "negative": Kind(result=NEGATIVE, evidence=(a_slice(6),)),
    "second revision, incomplete": Kind(
        result=replace(POSITIVE, revision=2, completeness=GAPPY, readings=(BRIEF,)),
        predecessor=Predecessor.of(study_uid=STUDY_UID, revision=1),
    ),
    "not analysed, unlike the scans of training": Kind(result=ABSTAINED, evidence=(a_slice(6),)),
    "not analysed, nothing suitable": Kind(
        result=NOT_ANALYSED, evidence=(a_slice(1, SOPClassUID=SecondaryCaptureImageStorage, Modality="OT"),)
    ),
    "not analysed, the reading failed": Kind(
        result=replace(NOT_ANALYSED, reason="decoding failed:\x00\x1b\\ broken", series=(CHOSEN,), completeness=GAPPY)
    ),
    "not analysed, nothing known": Kind(result=replace(NOT_ANALYSED, series=()), evidence=(_bare(),)),
}
"""Every kind of report there is, by name."""

NAMES = (
    "山田^太郎",
    "Yamada^Tarou=山田^太郎=やまだ^たろう",
    "Müller^Jürgen^^Dr.",
    "Παπαδόπουλος^Γεώργιος",
    "عبد الله^محمد",
    "가" * 64 + "=" + "나" * 64,
    "",
)
"""Names in many scripts, and the longest that PN allows: 64 characters a component group (PS3.5 table 6.2-1)."""
