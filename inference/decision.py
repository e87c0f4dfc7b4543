"""From slice scores to one statement about the scan: the scan rules."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inference.result import Json

SAME_PLACE_MM = 0.1
"""Slices closer than this show the same place and count once."""

GAP = 1.5
"""Slices further apart than this many times the spacing around them are not consecutive: a slice is missing."""

AROUND = 3
"""How many distances on either side tell the spacing around a place."""

KEY_SLICES = 5


@dataclass(frozen=True, kw_only=True)
class ScanRule(Json):
    """How slice scores become one score of the scan: exactly one of four rules.

    Attributes
    ----------
    run : int or None
        The best run of so many consecutive slices, judged by its weakest slice. ``run=3`` is RADnet's "hemorrhage in
        consecutive three or more slices" (Grewal et al., section 2.3).
    extent_mm : float or None
        The same, with as many slices as cover this extent along the normal.
    max : bool
        The most suspicious slice (Nguyen et al., section 3.2).
    noisy_or_mm: float or None
        All slices together: ``1 − Π (1 − p_i)^w_i``, where a slice weighs by the length e_i of the head for which it
        stands, ``w_i = min(1, e_i / d)`` with this d. Slices d apart or more are so many independent looks, which is
        the noisy-or (Pearl 1988, section 4.3.2); ten thin slices in place of one thick one are the same look in ten
        parts, and count like it. Slices at the same place count once, and a missing slice not at all.
    """

    run: int | None = None
    extent_mm: float | None = None
    max: bool = False
    noisy_or_mm: float | None = None

    def __post_init__(self) -> None:
        """Refuses anything but one rule, with ``ValueError``."""
        given = [self.run is not None, self.extent_mm is not None, self.max, self.noisy_or_mm is not None]
        if given.count(True) != 1:
            raise ValueError("a scan rule is exactly one of run, extent_mm, max and noisy_or_mm")
        lengths = [length for length in (self.extent_mm, self.noisy_or_mm) if length is not None]
        if (self.run is not None and self.run < 1) or not all(0 < length < math.inf for length in lengths):
            raise ValueError("a scan rule needs a run of at least one slice, or a positive length")

    def to_json(self) -> dict[str, Any]:
        """The one rule that holds, for example ``{"run": 3}``."""
        return {name: value for name, value in super().to_json().items() if value}


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
    negative for its shortness. `ScanRule.noisy_or_mm` takes all slices together instead.

    Raises ``ValueError`` for no slices, scores that are not finite, or lists of unequal length.
    """
    stretches = _stretches(_places(scores, positions_mm, thickness_mm))
    if rule.noisy_or_mm:
        return _together(stretches, rule.noisy_or_mm, threshold)
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


def _together(stretches: list[Stretch], look_mm: float, threshold: float) -> ScanDecision:
    """The noisy-or of all places. Its key slices are the fewest that reach the threshold without the others."""
    widths = [min(1.0, width / look_mm) for stretch in stretches for width in _widths(stretch, otherwise=look_mm)]
    weighed = list(zip((place for stretch in stretches for place in stretch), widths, strict=True))
    weighed.sort(key=lambda pair: (_doubt(pair[0], pair[1]), pair[0].position_mm))
    doubts = np.cumsum([_doubt(place, weight) for place, weight in weighed])
    scores = -np.expm1(doubts)
    score = float(scores[-1])
    present = score >= threshold
    needed = int((scores >= threshold).argmax()) + 1 if present else 0
    level = f"{_level(threshold)} (noisy-or, one look in {look_mm:g} mm)"
    rule = f"all slices together {floored(score)}, {'at or above' if present else 'below'} {level}"
    if present:
        at = sorted(place.position_mm for place, _ in weighed[:needed])
        carried = f"slice at {at[0]:.1f} mm" if needed == 1 else f"{needed} slices at {at[0]:.1f}…{at[-1]:.1f} mm"
        rule += f": carried by the {carried}"
    keys = tuple(place.index for place, _ in weighed[: min(needed, KEY_SLICES)])
    return ScanDecision(score=score, present=present, rule=rule, key_slices=keys)


def _doubt(place: _Place, weight: float) -> float:
    """The logarithm of the probability that a slice is clean, weighed: at most 0, the lower the more suspicious."""
    return weight * math.log1p(-place.score) if place.score < 1 else -math.inf


def _level(threshold: float) -> str:
    return f"{threshold:.2f}" if threshold >= 0.1 else f"{threshold:.3g}"


def _in_words(window: tuple[Stretch, int, int], score: float, rule: ScanRule, threshold: float) -> str:
    """For example "5 consecutive slices at or above 0.50 (3 needed): slices at 12.5…32.5 mm"."""
    stretch, start, stop = window
    needed = stop - start
    level = f"at or above {_level(threshold)}"
    asked = f"{rule.extent_mm:g} mm, {needed}" if rule.extent_mm else f"{needed}"
    if score < threshold:
        what, reach = ("slice", "highest slice") if needed == 1 else (f"{needed} consecutive slices", "best run")
        extent = f" ({rule.extent_mm:g} mm)" if rule.extent_mm else ""
        return f"no {what} {level}{extent}; the {reach} reaches {floored(score)}"
    while start > 0 and stretch[start - 1].score >= threshold:
        start -= 1
    while stop < len(stretch) and stretch[stop].score >= threshold:
        stop += 1
    first, last = stretch[start].position_mm, stretch[stop - 1].position_mm
    if stop - start == 1:
        return f"1 slice {level} ({asked} needed): slice at {first:.1f} mm"
    return f"{stop - start} consecutive slices {level} ({asked} needed): slices at {first:.1f}…{last:.1f} mm"


def floored(score: float) -> str:
    """Two decimals, rounded down, so that a score below the threshold never reads like the threshold."""
    return f"{math.floor(score * 100) / 100:.2f}"
