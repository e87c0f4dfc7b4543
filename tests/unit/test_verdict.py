"""One answer from the evidence, and what an instance means that comes after it."""

from __future__ import annotations

import dataclasses
import itertools
import random

import pytest

from db.states import JobState, StudyState
from inference.series import Criteria, InstanceFacts
from node.assemble.evidence import SOURCES, Evidence, Kind, Says, gather
from node.assemble.revision import Act, Late, judge, meaning
from node.assemble.verdict import Pronounce, Wait, verdict
from node.assemble.view import Candidate, Role, StudyView
from node.config import AssembleSection

CT = "1.2.840.10008.5.1.4.1.1.2"
CRITERIA = Criteria()
YES, NO, NOTHING = Says.COMPLETE, Says.INCOMPLETE, Says.NOTHING


def piece(kind: Kind, says: Says) -> Evidence:
    clock = kind in (Kind.SETTLED, Kind.QUIET, Kind.AGE)
    return Evidence(
        kind=kind,
        says=says,
        sentence=f"{kind} {says}",
        missing=(f"what {kind} misses",) if says is NO else (),
        until={Kind.SETTLED: 2.0, Kind.QUIET: 30.0, Kind.AGE: 600.0}[kind] if clock and says is NOTHING else None,
    )


def evidence(
    geometry: Says, association: Says, *, settled: Says = NOTHING, quiet: Says = NOTHING, age: Says = NOTHING
) -> list[Evidence]:
    return [
        piece(Kind.GEOMETRY, geometry),
        piece(Kind.ASSOCIATION, association),
        piece(Kind.SETTLED, settled),
        piece(Kind.QUIET, quiet),
        piece(Kind.AGE, age),
    ]


def outcome(answer: Wait | Pronounce) -> object:
    """The second a study waits for, or whether it is complete."""
    return answer.until if isinstance(answer, Wait) else answer.completeness.complete


@pytest.mark.parametrize(
    ("geometry", "association", "settling", "settled", "quiet", "old"),
    [
        # what geometry and the association say; then the answer while instances have just come, when the study
        # has settled, when the source is quiet, and when the limit has passed though it is not
        (YES, YES, 2.0, True, True, True),
        (YES, NOTHING, 2.0, 30.0, True, False),
        (YES, NO, 2.0, 30.0, False, False),
        (NO, YES, 2.0, 30.0, False, False),
        (NO, NOTHING, 2.0, 30.0, False, False),
        (NO, NO, 2.0, 30.0, False, False),
        (NOTHING, YES, 2.0, 30.0, True, False),
        (NOTHING, NOTHING, 2.0, 30.0, True, False),
        (NOTHING, NO, 2.0, 30.0, False, False),
    ],
)
def test_the_answer_follows_from_geometry_association_and_time(
    geometry: Says, association: Says, settling: object, settled: object, quiet: object, old: object
) -> None:
    assert outcome(verdict(evidence(geometry, association))) == settling
    assert outcome(verdict(evidence(geometry, association, settled=YES))) == settled
    assert outcome(verdict(evidence(geometry, association, settled=YES, quiet=YES))) == quiet
    assert outcome(verdict(evidence(geometry, association, settled=YES, age=YES))) == old


@pytest.mark.parametrize(
    ("kind", "says", "settling", "settled", "quiet", "old"),
    [
        # a piece beside a whole series whose association is open; then the answer as above
        (Kind.PERFORMED, YES, True, True, True, True),
        (Kind.PERFORMED, NO, 2.0, 30.0, 600.0, False),
        (Kind.PERFORMED, NOTHING, 2.0, 30.0, True, False),
        (Kind.LISTED, YES, 2.0, True, True, True),
        (Kind.LISTED, NO, 2.0, 30.0, False, False),
        (Kind.DISCONTINUED, YES, 2.0, True, True, True),
        (Kind.DISCONTINUED, NO, 2.0, 30.0, False, False),
    ],
)
def test_what_a_performed_procedure_step_says_is_weighed_with_the_rest(
    kind: Kind, says: Says, settling: object, settled: object, quiet: object, old: object
) -> None:
    beside = piece(kind, says)
    assert outcome(verdict([*evidence(YES, NOTHING), beside])) == settling
    assert outcome(verdict([*evidence(YES, NOTHING, settled=YES), beside])) == settled
    assert outcome(verdict([*evidence(YES, NOTHING, settled=YES, quiet=YES), beside])) == quiet
    assert outcome(verdict([*evidence(YES, NOTHING, settled=YES, age=YES), beside])) == old


