"""The five subtypes of intracranial haemorrhage: where each lies, its shape, its density, and what it pushes aside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from inference.result import SUBTYPES
from training.sources.phantom.brain import Brain, Section, Shift
from training.sources.phantom.collection import Crescent, Lens, convexity
from training.sources.phantom.plane import Waves
from training.sources.phantom.shapes import Field, Mask, Point, normed_radius, step
from training.sources.phantom.skull import CENTRE, Skull
from training.sources.phantom.spec import Spec

IPH, IVH, SAH, SDH, EDH = range(len(SUBTYPES))
LARGEST_SHIFT_MM = 12.0


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


def draw_bleeding(seed: int, spec: Spec, skull: Skull, subtypes: Sequence[str], down: Point) -> Bleeding:
    """The blood of one head. Each subtype has its own random stream, so one does not change another."""
    inner: list[Lesion] = []
    outer: list[ExtraAxial] = []
    dural: list[Lesion] = []
    shifts = [Shift()]
    for name in subtypes:
        kind = SUBTYPES.index(name)
        rng = np.random.default_rng((seed, 100 + kind))
        scale, hu = _size_and_density(rng, spec, name)
        if kind == IPH:
            clots = _parenchymal(rng, skull, scale, hu)
            inner += clots
            shifts += [_push(c.centre[0], (max(c.radii) - 10) * rng.uniform(0.2, 0.7), c.centre[2]) for c in clots]
        elif kind == IVH:
            inner.append(_ventricular(rng, scale, hu, down))
        elif kind == SAH:
            inner.append(_subarachnoid(rng, skull, scale, hu))
        elif kind == SDH and rng.random() > 0.74:
            dural.append(_along_dura(rng, scale, hu))
        else:
            bleed = _subdural_crescent(rng, scale, hu) if kind == SDH else _epidural_lens(rng, scale, hu)
            outer.append(bleed)
            at, mm = bleed.shape.direction, bleed.shape.thickness * rng.uniform(0.2, 0.7)
            shifts.append(_push(at[0], mm, CENTRE[2] + 50 * at[2]))
    shift = max(shifts, key=lambda s: abs(s.mm))
    return Bleeding(inner=tuple(inner), outer=tuple(outer), dural=tuple(dural), shift=shift)


def _size_and_density(rng: np.random.Generator, spec: Spec, name: str) -> tuple[float, float]:
    scale, hu, spread = rng.uniform(*spec.lesion_scale), rng.uniform(*spec.blood_hu), rng.normal()
    clot = spec.clots.get(name)
    if clot is None:
        return scale, hu
    return scale * clot.scale, float(np.clip(clot.mean_hu + clot.sd_hu * spread, 36, 82))


def _push(x: float, mm: float, height: float) -> Shift:
    away = -1.0 if x > 0 else 1.0
    return Shift(mm=away * float(np.clip(mm, 0, LARGEST_SHIFT_MM)), height=height)


def _parenchymal(rng: np.random.Generator, skull: Skull, scale: float, hu: float) -> list[Parenchymal]:
    u = rng.uniform
    site = str(rng.choice(["basal", "thalamic", "lobar", "cerebellar", "pontine", "contusion"],
                          p=[0.30, 0.13, 0.30, 0.10, 0.04, 0.13]))  # fmt: skip
    side = float(rng.choice((-1, 1)))
    toward, deep = convexity(rng), u(0.5, 0.8)
    lobar = tuple(c + d * r * deep for c, d, r in zip(CENTRE, toward, skull.radii, strict=True))
    centre = {
        "basal": (side * 26, u(-12, 8), u(14, 26)),
        "thalamic": (side * 12, u(4, 14), u(16, 24)),
        "lobar": lobar,
        "cerebellar": (side * u(8, 30), u(42, 60), u(-24, -8)),
        "pontine": (u(-4, 4), u(8, 14), u(-22, -8)),
        "contusion": (side * u(10, 45), u(-62, -35), u(18, 28)),
    }[site]
    many = int(rng.integers(2, 5)) if site == "contusion" else 1
    reach = {"contusion": (2.5, 6.0), "pontine": (3.0, 9.0)}.get(site, (6.0, 20.0))
    clots = []
    for _ in range(many):
        radius = scale * u(*reach)
        x, y, z = (c + (7 * rng.normal() if many > 1 else 0) for c in centre)
        clots.append(
            Parenchymal(
                centre=(x, y, z),
                radii=(radius * u(0.75, 1.25), radius * u(0.75, 1.4), radius * u(0.75, 1.2)),
                hu=hu,
                edge=Waves.draw(rng, wavelength=max(7, radius * 1.6)),
                oedema_mm=u(0.5, 7),
                oedema_deficit=u(4, 10),
                breach=site in ("basal", "thalamic") and rng.random() < 0.3,
                site=site,
            )
        )
    return clots


def _ventricular(rng: np.random.Generator, scale: float, hu: float, down: Point) -> Ventricular:
    u = rng.uniform
    return Ventricular(
        hu=hu - u(0, 6),
        edge=Waves.draw(rng, wavelength=30),
        cast=rng.random() < 1 / 3,
        threshold=u(-0.4, 0.9),
        level=20 + 16 * (1.3 - min(scale, 1.3)) + u(-6, 10),
        side=float(rng.choice((-1, 1))),
        both=rng.random() < 0.5,
        down=down,
    )


def _subarachnoid(rng: np.random.Generator, skull: Skull, scale: float, hu: float) -> Subarachnoid:
    u = rng.uniform
    where = str(rng.choice(["sulcal", "cisternal", "diffuse"], p=[0.55, 0.30, 0.15]))
    toward, reach, wide = convexity(rng), u(14, 30) * (0.4 + 0.6 * scale), 0.3 + 0.6 * scale
    x, y, z = (c + 0.92 * d * r for c, d, r in zip(CENTRE, toward, skull.radii, strict=True))
    centre, radii = {
        "sulcal": ((x, y, z), (reach, reach, reach)),
        "cisternal": ((u(-8, 8), u(-14, 4), u(0, 6)), (u(22, 45) * scale, u(20, 40) * scale, u(10, 20) * scale)),
        "diffuse": ((u(-15, 15), u(-25, 15), u(2, 18)), (70 * wide, 80 * wide, u(18, 40) * wide)),
    }[where]
    return Subarachnoid(
        centre=centre,
        radii=radii,
        hu=hu - u(2, 12),
        edge=Waves.draw(rng, wavelength=18),
        sulcal=where == "sulcal",
        distend=u(0.2, 0.9) * min(1.0, scale),
    )


def _along_dura(rng: np.random.Generator, scale: float, hu: float) -> Lesion:
    u, side = rng.uniform, float(rng.choice((-1, 1)))
    if rng.random() < 0.38:
        return Tentorial(side=side, thickness=scale * u(2.5, 6), hu=hu)
    return Parafalcine(
        side=side,
        thickness=scale * u(2.5, 7),
        middle=u(-45, 55),
        half=u(22, 50),
        low=u(20, 40),
        high=u(60, 88),
        hu=hu,
    )


def _subdural_crescent(rng: np.random.Generator, scale: float, hu: float) -> ExtraAxial:
    u = rng.uniform
    age = str(rng.choice(["acute", "mixed", "subacute"], p=[0.70, 0.18, 0.12]))
    shape = Crescent.draw(rng, thickness=scale * u(2.5, 12), wide=u(35, 70), high=u(18, 40))
    older, swirl = u(10, 20), u(10, 22)
    return ExtraAxial(shape=shape, hu=hu - (older if age == "subacute" else 0), swirl=swirl if age == "mixed" else 0.0)


def _epidural_lens(rng: np.random.Generator, scale: float, hu: float) -> ExtraAxial:
    u = rng.uniform
    shape = Lens.draw(rng, thickness=scale * u(6, 22), half=u(13, 24) * (0.6 + 0.4 * scale))
    return ExtraAxial(shape=shape, hu=hu, swirl=u(6, 18) if rng.random() < 0.25 else 0.0)
