"""What looks like blood or hides it, and is none: drawn alike for heads with and without haemorrhage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np

from training.sources.phantom.brain import Brain, Section, paint_arteries, paint_dura
from training.sources.phantom.collection import Crescent, Lens, convexity
from training.sources.phantom.plane import Waves
from training.sources.phantom.shapes import Point, step
from training.sources.phantom.skull import CENTRE, Skull
from training.sources.phantom.surgery import Opening


@dataclass(frozen=True, kw_only=True)
class Calcification:
    """A rough ball of `hu` with `radius` mm."""

    centre: Point
    radius: float
    hu: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Infarct:
    """An old infarct: matter that lost density. `deficit` in HU."""

    centre: Point
    radius: float
    deficit: float
    edge: Waves


@dataclass(frozen=True, kw_only=True, eq=False)
class Mimics:
    """The mimics of one head; None where it has not got one. Densities in HU."""

    calcifications: tuple[Calcification, ...]
    falx_mm: float
    falx_hu: float
    tentorium_hu: float
    sinus_hu: float
    artery_hu: float
    hygroma: Crescent | None
    hygroma_hu: float
    mass: Lens | None
    mass_hu: float
    infarct: Infarct | None
    opening: Opening | None

    @classmethod
    def draw(cls, rng: np.random.Generator, *, skull: Skull, often: float) -> Self:
        """Each mimic with its own prevalence times `often`. The same numbers are drawn whatever the outcome."""

        def has(prevalence: float) -> bool:
            return bool(rng.random() < min(1.0, prevalence * often))

        u = rng.uniform
        return cls(
            calcifications=_calcifications(rng, often, skull.asymmetry),
            falx_mm=u(0.6, 1.3),
            falx_hu=42 + has(0.5) * u(4, 14),
            tentorium_hu=40 + has(0.4) * u(4, 12),
            sinus_hu=48 + has(0.35) * u(6, 22),
            artery_hu=42 + has(0.12) * u(8, 18),
            hygroma=Crescent.draw(rng, thickness=u(3, 8), wide=60, high=38) if has(0.10) else None,
            hygroma_hu=u(7, 14),
            mass=Lens.draw(rng, thickness=u(8, 18), half=17, sutures=False) if has(0.05) else None,
            mass_hu=u(42, 52),
            infarct=_infarct(rng, skull) if has(0.12) else None,
            opening=Opening.draw(rng) if has(0.05) else None,
        )

    def facts(self) -> dict[str, bool | int]:
        """Which mimics this head has."""
        return {
            "calcifications": len(self.calcifications),
            "dense_falx": self.falx_hu > 43,
            "dense_sinus": self.sinus_hu > 52,
            "dense_artery": self.artery_hu > 45,
            "hygroma": self.hygroma is not None,
            "mass": self.mass is not None,
            "infarct": self.infarct is not None,
            "opening": self.opening is not None,
        }


def _calcifications(rng: np.random.Generator, often: float, midline: float) -> tuple[Calcification, ...]:
    u = rng.uniform
    both = (-1, 1)
    plexus, ganglia = u(1.2, 4.0), u(2, 4.5)
    kinds = (
        (0.55, [((0.0, 24.0, 20.0), u(1.2, 3.2), u(90, 260))]),
        (0.50, [((side * 22.0, 30.0, 31.0), plexus * u(0.6, 1.1), u(80, 220)) for side in both]),
        (0.15, [((side * 21.0, -4.0, 19.0), ganglia * u(0.7, 1.1), u(55, 130)) for side in both]),
        (0.18, [((midline, u(-45, 45), u(55, 75)), u(2, 4), u(90, 350))]),
        (0.10, [((u(-40, 40), u(-50, 50), u(20, 70)), u(1, 3), u(90, 300))]),
    )
    found = [balls for prevalence, balls in kinds if rng.random() < min(1.0, prevalence * often)]
    return tuple(Calcification(centre=c, radius=r, hu=hu) for balls in found for c, r, hu in balls)


def _infarct(rng: np.random.Generator, skull: Skull) -> Infarct:
    direction, deep = convexity(rng), rng.uniform(0.5, 0.8)
    x, y, z = (c + d * r * deep for c, d, r in zip(CENTRE, direction, skull.radii, strict=True))
    radius, deficit = rng.uniform(8, 20), rng.uniform(6, 14)
    return Infarct(centre=(x, y, z), radius=radius, deficit=deficit, edge=Waves.draw(rng, wavelength=22))


def paint_mimics(mimics: Mimics, brain: Brain, s: Section) -> None:
    """Everything of `mimics` that lies within the brain: dura, vessels, infarct, calcifications."""
    paint_dura(
        brain,
        s,
        falx_mm=mimics.falx_mm,
        falx_hu=mimics.falx_hu,
        tent_hu=mimics.tentorium_hu,
        sinus_hu=mimics.sinus_hu,
    )
    paint_arteries(s, mimics.artery_hu)
    if mimics.infarct is not None:
        _paint_infarct(mimics.infarct, s)
    s.hu += 1.1 * brain.density.on(s.plane)
    low, high = s.plane.height()
    for ball in mimics.calcifications:
        if low - 6 < ball.centre[2] < high + 6:
            dx, dy, dz = (a - c for a, c in zip((s.x, s.plane.y, s.plane.z), ball.centre, strict=True))
            rough = np.sqrt(dx * dx + dy * dy + dz * dz) + 0.5 * brain.folia.on(s.plane)
            s.hu[rough < ball.radius] = ball.hu


def _paint_infarct(infarct: Infarct, s: Section) -> None:
    dx, dy, dz = (a - c for a, c in zip((s.plane.x, s.plane.y, s.plane.z), infarct.centre, strict=True))
    reach = infarct.radius * (1 + 0.3 * infarct.edge.on(s.plane))
    core = step(1.15, 0.8, np.sqrt(dx * dx + dy * dy + dz * dz) / np.maximum(reach, 1))
    s.hu -= np.where(s.spaces | s.ventricle | s.falx | s.sinus, 0, infarct.deficit * core)
