"""Which series of a study to read, in which order, and why not the others: from headers alone.

Needs no pixels and no torch; the receiving process imports this module. Ranking asks geometry first (whole, covering
the head), then tags (original, without contrast, soft-tissue kernel), then sizes and thickness, and descriptions last.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from inference.facts import InstanceFacts, facts
from inference.kernels import Sharpness
from inference.result import SeriesChoice
from inference.stacks import Plane, Stack, stack_geometry, stacks
from inference.suitability import Criteria, Objection, doubts, kernel_sharpness, matches, not_a_ct_image, refusal

__all__ = [
    "Criteria",
    "InstanceFacts",
    "Plane",
    "Selection",
    "SeriesChoice",
    "Stack",
    "choose",
    "facts",
    "select",
    "stack_geometry",
    "stacks",
]

USUAL_FOV_MM = (160.0, 300.0)
_KERNEL_ORDER = {Sharpness.SOFT: 0, Sharpness.MEDIUM: 1, Sharpness.UNKNOWN: 2, Sharpness.SHARP: 3}


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The choice for every series of a study, and the stacks to read, best first."""

    choices: tuple[SeriesChoice, ...]
    stacks: tuple[Stack, ...] = ()


class _Key(NamedTuple):
    """What candidates are ranked by, the first difference decides and less is better: geometry before descriptions."""

    gaps: bool
    short: bool
    derived: bool
    contrast: bool
    kernel: int
    other_part: bool
    odd_field_of_view: bool
    thickness: float
    head_words: int
    series_number: float
    series_uid: str


@dataclass(frozen=True, kw_only=True)
class _Candidate:
    """A stack that may be read, with what speaks against reading it first."""

    stack: Stack
    doubts: tuple[Objection, ...]
    key: _Key


def choose(facts: Sequence[InstanceFacts], criteria: Criteria, *, arriving: bool = False) -> tuple[SeriesChoice, ...]:
    """The choice for every series among `facts`: first those to read, then the other candidates by rank, then the rest.

    Parameters
    ----------
    facts : the instances of one study.
    criteria : which series may be read.
    arriving : slices are still to come, so that their number and extent refuse nothing yet. For guessing which
        slices are worth reading early.
    """
    return select(facts, criteria, arriving=arriving).choices


def select(facts: Sequence[InstanceFacts], criteria: Criteria, *, arriving: bool = False) -> Selection:
    """As `choose`, with the stacks themselves: a series may hold more than the stack that is read."""
    by_series: dict[str, list[InstanceFacts]] = defaultdict(list)
    for instance in facts:
        by_series[instance.series_uid].append(instance)
    candidates: list[_Candidate] = []
    refused: list[SeriesChoice] = []
    for members in by_series.values():
        best = _best(members, criteria, arriving)
        if isinstance(best, _Candidate):
            candidates.append(best)
        else:
            refused.append(_refused(members, best))
    candidates.sort(key=lambda candidate: candidate.key)
    ranked = [
        _ranked(candidate, rank, candidates, by_series[candidate.stack.head.series_uid], criteria)
        for rank, candidate in enumerate(candidates, start=1)
    ]
    return Selection(
        choices=(*ranked, *sorted(refused, key=lambda choice: (_series_number(by_series, choice), choice.series_uid))),
        stacks=tuple(candidate.stack for candidate in candidates[: criteria.max_series]),
    )


def _series_number(by_series: dict[str, list[InstanceFacts]], choice: SeriesChoice) -> float:
    number = by_series[choice.series_uid][0].series_number
    return math.inf if number is None else number


def _best(members: Sequence[InstanceFacts], criteria: Criteria, arriving: bool) -> _Candidate | Objection:
    """The series' best stack, or why it has none: what is said about its largest stack."""
    objections = []
    candidates = []
    for stack in stacks(members):
        objection = refusal(stack, criteria, arriving=arriving)
        if objection is None:
            candidates.append(_candidate(stack, criteria))
        else:
            objections.append(objection)
    if candidates:
        return min(candidates, key=lambda candidate: candidate.key)
    if objections:
        return objections[0]
    return not_a_ct_image(members[0]) or Objection(code="not_an_image", reason="holds no images")


def _candidate(stack: Stack, criteria: Criteria) -> _Candidate:
    head, geometry = stack.head, stack.geometry
    found = doubts(stack, criteria)
    codes = {objection.code for objection in found}
    fov = stack.field_of_view_mm
    thickness = stack.thickness_mm or geometry.spacing_mm or criteria.preferred_thickness_mm
    described = (head.series_description, head.protocol_name, head.body_part)
    return _Candidate(
        stack=stack,
        doubts=found,
        key=_Key(
            gaps=len(geometry.gaps) > 0,
            short=geometry.coverage_mm < criteria.full_coverage_mm,
            derived="derived" in codes,
            contrast="contrast" in codes,
            kernel=_KERNEL_ORDER[kernel_sharpness(head, criteria)] + ("sharp_kernel" in codes),
            other_part="other_body_part" in codes,
            odd_field_of_view=fov is not None and not USUAL_FOV_MM[0] <= fov <= USUAL_FOV_MM[1],
            thickness=round(abs(math.log(max(thickness, 0.1) / criteria.preferred_thickness_mm)), 1),
            head_words=-sum(matches(criteria.head_words, text) for text in described),
            series_number=head.series_number if head.series_number is not None else math.inf,
            series_uid=head.series_uid,
        ),
    )


