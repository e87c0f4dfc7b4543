"""How the scanner cuts the head: field of view, tilt, turn of the head, slice positions and thicknesses."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from training.sources.phantom.plane import Plane
from training.sources.phantom.shapes import Field, Mask, Point
from training.sources.phantom.skull import CENTRE
from training.sources.phantom.spec import Spec

FINEST_MM = 0.88
"""The anatomy is sampled no finer than this: a head kernel's blur leaves nothing beyond it."""
BASE_MM = -58.0
"""Lower end of a scan, below the middle of the calvarium of an adult."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Cut:
    """The planes of one study. All lengths in mm in the patient's frame; `turn` takes that frame to the head's.

    `along` holds the table position of every slice relative to the middle of the calvarium. The table moves along z
    even when the gantry is tilted, so the first pixels advance along z and not along the normal.
    """

    size: int
    pixel_mm: float
    grid: int
    subplanes: int
    tilt_degrees: float
    turn: npt.NDArray[np.float64]
    middle: Point
    offset: tuple[float, float]
    along: npt.NDArray[np.float64]
    thickness: npt.NDArray[np.float64]
    drift: npt.NDArray[np.float64]

    @property
    def slices(self) -> int:
        """How many slices there are."""
        return len(self.along)

    @property
    def grid_mm(self) -> float:
        """Pitch of the grid on which the anatomy is sampled."""
        return self.pixel_mm * self.size / self.grid

    @property
    def u(self) -> Field:
        """Pixel centres along a row, from the middle of the image."""
        return ((np.arange(self.size) - (self.size - 1) / 2) * self.pixel_mm).astype(np.float32)

    v = u

    @property
    def orientation(self) -> npt.NDArray[np.float64]:
        """Direction cosines of rows and columns, as ImageOrientationPatient holds them."""
        tilt = np.deg2rad(self.tilt_degrees)
        return np.array([1, 0, 0, 0, round(float(np.cos(tilt)), 8), round(float(np.sin(tilt)), 8)])

    @property
    def down_in_head(self) -> Point:
        """Where blood sinks to in the head's frame: the patient lies on the back."""
        x, y, z = (float(c) for c in self.turn @ np.array([0.0, 1.0, 0.0]))
        return x, y, z

    def positions(self) -> npt.NDArray[np.float64]:
        """Centre of the first pixel of every slice, (slices, 3)."""
        corner = -(self.size - 1) / 2 * self.pixel_mm
        down = self.orientation[3:]
        at = np.array([corner + self.offset[0], corner * down[1] + self.offset[1], corner * down[2]])
        along = np.stack([0 * self.along, 0 * self.along, self.along], axis=1)
        first: npt.NDArray[np.float64] = np.round(np.array(self.middle) + at + along, 4)
        return first

    def planes(self, i: int, scale: float) -> list[Plane]:
        """The planes through slice `i` in the frame of a head of size `scale`, spread over its thickness.

        Each is shifted by another part of a pixel, so that their mean is free of steps in the plane as well.
        """
        across, down = self.orientation[:3], self.orientation[3:]
        normal = np.cross(across, down)
        pitch = self.grid_mm
        axis = ((np.arange(self.grid) - (self.grid - 1) / 2) * (pitch / scale)).astype(np.float32)
        count = min(self.subplanes, max(1, round(float(self.thickness[i]))))
        k = np.arange(count)
        part = (k + 0.5) / count - 0.5
        jitter = np.stack([(0.7549 * k) % 1, (0.5698 * k) % 1])
        jitter -= jitter.mean(1, keepdims=True)
        centre = np.array([*self.offset, self.along[i]]) + self.drift[i]
        planes = []
        for s, (ju, jv) in zip(part, jitter.T, strict=True):
            at = centre + s * self.thickness[i] * normal + pitch * (ju * across + jv * down)
            planes.append(
                Plane(
                    origin=_point(self.turn @ at / scale + np.array(CENTRE)),
                    across=_point(self.turn @ across),
                    down=_point(self.turn @ down),
                    u=axis,
                    v=axis,
                )
            )
        return planes

    def cover(self, *, scale: float, top: float, spec: Spec, seed: int) -> Cut:
        """The same cut with slices from the skull base to the vertex of a head of size `scale`."""
        rng = np.random.default_rng((seed, 5))
        low = BASE_MM * scale + rng.uniform(-8, 8)
        high = (top + 6) * scale
        lost, which = rng.random() < spec.cut, rng.random() < 0.5
        less = rng.uniform(10, 30)
        low, high = (low + less * (lost and which), high - less * (lost and not which))
        mixed = bool(rng.random() < spec.mixed)
        along, thickness = _stack(low, high, spec, lean=float(np.cos(np.deg2rad(self.tilt_degrees))), mixed=mixed)
        moves = rng.random() < 0.12 * spec.artefacts
        steps = rng.normal(size=(len(along), 3)) * np.array([0.8, 0.8, 0.2])
        drift = np.cumsum(steps, axis=0) * moves
        return replace(self, along=along, thickness=thickness, drift=drift)

    def head_rest(self, back_mm: float) -> Mask:
        """Where the head rest crosses the image: an arc behind a head that reaches back `back_mm`."""
        v = self.v[:, None]
        radius = np.sqrt(self.u[None] ** 2 + (v + 20) ** 2)
        return (np.abs(radius - (back_mm + 42)) < 2) & (v > 45)