@pytest.mark.parametrize(("geometry", "expected"), [(NO, [2.0, False]), (NOTHING, [True, True])])
def test_a_list_of_which_everything_came_ends_the_wait_whatever_the_shape(geometry: Says, expected: object) -> None:
    listed = piece(Kind.PERFORMED, YES)
    answers = [verdict([*evidence(geometry, NO, settled=settled), listed]) for settled in (NOTHING, YES)]
    assert [outcome(answer) for answer in answers] == expected


def test_every_series_that_can_be_read_has_to_be_whole_before_a_study_is_complete_early() -> None:
    two = [piece(Kind.GEOMETRY, YES), *evidence(NO, YES, settled=YES)]
    assert outcome(verdict(two)) == 30.0


def test_announced_images_that_lack_make_a_whole_series_wait_and_then_incomplete() -> None:
    lacking = [*evidence(YES, YES, settled=YES), piece(Kind.ANNOUNCED, NO)]
    assert outcome(verdict(lacking)) == 30.0
    answer = verdict([*evidence(YES, YES, settled=YES, quiet=YES), piece(Kind.ANNOUNCED, NO)])
    assert isinstance(answer, Pronounce)
    assert answer.completeness.missing == ("what announced misses",)


def test_the_order_of_the_evidence_changes_nothing_but_the_order_of_its_sentences() -> None:
    pieces = evidence(NO, NO, settled=YES, quiet=YES)
    answers = {outcome(verdict(order)) for order in itertools.permutations(pieces)}
    assert answers == {False}


def test_an_incomplete_study_names_what_is_missing_and_what_decided() -> None:
    answer = verdict(evidence(NO, YES, settled=YES, age=YES))
    assert isinstance(answer, Pronounce)
    assert answer.completeness.missing == ("what geometry misses",)
    assert answer.completeness.reason == "age complete; geometry incomplete"
    assert "association: association complete" in answer.completeness.evidence


def test_a_complete_study_misses_nothing() -> None:
    answer = verdict(evidence(YES, YES, settled=YES))
    assert isinstance(answer, Pronounce)
    assert answer.completeness.missing == ()
    assert answer.completeness.reason == "geometry complete; association complete; settled complete"


def test_clocks_that_have_not_run_out_are_not_kept_as_evidence() -> None:
    answer = verdict(evidence(YES, YES, settled=YES))
    assert isinstance(answer, Pronounce)
    assert [sentence.split(":")[0] for sentence in answer.completeness.evidence] == [
        "geometry",
        "association",
        "settled",
    ]


def test_a_waiting_study_says_what_it_waits_for() -> None:
    answer = verdict(evidence(NO, YES, settled=YES))
    assert isinstance(answer, Wait)
    assert answer.reason == "geometry incomplete"


def test_a_new_kind_of_evidence_is_one_function() -> None:
    """For instance a count asked of the PACS: three images more than have come."""

    def from_elsewhere(_study: StudyView, _settings: AssembleSection, _now: float) -> tuple[Evidence, ...]:
        return (
            Evidence(kind=Kind.ANNOUNCED, says=NO, sentence="the PACS holds 3 more", missing=("3 images",)),
        )  # fmt: skip

    settings = AssembleSection()
    assert outcome(verdict(gather(WHOLE, settings, 5.0))) == 30.0  # no association is known
    answer = verdict(gather(WHOLE, settings, 30.0, sources=(*SOURCES, from_elsewhere)))
    assert isinstance(answer, Pronounce)
    assert answer.completeness.missing == ("3 images",)


WHOLE = StudyView(
    study_uid="1",
    revision=1,
    candidates=(
        Candidate(
            series_uid="1.2",
            name="series 2",
            role=Role.CHOSEN,
            slices=28,
            coverage_mm=140.0,
            whole=True,
            gaps=0,
            missing=(),
            carriers=frozenset("a"),
        ),
    ),
    refused=(),
    seen=("1.2.1",),
    carriers=frozenset("a"),
    first_at=0.0,
    last_at=0.0,
    last_image_at=0.0,
    last_candidate_at=0.0,
    quiet_time=30.0,
)


# What comes after the verdict

CHANGES = Late(changes=True, reason="a slice of what was read")
HARMLESS = Late(changes=False, reason="a report")


