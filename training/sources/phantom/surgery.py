"""Openings that surgeons left in the skull: burr holes, craniotomies with their flap, and missing bone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np

from training.sources.phantom.collection import convexity, degrees_from
from training.sources.phantom.plane import Plane
from training.sources.phantom.shapes import Field, Point
from training.sources.phantom.skull import Shell, Skull

SCAR_HU = 35.0
KERF_DEGREES = 1.3


@dataclass(frozen=True, kw_only=True)
class Opening:
    """A round opening about `direction`, `half` degrees to its edge; with `flap` only the saw's cut is open."""

    direction: Point
    half: float
    flap: bool

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Self:
        """A burr hole, a craniotomy or a craniectomy somewhere over the convexity."""
        direction, kind = convexity(rng, low=0.1, high=0.8), rng.random()
        half = rng.uniform(4, 6) if kind < 0.4 else rng.uniform(18, 32)
        return cls(direction=direction, half=half, flap=0.4 <= kind < 0.85)

    def paint(self, skull: Skull, plane: Plane, shell: Shell, hu: Field) -> None:
        """Put scar where the bone is gone."""
        angle = degrees_from(self.direction, skull, plane)
        gone = np.abs(angle - self.half) < KERF_DEGREES if self.flap else angle < self.half
        hu[gone & (shell.inner < shell.bone + 1) & (shell.inner > -1)] = SCAR_HU
