"""From slice scores to one statement about the scan: calibration, scan rules, and the combination of several models."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inference.result import ANY, Json, ModelReading, Outcome

SAME_PLACE_MM = 0.1
"""Slices closer than this show the same place and count once."""

GAP = 1.5
"""Slices further apart than this many times the spacing around them are not consecutive: a slice is missing."""

AROUND = 3
"""How many distances on either side tell the spacing around a place."""

KEY_SLICES = 5


@dataclass(frozen=True, kw_only=True)
class ScanRule(Json):
    """How slice scores become one score of the scan: exactly one of three rules.

    Attributes
    ----------
    run : int or None
        The best run of so many consecutive slices, judged by its weakest slice. ``run=3`` is RADnet's "hemorrhage in
        consecutive three or more slices" (Grewal et al., section 2.3).
    extent_mm : float or None
        The same, with as many slices as cover this extent along the normal.
    max : bool
        The most suspicious slice (Nguyen et al., section 3.2).
    """

    run: int | None = None
    extent_mm: float | None = None
    max: bool = False

    def __post_init__(self) -> None:
        """Refuses anything but one rule, with ``ValueError``."""
        if [self.run is not None, self.extent_mm is not None, self.max].count(True) != 1:
            raise ValueError("a scan rule is exactly one of run, extent_mm and max")
        if (self.run is not None and self.run < 1) or (self.extent_mm is not None and not self.extent_mm > 0):
            raise ValueError("a scan rule needs a run of at least one slice, or a positive extent")

    def to_json(self) -> dict[str, Any]:
        """The one rule that holds, for example ``{"run": 3}``."""
        return {name: value for name, value in super().to_json().items() if value}


@dataclass(frozen=True, kw_only=True)
class Calibration(Json):
    """Temperature scaling (Guo et al., ICML 2017): each label's logits are divided by its temperature.

    `temperature` maps label → T > 0; labels not named have T = 1.
    """

    temperature: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuses temperatures that are not positive numbers, with ``ValueError``."""
        if any(not (value > 0 and math.isfinite(value)) for value in self.temperature.values()):
            raise ValueError("a calibration temperature must be a positive number")

    def probabilities(self, logits: NDArray[np.floating[Any]], *, labels: Sequence[str]) -> NDArray[np.float64]:
        """Values (s, labels) in 0…1 from logits (s, labels)."""
        temperatures = np.array([self.temperature.get(label, 1.0) for label in labels])
        scaled = np.clip(np.asarray(logits, dtype=np.float64) / temperatures, -700, 700)
        values: NDArray[np.float64] = 1 / (1 + np.exp(-scaled))
        return values


@dataclass(frozen=True, kw_only=True)
class ScanDecision:
    """What a scan rule says about one label.

    `score` in 0…1 is held against the threshold; `rule` says in words what was found. `key_slices` are indices of at
    most five slices that carried the decision, most suspicious first; empty where nothing was found.
    """

    score: float
    present: bool
    rule: str
    key_slices: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class _Place:
    """One position along the normal, with its most suspicious slice if several lie there."""

    index: int
    score: float
    position_mm: float
    thickness_mm: float


Stretch = list[_Place]
Windows = list[tuple[Stretch, int, int]]
"""Candidates for a bleed: the places from start to stop (exclusive) of an unbroken stretch."""


def judge(
    scores: NDArray[np.floating[Any]],
    *,
    positions_mm: Sequence[float],
    thickness_mm: Sequence[float | None] | None = None,
    rule: ScanRule,
    threshold: float,
) -> ScanDecision:
    """Applies `rule` to the scores (s,) of one label, in any order of slices.

    The score of the scan is the best window's weakest slice: ``max_i min(p_i, …, p_i+n-1)``. Holding it against a
    threshold t is exactly "n or more consecutive slices at or above t", and it orders scans by suspicion besides.
    Where no unbroken stretch is as long as the rule asks, the longest one is used whole: a short series must not be
    negative for its shortness.

    Raises ``ValueError`` for no slices, scores that are not finite, or lists of unequal length.
    """
    stretches = _stretches(_places(scores, positions_mm, thickness_mm))
    windows = _by_extent(stretches, rule.extent_mm) if rule.extent_mm else _by_run(stretches, rule.run or 1)
    weakest = [min(place.score for place in stretch[start:stop]) for stretch, start, stop in windows]
    score = max(weakest)
    fired = [window for window, value in zip(windows, weakest, strict=True) if value >= threshold]
    carrying = {place.index: place for stretch, start, stop in fired for place in stretch[start:stop]}
    keys = sorted(carrying.values(), key=lambda place: (-place.score, place.position_mm))[:KEY_SLICES]
    return ScanDecision(
        score=score,
        present=bool(fired),
        rule=_in_words(windows[weakest.index(score)], score, rule, threshold),
        key_slices=tuple(place.index for place in keys),
    )


