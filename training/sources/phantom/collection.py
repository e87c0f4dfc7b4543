"""Collections between skull and brain: the lens of an epidural and the crescent of a subdural one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np

from training.sources.phantom.plane import Plane, Waves
from training.sources.phantom.shapes import Field, Point, step
from training.sources.phantom.skull import CENTRE, Skull

THINNEST_MM = 0.8


def convexity(rng: np.random.Generator, *, low: float = -1.0, high: float = 1.0) -> Point:
    """A direction over the convexity of either side; its z component is held within `low` and `high`."""
    side = float(rng.choice((-1, 1)))
    azimuth, elevation = np.deg2rad(rng.uniform(-65, 65)), np.deg2rad(rng.uniform(-5, 55))
    d = np.array([side * np.cos(azimuth) * np.cos(elevation), np.sin(azimuth) * np.cos(elevation), np.sin(elevation)])
    d[2] = np.clip(d[2], low, high)
    d /= np.linalg.norm(d)
    return float(d[0]), float(d[1]), float(d[2])


def rays(skull: Skull, plane: Plane) -> tuple[Field, Field, Field]:
    """Direction of every point as seen from the middle of the calvarium, on the unit sphere."""
    x, y, z = ((a - c) / r for a, c, r in zip((plane.x, plane.y, plane.z), CENTRE, skull.radii, strict=True))
    length = np.sqrt(x * x + y * y + z * z) + 1e-3
    return x / length, y / length, z / length


def degrees_from(direction: Point, skull: Skull, plane: Plane) -> Field:
    """The angle between every point and `direction`, as seen from the middle of the calvarium."""
    cosine = sum(r * d for r, d in zip(rays(skull, plane), direction, strict=True))
    return np.asarray(np.rad2deg(np.arccos(np.clip(cosine, -1, 1))))


def _sutures(direction: Point, skull: Skull, plane: Plane) -> Field:
    """One within the bone that `direction` points at, falling to zero at its sagittal, coronal and lambdoid sutures."""
    at = [c + d * r for c, d, r in zip(CENTRE, direction, skull.radii, strict=True)]
    out = step(0, 5, plane.x * float(np.sign(direction[0])))
    for offset, lean in ((18.0, -0.35), (-48.0, 0.3)):
        here = at[1] + offset + lean * (at[2] - 20)
        out = out * step(-3, 3, (plane.y + offset + lean * (plane.z - 20)) * float(np.sign(here)))
    return out


@dataclass(frozen=True, kw_only=True, eq=False)
class Lens:
    """A biconvex collection about `direction`: `thickness` mm in the middle, `half` degrees to its edge.

    With `sutures` it stops where the dura is bound to the bone.
    """

    direction: Point
    thickness: float
    half: float
    sutures: bool
    edge: Waves

    @classmethod
    def draw(cls, rng: np.random.Generator, *, thickness: float, half: float, sutures: bool = True) -> Self:
        """A lens somewhere over the convexity."""
        direction, edge = convexity(rng, low=-0.1, high=0.6), Waves.draw(rng, wavelength=18)
        return cls(direction=direction, thickness=thickness, half=half, sutures=sutures, edge=edge)

    def depth(self, skull: Skull, plane: Plane) -> Field:
        """Thickness in mm under every point."""
        angle = degrees_from(self.direction, skull, plane)
        t = self.thickness * np.clip(1 - (angle / self.half) ** 2, 0, 1)
        if self.sutures:
            t = t * _sutures(self.direction, skull, plane)
        return _cut(t * (1 + 0.13 * self.edge.on(plane)))


@dataclass(frozen=True, kw_only=True, eq=False)
class Crescent:
    """A collection that spreads over one hemisphere: `wide` degrees in azimuth and `high` in elevation to each side.

    It crosses sutures, but neither the falx nor the tentorium.
    """

    direction: Point
    thickness: float
    wide: float
    high: float
    edge: Waves

    @classmethod
    def draw(cls, rng: np.random.Generator, *, thickness: float, wide: float, high: float) -> Self:
        """A crescent over either hemisphere."""
        direction, edge = convexity(rng, low=-0.05, high=0.55), Waves.draw(rng, wavelength=18)
        return cls(direction=direction, thickness=thickness, wide=wide, high=high, edge=edge)

    def depth(self, skull: Skull, plane: Plane) -> Field:
        """Thickness in mm under every point."""
        x, y, z = rays(skull, plane)
        turn = np.arctan2(y, x) - float(np.arctan2(self.direction[1], self.direction[0]))
        azimuth = np.rad2deg(np.arctan2(np.sin(turn), np.cos(turn)))
        elevation = np.rad2deg(np.arcsin(np.clip(z, -1, 1))) - float(np.rad2deg(np.arcsin(self.direction[2])))
        inside = 1 - (azimuth / self.wide) ** 2 - (elevation / self.high) ** 2
        t = self.thickness * np.sqrt(np.clip(inside, 0, 1))
        t = t * step(1, 5, plane.x * float(np.sign(self.direction[0]))) * step(-6, 6, plane.z)
        return _cut(t * (1 + 0.13 * self.edge.on(plane)))


def _cut(thickness: Field) -> Field:
    return np.where(thickness > THINNEST_MM, thickness, 0).astype(np.float32)