@pytest.mark.parametrize(
    ("state", "job", "late", "expected"),
    [
        (StudyState.COMPLETE, JobState.TODO, CHANGES, Act.RECALL),
        (StudyState.COMPLETE, JobState.TODO, HARMLESS, Act.WAIT),
        (StudyState.COMPLETE, JobState.DOING, CHANGES, Act.WAIT),
        (StudyState.COMPLETE, None, CHANGES, Act.WAIT),
        (StudyState.REPORTED, JobState.DONE, CHANGES, Act.REOPEN),
        (StudyState.NOT_ANALYSED, JobState.DONE, CHANGES, Act.REOPEN),
        (StudyState.FAILED, JobState.FAILED, CHANGES, Act.REOPEN),
        (StudyState.REPORTED, JobState.DONE, HARMLESS, Act.NOTE),
        (StudyState.FAILED, JobState.FAILED, HARMLESS, Act.NOTE),
    ],
)
def test_what_is_done_about_late_instances_depends_on_how_far_the_study_has_come(
    state: StudyState, job: JobState | None, late: Late, expected: Act
) -> None:
    assert meaning(state=state, job=job, late=late) is expected


def series(
    uid: str, count: int, *, step: float = 5.0, first: int = 0, kind: str = "AXIAL", kernel: str = "H30s"
) -> list[InstanceFacts]:
    return [
        InstanceFacts(
            series_uid=uid,
            sop_instance_uid=f"{uid}.{number}",
            sop_class_uid=CT,
            modality="CT",
            image_type=("ORIGINAL", "PRIMARY", kind),
            instance_number=number,
            body_part="HEAD",
            kernel=kernel,
            frame_of_reference_uid="9",
            rows=512,
            columns=512,
            pixel_spacing=(0.45, 0.45),
            thickness=step,
            positions=((0.0, 0.0, step * number),),
            orientations=((1.0, 0.0, 0.0, 0.0, 1.0, 0.0),),
        )
        for number in range(first, first + count)
    ]  # fmt: skip


REPORT = InstanceFacts(series_uid="1.9", sop_instance_uid="1.9.1", sop_class_uid=f"{CT[:-1]}88.34", modality="SR")
READ = series("1.2", 28)
LOCALIZER = series("1.1", 2, kind="LOCALIZER")


@pytest.mark.parametrize(
    ("before", "late", "changes"),
    [
        (READ, series("1.2", 1, first=28), True),
        (READ, [REPORT], False),
        (READ, series("1.5", 28, kernel="H60s"), False),
        (READ, series("1.3", 280, step=0.5), False),
        (READ, series("1.3", 1, step=0.5), False),
        (READ, LOCALIZER, False),
        (series("1.3", 280, step=0.5), READ, True),
        (series("1.3", 280, step=0.5), READ[:3], False),
        (LOCALIZER, READ[:1], True),
        (LOCALIZER, READ, True),
        (LOCALIZER, LOCALIZER[:1], False),
        (LOCALIZER, [REPORT], False),
        (LOCALIZER, series("1.5", 28, kernel="H60s"), False),
        ([REPORT], READ, True),
        (READ[:4], READ[4:5], True),
        (READ[:4], [REPORT], False),
        (READ, [dataclasses.replace(REPORT, series_uid="1.2")], False),
    ],
    ids=[
        "a slice of what was read", "our report comes back", "a bone kernel", "a thin series that ranks lower",
        "its first slice", "a localizer", "a series that ranks higher", "its first slices",
        "first slice where there was nothing", "a scan where there was nothing", "localizer again",
        "report where there was nothing", "bone kernel where there was nothing", "a scan after a report",
        "one more of too few", "report where there were too few",
        "report that bears the series' own UID",
    ],
)  # fmt: skip
def test_late_instances_change_what_is_read_or_do_not(
    before: list[InstanceFacts], late: list[InstanceFacts], changes: bool
) -> None:
    assert judge(before=before, late=late, read=(), criteria=CRITERIA).changes is changes


def test_a_series_that_was_read_after_its_betters_failed_the_pixel_check_matters_too() -> None:
    before = [*READ, *series("1.3", 280, step=0.5)]
    late = series("1.3", 1, step=0.5, first=280)
    assert not judge(before=before, late=late, read=("1.2",), criteria=CRITERIA).changes
    assert judge(before=before, late=late, read=("1.3",), criteria=CRITERIA).changes


def test_a_note_says_what_came_by_its_codes() -> None:
    late = judge(before=READ, late=[REPORT, *series("1.5", 2, kernel="H60s")], read=("1.2",), criteria=CRITERIA)
    assert late.reason.startswith("3 instances came late and changed nothing that was read (")
    assert "structured_report" in late.reason


def test_no_order_of_arrival_hides_a_slice_that_matters() -> None:
    chance = random.Random(3)
    for _ in range(20):
        arrived = [*READ, *LOCALIZER, REPORT]
        chance.shuffle(arrived)
        cut = chance.randrange(1, len(arrived))
        before, late = arrived[:cut], arrived[cut:]
        matters = any(facts.series_uid == "1.2" for facts in late)
        assert judge(before=before, late=late, read=(), criteria=CRITERIA).changes is matters