def _places(
    scores: NDArray[np.floating[Any]],
    positions_mm: Sequence[float],
    thickness_mm: Sequence[float | None] | None,
) -> Stretch:
    """The slices in order of position, those at the same place taken together."""
    if not len(scores) or not np.isfinite(scores).all() or not np.isfinite(positions_mm).all():
        raise ValueError("a scan rule needs at least one slice, and finite scores and positions")
    places: Stretch = []
    for index, (score, position, thickness) in enumerate(
        zip(scores, positions_mm, thickness_mm or [None] * len(scores), strict=True)
    ):
        places.append(
            _Place(index=index, score=float(score), position_mm=float(position), thickness_mm=thickness or 0.0)
        )
    places.sort(key=lambda place: place.position_mm)
    apart: Stretch = places[:1]
    for place in places[1:]:
        if place.position_mm - apart[-1].position_mm > SAME_PLACE_MM:
            apart.append(place)
        elif place.score > apart[-1].score:
            apart[-1] = place
    return apart


def _stretches(places: Stretch) -> list[Stretch]:
    """The places cut wherever a slice is missing.

    What a gap is depends on its neighbourhood: a distance is too large when it exceeds the usual distance before it,
    the usual one after it, and the thickness of both its slices, each by half. So a series that changes from 4 to 7 mm
    is not cut there, and one that lacks a slice is.
    """
    distances = [b.position_mm - a.position_mm for a, b in pairwise(places)]
    stretches = [places[:1]]
    for i, distance in enumerate(distances):
        before, after = distances[max(0, i - AROUND) : i], distances[i + 1 : i + 1 + AROUND]
        usual = [float(np.median(side)) for side in (before, after) if side]
        usual += [places[i].thickness_mm, places[i + 1].thickness_mm]
        # Two slices and nothing known of their thickness: there is no telling, and no reason to cut.
        if max(usual) and distance > GAP * max(usual):
            stretches.append([])
        stretches[-1].append(places[i + 1])
    return stretches


def _by_run(stretches: list[Stretch], run: int) -> Windows:
    """Every window of `run` slices, or of as many as the longest stretch has."""
    run = min(run, max(map(len, stretches)))
    return [(s, start, start + run) for s in stretches for start in range(len(s) - run + 1)]


def _by_extent(stretches: list[Stretch], extent_mm: float) -> Windows:
    """Every shortest window that covers `extent_mm`: ceil(extent / spacing) slices where the spacing is even."""
    widths = [_widths(stretch, otherwise=extent_mm) for stretch in stretches]
    windows = [
        (stretch, start, stop)
        for stretch, width in zip(stretches, widths, strict=True)
        for start, stop in _covering(width, extent_mm)
    ]
    longest = max(range(len(stretches)), key=lambda i: sum(widths[i]))
    return windows or [(stretches[longest], 0, len(stretches[longest]))]


def _widths(stretch: Stretch, *, otherwise: float) -> list[float]:
    """The extent in mm for which each slice stands: half the way to both its neighbours, mirrored at the ends."""
    if len(stretch) == 1:
        return [stretch[0].thickness_mm or otherwise]
    distances = [b.position_mm - a.position_mm for a, b in pairwise(stretch)]
    return [(a + b) / 2 for a, b in zip([distances[0], *distances], [*distances, distances[-1]], strict=True)]


def _covering(widths: list[float], extent_mm: float) -> Iterator[tuple[int, int]]:
    for start in range(len(widths)):
        covered = np.cumsum(widths[start:]) >= extent_mm - 1e-6
        if covered.any():
            yield start, start + int(covered.argmax()) + 1


