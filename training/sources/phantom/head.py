"""One whole head: everything drawn about it, and its density and blood on any plane."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from training.sources.phantom.brain import STRIDE, Brain, Section, open_section, paint_brain
from training.sources.phantom.haemorrhage import draw_bleeding
from training.sources.phantom.lesions import Bleeding, Subarachnoid
from training.sources.phantom.mimics import Mimics, paint_mimics
from training.sources.phantom.plane import Box, Plane, refine
from training.sources.phantom.shapes import Field, Mask, Point, covered
from training.sources.phantom.skull import Shell, Skull, paint_outside
from training.sources.phantom.spec import Spec

EDGE = 4
"""Points kept around a part of a plane, so that interpolation there has its neighbours."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Head:
    """A head in its own frame. `scale` multiplies every length on the way to the patient's frame."""

    scale: float
    skull: Skull
    brain: Brain
    mimics: Mimics
    bleeding: Bleeding

    @classmethod
    def draw(cls, seed: int, spec: Spec, *, subtypes: Sequence[str], down: Point) -> Self:
        """The head of `seed`: its anatomy and mimics do not depend on which haemorrhages are asked for."""
        rng = np.random.default_rng((seed, 1))
        child = bool(rng.random() < spec.child)
        scale = float(rng.uniform(0.72, 0.92)) if child else 1.0
        skull = Skull.draw(rng)
        brain = Brain.draw(rng, asymmetry=skull.asymmetry, youth=child)
        mimics = Mimics.draw(np.random.default_rng((seed, 2)), skull=skull, often=spec.mimics)
        bleeding = draw_bleeding(seed, spec, skull, subtypes, down)
        return cls(scale=scale, skull=skull, brain=brain, mimics=mimics, bleeding=bleeding)

    def render(self, plane: Plane, pixel_mm: float) -> tuple[Field, Mask | None, Box]:
        """Density in HU of the part of `plane` that holds the head, its blood (5, rows, columns), and which part.

        `pixel_mm` is the width of a pixel in the head's own frame. Blood is None where the plane misses the brain.
        """
        box = self._box_of_head(plane)
        if box is None:
            return np.zeros((0, 0), np.float32), None, (slice(0, 0), slice(0, 0))
        part = plane.crop(box)
        shell = self._shell(part)
        hu = paint_outside(self.skull, part, shell, pixel_mm)
        if self.mimics.opening is not None:
            self.mimics.opening.paint(self.skull, part, shell, hu)
        inside = _around(shell.inner < 0.5 * pixel_mm)
        if inside is None:
            return hu, None, box
        section = self._section(part.crop(inside), -shell.inner[inside])
        hu[inside] += covered(shell.inner[inside], pixel_mm) * (section.hu - hu[inside])
        blood = np.zeros((5, *hu.shape), bool)
        blood[:, inside[0], inside[1]] = section.masks & (section.depth > 0.4 * pixel_mm)
        return hu, blood, box

    def _box_of_head(self, plane: Plane) -> Box | None:
        coarse = plane.every(2 * STRIDE)
        inner = self.skull.inner(coarse)
        box = _around(self.skull.outer(coarse, inner, self.skull.bone(coarse)) < 3, margin=1)
        if box is None:
            return None
        rows, columns = (slice(b.start * 2 * STRIDE, (b.stop - 1) * 2 * STRIDE + 1) for b in box)
        return rows, columns

    def _shell(self, plane: Plane) -> Shell:
        coarse = plane.every(STRIDE)
        inner, bone = self.skull.inner(coarse), self.skull.bone(coarse)
        outer = self.skull.outer(coarse, inner, bone)
        fine = refine(np.stack([inner, outer, bone]), plane, STRIDE)
        return Shell(inner=fine[0], outer=fine[1], bone=fine[2])

    def _section(self, plane: Plane, depth: Field) -> Section:
        bleeding, mimics = self.bleeding, self.mimics
        clots = [c.shape.depth(self.skull, plane) for c in bleeding.outer]
        harmless = [
            (shape.depth(self.skull, plane), hu)
            for shape, hu in ((mimics.hygroma, mimics.hygroma_hu), (mimics.mass, mimics.mass_hu))
            if shape is not None
        ]
        pressing = np.zeros_like(depth)
        for thickness in (*clots, *(t for t, _ in harmless)):
            pressing = np.maximum(pressing, thickness)
        section = open_section(self.brain, plane, depth=depth, pressing=pressing, shift=bleeding.shift)
        for lesion in bleeding.inner:
            if isinstance(lesion, Subarachnoid):
                lesion.widen(section)
        paint_brain(self.brain, section)
        paint_mimics(mimics, self.brain, section)
        for thickness, hu in harmless:
            section.hu[depth < thickness] = hu
        bleeding.paint(self.brain, section, clots)
        return section


def _around(mask: Mask, margin: int = EDGE) -> Box | None:
    """The rows and columns that hold `mask` with a margin, or None where it is empty."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return None
    return (
        slice(max(int(rows[0]) - margin, 0), min(int(rows[-1]) + margin + 1, mask.shape[0])),
        slice(max(int(columns[0]) - margin, 0), min(int(columns[-1]) + margin + 1, mask.shape[1])),
    )
