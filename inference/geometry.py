"""Where the slices of one stack lie: order, spacing, tilt, duplicates and what is missing. Pure numpy, reads no header.

Positions and orientations are those of Image Position (Patient) and Image Orientation (Patient), in mm and direction
cosines of the patient's system: x to the left, y to the back, z to the head (PS3.3 C.7.6.2.1.1).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from inference.result import Json

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

FEWEST = 3
"""Fewer slices have no spacing to compare with."""
SAME_PLANE_DEGREES = 1.0
SAME_POSITION_MM = 0.1
WIDE = 1.5
"""A step of this many expected spacings holds a missing slice; scanners place slices far more exactly."""
REGULAR_RUN = 3
"""So many equal steps in a row are a protocol's spacing, not losses."""
LOCAL_STEPS = 7
"""Steps around a slice that tell its usual spacing; wide enough to outvote a gap, narrow enough for two protocols."""
THICKEST_MM = 50.0
"""A larger Slice Thickness is a typing error, not a slice."""
NAMED_POSITIONS = 4


@dataclass(frozen=True, kw_only=True)
class Gap(Json):
    """A step between two neighbours with room for at least one more slice.

    `below` and `above` index the slices given to `analyse`; `missing_mm` are the expected positions on the normal.
    """

    below: int
    above: int
    step_mm: float
    missing_mm: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class StackGeometry(Json):
    """What the positions of a stack say.

    `order` lists the indices of the slices kept, from feet to head, and `positions_mm` their projections on `normal`.
    `dropped` were taken at the position of a slice kept; `unplaced` have no usable position or orientation;
    `foreign` lie in another plane than most. `spacings_mm` are the regular spacings, from feet to head, `spacing_mm`
    the most usual one. `tilt_degrees` is the rotation about the left-right axis (the gantry's), `obliquity_degrees`
    what then remains to an axial plane. `coverage_mm` reaches from the lower face of the first slice to the upper
    face of the last. `missing` says in sentences why the stack is not `whole`.
    """

    whole: bool
    order: tuple[int, ...] = ()
    positions_mm: tuple[float, ...] = ()
    dropped: tuple[int, ...] = ()
    unplaced: tuple[int, ...] = ()
    foreign: tuple[int, ...] = ()
    spacing_mm: float | None = None
    spacings_mm: tuple[float, ...] = ()
    overlaps: int = 0
    gaps: tuple[Gap, ...] = ()
    normal: tuple[float, float, float] | None = None
    tilt_degrees: float = 0.0
    obliquity_degrees: float = 0.0
    coverage_mm: float = 0.0
    missing: tuple[str, ...] = ()


def analyse(
    *,
    positions: Sequence[Sequence[float] | None],
    orientations: Sequence[Sequence[float] | None],
    thicknesses: Sequence[float | None] | None = None,
    instance_numbers: Sequence[int | None] | None = None,
) -> StackGeometry:
    """The geometry of a stack, given one entry per slice in the order of arrival.

    Parameters
    ----------
    positions : n × 3, mm; None where a header has none.
    orientations : n × 6 direction cosines, row then column; None where a header has none.
    thicknesses : n Slice Thicknesses in mm. With them a protocol that changes thickness and spacing together
        (thin in the posterior fossa, thick above) is known from a lost slice.
    instance_numbers : n Instance Numbers, for the sentences, for choosing among duplicates (the highest is kept, or
        the last to arrive), and to tell regular losses from a protocol's wider spacing.
    """
    count = len(positions)
    place, normals, placed = _placed(positions, orientations)
    thickness = _thickness(thicknesses, count)
    numbers = _numbers(instance_numbers, count)
    unplaced = tuple(int(i) for i in np.flatnonzero(~placed))
    if not placed.any():
        return StackGeometry(whole=False, unplaced=unplaced, missing=_without_geometry(len(unplaced)))
    normal, same_plane = _common_normal(normals, placed)
    foreign = tuple(int(i) for i in np.flatnonzero(placed & ~same_plane))
    projections = place @ normal
    order, dropped = _distinct(projections, np.flatnonzero(same_plane), numbers)
    along = projections[order]
    steps = np.diff(along)
    expected = _expected(steps, thickness[order], numbers[order])
    gaps = _gaps(order, along, steps, expected, numbers[order])
    regular = steps[steps <= WIDE * expected] if steps.size else steps
    spacing = float(np.median(regular if regular.size else steps)) if steps.size else None
    edge = np.nan_to_num(thickness[order[[0, -1]]], nan=spacing or 0.0)
    missing = (*_without_geometry(len(unplaced)), *_of_another_plane(len(foreign)), *_sentences(gaps, numbers))
    if len(order) < FEWEST:
        missing = (*missing, f"only {len(order)} slice{'s' * (len(order) > 1)}: too few to know the spacing")
    return StackGeometry(
        whole=not missing,
        order=tuple(order.tolist()),
        positions_mm=tuple(along.tolist()),
        dropped=tuple(dropped.tolist()),
        unplaced=unplaced,
        foreign=foreign,
        spacing_mm=spacing,
        spacings_mm=_regular_spacings(regular),
        overlaps=int(np.count_nonzero(steps < 0.75 * expected)) if steps.size else 0,
        gaps=gaps,
        normal=(float(normal[0]), float(normal[1]), float(normal[2])),
        tilt_degrees=math.degrees(math.atan2(normal[1], normal[2])),
        obliquity_degrees=math.degrees(math.asin(min(1.0, abs(float(normal[0]))))),
        coverage_mm=float(along[-1] - along[0] + edge.mean()),
        missing=missing,
    )