def _in_words(window: tuple[Stretch, int, int], score: float, rule: ScanRule, threshold: float) -> str:
    """For example "5 consecutive slices at or above 0.50 (3 needed): slices at 12.5…32.5 mm"."""
    stretch, start, stop = window
    needed = stop - start
    level = f"at or above {threshold:.2f}" if threshold >= 0.1 else f"at or above {threshold:.3g}"
    asked = f"{rule.extent_mm:g} mm, {needed}" if rule.extent_mm else f"{needed}"
    if score < threshold:
        what, reach = ("slice", "highest slice") if needed == 1 else (f"{needed} consecutive slices", "best run")
        extent = f" ({rule.extent_mm:g} mm)" if rule.extent_mm else ""
        return f"no {what} {level}{extent}; the {reach} reaches {_floor(score)}"
    while start > 0 and stretch[start - 1].score >= threshold:
        start -= 1
    while stop < len(stretch) and stretch[stop].score >= threshold:
        stop += 1
    first, last = stretch[start].position_mm, stretch[stop - 1].position_mm
    if stop - start == 1:
        return f"1 slice {level} ({asked} needed): slice at {first:.1f} mm"
    return f"{stop - start} consecutive slices {level} ({asked} needed): slices at {first:.1f}…{last:.1f} mm"


def _floor(score: float) -> str:
    """Two decimals, rounded down, so that a score below the threshold never reads like the threshold."""
    return f"{math.floor(score * 100) / 100:.2f}"


@dataclass(frozen=True, kw_only=True)
class Combination(Json):
    """Which findings make a study positive: model name → label that triggers.

    The study is positive when any of `any_of` is present, or all of `all_of` are. With both empty every model's "any"
    triggers by itself.
    """

    any_of: dict[str, str] = field(default_factory=dict)
    all_of: dict[str, str] = field(default_factory=dict)


def combine(readings: Sequence[ModelReading], how: Combination | None = None) -> tuple[Outcome, str]:
    """The outcome of the study, and the reason in one sentence.

    A model that is named but gave no reading of its label can neither trigger nor clear: where the others leave the
    question open the study is *not analysed*, never negative.
    """
    how = how or Combination()
    any_of = how.any_of if how.any_of or how.all_of else {reading.name: ANY for reading in readings}
    by_name = {reading.name: reading for reading in readings}
    verdicts = [_any(_fired(by_name, any_of))] if any_of else []
    verdicts += [_all(_fired(by_name, how.all_of))] if how.all_of else []
    triggers = [*any_of.items(), *how.all_of.items()]
    match _any(verdicts):
        case True:
            return Outcome.POSITIVE, _reasons(by_name, triggers, lambda present: present is True)
        case False if triggers:
            return Outcome.NEGATIVE, _reasons(by_name, triggers, lambda present: present is not None)
        case _:
            absent = _reasons(by_name, triggers, lambda present: present is None)
            return Outcome.NOT_ANALYSED, absent or "no model gave a reading"


def _present(by_name: Mapping[str, ModelReading], name: str, label: str) -> bool | None:
    """Whether the model finds the label; None where it said nothing about it."""
    finding = by_name[name].finding(label) if name in by_name else None
    return finding.present if finding else None


def _fired(by_name: Mapping[str, ModelReading], triggers: Mapping[str, str]) -> list[bool | None]:
    return [_present(by_name, name, label) for name, label in triggers.items()]


def _any(values: Sequence[bool | None]) -> bool | None:
    """Three-valued or: True if any is, else None if any is unknown."""
    return True if True in values else None if None in values else False


def _all(values: Sequence[bool | None]) -> bool | None:
    """Three-valued and: False if any is, else None if any is unknown."""
    return False if False in values else None if None in values else True


def _reasons(
    by_name: Mapping[str, ModelReading], triggers: Sequence[tuple[str, str]], keep: Callable[[bool | None], bool]
) -> str:
    parts = [
        _reason(by_name.get(name), name, label)
        for name, label in dict.fromkeys(triggers)
        if keep(_present(by_name, name, label))
    ]
    return "; ".join(parts)


def _reason(reading: ModelReading | None, name: str, label: str) -> str:
    finding = reading.finding(label) if reading else None
    if reading is None or finding is None:
        return f"{name}: gave no reading of {label}"
    if label == reading.findings[0].label:
        return f"{name}: {reading.rule}"
    side = "at or above" if finding.present else "below"
    return f"{name}: {label} {_floor(finding.score)}, {side} {finding.threshold:.2f}"
