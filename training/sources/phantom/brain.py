"""The brain and its spaces: white and grey matter, sulci, cisterns, ventricles, dura and large vessels."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Self

import numpy as np

from training.sources.phantom.plane import Plane, Waves, refine
from training.sources.phantom.shapes import Field, Mask, capsule, ellipsoid, smooth_minimum, step
from training.sources.phantom.skull import CENTRE

STRIDE = 3
"""Smooth fields are evaluated on every third point of a plane."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Brain:
    """One person's brain. Lengths in mm, densities in HU; `atrophy` (0 to 1) widens every space together."""

    atrophy: float
    grey_hu: float
    white_hu: float
    csf_hu: float
    sulcus_width: float
    sulcus_depth: float
    layer: float
    ventricles: float
    sylvian: float
    asymmetry: float
    density: Waves
    sulci: Waves
    folia: Waves
    bend: tuple[Waves, Waves, Waves]
    ripple: tuple[Waves, Waves]

    @classmethod
    def draw(cls, rng: np.random.Generator, *, asymmetry: float, youth: bool) -> Self:
        """A brain whose atrophy follows Beta(1.6, 2.4), or is slight in a child."""
        atrophy = float(rng.beta(1.6, 2.4)) * (0.25 if youth else 1.0)
        return cls(
            atrophy=atrophy,
            grey_hu=37 + 1.2 * rng.normal(),
            white_hu=28.5 + 1.2 * rng.normal(),
            csf_hu=rng.uniform(3, 10),
            sulcus_width=0.35 + 1.5 * atrophy * rng.uniform(0.7, 1.2),
            sulcus_depth=rng.uniform(11, 18),
            layer=0.7 + 2.0 * atrophy,
            ventricles=0.62 + 0.85 * atrophy * rng.uniform(0.7, 1.3),
            sylvian=1 + 0.12 * rng.normal(),
            asymmetry=asymmetry,
            density=Waves.draw(rng, wavelength=35),
            sulci=Waves.draw(rng, wavelength=rng.uniform(20, 26), count=14),
            folia=Waves.draw(rng, wavelength=7),
            bend=(
                Waves.draw(rng, wavelength=45, count=7),
                Waves.draw(rng, wavelength=45, count=7),
                Waves.draw(rng, wavelength=45, count=7),
            ),
            ripple=(Waves.draw(rng, wavelength=17), Waves.draw(rng, wavelength=17)),
        )


@dataclass(frozen=True, kw_only=True)
class Shift:
    """How far the midline is pushed (mm along x) and at which height the push is strongest."""

    mm: float = 0.0
    height: float = 30.0


@dataclass(kw_only=True, eq=False)
class Section:
    """The inside of the skull on one plane, while it is being painted.

    `depth` is the distance under the inner table and `brain_depth` that under the surface of the brain, which
    collections press inwards. `x` follows the pushed midline; `wx, wy, wz` also follow the brain's own bends.
    """

    plane: Plane
    depth: Field
    brain_depth: Field
    x: Field
    wx: Field
    wy: Field
    wz: Field
    pressed: Field
    tentorium: Field
    below: Mask
    widened: Field
    hu: Field
    masks: Mask
    spaces: Mask
    cisterns: Mask
    ventricle: Mask
    falx: Mask
    sinus: Mask


def open_section(brain: Brain, plane: Plane, *, depth: Field, pressing: Field, shift: Shift) -> Section:
    """The frame that deep structures follow: displaced by collections, shifted with the midline, gently bent."""
    brain_depth = depth - pressing * np.exp(-np.maximum(depth - pressing, 0) / 18)
    give = step(0, 38, depth) * np.exp(-(((plane.z - shift.height) / 40) ** 2))
    x = plane.x - shift.mm * give - brain.asymmetry * 0.6
    free = step(0, 22, np.abs(x))
    (bx, by, bz), (rx, ry) = brain.bend, brain.ripple
    wx = x + (2.2 * bx.on(plane) + rx.on(plane)) * free
    tentorium = 4 + 20 * np.exp(-((x / 34) ** 2)) - 0.16 * (plane.y - 35)
    empty = np.zeros(depth.shape, bool)
    return Section(
        plane=plane,
        depth=depth,
        brain_depth=brain_depth,
        x=x,
        wx=wx,
        wy=plane.y + 2.0 * by.on(plane) + 1.2 * ry.on(plane),
        wz=plane.z + 2.0 * bz.on(plane),
        pressed=np.clip(pressing / 8, 0, 1),
        tentorium=tentorium,
        below=(plane.z < tentorium) & (plane.y > 14 - 0.25 * np.abs(x)) & (np.abs(x) < 60),
        widened=np.zeros_like(depth),
        hu=np.full(depth.shape, brain.white_hu, np.float32),
        masks=np.zeros((5, *depth.shape), bool),
        spaces=empty,
        cisterns=empty,
        ventricle=empty,
        falx=empty,
        sinus=empty,
    )


