"""What is said about a study before anything else."""

from __future__ import annotations

from dataclasses import replace

import pydantic
import pytest

from db.states import Priority
from inference.result import Completeness, Outcome, SeriesChoice, StudyResult
from node.config import FlagSection, RemoteSection, Settings
from node.flag import channels
from node.flag.flag import Reference, flag_of
from tests.tools.reports import BRIEF, UNLIKE

WHOLE = Completeness(complete=True, reason="geometrically whole")
GAPPY = Completeness(complete=False, reason="the limit of 600 s passed", missing=("1 slice missing at 42.5 mm",))
READ = SeriesChoice(series_uid="1.2.1", chosen=True, rank=1, code="read", reason="axial head")


def a_result(outcome: Outcome, *, completeness: Completeness = WHOLE, reason: str = "3 slices") -> StudyResult:
    series = () if outcome is Outcome.NOT_ANALYSED else (READ,)
    return StudyResult(
        study_uid="1.2", revision=1, outcome=outcome, reason=reason, completeness=completeness, series=series
    )


@pytest.mark.parametrize(
    ("outcome", "completeness", "priority", "label"),
    [
        (Outcome.POSITIVE, WHOLE, "HIGH", "ICH suspected"),
        (Outcome.POSITIVE, GAPPY, "HIGH", "ICH suspected (incomplete study)"),
        (Outcome.NEGATIVE, WHOLE, "MEDIUM", "No ICH found"),
        (Outcome.NEGATIVE, GAPPY, "MEDIUM", "Incomplete study: no ICH found in what arrived"),
        (Outcome.NOT_ANALYSED, WHOLE, "MEDIUM", "Not analysed: no axial series"),
        (Outcome.NOT_ANALYSED, GAPPY, "MEDIUM", "Not analysed, incomplete study: no axial series"),
    ],
)
def test_only_a_positive_study_is_high_and_every_other_is_labelled_as_what_it_is(
    outcome: Outcome, completeness: Completeness, priority: str, label: str
) -> None:
    reason = "not analysed: no axial series" if outcome is Outcome.NOT_ANALYSED else "3 slices"
    flag = flag_of(a_result(outcome, completeness=completeness, reason=reason), header={})
    assert (flag.priority, flag.label) == (Priority(priority), label)


def test_no_outcome_is_ever_pushed_below_its_normal_place() -> None:
    priorities = {flag_of(a_result(o, completeness=c), header={}).priority for o in Outcome for c in (WHOLE, GAPPY)}
    assert Priority.LOW not in priorities


@pytest.mark.parametrize(
    ("outcome", "completeness", "label"),
    [
        (Outcome.POSITIVE, WHOLE, "ICH suspected (unlike training)"),
        (Outcome.POSITIVE, GAPPY, "ICH suspected (incomplete study) (unlike training)"),
        (Outcome.NEGATIVE, WHOLE, "No ICH found (unlike training)"),
        (Outcome.NEGATIVE, GAPPY, "Incomplete study: no ICH found in what arrived (unlike training)"),
    ],
)
def test_the_label_says_when_a_model_has_never_seen_such_a_scan(
    outcome: Outcome, completeness: Completeness, label: str
) -> None:
    result = replace(a_result(outcome, completeness=completeness), readings=(replace(BRIEF, novelty=UNLIKE),))
    assert flag_of(result, header={}).label == label
    assert len(label) <= 64


def test_the_label_fits_its_value_representation_whatever_the_reason_says() -> None:
    reason = "not analysed: C:\\images\tcould not be decoded " + "and so on " * 10
    label = flag_of(a_result(Outcome.NOT_ANALYSED, reason=reason), header={}).label
    assert label.startswith("Not analysed: C: images could not be decoded")
    assert len(label) <= 64
    assert label.endswith("...")


def test_the_reason_of_an_incomplete_study_names_what_is_missing() -> None:
    flag = flag_of(a_result(Outcome.NEGATIVE, completeness=GAPPY), header={})
    assert flag.reason == "3 slices. Incomplete: the limit of 600 s passed. 1 slice missing at 42.5 mm."


def test_the_reader_is_pointed_at_the_series_that_were_read() -> None:
    instances = [Reference(series_uid=s, sop_class_uid="1.1", sop_instance_uid=f"{s}.9") for s in ("1.2.1", "1.2.2")]
    flag = flag_of(a_result(Outcome.NEGATIVE), header={}, instances=instances)
    assert [i.series_uid for i in flag.instances] == ["1.2.1"]


def test_the_reader_is_pointed_at_everything_where_nothing_was_read() -> None:
    instances = [Reference(series_uid=s, sop_class_uid="1.1", sop_instance_uid=f"{s}.9") for s in ("1.2.1", "1.2.2")]
    flag = flag_of(a_result(Outcome.NOT_ANALYSED), header={}, instances=instances)
    assert [i.series_uid for i in flag.instances] == ["1.2.1", "1.2.2"]


def test_every_configured_remote_is_a_channel_under_its_own_name() -> None:
    remotes = tuple(RemoteSection(name=name, ae_title="RIS", address="h", port=104) for name in ("ris", "pacs"))
    settings = Settings(flag=FlagSection(ups=remotes))
    assert [channel.name for channel in channels(settings)] == ["ris", "pacs"]


def test_two_subscribers_under_one_ae_title_are_refused_because_reports_are_addressed_by_it() -> None:
    twice = [{"name": name, "ae_title": "RIS", "address": "h", "port": 104} for name in ("one", "two")]
    with pytest.raises(pydantic.ValidationError, match="every ae_title must be different"):
        Settings.model_validate({"subscribers": twice})
