"""The content tree of the report: a result in the words of TID 1500, TID 1501 and TID 4019 (PS3.16 annex A)."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from highdicom.sr import (
    AlgorithmIdentification,
    CodeContentItem,
    ContainerContentItem,
    ContentItem,
    ContentSequence,
    DeviceObserverIdentifyingAttributes,
    FindingSite,
    Measurement,
    MeasurementReport,
    MeasurementsAndQualitativeEvaluations,
    ObservationContext,
    ObserverContext,
    QualitativeEvaluation,
    RelationshipTypeValues,
    SourceImageForMeasurementGroup,
    TextContentItem,
    TrackingIdentifier,
    UIDRefContentItem,
)
from pydicom.dataset import Dataset
from pydicom.uid import UID, CTImageStorage

from inference.result import ANY, Finding, ModelReading, Outcome, SeriesChoice, StudyResult
from node.report import codes
from node.report.codes import Concept
from node.report.identifiers import device_uid, tracking_uid

MANUFACTURER = "Hemonode"
NODE = "hemonode"
NOT_FOR_DIAGNOSIS = "Result of software, not for diagnosis: it orders the reading worklist and replaces no reading."
FOR_RESEARCH = "Volume and locations are for research: this device does not mark images in clinical use."
DEMONSTRATION = "DEMONSTRATION WEIGHTS - NOT FOR CLINICAL USE"

_PRESENCE = {Outcome.POSITIVE: codes.PRESENT, Outcome.NEGATIVE: codes.ABSENT, Outcome.NOT_ANALYSED: codes.UNDETERMINED}
_MOST_FRAMES = 5
# What TID 1601 to 1604 say about an image of the library, with how many values; highdicom reads each of them.
_DESCRIBED_BY = {
    "Modality": 1, "Rows": 1, "Columns": 1, "SliceThickness": 1,
    "PixelSpacing": 2, "ImagePositionPatient": 3, "ImageOrientationPatient": 6,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Device:
    """The node as the maker of the report."""

    ae_title: str
    version: str
    institution: str = ""
    department: str = ""


def content_tree(result: StudyResult, *, evidence: Sequence[Dataset], device: Device) -> Dataset:
    """The root container: who reports, on which procedure, every model's findings, and what holds for the study."""
    images = {str(image.SOPInstanceUID): image for image in evidence}
    groups = [group for reading in result.readings for group in _reading_groups(result, reading, images)]
    if result.outcome is Outcome.NOT_ANALYSED or not groups:
        groups.append(_not_analysed_group(result, device))
    report = MeasurementReport(
        observation_context=_observer(device),
        procedure_reported=(codes.CT if result.read_series_uids else codes.IMAGING_PROCEDURE).coded(),
        imaging_measurements=groups,
        title=codes.IMAGING_MEASUREMENT_REPORT.coded(),
        referenced_images=_library(result, images) or None,
    )
    root: Dataset = report[0]
    root.ContentSequence.append(_study_container(result))
    return root


def key_slice_uids(result: StudyResult) -> tuple[str, ...]:
    """The SOP Instance UIDs of every reading's key slices, each once, most suspicious first."""
    return tuple(dict.fromkeys(uid for reading in result.readings for uid in reading.key_slices))


def _observer(device: Device) -> ObservationContext:
    attributes = DeviceObserverIdentifyingAttributes(
        uid=device_uid(device.ae_title),
        name=device.ae_title,
        manufacturer_name=MANUFACTURER,
        model_name=MANUFACTURER,
        serial_number=device.ae_title,
    )
    context = ObserverContext(observer_type=codes.DEVICE.coded(), observer_identifying_attributes=attributes)
    return ObservationContext(observer_device_context=context)


def _library(result: StudyResult, images: dict[str, Dataset]) -> list[Dataset]:
    # TID 1600 is optional, and a whole series in it costs seconds: key slices only, and only those it can describe.
    keys = [images[uid] for uid in key_slice_uids(result) if uid in images]
    return [image for image in keys if image.SOPClassUID == CTImageStorage and _describable(image)]


def _describable(image: Dataset) -> bool:
    try:
        return all(keyword in image and count == image[keyword].VM for keyword, count in _DESCRIBED_BY.items())
    except ValueError:  # not a number
        return False


