"""Whether slices show a head with brain: judged from the pixels, so that no description can mislead.

A head is told by what no other part has: in neighbouring slices, rays from the middle meet one smooth, nearly closed
ring of bone of a skull's size, and inside it lies tissue of the brain's density. Ribs leave gaps and hold lung, limbs
hold marrow, pelvis and shoulders are too large, and phantoms hold water or have no bone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from inference.geometry import analyse
from inference.result import Json
from inference.volume import Slice

Floats = NDArray[np.float64]

MOST_SLICES = 24
GRID_MM = 2.0
RAYS = 72
STEP_MM = 1.5
REACH_MM = 170.0

BODY_HU, BONE_HU, AIR_HU = -200.0, 200.0, -500.0
TISSUE_HU = (-10.0, 90.0)
"""0 to 80 HU with room for noise."""
BRAIN_HU = (12.0, 60.0)
"""The median inside the skull: above water, below muscle with contrast; grey and white matter are 25 to 42."""

LEAST_BODY_MM2 = 2500.0
SKULL_MM = (75.0, 230.0)
"""Mean diameter of the ring of bone, from a small newborn to the largest adult."""
LEAST_RING = 0.6
"""Part of the rays that meet the ring: a large craniectomy or open fontanelles take a third."""
LEAST_TISSUE = 0.42
"""Part of the ring's inside with the density of soft tissue: half at the skull base, nearly all above."""
MOST_AIR = 0.2
"""Part of the body that is air: sinuses and airways take less, lungs more."""
JUMP_MM = 9.0
"""Neighbouring rays meet a skull at nearly the same depth; from rib to rib they jump."""
LEAST_EXTENT_MM = 20.0
MOST_NOISE_HU = 75.0
"""Standard deviation between neighbouring pixels; brain and blood are 30 HU apart."""


@dataclass(frozen=True, kw_only=True)
class HeadCheck(Json):
    """Whether the slices show a head with brain, why, and what was measured.

    `measures` are medians over slices with a body in them: ``body_mm`` (mean of width and height), ``air``, ``bone``
    and ``tissue`` (fractions of the body), ``noise`` in HU; and over the best slices ``ring`` (fraction of rays that
    meet bone), ``skull_mm``, ``inside`` (fraction of its inside that is tissue) and ``brain_hu``; ``extent_mm`` is the
    length over which brain lies within skull.
    """

    ok: bool
    reason: str
    measures: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class _Look:
    """One slice, measured."""

    width_mm: float
    body_mm: float = 0.0
    air: float = 0.0
    bone: float = 0.0
    tissue: float = 0.0
    ring: float = 0.0
    skull_mm: float = 0.0
    inside: float = 0.0
    brain_hu: float = -1024.0
    noise: float = 0.0

    @property
    def ringed(self) -> bool:
        """Whether a skull's ring of bone is there."""
        return self.ring >= LEAST_RING and SKULL_MM[0] <= self.skull_mm <= SKULL_MM[1]

    @property
    def brain(self) -> bool:
        """Whether the ring holds brain."""
        filled = self.inside >= LEAST_TISSUE and BRAIN_HU[0] <= self.brain_hu <= BRAIN_HU[1]
        return self.ringed and filled and self.air <= MOST_AIR and self.noise <= MOST_NOISE_HU


def check_head(slices: Sequence[Slice]) -> HeadCheck:
    """Whether `slices` of one stack show a head with brain. Slices may be thinned out (every fourth pixel is enough).

    The sentence in `reason` has no patient data and stands after "not analysed: ".
    """
    looks = [_look(s, width) for s, width in _sample(slices)]
    bodies = [look for look in looks if look.body_mm > 0]
    if not looks:
        return HeadCheck(ok=False, reason="there is no slice to look at")
    if not bodies:
        return HeadCheck(ok=False, reason="the images show nothing but air")
    brains = [look for look in looks if look.brain]
    extent = sum(look.width_mm for look in brains)
    best = brains or sorted(bodies, key=lambda look: look.ring)[-3:]
    measures = {
        **{name: _median(bodies, name) for name in ("body_mm", "air", "bone", "tissue", "noise")},
        **{name: _median(best, name) for name in ("ring", "skull_mm", "inside", "brain_hu")},
        "extent_mm": round(extent, 1),
    }
    if extent >= LEAST_EXTENT_MM:
        return HeadCheck(ok=True, reason=f"brain within skull over {extent:.0f} mm", measures=measures)
    return HeadCheck(ok=False, reason=_why_not(measures, bodies, extent), measures=measures)