def _refused(members: Sequence[InstanceFacts], objection: Objection) -> SeriesChoice:
    return SeriesChoice(
        series_uid=members[0].series_uid,
        chosen=False,
        code=objection.code,
        reason=f"Not read: {objection.reason}.",
        instances=len(members),
        description=_description(members),
    )


def _ranked(
    candidate: _Candidate,
    rank: int,
    candidates: Sequence[_Candidate],
    members: Sequence[InstanceFacts],
    criteria: Criteria,
) -> SeriesChoice:
    chosen = rank <= criteria.max_series
    if chosen:
        objection = Objection(code="chosen", reason=_praise(candidate, members, criteria))
    else:
        objection = _second_to(candidates[0], candidate, criteria)
    return SeriesChoice(
        series_uid=candidate.stack.head.series_uid,
        chosen=chosen,
        rank=rank,
        code=objection.code,
        reason=f"{'Read' if chosen else 'Not read'}, rank {rank} of {len(candidates)}: {objection.reason}.",
        instances=len(members),
        description=_description(members),
    )


def _praise(candidate: _Candidate, members: Sequence[InstanceFacts], criteria: Criteria) -> str:
    """Why the stack is read, and what stays doubtful about it."""
    stack, geometry = candidate.stack, candidate.stack.geometry
    kernel = kernel_sharpness(stack.head, criteria)
    named = {Sharpness.SOFT: "soft-tissue kernel", Sharpness.MEDIUM: "medium kernel"}.get(kernel, "unknown kernel")
    words = [
        f"axial, {named} {stack.head.kernel or ''}".rstrip(),
        f"{len(geometry.order)} slices over {geometry.coverage_mm:.0f} mm",
    ]
    if geometry.spacing_mm is not None:
        words.append(f"spacing {' and '.join(f'{s:g}' for s in geometry.spacings_mm or (geometry.spacing_mm,))} mm")
    if abs(geometry.tilt_degrees) >= 0.5:
        words.append(f"tilt {geometry.tilt_degrees:.1f}°")
    planes = sum(instance.frames for instance in members)
    if planes > len(stack.planes):
        words.append(f"one stack of {len(stack.planes)} of the series' {planes} images")
    return "; ".join((", ".join(words), *(f"but {doubt.reason}" for doubt in candidate.doubts), *geometry.missing))


def _second_to(best: _Candidate, other: _Candidate, criteria: Criteria) -> Objection:
    """Why `other` is not read although it could be: the first criterion in which the best is better."""
    if other.key.gaps > best.key.gaps:
        return Objection(code="gaps", reason=f"{other.stack.geometry.missing[0]}; a whole series is read instead")
    if other.key.short > best.key.short:
        covered = f"covers only {other.stack.geometry.coverage_mm:.0f} mm"
        return Objection(code="incomplete_coverage", reason=f"{covered}; a series that covers more is read instead")
    known = {doubt.code for doubt in best.doubts}
    for doubt in other.doubts:
        if doubt.code not in known:
            return Objection(code=doubt.code, reason=f"{doubt.reason}; another series is read instead")
    if other.key.kernel > best.key.kernel:
        kernel = other.stack.head.kernel
        named = f"kernel {kernel}" if kernel else "no kernel is recorded"
        code = (
            "unknown_kernel" if kernel_sharpness(other.stack.head, criteria) is Sharpness.UNKNOWN else "medium_kernel"
        )
        return Objection(code=code, reason=f"{named}; a series with a soft-tissue kernel is read instead")
    return _duplicate(best.stack, other.stack)


def _duplicate(best: Stack, other: Stack) -> Objection:
    scan = "same scan" if _same_scan(best, other) else "another scan"
    ours, theirs = _width(other), _width(best)
    if ours is not None and theirs is not None and abs(ours - theirs) >= 0.1:
        kind = "thicker" if ours > theirs else "thinner"
        return Objection(
            code=f"{kind}_duplicate" if scan == "same scan" else "lower_rank",
            reason=f"{scan}, {kind} slices ({ours:g} mm; those of {theirs:g} mm are read)",
        )
    code = "duplicate" if scan == "same scan" else "lower_rank"
    return Objection(code=code, reason=f"{scan}, same kind of slices; the better described or earlier series is read")


def _width(stack: Stack) -> float | None:
    return stack.thickness_mm or (stack.geometry.spacing_mm and round(stack.geometry.spacing_mm, 1))


def _same_scan(best: Stack, other: Stack) -> bool:
    """Whether two stacks lie over one another in one frame of reference."""
    if best.head.frame_of_reference_uid != other.head.frame_of_reference_uid:
        return False
    ours, theirs = other.geometry.positions_mm, best.geometry.positions_mm
    shared = min(ours[-1], theirs[-1]) - max(ours[0], theirs[0])
    return shared > 0.5 * min(ours[-1] - ours[0], theirs[-1] - theirs[0])


def _description(members: Sequence[InstanceFacts]) -> str:
    return next((m.series_description for m in members if m.series_description), "")