def _reading_groups(
    result: StudyResult, reading: ModelReading, images: dict[str, Dataset]
) -> Iterator[MeasurementsAndQualitativeEvaluations]:
    for finding in reading.findings:
        meant = codes.HAEMORRHAGES[finding.label]
        presence = _presence(result, reading, finding)
        yield MeasurementsAndQualitativeEvaluations(
            tracking_identifier=_tracking(result, subject=reading.name, label=finding.label),
            finding_type=meant.finding.coded(),
            finding_sites=[FindingSite(anatomic_location=meant.site.coded())],
            algorithm_id=_algorithm(reading, finding),
            measurements=[_number(finding), *(_volume(reading) if finding is reading.findings[0] else ())],
            qualitative_evaluations=[QualitativeEvaluation(name=codes.PRESENCE.coded(), value=presence.coded())],
            source_images=_sources(reading, finding, images) if finding.present else None,
        )


def _presence(result: StudyResult, reading: ModelReading, finding: Finding) -> Concept:
    """Whether the finding is there. A model that abstained from a study not analysed finds nothing absent."""
    if finding.present:
        return codes.PRESENT
    abstained = result.outcome is Outcome.NOT_ANALYSED and reading.unlike
    return codes.UNDETERMINED if abstained else codes.ABSENT


def _tracking(result: StudyResult, *, subject: str, label: str) -> TrackingIdentifier:
    uid = tracking_uid(study_uid=result.study_uid, subject=subject, label=label)
    return TrackingIdentifier(uid=uid, identifier=f"{subject}/{label}")


def _number(finding: Finding) -> Measurement:
    # Only a calibrated number may be called a probability; the other is a score, which orders studies and no more.
    name, value = (codes.SCORE, finding.score)
    if finding.probability is not None:
        name, value = (codes.PROBABILITY, finding.probability)
    return Measurement(name=name.coded(), value=round(float(value), 6), unit=codes.NO_UNITS.coded())


def _volume(reading: ModelReading) -> Iterator[Measurement]:
    """What the model's masks enclose, with its range; nothing unless locations were asked for."""
    if reading.volume is None:
        return
    values = (
        (None, reading.volume.ml),
        (codes.MINIMUM, reading.volume.low_ml),
        (codes.MAXIMUM, reading.volume.high_ml),
    )
    for derivation, value in values:
        yield Measurement(
            name=codes.VOLUME.coded(),
            value=round(value, 2),
            unit=codes.CUBIC_CENTIMETRE.coded(),
            derivation=derivation.coded() if derivation else None,
        )


def _algorithm(reading: ModelReading, finding: Finding) -> AlgorithmIdentification:
    parameters = [
        f"weights sha256:{reading.digest}",
        f"rule: {reading.rule}",
        f"operating point: {finding.threshold:g} ({'score' if finding.calibrated else 'score, not calibrated'})",
        *_certainty(reading, finding),
        f"device: {reading.device}, precision: {reading.precision}",
    ]
    if reading.demonstration:
        parameters.insert(0, DEMONSTRATION)
    return AlgorithmIdentification(
        name=printable(f"{reading.name} ({reading.family})"),
        version=printable(reading.version),
        parameters=[printable(parameter) for parameter in parameters],
        family=codes.ARTIFICIAL_INTELLIGENCE.coded(),
        manufacturer=MANUFACTURER,
    )


def _certainty(reading: ModelReading, finding: Finding) -> Iterator[str]:
    """How sure the number is: what was measured at its operating point, and where its probability holds."""
    if finding.operating_point is not None:
        yield f"measured at the operating point: {finding.operating_point}"
    if finding.probability is not None:
        yield (
            f"score: {finding.score:.3f}; its probability holds where {finding.prevalence or 0:.0%} of the scans "
            "bear the finding, as where it was calibrated"
        )
    if reading.novelty is not None:
        how = (
            f"unlike the scans of training: {reading.novelty.sentence}" if reading.unlike else "like those of training"
        )
        yield f"this scan: {how}"


def _sources(
    reading: ModelReading, finding: Finding, images: dict[str, Dataset]
) -> list[SourceImageForMeasurementGroup]:
    """The key slices on which this finding stands: those at or above the operating point, or the best of them."""
    scores = {uid: _best(reading, finding, uid) for uid in reading.key_slices if uid in images}
    ranked = sorted(scores, key=lambda uid: -scores[uid])
    chosen = [uid for uid in ranked if scores[uid] >= finding.threshold] or ranked[:1]
    return [
        SourceImageForMeasurementGroup(
            referenced_sop_class_uid=str(images[uid].SOPClassUID),
            referenced_sop_instance_uid=UID(uid),
            referenced_frame_numbers=_frames(reading, finding, uid) or None,
        )
        for uid in chosen
    ]


def _best(reading: ModelReading, finding: Finding, uid: str) -> float:
    return max((s.scores.get(finding.label, 0.0) for s in reading.slices if s.sop_instance_uid == uid), default=0.0)