def _median(looks: Sequence[_Look], name: str) -> float:
    return round(float(np.median([getattr(look, name) for look in looks])), 3)


def _why_not(measures: dict[str, float], bodies: Sequence[_Look], extent: float) -> str:
    """The plainest thing that is wrong."""
    ringed = [look for look in bodies if look.ringed]
    if extent > 0:
        return f"not a head with brain: brain within skull over only {extent:.0f} mm"
    if measures["noise"] > MOST_NOISE_HU:
        return f"noise of {measures['noise']:.0f} HU leaves no brain to be seen"
    if measures["bone"] < 0.005:
        return f"not a head: no bone in a body of {measures['body_mm']:.0f} mm (a phantom?)"
    if measures["air"] > MOST_AIR:
        return f"not a head: {measures['air']:.0%} of the body is air (a chest?)"
    if ringed:
        share = max(look.inside for look in ringed)
        if share < LEAST_TISSUE:
            return f"not a head with brain: only {share:.0%} of the inside of the bone is soft tissue"
        hu = float(np.median([look.brain_hu for look in ringed if look.inside >= LEAST_TISSUE]))
        return f"not a head with brain: what the bone encloses measures {hu:.0f} HU"
    if measures["body_mm"] > 270:
        return f"not a head: the body is {measures['body_mm']:.0f} mm across"
    return "not a head: no closed ring of bone around soft tissue"


def _sample(slices: Sequence[Slice]) -> list[tuple[Slice, float]]:
    """At most `MOST_SLICES` evenly spaced slices, with the length of the stack each stands for in mm."""
    geometry = analyse(positions=[s.position for s in slices], orientations=[s.orientation for s in slices])
    if not geometry.order:
        return []
    picked = np.unique(np.linspace(0, len(geometry.order) - 1, MOST_SLICES).round().astype(int))
    at = np.array(geometry.positions_mm)[picked]
    if len(at) == 1:
        only = slices[geometry.order[0]]
        return [(only, only.thickness or 0.0)]
    middles = (at[1:] + at[:-1]) / 2
    widths = np.diff(np.concatenate(([2 * at[0] - middles[0]], middles, [2 * at[-1] - middles[-1]])))
    return [(slices[geometry.order[i]], float(w)) for i, w in zip(picked, widths, strict=True)]


def _look(piece: Slice, width_mm: float) -> _Look:
    row_mm, column_mm = piece.pixel_spacing
    down, across = max(1, math.floor(GRID_MM / row_mm)), max(1, math.floor(GRID_MM / column_mm))
    hu = piece.hu[::down, ::across].astype(np.float64)
    spacing = (row_mm * down, column_mm * across)
    body = _opened(hu > BODY_HU)
    area = float(np.count_nonzero(body)) * spacing[0] * spacing[1]
    if area < LEAST_BODY_MM2:
        return _Look(width_mm=width_mm)
    rows, columns = np.nonzero(body)
    height, width = (_span(rows) * spacing[0], _span(columns) * spacing[1])
    shape = _hull(body)
    return _Look(
        width_mm=width_mm,
        body_mm=(height + width) / 2,
        air=float((hu[shape] < AIR_HU).mean()),
        bone=float((hu[shape] > BONE_HU).mean()),
        tissue=float(((hu[shape] > TISSUE_HU[0]) & (hu[shape] < TISSUE_HU[1])).mean()),
        noise=_noise(hu, body),
        **_ring(hu, body, (float(np.median(rows)), float(np.median(columns))), spacing),
    )


