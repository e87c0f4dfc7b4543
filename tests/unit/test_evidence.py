"""Each kind of evidence for itself, and the view of a study from which it is taken."""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Sequence
from typing import Any

import pytest

from db.associations import ABORTED, LOST, RELEASED, Association
from inference.series import Criteria, InstanceFacts
from node.assemble.evidence import Says, announced, associations, geometry, quiet, settled
from node.assemble.evidence import age as age_of
from node.assemble.view import Arrived, Candidate, Role, Shortfall, StudyView, view_of
from node.config import AssembleSection

WAITS = AssembleSection(settle_time=2, quiet_time=30, limit=600)
CRITERIA = Criteria()
CT, SR = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.88.34"
EIGHT_O_CLOCK = dt.datetime(2026, 1, 1, 8, tzinfo=dt.UTC)


def candidate(role: Role = Role.CHOSEN, **changes: Any) -> Candidate:
    values: dict[str, Any] = {
        "series_uid": "1.2",
        "name": "series 2",
        "role": role,
        "slices": 28,
        "coverage_mm": 140.0,
        "whole": True,
        "gaps": 0,
        "missing": (),
        "carriers": frozenset({"a"}),
    }
    return Candidate(**values | changes)


def gappy(role: Role = Role.CHOSEN) -> Candidate:
    return candidate(role, whole=False, gaps=1, missing=("1 slice missing at 42.5 mm",))


def association(
    name: str = "a",
    *,
    start: float = 0,
    end: float | None = 5,
    outcome: str | None = RELEASED,
    sender: str = "CT1",
) -> Association:
    return Association(
        association_id=name,
        receiver="r",
        calling_ae=sender,
        called_ae="HEMONODE",
        address="127.0.0.1",
        started_at=EIGHT_O_CLOCK + dt.timedelta(seconds=start),
        ended_at=None if end is None else EIGHT_O_CLOCK + dt.timedelta(seconds=end),
        outcome=outcome if end is not None else None,
        detail=None,
    )


def study(*candidates: Candidate, brought: Sequence[Association] | None = None, **changes: Any) -> StudyView:
    brought = [association()] if brought is None else brought
    values: dict[str, Any] = {
        "study_uid": "1",
        "revision": 1,
        "candidates": candidates,
        "refused": ("localizer",),
        "seen": ("1.2.1",),
        "carriers": frozenset(a.association_id for a in brought),
        "first_at": 100.0,
        "last_at": 110.0,
        "last_image_at": 110.0,
        "last_candidate_at": 110.0,
        "associations": tuple(brought),
        "quiet_time": 30.0,
    }
    return StudyView(**values | changes)


def says(view: StudyView, source: Any, now: float = 0.0) -> list[Says]:
    return [evidence.says for evidence in source(view, WAITS, now)]


@pytest.mark.parametrize(
    ("candidates", "expected"),
    [
        ((), [Says.NOTHING]),
        ((candidate(),), [Says.COMPLETE]),
        ((gappy(),), [Says.INCOMPLETE]),
        ((candidate(), candidate(Role.ALTERNATIVE)), [Says.COMPLETE, Says.COMPLETE]),
        ((candidate(), gappy(Role.ALTERNATIVE)), [Says.COMPLETE, Says.NOTHING]),
        ((candidate(), candidate(Role.GROWING, slices=1, whole=False)), [Says.COMPLETE]),
        ((candidate(Role.GROWING, slices=2, whole=False),), [Says.NOTHING]),
        ((candidate(Role.GROWING, slices=5),), [Says.NOTHING]),
        ((gappy(Role.GROWING),), [Says.INCOMPLETE]),
    ],
    ids=[
        "nothing to read", "whole", "gappy", "two whole", "gappy alternative", "test image beside a whole series",
        "two slices", "five slices", "few slices with a gap",
    ],
)  # fmt: skip
def test_geometry_speaks_for_every_series_that_can_be_read(candidates: Any, expected: list[Says]) -> None:
    assert says(study(*candidates), geometry) == expected


def test_geometry_names_what_is_missing_and_where() -> None:
    (evidence,) = geometry(study(gappy()), WAITS, 0)
    assert evidence.missing == ("1 slice missing at 42.5 mm",)
    assert evidence.sentence == "series 2: 28 slices over 140 mm, 1 slice missing at 42.5 mm"


def test_a_study_with_nothing_to_read_says_what_it_holds() -> None:
    (evidence,) = geometry(study(), WAITS, 0)
    assert evidence.sentence == "no series that can be read (localizer)"


