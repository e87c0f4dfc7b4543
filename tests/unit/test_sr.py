"""The Structured Report as a value: what it says, and that the same input always gives the same bytes."""

from __future__ import annotations

import datetime as dt
import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from highdicom.sr import Comprehensive3DSR, srread
from pydicom import dcmread
from pydicom.config import IGNORE
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage

from inference.result import LABELS, Outcome
from node.report.content import DEMONSTRATION, NOT_FOR_DIAGNOSIS
from node.report.identifiers import report_path, report_uid
from node.report.sr import build, series_description
from tests.tools.reports import (
    DEVICE,
    GAPPY,
    KINDS,
    LOCALIZER,
    MADE_AT,
    NAMES,
    NEGATIVE,
    NOT_ANALYSED,
    POSITIVE,
    SERIES_UID,
    STUDY_UID,
    UNLIKE,
    Kind,
    a_reading,
    a_slice,
    built,
    slices,
)

PRESENCE, PRESENT, ABSENT, UNDETERMINED = "Presence", "Present", "Absent", "Undetermined"


def read(kind: Kind) -> Comprehensive3DSR:
    report = srread(io.BytesIO(built(kind)))
    assert isinstance(report, Comprehensive3DSR)
    return report


def items(node: Dataset) -> Iterator[Dataset]:
    for item in node.get("ContentSequence", []):
        yield item
        yield from items(item)


def called(item: Dataset) -> str:
    return str(item.ConceptNameCodeSequence[0].CodeMeaning)


def said(item: Dataset) -> str:
    if item.ValueType == "CODE":
        return str(item.ConceptCodeSequence[0].CodeMeaning)
    return str(item.get("TextValue", "")) or str(item.get("UID", ""))


def values(node: Dataset, name: str) -> list[str]:
    return [said(item) for item in items(node) if called(item) == name]


def groups(report: Dataset) -> dict[str, Dataset]:
    """The measurement groups by their tracking identifier."""
    found = [item for item in items(report) if called(item) == "Measurement Group"]
    return {values(group, "Tracking Identifier")[0]: group for group in found}


def images(group: Dataset) -> list[str]:
    found = [item for item in items(group) if item.ValueType == "IMAGE"]
    return [str(item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID) for item in found]


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_is_a_complete_preliminary_unverified_comprehensive_3d_sr_in_the_study(name: str) -> None:
    report = read(KINDS[name])
    flags = (report.CompletionFlag, report.PreliminaryFlag, report.VerificationFlag)
    assert flags == ("COMPLETE", "PRELIMINARY", "UNVERIFIED")
    assert report.StudyInstanceUID == STUDY_UID
    assert report.SeriesInstanceUID != SERIES_UID
    assert NOT_FOR_DIAGNOSIS in values(report, "Comment")


@pytest.mark.parametrize("name", KINDS)
def test_building_again_gives_the_same_bytes(name: str) -> None:
    assert built(KINDS[name]) == built(KINDS[name])


def test_each_model_has_a_group_for_each_label_it_knows() -> None:
    told = groups(read(Kind(result=POSITIVE)))
    assert set(told) == {"radnet/any", *(f"cnn-lstm/{label}" for label in LABELS)}
    present = {name for name, group in told.items() if values(group, PRESENCE) == [PRESENT]}
    assert present == {"radnet/any", "cnn-lstm/any", "cnn-lstm/subdural", "cnn-lstm/subarachnoid"}


def test_a_group_names_the_finding_its_site_and_the_weights() -> None:
    group = groups(read(Kind(result=POSITIVE)))["cnn-lstm/intraventricular"]
    assert values(group, "Finding") == ["Hemorrhage"]
    assert values(group, "Finding Site") == ["Brain ventricle"]
    assert values(group, "Algorithm Version") == ["1.0"]
    parameters = values(group, "Algorithm Parameters")
    assert f"weights sha256:{'ab' * 32}" in parameters
    assert "operating point: 0.5 (score, not calibrated)" in parameters


@pytest.mark.parametrize(("calibrated", "name"), [(True, "Probability"), (False, "Score")])
def test_only_a_calibrated_number_is_called_a_probability(calibrated: bool, name: str) -> None:
    result = replace(POSITIVE, readings=(a_reading(calibrated=calibrated),))
    group = groups(read(Kind(result=result)))["cnn-lstm/any"]
    numbers = {called(item): item for item in items(group) if item.ValueType == "NUM"}
    assert set(numbers) == {name}
    assert float(numbers[name].MeasuredValueSequence[0].NumericValue) == (0.85 if calibrated else 0.9)