def _ring(
    hu: Floats, body: NDArray[np.bool_], middle: tuple[float, float], spacing: tuple[float, float]
) -> dict[str, float]:
    """What rays from the middle meet: the outermost bone, and inside it tissue."""
    angles = np.arange(RAYS) * (2 * math.pi / RAYS)
    radii = np.arange(0.0, REACH_MM, STEP_MM)
    row = np.rint(middle[0] + np.outer(np.sin(angles), radii) / spacing[0]).astype(int)
    column = np.rint(middle[1] + np.outer(np.cos(angles), radii) / spacing[1]).astype(int)
    seen = (row >= 0) & (row < hu.shape[0]) & (column >= 0) & (column < hu.shape[1])
    row, column = np.clip(row, 0, hu.shape[0] - 1), np.clip(column, 0, hu.shape[1] - 1)
    bone = seen & (hu[row, column] > BONE_HU)
    met = bone.any(axis=1)
    outermost = radii[len(radii) - 1 - bone[:, ::-1].argmax(axis=1)]
    # A ray that leaves the image through tissue tells nothing of bone behind the edge.
    last = seen.sum(axis=1) - 1
    cut = ~met & body[row, column][np.arange(RAYS), np.maximum(last - 1, 0)]
    told = ~cut
    if told.sum() < RAYS / 2 or not met.any():
        return {}
    middle_mm = float(np.median(outermost[met]))
    smooth = met & (
        (np.abs(outermost - np.roll(outermost, 1)) < JUMP_MM) | (np.abs(outermost - np.roll(outermost, -1)) < JUMP_MM)
    )
    edge = np.where(met, outermost, middle_mm)[:, None]
    within = seen & (radii[None, :] < edge - 8.0)
    values = _smoothed(hu)[row, column]
    weight = np.where(within, radii[None, :] + STEP_MM / 2, 0.0)
    tissue = (values > TISSUE_HU[0]) & (values < TISSUE_HU[1])
    total = float(weight.sum())
    return {
        "ring": float(np.count_nonzero(smooth) / np.count_nonzero(told)),
        "skull_mm": 2 * float(outermost[smooth].mean()) if smooth.any() else 0.0,
        "inside": float(weight[tissue].sum()) / total if total else 0.0,
        "brain_hu": _weighted_median(values[within & tissue], weight[within & tissue]),
    }


def _noise(hu: Floats, body: NDArray[np.bool_]) -> float:
    """The standard deviation of noise in the body, from differences of neighbours; edges are too few to count."""
    differences = np.abs(np.diff(hu, axis=1))[body[:, 1:] & body[:, :-1]]
    return float(np.median(differences)) / 0.954 if differences.size else 0.0


def _weighted_median(values: Floats, weights: Floats) -> float:
    if not values.size:
        return -1024.0
    order = np.argsort(values)
    below = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(below, below[-1] / 2)])


def _span(indices: NDArray[np.int64]) -> float:
    low, high = np.percentile(indices, (1, 99))
    return float(high - low) + 1


def _smoothed(hu: Floats) -> Floats:
    """The mean of 2 × 2 neighbours: halves the noise of thinned-out pixels."""
    padded = np.pad(hu, ((0, 1), (0, 1)), mode="edge")
    return (padded[:-1, :-1] + padded[1:, :-1] + padded[:-1, 1:] + padded[1:, 1:]) / 4


def _opened(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Without what is thinner than three pixels: head holder, tubes, blanket."""
    eroded = _across(_across(mask, np.logical_and, fill=False).T, np.logical_and, fill=False).T
    return _across(_across(eroded, np.logical_or, fill=False).T, np.logical_or, fill=False).T


def _across(mask: NDArray[np.bool_], combine: np.ufunc, *, fill: bool) -> NDArray[np.bool_]:
    padded = np.pad(mask, ((1, 1), (0, 0)), constant_values=fill)
    found: NDArray[np.bool_] = combine(combine(padded[:-2], padded[1:-1]), padded[2:])
    return found


def _hull(body: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The body with its cavities: pixels with body on both sides in their row and in their column."""
    in_row = np.logical_or.accumulate(body, axis=1) & np.logical_or.accumulate(body[:, ::-1], axis=1)[:, ::-1]
    in_column = np.logical_or.accumulate(body, axis=0) & np.logical_or.accumulate(body[::-1], axis=0)[::-1]
    found: NDArray[np.bool_] = in_row & in_column
    return found