def normal_of(orientation: Sequence[float]) -> tuple[float, float, float] | None:
    """The unit normal of a plane, turned towards the head (or to its largest axis); None for degenerate cosines."""
    _, normals, placed = _placed([(0.0, 0.0, 0.0)], [orientation])
    if not placed[0]:
        return None
    unit = _upright(normals[0])
    return float(unit[0]), float(unit[1]), float(unit[2])


def _placed(
    positions: Sequence[Sequence[float] | None], orientations: Sequence[Sequence[float] | None]
) -> tuple[Floats, Floats, NDArray[np.bool_]]:
    """Positions (n, 3), unit normals (n, 3) and which of them are usable."""
    nowhere, nohow = (math.nan,) * 3, (math.nan,) * 6
    place = np.array([p if p is not None and len(p) == 3 else nowhere for p in positions], np.float64).reshape(-1, 3)
    cosines = np.array([o if o is not None and len(o) == 6 else nohow for o in orientations], np.float64)
    cosines = cosines.reshape(-1, 6)
    row, column = cosines[:, :3], cosines[:, 3:]
    normals = np.stack(
        [
            row[:, 1] * column[:, 2] - row[:, 2] * column[:, 1],
            row[:, 2] * column[:, 0] - row[:, 0] * column[:, 2],
            row[:, 0] * column[:, 1] - row[:, 1] * column[:, 0],
        ],
        axis=1,
    )
    length = np.linalg.norm(normals, axis=1)
    # Cosines are rounded in headers; anything far from a right-angled unit pair is not an orientation at all.
    placed = np.isfinite(place).all(axis=1) & (np.abs(length - 1.0) < 0.1)
    normals = np.where(placed[:, None], normals / np.where(length > 0, length, 1.0)[:, None], 0.0)
    return np.where(placed[:, None], place, 0.0), normals, placed


def _upright(normal: Floats) -> Floats:
    return normal if normal[2] > 0.1 or (abs(normal[2]) <= 0.1 and normal[np.argmax(np.abs(normal))] > 0) else -normal


def _common_normal(normals: Floats, placed: NDArray[np.bool_]) -> tuple[Floats, NDArray[np.bool_]]:
    """The normal most slices share, and which slices share it (either way round)."""
    signed = normals * np.where(normals @ normals[np.flatnonzero(placed)[0]] < 0, -1.0, 1.0)[:, None]
    middle = np.median(signed[placed], axis=0)
    length = float(np.linalg.norm(middle))
    middle = middle / length if length > 0 else signed[np.flatnonzero(placed)[0]]
    same = placed & (np.abs(signed @ middle) >= math.cos(math.radians(SAME_PLANE_DEGREES)))
    if not same.any():  # half one way, half the other: the median lies between two planes
        middle = signed[np.flatnonzero(placed)[0]]
        same = placed & (np.abs(signed @ middle) >= math.cos(math.radians(SAME_PLANE_DEGREES)))
    mean = signed[same].mean(axis=0)
    return _upright(mean / np.linalg.norm(mean)), same


def _thickness(thicknesses: Sequence[float | None] | None, count: int) -> Floats:
    if thicknesses is None:
        return np.full(count, math.nan)
    given = np.array([math.nan if t is None else t for t in thicknesses], np.float64).reshape(-1)
    return np.where((given > 0) & (given <= THICKEST_MM), given, math.nan)


def _numbers(instance_numbers: Sequence[int | None] | None, count: int) -> Floats:
    if instance_numbers is None:
        return np.full(count, math.nan)
    return np.array([math.nan if n is None else n for n in instance_numbers], np.float64).reshape(-1)


def _distinct(projections: Floats, indices: Ints, numbers: Floats) -> tuple[Ints, Ints]:
    """Indices sorted from feet to head, one per position, and the duplicates left out."""
    ranked = indices[np.lexsort((indices, np.nan_to_num(numbers[indices], nan=-math.inf), projections[indices]))]
    steps = np.diff(projections[ranked])
    apart = steps[steps > 0.01]
    tolerance = min(SAME_POSITION_MM, 0.1 * float(np.median(apart))) if apart.size else SAME_POSITION_MM
    group = np.concatenate(([0], np.cumsum(steps > tolerance)))
    # Inside a position the last by (instance number, arrival) wins: a repeated slice replaces the first attempt.
    within = np.lexsort((ranked, np.nan_to_num(numbers[ranked], nan=-math.inf), group))
    last = np.append(np.diff(group[within]) > 0, True)
    return ranked[within][last], np.sort(ranked[within][~last])