def test_the_operating_point_comes_with_what_was_measured_at_it() -> None:
    group = groups(read(KINDS["positive with calibrated weights of a site"]))["cnn-lstm/any"]
    parameters = values(group, "Algorithm Parameters")
    assert (
        "measured at the operating point: balanced, 0.5: sensitivity 0.91 [0.79-0.97] (41 of 45), "
        "specificity 0.91 [0.80-0.96] (50 of 55), on 100 scans of a site" in parameters
    )
    assert (
        "score: 0.900; its probability holds where 12% of the scans bear the finding, as where it was calibrated"
        in (parameters)
    )


def test_a_model_that_abstains_leaves_its_finding_undetermined_and_says_why() -> None:
    report = read(KINDS["not analysed, unlike the scans of training"])
    told = groups(report)
    assert values(told["cnn-lstm/any"], PRESENCE) == [UNDETERMINED]
    assert values(told["hemonode/any"], "Reason why the study was not analysed") == [
        "The scan is unlike those the models were trained on"
    ]
    said = "this scan: unlike the scans of training: noise (HU) 21, usual are 2 to 7"
    assert said in values(told["cnn-lstm/any"], "Algorithm Parameters")
    assert any("noise (HU) 21" in text for text in values(report, "Conclusion"))
    assert any("unlike" in text for text in values(report, "Warning"))


def test_what_was_found_in_a_scan_unlike_training_is_still_called_present() -> None:
    readings = tuple(replace(reading, novelty=UNLIKE) for reading in POSITIVE.readings)
    told = groups(read(Kind(result=replace(POSITIVE, readings=readings))))
    assert values(told["radnet/any"], PRESENCE) == [PRESENT]


def test_a_positive_finding_references_the_key_slices_it_stands_on_and_a_negative_one_none() -> None:
    told = groups(read(Kind(result=POSITIVE)))
    assert images(told["cnn-lstm/subdural"]) == [f"{SERIES_UID}.{n}" for n in (4, 5, 6)]
    assert images(told["cnn-lstm/epidural"]) == []


def test_a_finding_above_its_operating_point_on_one_key_slice_references_that_one_only() -> None:
    reading = a_reading(keys=(f"{SERIES_UID}.4", f"{SERIES_UID}.8"))
    told = groups(read(Kind(result=replace(POSITIVE, readings=(reading,)))))
    assert images(told["cnn-lstm/subdural"]) == [f"{SERIES_UID}.4"]


def test_a_multi_frame_image_is_referenced_by_its_most_suspicious_frames() -> None:
    group = groups(read(KINDS["positive on a multi-frame image"]))["cnn-lstm/subdural"]
    (image,) = [item for item in items(group) if item.ValueType == "IMAGE"]
    frames = list(image.ReferencedSOPSequence[0].ReferencedFrameNumber)
    assert len(frames) == 5
    assert {4, 5, 6} <= set(frames)


def test_the_image_library_holds_the_key_slices_and_no_others() -> None:
    report = read(Kind(result=POSITIVE))
    (library,) = [item for item in items(report) if called(item) == "Image Library"]
    assert images(library) == [f"{SERIES_UID}.{n}" for n in (4, 5, 6)]


@pytest.mark.parametrize("attributes", [{"SliceThickness": None}, {"PixelSpacing": None}, {"SOPClassUID": "1.2.3.4"}])
def test_key_slices_that_the_library_cannot_describe_are_referenced_all_the_same(attributes: dict[str, object]) -> None:
    report = read(Kind(result=POSITIVE, evidence=tuple(slices(**attributes))))
    assert images(groups(report)["radnet/any"]) == [f"{SERIES_UID}.{n}" for n in (4, 5, 6)]
    assert "Image Library" not in {called(item) for item in items(report)}


def test_the_study_as_a_whole_is_concluded_in_one_sentence_and_one_code() -> None:
    for result, expected in ((POSITIVE, PRESENT), (NEGATIVE, ABSENT), (NOT_ANALYSED, UNDETERMINED)):
        report = read(Kind(result=result))
        assert values(report, "Intracranial hemorrhage") == [expected]
        assert values(report, "Conclusion") == [result.reason]


def test_what_is_missing_is_named_and_the_study_is_called_incomplete() -> None:
    report = read(Kind(result=replace(NEGATIVE, completeness=GAPPY)))
    assert values(report, "Completeness of the study") == ["Incomplete study"]
    assert values(report, "Missing from the study") == list(GAPPY.missing)


def test_every_series_is_named_with_the_reason_why_it_was_or_was_not_read() -> None:
    report = read(Kind(result=POSITIVE))
    assert values(report, "Series read, because") == ["chosen"]
    assert values(report, "Series not read, because") == ["localizer"]
    assert LOCALIZER.reason in values(report, "Explanation")
    assert LOCALIZER.series_uid in values(report, "Series Instance UID")


