"""An oblique plane through the head, and random fields that are cheap on it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Self

import numpy as np
import numpy.typing as npt

from training.sources.phantom.shapes import Field, Point

Box = tuple[slice, slice]


@dataclass(frozen=True, kw_only=True, eq=False)
class Plane:
    """Points ``origin + u[column] * across + v[row] * down`` in the head's own frame, in mm."""

    origin: Point
    across: Point
    down: Point
    u: Field
    v: Field

    @cached_property
    def x(self) -> Field:
        """Towards the patient's left, shape (rows, columns)."""
        return self._axis(0)

    @cached_property
    def y(self) -> Field:
        """Towards the back of the head."""
        return self._axis(1)

    @cached_property
    def z(self) -> Field:
        """Towards the vertex."""
        return self._axis(2)

    def _axis(self, i: int) -> Field:
        return (self.origin[i] + self.v * self.down[i])[:, None] + (self.u * self.across[i])[None]

    def crop(self, box: Box) -> Plane:
        """The same plane with only the rows and columns of `box`."""
        return Plane(origin=self.origin, across=self.across, down=self.down, v=self.v[box[0]], u=self.u[box[1]])

    def every(self, stride: int) -> Plane:
        """The plane with only every `stride`-th row and column."""
        return self.crop((slice(None, None, stride), slice(None, None, stride)))

    def height(self) -> tuple[float, float]:
        """The lowest and highest z on the plane."""
        corners = [
            self.origin[2] + float(u) * self.across[2] + float(v) * self.down[2]
            for u in (self.u[0], self.u[-1])
            for v in (self.v[0], self.v[-1])
        ]
        return min(corners), max(corners)


@lru_cache(maxsize=64)
def weights(fine: int, stride: int) -> npt.NDArray[np.float32]:
    """Cubic convolution (Keys 1981, a = -1/2) from the lattice of `Plane.every` to `fine` points: (fine, coarse)."""
    return cubic(np.arange(fine) / stride, (fine - 1) // stride + 1)


def cubic(at: npt.NDArray[np.float64], count: int) -> npt.NDArray[np.float32]:
    """Weights (len(at), count) of cubic convolution at the fractional indices `at`; edges repeat."""
    base = np.floor(at).astype(int)
    out = np.zeros((len(at), count), np.float32)
    rows = np.arange(len(at))
    for tap in (-1, 0, 1, 2):
        d = np.abs(at - base - tap)
        near = (1.5 * d - 2.5) * d * d + 1
        far = ((-0.5 * d + 2.5) * d - 4) * d + 2
        np.add.at(out, (rows, np.clip(base + tap, 0, count - 1)), np.where(d <= 1, near, far).astype(np.float32))
    return out


def refine(fields: Field, plane: Plane, stride: int) -> Field:
    """Values (…, rows, columns) on `plane` of smooth `fields` known on ``plane.every(stride)``."""
    down, across = weights(len(plane.v), stride), weights(len(plane.u), stride)
    out: Field = np.matmul(np.matmul(down, fields), across.T)
    return out


@dataclass(frozen=True, kw_only=True, eq=False)
class Waves:
    """A smooth random field of unit variance: a sum of plane waves of about `wavelength` mm.

    On a plane each wave is a product of a row and a column factor, so the whole sum is one small matrix product.
    """

    vectors: npt.NDArray[np.float32]
    phases: npt.NDArray[np.float32]
    gradient: float

    @classmethod
    def draw(cls, rng: np.random.Generator, *, wavelength: float, count: int = 8, spread: float = 0.3) -> Self:
        """A field whose wavelengths lie within ± `spread` of `wavelength`."""
        d = rng.normal(size=(count, 3))
        d /= np.linalg.norm(d, axis=1, keepdims=True)
        lengths = wavelength * rng.uniform(1 - spread, 1 + spread, size=(count, 1))
        vectors = (2 * np.pi / lengths * d).astype(np.float32)
        phases = rng.uniform(0, 2 * np.pi, count).astype(np.float32)
        return cls(vectors=vectors, phases=phases, gradient=2 * np.pi / wavelength)

    def at(self, x: Field, y: Field, z: Field) -> Field:
        """The field at any points."""
        out = np.zeros(x.shape, np.float32)
        for (kx, ky, kz), phase in zip(self.vectors.tolist(), self.phases.tolist(), strict=True):
            out += np.cos(kx * x + ky * y + kz * z + phase)
        return out * float(np.sqrt(2.0 / len(self.phases)))

    def on(self, plane: Plane, stretch: Point = (1.0, 1.0, 1.0)) -> Field:
        """The field at ``stretch * point`` for every point of `plane`."""
        k = self.vectors * np.asarray(stretch, np.float32)
        phase = k @ np.asarray(plane.origin, np.float32) + self.phases
        rows = phase[:, None] + np.outer(k @ np.asarray(plane.down, np.float32), plane.v)
        columns = np.outer(k @ np.asarray(plane.across, np.float32), plane.u)
        left = np.concatenate([np.cos(rows), -np.sin(rows)])
        right = np.concatenate([np.cos(columns), np.sin(columns)]) * float(np.sqrt(2.0 / len(self.phases)))
        out: Field = np.matmul(left.T.astype(np.float32), right.astype(np.float32))
        return out