def paint_brain(brain: Brain, s: Section) -> None:
    """Matter, then the spaces filled with CSF, then the ventricles."""
    sulcus = _sulci(brain, s)
    slope = np.clip(1 - s.brain_depth / brain.sulcus_depth, 0, 1)
    width = np.where(s.below, 0.2, (brain.sulcus_width * (1 - 0.8 * s.pressed) + s.widened) * slope)
    layer = s.brain_depth < brain.layer * (1 - 0.7 * s.pressed)
    ribbon = (sulcus < width + 2.6) & (s.brain_depth < brain.sulcus_depth + 3) | (s.brain_depth < brain.layer + 3.2)
    s.hu[ribbon] = brain.grey_hu
    if s.below.any():
        folia = brain.grey_hu - 3 + 3 * brain.folia.on(s.plane, (1, 1, 2.2))
        s.hu = np.where(s.below & (s.brain_depth > brain.layer), folia, s.hu)
    stem = _stem(s)
    if s.plane.height()[0] < 45:
        s.hu[_deep_grey(s) < 0] = brain.grey_hu + 0.5
        s.hu[stem < 0] = brain.white_hu + 2
    s.cisterns = _basal_cisterns(brain, s, stem)
    s.spaces = layer | (sulcus < width) | s.cisterns | _fissures(brain, s)
    s.hu[s.spaces] = brain.csf_hu
    s.ventricle = _ventricles(brain, s) < 0
    s.hu[s.ventricle] = brain.csf_hu - 1
    s.spaces &= ~s.ventricle


def _sulci(brain: Brain, s: Section) -> Field:
    """Distance to the nearest sulcus: a field's zero set, stretched radially to meet the surface upright."""
    coarse = (slice(None, None, STRIDE), slice(None, None, STRIDE))
    px, py, pz = s.x[coarse], s.plane.y[coarse], s.plane.z[coarse] - CENTRE[2]
    radius = np.sqrt(px * px + py * py + pz * pz) + 1
    q = 0.35 + 39 / radius
    return np.abs(refine(brain.sulci.at(px * q, py * q, pz * q), s.plane, STRIDE)) / brain.sulci.gradient


def _stem(s: Section) -> Field:
    """Signed distance to midbrain, pons and medulla; the peduncles part in front, the colliculi bulge behind."""
    y, z = s.plane.y, s.plane.z
    rod = capsule(s.x * 0.94, s.wy, z, start=(0, 8, 12), end=(0, 16, -34), radii=(13, 12))
    midbrain = step(-8, 0, z)
    notch = 4.5 * np.exp(-((s.x / 3.5) ** 2)) * step(4, -3, y)
    flank = 1.6 * np.cos(2 * np.arctan2(s.x, y - 9) - np.pi)
    stem: Field = rod + midbrain * (notch + flank * 0.6)
    return stem


def _deep_grey(s: Section) -> Field:
    """Signed distance to caudate, lentiform nucleus and thalamus of both sides."""
    ax = np.abs(s.wx)
    caudate = ellipsoid(ax, s.wy, s.wz, centre=(12.5, -22, 28), radii=(5, 8, 8))
    lentiform = ellipsoid(ax, s.wy, s.wz, centre=(24, -4, 20), radii=(8, 16, 10))
    thalamus = ellipsoid(ax, s.wy, s.wz, centre=(11, 10, 20), radii=(8, 13, 9))
    return np.minimum(np.minimum(caudate, lentiform), thalamus)


def _basal_cisterns(brain: Brain, s: Section, stem: Field) -> Mask:
    """Ambient and prepontine cisterns around the stem, and the suprasellar star."""
    y, z = s.plane.y, s.plane.z
    if s.plane.height()[0] > 20:
        return np.zeros(stem.shape, bool)
    width = 2.0 + 2.2 * brain.atrophy
    behind = 0.45 + 0.55 * step(4, 18, y)
    ambient = (np.abs(stem - width * 0.5 * behind) < width * 0.55 * behind) & (z > -6) & (z < 17) & (y > -14)
    star = 1 + 0.28 * np.cos(5 * np.arctan2(s.x, s.wy + 9))
    suprasellar = ellipsoid(s.x / star, (s.wy + 9) / star - 9, s.wz, centre=(0, -9, 2), radii=(11, 10, 6.5)) < 0
    prepontine = (stem > 0) & (stem < width + 1) & (y < 10) & (z < 0)
    out: Mask = ambient | (suprasellar & (stem > 0)) | prepontine
    return out


