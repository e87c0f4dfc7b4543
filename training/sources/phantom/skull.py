"""The skull, scalp and face: the vessel that the brain lies in, and everything outside it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np

from training.sources.phantom.plane import Plane, Waves
from training.sources.phantom.shapes import Field, Mask, Point, capsule, covered, ellipsoid, smooth_minimum, step

AIR, FAT, SKIN, MUSCLE, TABLE = -1000.0, -85.0, 45.0, 52.0, 1350.0
CENTRE: Point = (0.0, 0.0, 20.0)
"""Middle of the calvarium in the head's own frame (x left, y back, z up; the sella is near z = 0)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Skull:
    """One person's skull. Lengths in mm; `radii` reach the inner table, `egg` narrows the forehead."""

    radii: Point
    egg: float
    thickness: float
    scalp: float
    asymmetry: float
    form: Waves
    texture: Waves
    diploe: Waves
    cells: Waves

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Self:
        """A skull of adult size."""
        scale = 1 + 0.04 * rng.normal(size=3)
        return cls(
            radii=(float(66 * scale[0]), float(82 * scale[1]), float(72 * scale[2])),
            egg=0.10 + 0.03 * rng.normal(),
            thickness=rng.uniform(4.5, 8.0),
            scalp=rng.uniform(3.5, 7.0),
            asymmetry=rng.normal() * 1.2,
            form=Waves.draw(rng, wavelength=90, count=6),
            texture=Waves.draw(rng, wavelength=26),
            diploe=Waves.draw(rng, wavelength=9),
            cells=Waves.draw(rng, wavelength=7),
        )

    def inner(self, plane: Plane) -> Field:
        """Signed distance to the inner table: vault, three fossae on each side, smoothly joined."""
        x, y, z = plane.x, plane.y, plane.z
        ax = np.abs(x)
        narrow = 1 + self.egg * np.clip(-y / self.radii[1], -1, 1)
        vault = ellipsoid((x - self.asymmetry * 0.3) * narrow, y, z, centre=CENTRE, radii=self.radii)
        vault = -smooth_minimum(-vault, z - self._floor(ax, y), 5)
        middle = ellipsoid(ax, y, z, centre=(36, -8, 1), radii=(25, 35, 26))
        wide, long = 52 * self.radii[0] / 66, 43 * self.radii[1] / 82
        posterior = ellipsoid(x, y, z, centre=(0, 37, -12), radii=(wide, long, 40))
        fossae = smooth_minimum(smooth_minimum(vault, middle, 6), posterior, 6)
        return fossae + 0.8 * self.form.on(plane)

    @staticmethod
    def _floor(ax: Field, y: Field) -> Field:
        """Height of the floor of the anterior fossa: roofs of the orbits, the low cribriform plate, the sphenoid."""
        front = step(-18, -40, y)
        roof = 4.5 * np.exp(-(((ax - 29) / 13) ** 2)) - 5 * np.exp(-((ax / 7) ** 2))
        out: Field = 9 + 4 * step(-20, -70, y) - 14 * step(-12, 2, y) + roof * front
        return out

    def bone(self, plane: Plane) -> Field:
        """Thickness of the vault's bone."""
        vault = self.thickness * (1 + 0.22 * self.form.on(plane, (1.3, 1, 1))) + 2.5 * step(50, 80, np.abs(plane.y))
        roof = step(24, 12, plane.z) * step(-20, -36, plane.y) * step(62, 50, np.abs(plane.x))
        return vault * (1 - 0.5 * roof)

    def outer(self, plane: Plane, inner: Field, bone: Field) -> Field:
        """Signed distance to the skin."""
        x, y, z = plane.x, plane.y, plane.z
        top = inner - bone - self.scalp * (1 + 0.25 * self.texture.on(plane, (0.5, 0.5, 0.5)))
        more = self.thickness + self.scalp
        rx, ry = (self.radii[0] + more) * 0.985, (self.radii[1] + more) * 0.985
        narrow = 1 + self.egg * 0.8 * np.clip(-y / (self.radii[1] + more), -1, 1)
        waist = 1 - 0.10 * step(20, -60, z)
        low = (np.sqrt((x * narrow / (rx * waist)) ** 2 + ((y + 4) / (ry * waist)) ** 2) - 1) * 78
        low = np.maximum(low, z - 22)
        return np.maximum(smooth_minimum(top, low, 8), -78 - z)


