"""The five subtypes of intracranial haemorrhage: the shape and density of each, painted on a section of the brain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from inference.result import SUBTYPES
from training.sources.phantom.brain import Brain, Section, Shift
from training.sources.phantom.collection import Crescent, Lens
from training.sources.phantom.plane import Waves
from training.sources.phantom.shapes import Field, Mask, Point, normed_radius, step
from training.sources.phantom.skull import CENTRE

IPH, IVH, SAH, SDH, EDH = range(len(SUBTYPES))


class Lesion(Protocol):
    """Blood that can be painted on a section of the brain."""

    def paint(self, brain: Brain, s: Section) -> None:
        """Change densities and masks of `s` where this blood lies."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Parenchymal:
    """A clot within the brain with a rim of oedema; `breach` lets it run into the ventricle beside it."""

    centre: Point
    radii: Point
    hu: float
    edge: Waves
    oedema_mm: float
    oedema_deficit: float
    breach: bool
    site: str

    def paint(self, brain: Brain, s: Section) -> None:
        """Oedema, then the clot, then the breach."""
        low, high = s.plane.height()
        reach = max(self.radii) * 2 + self.oedema_mm
        if low > self.centre[2] + reach or high < self.centre[2] - reach:
            return
        plane = s.plane
        r = normed_radius(plane.x, plane.y, plane.z, centre=self.centre, radii=self.radii)
        r = r / np.maximum(1 + 0.22 * self.edge.on(plane), 0.4)
        rim = (r < 1 + self.oedema_mm * 3 / sum(self.radii)) & ~s.spaces & ~s.ventricle
        s.hu = np.where(rim, np.minimum(s.hu, brain.white_hu - self.oedema_deficit), s.hu)
        core = (r < 1) & ~s.ventricle & (s.brain_depth > brain.layer)
        clot = self.hu + 3 * self.edge.on(plane, (2, 2, 2)) - 5 * step(0.7, 1, r)
        s.hu = np.where(core, clot, s.hu)
        s.masks[IPH] |= core
        if self.breach:
            run = (r < 1.25) & s.ventricle
            s.hu[run] = self.hu - 4
            s.masks[IVH] |= run


@dataclass(frozen=True, kw_only=True, eq=False)
class Ventricular:
    """Blood in the ventricles: settled behind a horizontal level (`down` is where it sinks to), or a cast."""

    hu: float
    edge: Waves
    cast: bool
    threshold: float
    level: float
    side: float
    both: bool
    down: Point

    def paint(self, brain: Brain, s: Section) -> None:
        """Fill the part of the ventricles that this blood takes."""
        if not s.ventricle.any():
            return
        if self.cast:
            filled = s.ventricle & (self.edge.on(s.plane) > self.threshold)
        else:
            fallen = s.plane.x * self.down[0] + s.plane.y * self.down[1] + (s.plane.z - CENTRE[2]) * self.down[2]
            filled = s.ventricle & (fallen > self.level) & ((s.x * self.side > 0) | self.both)
        s.hu[filled] = self.hu
        s.masks[IVH] |= filled


@dataclass(frozen=True, kw_only=True, eq=False)
class Subarachnoid:
    """Blood that fills and widens the subarachnoid spaces of a region: sulci, basal cisterns, or both."""

    centre: Point
    radii: Point
    hu: float
    edge: Waves
    sulcal: bool
    distend: float

    def widen(self, s: Section) -> None:
        """Let the sulci of the region gape. Must run before the brain is painted."""
        r = normed_radius(s.plane.x, s.plane.y, s.plane.z, centre=self.centre, radii=self.radii)
        s.widened = s.widened + self.distend * step(1.1, 0.6, r)

    def paint(self, brain: Brain, s: Section) -> None:
        """Fill the spaces of the region; a purely sulcal bleed spares the basal cisterns."""
        r = normed_radius(s.plane.x, s.plane.y, s.plane.z, centre=self.centre, radii=self.radii)
        filled = s.spaces & (r < 1 + 0.25 * self.edge.on(s.plane)) & ~s.falx & ~s.sinus
        if self.sulcal:
            filled &= ~s.cisterns
        s.hu[filled] = self.hu
        s.masks[SAH] |= filled


@dataclass(frozen=True, kw_only=True, eq=False)
class ExtraAxial:
    """Blood between skull and brain: a lens is epidural, a crescent subdural. `swirl` HU of fresher, paler blood."""

    shape: Lens | Crescent
    hu: float
    swirl: float = 0.0

    @property
    def subtype(self) -> int:
        """Index of the subtype."""
        return EDH if isinstance(self.shape, Lens) else SDH

    def paint(self, s: Section, thickness: Field) -> None:
        """Fill everything less than `thickness` mm under the bone."""
        filled = s.depth < thickness
        if not filled.any():
            return
        clot = self.hu + 2.5 * self.shape.edge.on(s.plane)
        if self.swirl:
            clot = clot - self.swirl * step(0.1, 0.9, self.shape.edge.on(s.plane, (1.5, 1.5, 1.5)))
        s.hu = np.where(filled, clot, s.hu)
        s.masks[:, filled] = False
        s.masks[self.subtype] |= filled


@dataclass(frozen=True, kw_only=True, eq=False)
class Parafalcine:
    """A subdural bleed along one side of the falx, `half` mm long to the front and the back of `middle`."""

    side: float
    thickness: float
    middle: float
    half: float
    low: float
    high: float
    hu: float

    def paint(self, brain: Brain, s: Section) -> None:
        """Fill the strip beside the falx."""
        y, z, beside = s.plane.y, s.plane.z, s.x * self.side
        width = self.thickness * step(1.05, 0.3, np.abs(y - self.middle) / self.half)
        strip = (beside > 0) & (beside < width) & ~s.below & (z > self.low) & (z < self.high)
        _subdural(s, strip & ((y < -20) | (y > 28) | (z > 46)), self.hu)


@dataclass(frozen=True, kw_only=True, eq=False)
class Tentorial:
    """A subdural bleed that lies on the tentorium of one side."""

    side: float
    thickness: float
    hu: float

    def paint(self, brain: Brain, s: Section) -> None:
        """Fill the sheet above the tentorium."""
        above = s.plane.z - s.tentorium
        sheet = (above > 0) & (above < self.thickness) & (s.x * self.side > 6) & (np.abs(s.x) < 52)
        _subdural(s, sheet & (s.plane.y > 16), self.hu)


def _subdural(s: Section, filled: Mask, hu: float) -> None:
    s.hu[filled] = hu
    s.masks[:, filled] = False
    s.masks[SDH] |= filled


@dataclass(frozen=True, kw_only=True, eq=False)
class Bleeding:
    """All blood of one head and the shift of its midline."""

    inner: tuple[Lesion, ...]
    outer: tuple[ExtraAxial, ...]
    dural: tuple[Lesion, ...]
    shift: Shift

    def paint(self, brain: Brain, s: Section, thicknesses: Sequence[Field]) -> None:
        """Paint all of it; blood outside the brain wins over blood within."""
        for lesion in self.inner:
            lesion.paint(brain, s)
        for collection, thickness in zip(self.outer, thicknesses, strict=True):
            collection.paint(s, thickness)
        for lesion in self.dural:
            lesion.paint(brain, s)
