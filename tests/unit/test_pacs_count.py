"""What the PACS's own count says of completeness, and what the verdict makes of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from node.assemble.pacs_count import pacs_count
from node.assemble.piece import Evidence, Kind, Says
from node.assemble.verdict import Pronounce, Wait, verdict
from node.assemble.view import Candidate, PacsCount, Role, StudyView
from node.config import AssembleSection

SERIES = "1.2.1"


def a_view(*, here: int, there: int | None, stable: bool = True, role: Role = Role.CHOSEN) -> StudyView:
    candidate = Candidate(
        series_uid=SERIES, name="series 2", role=role, slices=here, coverage_mm=150, whole=True, gaps=0, missing=(),
        carriers=frozenset({"a"}),
    )  # fmt: skip
    view = StudyView(
        study_uid="1.2", revision=1, candidates=(candidate,), refused=(), seen=(), carriers=frozenset({"a"}),
        first_at=0, last_at=0, last_image_at=0, last_candidate_at=0, quiet_time=30,
        held={SERIES: frozenset(map(str, range(here)))},
    )  # fmt: skip
    if there is None:
        return view
    return replace(view, pacs=PacsCount(name="pacs", at=1.0, series={SERIES: there}, stable=stable))


def of(view: StudyView) -> tuple[Evidence, ...]:
    return pacs_count(view, AssembleSection(), 5.0)


@pytest.mark.parametrize(
    ("told", "says"),
    [
        ({"here": 32, "there": 32}, Says.COMPLETE),
        ({"here": 32, "there": 32, "stable": False}, Says.NOTHING),
        ({"here": 32, "there": 30}, Says.NOTHING),
        ({"here": 30, "there": 32}, Says.INCOMPLETE),
        ({"here": 30, "there": 32, "stable": False}, Says.INCOMPLETE),
    ],
)
def test_the_count_of_the_pacs_speaks_for_or_against(told: dict[str, Any], says: Says) -> None:
    (evidence,) = of(a_view(**told))
    assert (evidence.kind, evidence.says) == (Kind.PACS, says)


def test_what_is_missing_is_named() -> None:
    (evidence,) = of(a_view(here=30, there=32))
    assert evidence.missing == ("series 2: 30 of 32 instances that pacs holds",)


def test_a_pacs_that_was_not_asked_or_knows_nothing_says_nothing() -> None:
    assert of(a_view(here=32, there=None)) == ()
    assert of(a_view(here=32, there=0)) == ()
    assert of(a_view(here=32, there=32, role=Role.GROWING)) == ()


def test_a_whole_study_that_is_whole_in_the_pacs_need_not_wait_for_its_association_to_end() -> None:
    whole = Evidence(kind=Kind.GEOMETRY, says=Says.COMPLETE, sentence="32 slices")
    sending = Evidence(kind=Kind.ASSOCIATION, says=Says.NOTHING, sentence="CT1 may still be sending")
    settled = Evidence(kind=Kind.SETTLED, says=Says.COMPLETE, sentence="nothing more for 2 s")
    waiting = Evidence(kind=Kind.QUIET, says=Says.NOTHING, sentence="not quiet yet", until=30.0)
    assert isinstance(verdict((whole, sending, settled, waiting)), Wait)
    answer = verdict((whole, sending, settled, waiting, *of(a_view(here=32, there=32))))
    assert isinstance(answer, Pronounce)
    assert answer.completeness.complete
    assert "pacs holds no more than 32 instances of series 2" in answer.completeness.reason
    short = verdict((whole, sending, settled, waiting, *of(a_view(here=30, there=32))))
    assert isinstance(short, Wait)
