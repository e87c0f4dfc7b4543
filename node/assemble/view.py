"""What assembly sees of one study: which series could be read, what their geometry says, when and over what it came.

All times here are seconds of the monotonic clock, so that a step of the wall clock neither hurries nor holds a verdict.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from db.associations import Association
from db.performed_steps import PerformedStep
from inference.series import Criteria, InstanceFacts, Stack, select

EVERY_SERIES = 1_000_000
MOST_ANNOUNCED = 5_000
"""A larger Images in Acquisition (0020,1002) is not believed."""


class Role(StrEnum):
    """What a series is to the reading: read as things stand, readable but second to another, or not readable yet."""

    CHOSEN = "chosen"
    ALTERNATIVE = "alternative"
    GROWING = "growing"


@dataclass(frozen=True, kw_only=True)
class Arrived:
    """A stored instance, and `at`, the second in which it came. `revision` is None while no verdict has counted it."""

    sop_instance_uid: str
    association_id: str
    revision: int | None
    at: float
    facts: InstanceFacts


@dataclass(frozen=True, kw_only=True)
class Shortfall:
    """Fewer came than the headers announce; `what` completes the sentence "… of `announced`"."""

    what: str
    announced: int
    received: int


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A series that can be read, or could be if more of it came.

    `missing` says in sentences why it is not `whole`; `gaps` counts the gaps between its slices. `carriers` are the
    associations that brought it, in this revision or an earlier one. `announced` tells whether its headers announce
    how many images there are, `short` where fewer came.
    """

    series_uid: str
    name: str
    role: Role
    slices: int
    coverage_mm: float
    whole: bool
    gaps: int
    missing: tuple[str, ...]
    carriers: frozenset[str]
    announced: bool = False
    short: tuple[Shortfall, ...] = ()


@dataclass(frozen=True, kw_only=True)
class PacsCount:
    """How many instances of each series the PACS `name` held in the second `at`; `stable` when it was so twice."""

    name: str
    at: float
    series: Mapping[str, int]
    stable: bool


@dataclass(frozen=True, kw_only=True)
class StudyView:
    """A study as its evidence is taken from it.

    `seen` are the SOP Instance UIDs that no verdict has counted; `refused` the codes of series that cannot be read.
    The times, and `carriers`, tell of this revision alone: the first instance, the last, the last image, and the last
    image of a candidate. Objects without pixels (a report that comes back) do not keep a study waiting. `held` are the
    SOP Instance UIDs of everything that has come, by series; `steps` the performed procedure steps that made it; `pacs`
    is what the PACS has told.
    """

    study_uid: str
    revision: int
    candidates: tuple[Candidate, ...]
    refused: tuple[str, ...]
    seen: tuple[str, ...]
    carriers: frozenset[str]
    first_at: float
    last_at: float
    last_image_at: float
    last_candidate_at: float
    associations: tuple[Association, ...] = ()
    held: Mapping[str, frozenset[str]] = field(default_factory=dict)
    steps: tuple[PerformedStep, ...] = ()
    quiet_time: float
    pacs: PacsCount | None = None

    def with_role(self, role: Role) -> tuple[Candidate, ...]:
        """The candidates of one role, best first."""
        return tuple(candidate for candidate in self.candidates if candidate.role is role)


def view_of(
    *,
    study_uid: str,
    revision: int,
    arrived: Sequence[Arrived],
    associations: Sequence[Association],
    steps: Sequence[PerformedStep] = (),
    criteria: Criteria,
    quiet_time: float,
) -> StudyView:
    """The view of a study from everything that is stored of it (at least one instance)."""
    candidates, refused = _candidates(arrived, criteria)
    known = {candidate.series_uid for candidate in candidates}
    # A revision that somebody asked for has no instance of its own: then all that came before speaks for it.
    own = [a for a in arrived if a.revision is None or a.revision == revision] or list(arrived)
    images = [a for a in own if a.facts.has_pixels] or own
    of_candidates = [a for a in images if a.facts.series_uid in known] or images
    return StudyView(
        study_uid=study_uid,
        revision=revision,
        candidates=candidates,
        refused=refused,
        seen=tuple(a.sop_instance_uid for a in arrived if a.revision is None),
        carriers=frozenset(a.association_id for a in images),
        first_at=min(a.at for a in own),
        last_at=max(a.at for a in own),
        last_image_at=max(a.at for a in images),
        last_candidate_at=max(a.at for a in of_candidates),
        associations=tuple(associations),
        held=_by_series(arrived),
        steps=tuple(steps),
        quiet_time=quiet_time,
    )