def _fissures(brain: Brain, s: Section) -> Mask:
    """Insular and opercular parts of the Sylvian fissures, and the interhemispheric fissure."""
    y, z = s.plane.y, s.plane.z
    width = 2.0 + 2.2 * brain.atrophy
    between = (np.abs(s.x) < 0.7 + 0.8 * brain.atrophy) & ~s.below & (z > 4) & ((y < -22) | (y > 32) | (z > 47))
    if s.plane.height()[0] > 45:
        return between
    ax = np.abs(s.wx)
    side = np.where(s.x > 0, brain.sylvian, 2 - brain.sylvian)
    island = np.abs(ax - (41 - 0.006 * (s.wy - 4) ** 2)) < (0.3 + width * 0.30) * side
    island &= (s.wy > -16) & (s.wy < 24) & (s.wz > 5) & (s.wz < 31)
    lid = np.abs(s.wy + 8 - 0.8 * (s.wz - 18) - 0.22 * (ax - 40))
    lid_open = lid < (0.25 + width * 0.34 * step(28, 4, s.brain_depth)) * side
    lid_open &= (ax > 40) & (s.wz > 0) & (s.wz < 34) & (s.brain_depth < 27)
    out: Mask = between | island | lid_open
    return out


def _ventricles(brain: Brain, s: Section) -> Field:
    """Signed distance to the lateral ventricles with their horns, the third and the fourth ventricle."""
    low, high = s.plane.height()
    if low > 62 or high < -32:
        return np.ones(s.depth.shape, np.float32)
    k = brain.ventricles
    ax, y, z = np.abs(s.wx), s.wy, s.wz
    body = (((6.5, -31, 27), 3.2), ((9, -8, 39), 4.2), ((20, 26, 32), 6.2), ((19, 50, 27), 2.0))
    rods = [capsule(ax, y, z, start=a, end=b, radii=(ra * k, rb * k)) for (a, ra), (b, rb) in pairwise(body)]
    rods.append(capsule(ax, y, z, start=(20, 24, 28), end=(31, 8, 7), radii=(3.0 * k, 1.6 * k)))
    lateral = rods[0]
    for rod in rods[1:]:
        lateral = smooth_minimum(lateral, rod, 3)
    temporal = capsule(ax, y, z, start=(31, 8, 7), end=(29, -8, 3), radii=(1.6 * k, 1.1 * k))
    third = np.maximum(np.maximum(ax - 2.1 * k, np.abs(y) - 13), np.abs(z - 16) - 8)
    fourth = ellipsoid(s.wx, y, z, centre=(0, 29, -14), radii=(5.5 * k, 4.5 * k, 8))
    out: Field = np.minimum(np.minimum(lateral, temporal), np.minimum(third, fourth))
    return out


def paint_dura(brain: Brain, s: Section, *, falx_mm: float, falx_hu: float, tent_hu: float, sinus_hu: float) -> None:
    """Falx, tentorium, and the sagittal and transverse sinuses."""
    y, z, ax = s.plane.y, s.plane.z, np.abs(s.x)
    s.falx = (ax < falx_mm) & ~s.below & (z > 22) & ((y < -24) | (y > 30) | (z > 50)) & (s.depth < 44)
    s.hu[s.falx] = falx_hu
    above = np.abs(z - s.tentorium)
    s.hu[(above < 0.8) & (y > 16) & (ax > 7) & (ax < 55)] = tent_hu
    sagittal = (ax < 4.5 - 0.35 * s.depth) & (s.depth < 9) & (z > 10) & ((z > 55) | (y > 30))
    transverse = (s.depth < 7) & (above < 4.5 - 0.4 * s.depth) & (y > 25)
    s.sinus = sagittal | transverse
    s.hu[s.sinus] = sinus_hu


def paint_arteries(s: Section, hu: float) -> None:
    """Middle cerebral and basilar arteries."""
    low, high = s.plane.height()
    if low > 12 or high < -30:
        return
    y, z = s.plane.y, s.plane.z
    middle = capsule(np.abs(s.x), y, z, start=(5, -11, 2), end=(34, -11, 7), radii=(1.3, 1.0))
    basilar = capsule(s.x, y, z, start=(0, -3, -2), end=(0, 1, -26), radii=(1.6, 1.6))
    s.hu[(middle < 0) | (basilar < 0)] = hu
