"""From the densities of a head to the images a scanner would show: one draw of its physics, applied slice by slice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from training.sources.phantom.geometry import Cut
from training.sources.phantom.physics import (
    GRID,
    Noise,
    artefacts,
    averaging,
    blur_and_refine,
    interpolating,
    louder_inside,
)
from training.sources.phantom.plane import cubic
from training.sources.phantom.shapes import Field, Mask
from training.sources.phantom.spec import Spec

VISIBLE_HU = (-20.0, 120.0)
"""Outside this range (before noise) a reader cannot outline blood: bone or air hides it."""
REST_HU = -650.0
LOWEST_HU, HIGHEST_HU = -1024, 3071

Ghosts = Mapping[int, tuple[float, int, int]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Scanner:
    """Everything random about the imaging of one study, and the matrices that take its grid to its pixels."""

    noise_hu: float
    noise: Noise
    louder: Field
    rest: Mask
    ghosts: Ghosts
    refine: Field
    fill: Field
    spread: Field
    error: Field

    @classmethod
    def draw(cls, seed: int, spec: Spec, cut: Cut, density: Field, *, back_mm: float) -> Self:
        """The scanner of `seed`; `back_mm` is how far the head reaches back, where the head rest begins."""
        rng = np.random.default_rng((seed, 4))
        u = rng.uniform
        sigma, sd, cutoff = u(0.45, 0.8), u(*spec.noise_hu), u(0.28, 0.5)
        hardening, streaks = u(0.004, 0.016) * spec.artefacts, u(0.0003, 0.0010)
        ghosts = _ghosts(rng, spec, cut.slices)
        error = artefacts(density, pixel_mm=cut.grid_mm, rng=rng, hardening=hardening, streaks=streaks)
        finer = cut.size > cut.grid
        return cls(
            noise_hu=sd,
            noise=Noise(cut.size, pixel_mm=cut.pixel_mm, sd_hu=sd, cutoff=cutoff, rng=rng),
            louder=louder_inside(cut.u, cut.v),
            rest=cut.head_rest(back_mm),
            ghosts=ghosts,
            refine=blur_and_refine(cut.size, cut.grid, pixel_mm=cut.pixel_mm, sigma_mm=sigma),
            fill=interpolating(cut.size, cut.grid) if finer else averaging(cut.grid, cut.size),
            spread=cubic((np.arange(cut.size) + 0.5) * GRID / cut.size - 0.5, GRID),
            error=error,
        )

    def image(self, i: int, density: Field) -> tuple[npt.NDArray[np.int16], Mask]:
        """Slice `i` in HU, and where its blood could be seen. Must be called for every slice in order."""
        clean: Field = self.refine @ density @ self.refine.T
        clean[self.rest & (clean < -500)] = REST_HU
        seen = (clean > VISIBLE_HU[0]) & (clean < VISIBLE_HU[1])
        clean += self.spread @ self.error[i] @ self.spread.T
        clean += self.noise.next() * self.louder
        if i in self.ghosts:
            weight, down, across = self.ghosts[i]
            clean = (1 - weight) * clean + weight * np.roll(clean, (down, across), (0, 1))
        return np.clip(np.rint(clean), LOWEST_HU, HIGHEST_HU).astype(np.int16), seen

    def fraction(self, blood: Field, seen: Mask) -> Field:
        """The part (rows, columns) of every pixel that visible blood of one subtype fills."""
        part: Field = (self.fill @ blood @ self.fill.T) * seen
        return part


def _ghosts(rng: np.random.Generator, spec: Spec, slices: int) -> Ghosts:
    """Which slices the patient moved in: the weight and the shift in pixels of a second image."""
    moved, count = rng.random() < 0.10 * spec.artefacts, int(rng.integers(1, 4))
    if not moved:
        return {}
    chosen = rng.choice(slices, size=min(count, slices), replace=False)
    return {int(i): (rng.uniform(0.25, 0.5), round(8 * rng.normal()), round(8 * rng.normal())) for i in chosen}