def _frames(reading: ModelReading, finding: Finding, uid: str) -> list[int]:
    framed = [(s.scores.get(finding.label, 0.0), s.frame) for s in reading.slices if s.sop_instance_uid == uid]
    ranked = sorted((-score, frame) for score, frame in framed if frame is not None)
    return sorted(frame for _score, frame in ranked[:_MOST_FRAMES])


def _not_analysed_group(result: StudyResult, device: Device) -> MeasurementsAndQualitativeEvaluations:
    meant = codes.HAEMORRHAGES[ANY]
    evaluations = [QualitativeEvaluation(name=codes.PRESENCE.coded(), value=codes.UNDETERMINED.coded())]
    evaluations += [
        QualitativeEvaluation(name=codes.NOT_ANALYSED_REASON.coded(), value=reason.coded())
        for reason in not_analysed_reasons(result)
    ]
    return MeasurementsAndQualitativeEvaluations(
        tracking_identifier=_tracking(result, subject=NODE, label=ANY),
        finding_type=meant.finding.coded(),
        finding_sites=[FindingSite(anatomic_location=meant.site.coded())],
        algorithm_id=AlgorithmIdentification(name=NODE, version=device.version, manufacturer=MANUFACTURER),
        qualitative_evaluations=evaluations,
    )


def not_analysed_reasons(result: StudyResult) -> tuple[Concept, ...]:
    """Why the study was not analysed: the study's reason first, then each series' own, each once."""
    if result.read_series_uids:
        return (codes.OUT_OF_DISTRIBUTION if result.out_of_distribution else codes.NO_CONCLUSION,)
    if not result.series:
        return (codes.NOTHING_RECEIVED,)
    return (codes.NONE_SUITABLE, *(codes.own_reason(code) for code in dict.fromkeys(s.code for s in result.series)))


def _study_container(result: StudyResult) -> ContainerContentItem:
    container = ContainerContentItem(
        name=codes.QUALITATIVE_EVALUATIONS.coded(), relationship_type=RelationshipTypeValues.CONTAINS
    )
    container.ContentSequence = ContentSequence(list(_study_statements(result)))
    return container


def _study_statements(result: StudyResult) -> Iterator[ContentItem]:
    if result.demonstration:
        yield _text(codes.COMMENT, DEMONSTRATION)
    yield _text(codes.COMMENT, NOT_FOR_DIAGNOSIS)
    if any(reading.volume is not None for reading in result.readings):
        yield _text(codes.COMMENT, FOR_RESEARCH)
    yield _code(codes.INTRACRANIAL_HAEMORRHAGE, _PRESENCE[result.outcome])
    yield _text(codes.CONCLUSION, result.reason)
    whole = result.completeness.complete
    yield _code(codes.COMPLETENESS, codes.COMPLETE if whole else codes.INCOMPLETE)
    yield _text(codes.COMPLETENESS_REASON, "; ".join((result.completeness.reason, *result.completeness.evidence)))
    yield from (_text(codes.MISSING, sentence) for sentence in result.completeness.missing)
    yield from (_series(choice) for choice in result.series)
    warnings = [*result.warnings, *(f"{r.name}: {warning}" for r in result.readings for warning in r.warnings)]
    yield from (_text(codes.WARNING, warning) for warning in warnings)


def _series(choice: SeriesChoice) -> ContentItem:
    item = _code(codes.SERIES_READ if choice.chosen else codes.SERIES_NOT_READ, codes.own_reason(choice.code))
    item.ContentSequence = ContentSequence(
        [
            UIDRefContentItem(
                name=codes.SERIES_INSTANCE_UID.coded(),
                value=choice.series_uid,
                relationship_type=RelationshipTypeValues.HAS_PROPERTIES,
            ),
            _text(codes.EXPLANATION, choice.reason, relationship=RelationshipTypeValues.HAS_PROPERTIES),
        ]
    )
    return item


def _code(name: Concept, value: Concept) -> CodeContentItem:
    return CodeContentItem(name=name.coded(), value=value.coded(), relationship_type=RelationshipTypeValues.CONTAINS)


def _text(
    name: Concept, value: str, *, relationship: RelationshipTypeValues = RelationshipTypeValues.CONTAINS
) -> TextContentItem:
    return TextContentItem(name=name.coded(), value=printable(value), relationship_type=relationship)


def printable(text: str) -> str:
    """`text` without the control characters that UT forbids (PS3.5 6.1.3), and never empty (PS3.3 table C.17-5)."""
    kept = "".join(c if c in "\t\n\r" or unicodedata.category(c) not in ("Cc", "Cs") else "?" for c in text)
    return kept.strip() or "not stated"