@pytest.mark.parametrize(
    ("brought", "expected"),
    [
        ([association()], Says.COMPLETE),
        ([association(end=None)], Says.NOTHING),
        ([association(outcome=ABORTED)], Says.INCOMPLETE),
        ([association(outcome=LOST)], Says.INCOMPLETE),
        ([association("a", end=5), association("b", start=1, end=7)], Says.COMPLETE),
        ([association("a", end=5), association("b", start=1, end=None)], Says.NOTHING),
        ([association("a", end=5), association("b", start=6, end=7)], Says.COMPLETE),
        ([association(str(i), start=i, end=i + 0.5) for i in range(3)], Says.NOTHING),
        ([association("a", outcome=LOST), association("b", start=6, end=9)], Says.NOTHING),
        ([association("a", outcome=LOST), association("b", start=6, end=9, sender="CT2")], Says.INCOMPLETE),
        ([association("a", outcome=LOST), association("b", start=6, end=9, outcome=ABORTED)], Says.INCOMPLETE),
    ],
    ids=[
        "released", "open", "aborted", "receiver died", "two parallel, released", "two parallel, one open",
        "two in a row", "one for each image", "sent again", "another sender", "broken twice",
    ],
)  # fmt: skip
def test_an_association_speaks_by_its_end(brought: list[Association], expected: Says) -> None:
    carriers = frozenset(a.association_id for a in brought)
    assert says(study(candidate(carriers=carriers), brought=brought), associations) == [expected]


def test_an_association_that_brought_no_image_of_the_study_says_nothing() -> None:
    view = study(candidate(), brought=[association(), association("sr", end=None)], carriers=frozenset({"a"}))
    assert says(view, associations) == [Says.COMPLETE]


def test_an_association_of_which_nothing_is_known_may_be_open() -> None:
    assert says(study(candidate(), brought=[], carriers=frozenset({"a"})), associations) == [Says.NOTHING]


def test_what_an_aborted_association_had_not_sent_is_named_as_missing() -> None:
    (evidence,) = associations(study(candidate(), brought=[association(outcome=ABORTED)]), WAITS, 0)
    assert evidence.missing == ("what CT1 had not sent when its association was aborted",)


@pytest.mark.parametrize(("now", "expected"), [(110.0, Says.NOTHING), (111.9, Says.NOTHING), (112.0, Says.COMPLETE)])
def test_a_study_has_settled_when_nothing_came_for_the_settle_time(now: float, expected: Says) -> None:
    assert says(study(), settled, now) == [expected]


@pytest.mark.parametrize(("now", "expected"), [(139.9, Says.NOTHING), (140.0, Says.COMPLETE)])
def test_a_source_is_quiet_after_its_own_quiet_time(now: float, expected: Says) -> None:
    assert says(study(candidate()), quiet, now) == [expected]


def test_a_whole_series_does_not_wait_for_other_series_that_keep_coming() -> None:
    view = study(candidate(), last_image_at=200.0)
    assert says(view, quiet, 140.0) == [Says.COMPLETE]


def test_a_series_with_gaps_waits_while_anything_comes_from_its_source() -> None:
    view = study(gappy(), last_image_at=200.0)
    assert says(view, quiet, 140.0) == [Says.NOTHING]
    assert quiet(view, WAITS, 140.0)[0].until == 230.0


@pytest.mark.parametrize(("now", "expected"), [(699.9, Says.NOTHING), (700.0, Says.COMPLETE)])
def test_a_study_is_too_old_when_the_limit_has_passed_since_its_first_instance(now: float, expected: Says) -> None:
    assert says(study(), age_of, now) == [expected]


def test_announced_images_that_have_not_come_are_missing() -> None:
    short = Shortfall(what="images announced for acquisition 3", announced=28, received=20)
    (evidence,) = announced(study(candidate(announced=True, short=(short,))), WAITS, 0)
    assert evidence.says is Says.INCOMPLETE
    assert evidence.missing == ("series 2: 20 of 28 images announced for acquisition 3",)


def test_only_what_is_to_be_read_is_counted() -> None:
    short = Shortfall(what="images announced for acquisition 3", announced=28, received=20)
    assert announced(study(candidate(Role.ALTERNATIVE, announced=True, short=(short,))), WAITS, 0) == ()


# The view


def slices(uid: str = "1.2", count: int = 28, **changes: Any) -> list[InstanceFacts]:
    values: dict[str, Any] = {
        "series_uid": uid,
        "sop_class_uid": CT,
        "modality": "CT",
        "image_type": ("ORIGINAL", "PRIMARY", "AXIAL"),
        "series_number": 2,
        "body_part": "HEAD",
        "kernel": "H30s",
        "frame_of_reference_uid": "9",
        "rows": 512,
        "columns": 512,
        "pixel_spacing": (0.45, 0.45),
        "thickness": 5.0,
        "samples_per_pixel": 1,
        "orientations": ((1.0, 0.0, 0.0, 0.0, 1.0, 0.0),),
    }
    return [
        InstanceFacts(
            **values
            | {"sop_instance_uid": f"{uid}.{n}", "instance_number": n, "positions": ((0.0, 0.0, 5.0 * n),)}
            | changes
        )
        for n in range(1, count + 1)
    ]


