"""Draws the haemorrhages of one head: how large, how dense, where, and how far they push the midline."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from inference.result import SUBTYPES
from training.sources.phantom.brain import Shift
from training.sources.phantom.collection import Crescent, Lens, convexity
from training.sources.phantom.lesions import (
    IPH,
    IVH,
    SAH,
    SDH,
    Bleeding,
    ExtraAxial,
    Lesion,
    Parafalcine,
    Parenchymal,
    Subarachnoid,
    Tentorial,
    Ventricular,
)
from training.sources.phantom.plane import Waves
from training.sources.phantom.shapes import Point
from training.sources.phantom.skull import CENTRE, Skull
from training.sources.phantom.spec import Spec

LARGEST_SHIFT_MM = 12.0


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