@dataclass(frozen=True, kw_only=True, eq=False)
class Shell:
    """Distances on one plane: to the inner table, to the skin, and the vault's thickness, in mm."""

    inner: Field
    outer: Field
    bone: Field

    @property
    def inside(self) -> Mask:
        """Whether a point lies in the head, not only in air."""
        return self.outer < 0


def paint_outside(skull: Skull, plane: Plane, shell: Shell, pixel_mm: float) -> Field:
    """Hounsfield units of everything but the contents of the skull, which hold bone for now."""
    texture = skull.texture.on(plane)
    soft = _soft_tissue(plane, shell, texture)
    hu = AIR + covered(shell.outer, pixel_mm) * (soft - AIR)
    if plane.height()[0] < 26:
        _paint_base(skull, plane, shell, hu, texture)
    vault = _vault(skull, plane, shell)
    cover = covered(shell.inner - shell.bone, pixel_mm)
    hu += cover * (vault - hu)
    if plane.height()[0] < 40:
        _paint_air_and_orbits(skull, plane, shell, hu, texture)
    return hu


def _soft_tissue(plane: Plane, shell: Shell, texture: Field) -> Field:
    deep = -shell.outer
    soft = np.where(deep < 2.3, SKIN, FAT).astype(np.float32)
    temporal = ((plane.y + 8) / 44) ** 2 + (np.maximum(plane.z - 4, 0) / 34) ** 2 + 0.12 * texture < 1
    muscle = temporal | (plane.z < 6 + 4 * texture)
    return np.where(muscle & (deep > 2.2), MUSCLE + 6 * texture, soft)


def _vault(skull: Skull, plane: Plane, shell: Shell) -> Field:
    part = shell.inner / np.maximum(shell.bone, 1)
    tables = np.abs(part - 0.5) > 0.2
    return np.where(tables, TABLE, 720 + 260 * skull.diploe.on(plane))


def _paint_base(skull: Skull, plane: Plane, shell: Shell, hu: Field, texture: Field) -> None:
    """The skull base: thin under the frontal lobes, thick at the sphenoid and clivus, dense in the petrous bones."""
    ax, y, z, inner = np.abs(plane.x), plane.y, plane.z, shell.inner
    base = (inner > 0) & (z < 20) & (ax < 64) & (shell.outer < -5)
    reach = 3.5 + 13 * step(-42, -22, y)
    solid = base & (inner < reach) & (z > -60) & (y < 12)
    hu[solid] = (650 + 320 * texture)[solid]
    petrous = base & (inner < 17) & (y > -20) & (y < 34) & (z < 8) & (ax > 13)
    hu[petrous] = (1500 + 250 * texture)[petrous]


def _paint_air_and_orbits(skull: Skull, plane: Plane, shell: Shell, hu: Field, texture: Field) -> None:
    x, y, z = plane.x, plane.y, plane.z
    ax = np.abs(x)
    outside = shell.inside & (shell.inner > 2)
    orbit = ellipsoid(ax, y, z, centre=(32, -70, -8), radii=(18, 20, 17)) < 0
    hu[orbit & outside] = -88
    for muscle in ((20.0, -52.0), (42.0, -54.0)):
        strap = capsule(ax, y, z, start=(31, -48, -8), end=(muscle[0], muscle[1] - 14, -8), radii=(1.8, 2.2)) < 0
        hu[strap & orbit & outside] = 40
    globe = ellipsoid(ax, y, z, centre=(32, -77, -8), radii=(12, 12, 12))
    hu[(globe < 0) & outside] = 12
    lens = ellipsoid(ax, y, z, centre=(32, -86, -8), radii=(4.5, 2.2, 4.5))
    hu[(lens < 0) & outside] = 70
    deep = outside & (shell.inner > 3) & (shell.outer < -2)
    nose = (ellipsoid(x, y, z, centre=(0, -66, -20), radii=(14, 24, 24)) < 0) & (np.abs(texture) > 0.18)
    frontal = ellipsoid(x, y, z, centre=(0, -85, 18), radii=(16, 6, 10)) < 0
    mastoid = ellipsoid(ax, y, z, centre=(52, 30, -12), radii=(9, 10, 12)) < 0
    mastoid &= skull.cells.on(plane) > 0.15
    hu[deep & (nose | frontal | mastoid)] = -960