def came(
    facts: Sequence[InstanceFacts], *, at: float = 0.0, over: str = "a", revision: int | None = None
) -> list[Arrived]:
    return [
        Arrived(
            sop_instance_uid=f.sop_instance_uid, association_id=over, revision=revision, at=at + number, facts=f
        )
        for number, f in enumerate(facts)
    ]  # fmt: skip


def seen(arrived: Sequence[Arrived], *, revision: int = 1) -> StudyView:
    return view_of(
        study_uid="1", revision=revision, arrived=arrived, associations=(), criteria=CRITERIA, quiet_time=30.0
    )


def test_a_series_to_be_read_its_alternative_and_the_start_of_another_have_their_roles() -> None:
    thin = [
        dataclasses.replace(f, thickness=0.5, positions=((0.0, 0.0, 0.5 * number),))
        for number, f in enumerate(slices("1.3", 280))
    ]
    facts = [*slices("1.2"), *thin, *slices("1.4", 3), *slices("1.5", kernel="H60s")]
    view = seen(came(facts))
    assert [(c.series_uid, c.role) for c in view.candidates] == [
        ("1.2", Role.CHOSEN),
        ("1.3", Role.ALTERNATIVE),
        ("1.4", Role.GROWING),
    ]
    assert view.refused == ("sharp_kernel",)


def test_the_times_are_those_of_the_present_revision() -> None:
    before = came(slices(), revision=1, over="a")
    late = came(slices(count=29)[28:], at=500.0, over="b")
    view = seen([*before, *late], revision=2)
    assert (view.first_at, view.last_at, view.carriers, view.seen) == (500.0, 500.0, frozenset("b"), ("1.2.29",))
    assert view.candidates[0].slices == 29
    assert view.candidates[0].carriers == {"a", "b"}


def test_a_revision_without_an_instance_of_its_own_is_told_by_all_that_came_before() -> None:
    view = seen(came(slices(), revision=1), revision=2)
    assert (view.first_at, view.last_at, view.seen) == (0.0, 27.0, ())


def test_a_report_that_comes_back_does_not_keep_a_study_waiting() -> None:
    report = InstanceFacts(series_uid="1.9", sop_instance_uid="1.9.1", sop_class_uid=SR, modality="SR")
    view = seen([*came(slices()), *came([report], at=90.0, over="pacs")])
    assert (view.last_image_at, view.carriers) == (27.0, frozenset("a"))


@pytest.mark.parametrize(
    ("announce", "expected"),
    [
        ({}, (False, [])),
        ({"images_in_acquisition": 28, "acquisition_number": 1}, (True, [])),
        ({"images_in_acquisition": 30, "acquisition_number": 1}, (True, [(30, 28)])),
        ({"images_in_acquisition": 0, "acquisition_number": 1}, (False, [])),
        ({"images_in_acquisition": 10**6}, (False, [])),
    ],
    ids=["nothing announced", "all came", "two are lacking", "zero is no count", "a million is no count"],
)
def test_announced_counts_are_held_against_what_came(announce: dict[str, Any], expected: tuple[bool, Any]) -> None:
    (only,) = seen(came(slices(**announce))).candidates
    assert (only.announced, [(s.announced, s.received) for s in only.short]) == expected


def test_a_count_that_covers_several_series_of_an_acquisition_is_met_by_all_of_them() -> None:
    both: dict[str, Any] = {"images_in_acquisition": 56, "acquisition_number": 1}
    facts = [*slices("1.2", **both), *slices("1.5", kernel="H60s", **both)]
    (only,) = seen(came(facts)).candidates
    assert only.short == ()


def test_a_count_of_the_series_is_met_though_each_image_has_its_own_acquisition() -> None:
    facts = [f for n in range(1, 29) for f in slices(images_in_acquisition=28, acquisition_number=n)[n - 1 : n]]
    (only,) = seen(came(facts)).candidates
    assert only.short == ()
    (lacking,) = seen(came(facts[:-2])).candidates
    assert [(s.announced, s.received) for s in lacking.short] == [(28, 26)]


def test_the_last_slice_of_paired_acquisitions_is_known_to_lack() -> None:
    facts = [f for n in range(28) for f in slices(images_in_acquisition=2, acquisition_number=n // 2)[n : n + 1]]
    (only,) = seen(came(facts[:-1])).candidates
    assert only.whole
    assert [(s.what, s.announced, s.received) for s in only.short] == [("images announced for acquisition 13", 2, 1)]


def test_frames_that_an_instance_announces_but_does_not_describe_lack() -> None:
    frames = tuple((0.0, 0.0, 5.0 * n) for n in range(28))
    one = slices(count=1, positions=frames, orientations=((1.0, 0.0, 0.0, 0.0, 1.0, 0.0),) * 28, number_of_frames=30)
    (only,) = seen(came(one)).candidates
    assert [(s.what, s.announced, s.received) for s in only.short] == [("frames announced by an instance", 30, 28)]