def _stack(
    low: float, high: float, spec: Spec, *, lean: float, mixed: bool
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Table positions and thicknesses from `low` to `high`, contiguous along the normal."""
    if spec.slices is not None:
        thickness = np.full(spec.slices, (high - low) * lean / spec.slices)
    elif mixed:
        base = int(np.ceil((high - low) * 0.4 * lean / (spec.thickness_mm / 2)))
        rest = int(np.ceil((high - low) * 0.6 * lean / spec.thickness_mm))
        thickness = np.repeat([spec.thickness_mm / 2, spec.thickness_mm], [base, rest])
    else:
        thickness = np.full(int(np.ceil((high - low) * lean / spec.thickness_mm)), spec.thickness_mm)
    feed = thickness / lean
    return low + np.cumsum(feed) - feed / 2, np.round(thickness, 4)


def draw_cut(seed: int, spec: Spec) -> Cut:
    """How the patient of `seed` lies in the scanner; which slices are taken is settled by `Cut.cover`."""
    rng = np.random.default_rng((seed, 3))
    pixel_mm = round(float(rng.uniform(*spec.fov_mm)) / spec.size, 6)
    tilted, tilt = rng.random() < spec.p_tilt, round(float(rng.uniform(*spec.tilt_degrees)), 1)
    x, y, z = np.deg2rad(rng.normal(size=3) * spec.turn_degrees * np.array([1, 0.6, 1]))
    grid = spec.size if pixel_mm >= 0.8 * FINEST_MM else round(pixel_mm * spec.size / FINEST_MM)
    return Cut(
        size=spec.size,
        pixel_mm=pixel_mm,
        grid=grid,
        subplanes=spec.subplanes,
        tilt_degrees=tilt if tilted else 0.0,
        turn=_rotation(x, y, z),
        middle=(0.0, round(float(rng.uniform(-160, -120)), 1), round(float(rng.uniform(-900, 900)), 1)),
        offset=(float(np.round(rng.normal() * 4, 2)), float(np.round(rng.normal() * 5 - 4, 2))),
        along=np.zeros(0),
        thickness=np.zeros(0),
        drift=np.zeros((0, 3)),
    )


def _rotation(x: float, y: float, z: float) -> npt.NDArray[np.float64]:
    (cx, cy, cz), (sx, sy, sz) = np.cos([x, y, z]), np.sin([x, y, z])
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return np.asarray(about_z @ about_y @ about_x)


def _point(vector: npt.NDArray[np.float64]) -> Point:
    x, y, z = (float(c) for c in vector)
    return x, y, z