def _expected(steps: Floats, thickness: Floats, numbers: Floats) -> Floats:
    """The spacing each step should have: the mean of what is usual around its two slices, by their thickness."""
    if not steps.size:
        return steps
    usual = _local(steps)
    mean = (thickness[1:] + thickness[:-1]) / 2
    known = np.isfinite(mean)
    if known.any():
        usual = np.where(np.isfinite(thickness), float(np.median(steps[known] / mean[known])) * thickness, usual)
    for value in np.unique(thickness[np.isfinite(thickness)]):
        alike = np.abs(thickness - value) < 0.05
        inner = alike[1:] & alike[:-1]
        if np.count_nonzero(inner) >= REGULAR_RUN:
            usual[alike] = _usual(steps[inner], np.abs(np.diff(numbers))[inner], float(value))
    return (usual[1:] + usual[:-1]) / 2


def _local(steps: Floats) -> Floats:
    """The median step around each slice: what is usual where no header tells the thickness."""
    width = min(LOCAL_STEPS, len(steps))
    medians = np.median(np.lib.stride_tricks.sliding_window_view(steps, width), axis=1)
    return medians[np.clip(np.arange(len(steps) + 1) - (width + 1) // 2, 0, len(medians) - 1)]


def _usual(steps: Floats, jumps: Floats, thickness: float) -> float:
    """The usual step between slices of one thickness.

    Where steps are wider than the slice and Instance Numbers jump by as much, every other slice is still to come.
    """
    step, jump = float(np.median(steps)), float(np.median(jumps))
    if jump >= 2 and step > WIDE * thickness and step / jump <= 1.25 * thickness:
        return step / jump
    return step


def _gaps(order: Ints, along: Floats, steps: Floats, expected: Floats, numbers: Floats) -> tuple[Gap, ...]:
    wide = steps > WIDE * expected
    if not wide.any():
        return ()
    wide &= ~_regular(steps, np.abs(np.diff(numbers)))
    gaps = []
    for i in np.flatnonzero(wide):
        absent = max(1, round(float(steps[i] / expected[i])) - 1)
        at = np.linspace(along[i], along[i + 1], absent + 2)[1:-1]
        gaps.append(
            Gap(
                below=int(order[i]),
                above=int(order[i + 1]),
                step_mm=float(steps[i]),
                missing_mm=tuple(float(x) for x in at),
            )
        )
    return tuple(gaps)


def _regular(steps: Floats, jumps: Floats) -> NDArray[np.bool_]:
    """Steps that are a protocol's own: at least `REGULAR_RUN` equal ones in a row, Instance Numbers unbroken."""
    equal = np.abs(np.diff(steps)) < 0.1 * steps[:-1]
    edges = np.flatnonzero(~equal) + 1
    regular = np.zeros(len(steps), bool)
    for run in np.split(np.arange(len(steps)), edges):
        regular[run] = len(run) >= REGULAR_RUN and not bool((jumps[run] >= 2).any())
    return regular


def _regular_spacings(steps: Floats) -> tuple[float, ...]:
    """The distinct spacings that at least `REGULAR_RUN` steps have, in the order in which they first appear."""
    rounded = np.round(steps, 1)
    values, first, counts = np.unique(rounded, return_index=True, return_counts=True)
    often = sorted((int(f), float(v)) for f, v, c in zip(first, values, counts, strict=True) if c >= REGULAR_RUN)
    return tuple(value for _, value in often)


def _without_geometry(count: int) -> tuple[str, ...]:
    return (f"{_slices(count)} without a usable position or orientation",) if count else ()


def _of_another_plane(count: int) -> tuple[str, ...]:
    return (f"{_slices(count)} in another plane than the rest",) if count else ()


def _sentences(gaps: Sequence[Gap], numbers: Floats) -> tuple[str, ...]:
    return tuple(
        f"{_slices(len(gap.missing_mm))} missing at {_places(gap.missing_mm)} mm, "
        f"between {_name(gap.below, numbers)} and {_name(gap.above, numbers)}"
        for gap in gaps
    )


def _slices(count: int) -> str:
    return "1 slice" if count == 1 else f"{count} slices"


def _places(missing_mm: Sequence[float]) -> str:
    if len(missing_mm) > NAMED_POSITIONS:
        return f"{missing_mm[0]:.1f} to {missing_mm[-1]:.1f}"
    return ", ".join(f"{x:.1f}" for x in missing_mm)


def _name(index: int, numbers: Floats) -> str:
    number = numbers[index]
    return f"slice {index + 1}" if math.isnan(number) else f"instance {int(number)}"
