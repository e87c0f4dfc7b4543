"""Implicit functions of a point in millimetres: signed distances (negative inside) and their smooth combinations."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Field = npt.NDArray[np.floating[Any]]
Mask = npt.NDArray[np.bool_]
Point = tuple[float, float, float]


def ellipsoid(x: Field, y: Field, z: Field, *, centre: Point, radii: Point) -> Field:
    """Approximate signed distance in mm to an ellipsoid with axes along x, y, z."""
    px, py, pz = (x - centre[0]) / radii[0], (y - centre[1]) / radii[1], (z - centre[2]) / radii[2]
    px2, py2, pz2 = px * px, py * py, pz * pz
    k0 = np.sqrt(px2 + py2 + pz2 + 1e-9)
    k1 = np.sqrt(px2 / radii[0] ** 2 + py2 / radii[1] ** 2 + pz2 / radii[2] ** 2 + 1e-12)
    out: Field = k0 * (k0 - 1) / k1
    return out


def normed_radius(x: Field, y: Field, z: Field, *, centre: Point, radii: Point) -> Field:
    """Distance from `centre` in units of `radii`: one on the ellipsoid."""
    px, py, pz = (x - centre[0]) / radii[0], (y - centre[1]) / radii[1], (z - centre[2]) / radii[2]
    out: Field = np.sqrt(px * px + py * py + pz * pz)
    return out


def capsule(x: Field, y: Field, z: Field, *, start: Point, end: Point, radii: tuple[float, float]) -> Field:
    """Signed distance in mm to a rod with round ends whose radius goes linearly from `radii[0]` to `radii[1]`."""
    d = (end[0] - start[0], end[1] - start[1], end[2] - start[2])
    square = d[0] * d[0] + d[1] * d[1] + d[2] * d[2]
    dx, dy, dz = x - start[0], y - start[1], z - start[2]
    h = np.clip((dx * d[0] + dy * d[1] + dz * d[2]) / square, 0, 1)
    dx, dy, dz = dx - h * d[0], dy - h * d[1], dz - h * d[2]
    out: Field = np.sqrt(dx * dx + dy * dy + dz * dz) - (radii[0] + h * (radii[1] - radii[0]))
    return out


def smooth_minimum(a: Field, b: Field, width: float) -> Field:
    """The union of two distances, rounded over `width` mm where they meet."""
    h = np.clip(0.5 + 0.5 * (b - a) / width, 0, 1)
    return b + h * (a - b) - width * h * (1 - h)


def step(low: float, high: float, value: Field) -> Field:
    """Zero below `low`, one above `high` and a smooth cubic between; `low` > `high` gives the falling step."""
    t = np.clip((value - low) / (high - low), 0, 1)
    out: Field = t * t * (3 - 2 * t)
    return out


def covered(distance: Field, pixel_mm: float) -> Field:
    """The part (0 to 1) of a pixel of width `pixel_mm` that lies inside an edge `distance` mm away."""
    out: Field = np.clip(0.5 - distance / pixel_mm, 0, 1)
    return out