def test_a_study_that_was_not_analysed_says_so_in_codes_and_in_words() -> None:
    report = read(Kind(result=NOT_ANALYSED))
    (group,) = groups(report).values()
    assert values(group, PRESENCE) == [UNDETERMINED]
    reasons = values(group, "Reason why the study was not analysed")
    assert reasons == ["No series is suitable for reading", "localizer", "incomplete coverage"]
    (scheme,) = report.CodingSchemeIdentificationSequence
    assert scheme.CodingSchemeDesignator == "99HEMONODE"


def test_a_study_not_analysed_after_one_model_had_read_it_keeps_that_reading() -> None:
    result = replace(NOT_ANALYSED, series=POSITIVE.series, readings=POSITIVE.readings[:1])
    told = groups(read(Kind(result=result)))
    assert values(told["hemonode/any"], PRESENCE) == [UNDETERMINED]
    assert values(told["radnet/any"], PRESENCE) == [PRESENT]


def test_demonstration_weights_are_named_in_the_series_the_content_and_every_algorithm() -> None:
    report = read(Kind(result=POSITIVE))
    assert str(report.SeriesDescription).startswith(DEMONSTRATION)
    assert DEMONSTRATION in values(report, "Comment")
    assert all(DEMONSTRATION in values(group, "Algorithm Parameters") for group in groups(report).values())


def test_a_report_from_a_sites_own_weights_does_not_speak_of_demonstration() -> None:
    report = read(KINDS["positive with calibrated weights of a site"])
    assert "DEMONSTRATION" not in str(report)


@pytest.mark.parametrize("outcome", Outcome)
@pytest.mark.parametrize("demonstration", [True, False])
def test_a_series_description_fits_into_its_64_characters(outcome: Outcome, demonstration: bool) -> None:
    result = replace(POSITIVE, outcome=outcome, readings=(a_reading(demonstration=demonstration),))
    assert 0 < len(series_description(result)) <= 64


def test_a_revision_names_its_predecessor_and_has_uids_of_its_own() -> None:
    first, second = read(Kind(result=POSITIVE)), read(KINDS["second revision, incomplete"])
    (study,) = second.PredecessorDocumentsSequence
    (series,) = study.ReferencedSeriesSequence
    (sop,) = series.ReferencedSOPSequence
    assert (study.StudyInstanceUID, series.SeriesInstanceUID) == (STUDY_UID, first.SeriesInstanceUID)
    assert sop.ReferencedSOPInstanceUID == first.SOPInstanceUID
    assert second.SOPInstanceUID != first.SOPInstanceUID
    assert second.InstanceNumber == 2


def test_a_finding_keeps_its_tracking_uid_through_the_revisions() -> None:
    first, second = (groups(read(Kind(result=replace(POSITIVE, revision=revision)))) for revision in (1, 2))
    for name, group in first.items():
        uids = values(group, "Tracking Unique Identifier")
        assert uids == values(second[name], "Tracking Unique Identifier")
    assert len({tuple(values(g, "Tracking Unique Identifier")) for g in first.values()}) == len(first)


def test_dates_and_times_are_the_results() -> None:
    report = read(Kind(result=POSITIVE))
    dates = {str(report[keyword].value) for keyword in ("ContentDate", "SeriesDate", "InstanceCreationDate")}
    times = {str(report[keyword].value) for keyword in ("ContentTime", "SeriesTime", "InstanceCreationTime")}
    assert (dates, times) == ({"20260304"}, {"050607.000089"})


@pytest.mark.parametrize("name", NAMES)
def test_a_name_survives_in_any_script_and_at_any_length(name: str) -> None:
    report = read(Kind(result=POSITIVE, evidence=tuple(slices(PatientName=name))))
    assert str(report.PatientName) == name
    assert report.SpecificCharacterSet == "ISO_IR 192"