def _by_series(arrived: Iterable[Arrived]) -> dict[str, frozenset[str]]:
    found: dict[str, set[str]] = defaultdict(set)
    for one in arrived:
        found[one.facts.series_uid].add(one.sop_instance_uid)
    return {series_uid: frozenset(uids) for series_uid, uids in found.items()}


def _candidates(arrived: Sequence[Arrived], criteria: Criteria) -> tuple[tuple[Candidate, ...], tuple[str, ...]]:
    """The candidates, those to be read first, and the codes of the series that are none."""
    facts = [a.facts for a in arrived]
    every = replace(criteria, max_series=EVERY_SERIES)
    ranked = select(facts, every)
    growing = select(facts, every, arriving=True)
    known = {stack.head.series_uid for stack in ranked.stacks}
    roles = [
        *((stack, Role.CHOSEN) for stack in ranked.stacks[: criteria.max_series]),
        *((stack, Role.ALTERNATIVE) for stack in ranked.stacks[criteria.max_series :]),
        *((stack, Role.GROWING) for stack in growing.stacks if stack.head.series_uid not in known),
    ]
    refused = {choice.code for choice in growing.choices if not choice.chosen}
    return tuple(_candidate(stack, role, arrived) for stack, role in roles), tuple(sorted(refused))


def _candidate(stack: Stack, role: Role, arrived: Sequence[Arrived]) -> Candidate:
    uid, number, geometry = stack.head.series_uid, stack.head.series_number, stack.geometry
    members = [a for a in arrived if a.facts.series_uid == uid]
    announced, short = _announced([a.facts for a in members], [a.facts for a in arrived])
    return Candidate(
        series_uid=uid,
        name=f"series {uid}" if number is None else f"series {number}",
        role=role,
        slices=len(geometry.order),
        coverage_mm=geometry.coverage_mm,
        whole=geometry.whole,
        gaps=len(geometry.gaps),
        missing=geometry.missing,
        carriers=frozenset(a.association_id for a in members),
        announced=announced,
        short=short,
    )


def _announced(series: Sequence[InstanceFacts], study: Sequence[InstanceFacts]) -> tuple[bool, tuple[Shortfall, ...]]:
    """Whether the headers of a series announce counts, and where these are not reached.

    Images in Acquisition (0020,1002) counts, by maker, the images of one acquisition in this series or in all series,
    or those of the whole series though each image bears an Acquisition Number of its own. The reading under which
    most has come is believed. Number of Frames (0028,0008) is held against the frames that are described.
    """
    frames = [f for f in series if f.number_of_frames is not None and 0 < f.frames < f.number_of_frames]
    cut = tuple(_shortfall("frames announced by an instance", f.number_of_frames or 0, f.frames) for f in frames)
    promised = _promised(series)
    own = {number: _images(f for f in series if (f.acquisition_number or 0) == number) for number in promised}
    counts = set(promised.values())
    if len(promised) > 1 and len(counts) == 1 and all(own[number] < promised[number] for number in promised):
        whole, received = counts.pop(), _images(series)
        return True, cut + ((_shortfall("images announced", whole, received),) if received < whole else ())
    short = []
    for number, count in promised.items():
        received = max(own[number], _images(f for f in study if (f.acquisition_number or 0) == number))
        if received < count:
            short.append(_shortfall(f"images announced for acquisition {number}", count, received))
    return bool(promised or cut), (*cut, *short)


def _promised(series: Sequence[InstanceFacts]) -> dict[int, int]:
    """The images announced for each acquisition of a series, in the order of their numbers."""
    promised: dict[int, int] = {}
    for f in series:
        count = f.images_in_acquisition
        if count is not None and 0 < count <= MOST_ANNOUNCED:
            number = f.acquisition_number or 0
            promised[number] = max(count, promised.get(number, 0))
    return dict(sorted(promised.items()))


def _images(facts: Iterable[InstanceFacts]) -> int:
    return sum(f.frames for f in facts)


def _shortfall(what: str, announced: int, received: int) -> Shortfall:
    return Shortfall(what=what, announced=announced, received=received)