# The last is the example of PS3.5 H.3.1.
@pytest.mark.parametrize(
    ("name", "charset", "raw"),
    [
        ("Müller^Jürgen", "ISO_IR 100", "Müller^Jürgen".encode("latin_1")),
        ("Παπαδόπουλος^Γεώργιος", "ISO_IR 126", "Παπαδόπουλος^Γεώργιος".encode("iso8859_7")),
        ("王^小东", "GB18030", "王^小东".encode("gb18030")),
        (
            "Yamada^Tarou=山田^太郎=やまだ^たろう",
            "\\ISO 2022 IR 87",
            b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B=\x1b$B$d$^$@\x1b(B^\x1b$B$?$m$&\x1b(B",
        ),
    ],
)
def test_a_name_in_another_character_set_is_re_encoded(name: str, charset: str, raw: bytes) -> None:
    coded = _element(0x0008, 0x0005, "CS", charset.encode()) + _element(0x0010, 0x0010, "PN", raw)
    parsed = dcmread(io.BytesIO(coded), force=True)
    report = read(Kind(result=POSITIVE, evidence=tuple(slices(PatientName=parsed.PatientName))))
    assert str(report.PatientName) == name


def _element(group: int, number: int, vr: str, value: bytes) -> bytes:
    padded = value + b" " * (len(value) % 2)
    head = group.to_bytes(2, "little") + number.to_bytes(2, "little") + vr.encode()
    return head + len(padded).to_bytes(2, "little") + padded


def test_an_image_with_nothing_but_its_uids_gives_a_report_with_empty_type_2_attributes() -> None:
    report = read(KINDS["not analysed, nothing known"])
    for keyword in ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "AccessionNumber"):
        assert keyword in report
        assert report[keyword].is_empty


@pytest.mark.filterwarnings("ignore:Invalid value for VR", "ignore:The value length")
def test_values_that_break_the_standard_are_carried_over_as_they_are() -> None:
    broken = a_slice(1)
    broken.add(DataElement("PatientSex", "CS", "female", validation_mode=IGNORE))
    broken.add(DataElement("StudyID", "SH", "longer than sixteen characters", validation_mode=IGNORE))
    report = read(Kind(result=NOT_ANALYSED, evidence=(broken,)))
    assert (report.PatientSex, report.StudyID) == ("female", "longer than sixteen characters")


def test_the_issuer_of_the_patient_id_and_nested_names_are_carried_over() -> None:
    other = Dataset()
    other.PatientID = "Ж-12"
    other.IssuerOfPatientID = "Клиника"
    image = a_slice(1, IssuerOfPatientID="Klinik Süd", OtherPatientIDsSequence=[other])
    report = read(Kind(result=NOT_ANALYSED, evidence=(image,)))
    assert report.IssuerOfPatientID == "Klinik Süd"
    assert report.OtherPatientIDsSequence[0].IssuerOfPatientID == "Клиника"


def test_a_de_identified_study_without_a_method_makes_no_claim_that_needs_one() -> None:
    image = a_slice(1, PatientIdentityRemoved="YES", DeidentificationMethod="")
    assert "PatientIdentityRemoved" not in read(Kind(result=NOT_ANALYSED, evidence=(image,)))
    image = a_slice(1, PatientIdentityRemoved="YES", DeidentificationMethod="by hand")
    assert read(Kind(result=NOT_ANALYSED, evidence=(image,))).PatientIdentityRemoved == "YES"


def test_control_characters_in_a_reason_do_not_reach_the_report() -> None:
    report = read(KINDS["not analysed, the reading failed"])
    assert values(report, "Conclusion") == ["decoding failed:??\\ broken"]


def test_evidence_lists_each_instance_once_and_nothing_else() -> None:
    report = read(Kind(result=POSITIVE, evidence=(a_slice(4), a_slice(5), a_slice(6), a_slice(4))))
    listed = [(str(cls), str(uid)) for _study, _series, uid, cls in report.get_evidence()]
    assert listed == [(str(CTImageStorage), f"{SERIES_UID}.{n}") for n in (4, 5, 6)]


def test_without_any_instance_there_is_nothing_to_report_on() -> None:
    with pytest.raises(ValueError, match="at least one instance"):
        build(POSITIVE, evidence=(), made_at=MADE_AT, device=DEVICE)


def test_made_at_speaks_in_the_zone_it_is_given_in() -> None:
    tokyo = MADE_AT.astimezone(dt.timezone(dt.timedelta(hours=9)))
    report = build(POSITIVE, evidence=slices(), made_at=tokyo, device=DEVICE)
    assert report.ContentTime == "140607.000089"


@pytest.mark.parametrize("uid", ["../../etc", "1.2/3", "", "1..2", "..", "1.2\n", "1." * 40 + "1"])
def test_no_path_is_made_from_what_is_not_a_uid(uid: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not a Study Instance UID"):
        report_path(tmp_path, study_uid=uid, revision=1)


def test_uids_are_derived_valid_and_different_for_each_revision() -> None:
    uids = {report_uid(study_uid=STUDY_UID, revision=revision) for revision in range(1, 6)}
    assert len(uids) == 5
    assert all(uid.is_valid and uid.startswith("2.25.") for uid in uids)
