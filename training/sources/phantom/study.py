"""A whole phantom study: a head, the planes on which it is cut, and the images with their masks and labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]

from inference.result import SUBTYPES
from training.sources.phantom.geometry import Cut, draw_cut
from training.sources.phantom.head import Head
from training.sources.phantom.scanner import Scanner
from training.sources.phantom.skull import AIR
from training.sources.phantom.spec import REAL, Spec

HALF, PRESENT = 0.5, 0.34
"""The part of a voxel that blood must fill to be outlined, and to count towards a slice's label."""
LEAST_AREA_MM2 = 12.0


@dataclass(frozen=True, kw_only=True, eq=False)
class PhantomStudy:
    """A synthetic head CT with its truth. Slices stand in increasing position along the normal.

    Attributes
    ----------
    hu : int16 (slices, rows, columns)
        Hounsfield units.
    masks : bool (5, slices, rows, columns)
        Blood, in the order of `SUBTYPES`.
    labels : float32 (slices, 6)
        0 or 1, in the order of `LABELS`.
    positions : float64 (slices, 3)
        Centre of each slice's first pixel in mm, patient's frame (left, back, head).
    orientation : float64 (6,)
        Direction of the rows, then of the columns.
    pixel_spacing : float64 (2,)
        Distance between rows, then between columns, in mm.
    thickness : float64 (slices,)
        Thickness of each slice in mm.
    truth : mapping
        Everything that was drawn: seed, subtypes, volumes in ml, tilt, noise, mimics, ….
    """

    hu: npt.NDArray[np.int16]
    masks: npt.NDArray[np.bool_]
    labels: npt.NDArray[np.float32]
    positions: npt.NDArray[np.float64]
    orientation: npt.NDArray[np.float64]
    pixel_spacing: npt.NDArray[np.float64]
    thickness: npt.NDArray[np.float64]
    truth: Mapping[str, Any]

    @property
    def seed(self) -> int:
        """The seed that makes this study again."""
        return int(self.truth["seed"])


def make_study(*, seed: int, spec: Spec = REAL, subtypes: Sequence[str] | None = None) -> PhantomStudy:
    """Make the study of `seed`: the same to the bit each time.

    `subtypes` names the haemorrhages; () makes a negative head and None draws them with `spec.p_positive`. The head,
    its mimics, its position and its noise depend on `seed` alone, so the same head can be had with and without blood.

    Raises
    ------
    ValueError
        A name is not one of `SUBTYPES`.
    """
    names = _drawn_subtypes(seed, spec) if subtypes is None else tuple(subtypes)
    unknown = set(names) - set(SUBTYPES)
    if unknown:
        raise ValueError(f"no such subtypes: {sorted(unknown)}; there are {', '.join(SUBTYPES)}")
    cut = draw_cut(seed, spec)
    head = Head.draw(seed, spec, subtypes=names, down=cut.down_in_head)
    cut = cut.cover(scale=head.scale, top=head.skull.radii[2] + head.skull.thickness, spec=spec, seed=seed)
    # The products here are small: threads would wait for each other, and sums could differ from machine to machine.
    with _libraries().limit(limits=1, user_api="blas"):
        return _image(seed, spec, head, cut, names)


@lru_cache(maxsize=1)
def _libraries() -> ThreadpoolController:
    return ThreadpoolController()


def _drawn_subtypes(seed: int, spec: Spec) -> tuple[str, ...]:
    rng = np.random.default_rng((seed, 0))
    positive, second, third = rng.random(3) < (spec.p_positive, spec.several, spec.several * 0.4)
    odds = np.array(spec.subtype_odds) / sum(spec.subtype_odds)
    order = rng.choice(len(SUBTYPES), size=1 + int(second) + int(third), replace=False, p=odds)
    return tuple(SUBTYPES[i] for i in order) if positive else ()


def _sample(head: Head, cut: Cut) -> tuple[npt.NDArray[np.float32], dict[int, npt.NDArray[np.float32]]]:
    """Density (slices, n, n) on the grid of the anatomy, and for slices with blood the part it fills (5, n, n)."""
    n = cut.grid
    density = np.full((cut.slices, n, n), AIR, np.float32)
    blood: dict[int, npt.NDArray[np.float32]] = {}
    for i in range(cut.slices):
        planes = cut.planes(i, head.scale)
        density[i] = 0
        for plane in planes:
            hu, found, box = head.render(plane, cut.grid_mm / head.scale)
            layer = density[i]
            layer += AIR
            if hu.size:
                layer[box] += hu - AIR
            if found is not None and found.any():
                part = blood.setdefault(i, np.zeros((len(SUBTYPES), n, n), np.float32))
                part[:, box[0], box[1]] += found
        density[i] /= len(planes)
        if i in blood:
            blood[i] /= len(planes)
    return density, blood


def _image(seed: int, spec: Spec, head: Head, cut: Cut, names: Sequence[str]) -> PhantomStudy:
    density, blood = _sample(head, cut)
    scanner = Scanner.draw(seed, spec, cut, density, back_mm=head.skull.radii[1] * head.scale)
    hu = np.empty((cut.slices, cut.size, cut.size), np.int16)
    masks = np.zeros((len(SUBTYPES), *hu.shape), bool)
    areas, volumes = np.zeros((cut.slices, len(SUBTYPES))), np.zeros(len(SUBTYPES))
    for i in range(cut.slices):
        hu[i], seen = scanner.image(i, density[i])
        if i in blood:
            for kind in np.flatnonzero(blood[i].any((1, 2))):
                part = scanner.fraction(blood[i][kind], seen)
                masks[kind, i] = part >= HALF
                areas[i, kind] = np.count_nonzero(part >= PRESENT) * cut.pixel_mm**2
                volumes[kind] += float(part.sum(dtype=np.float64)) * cut.pixel_mm**2 * cut.thickness[i] / 1000
    found = (areas >= LEAST_AREA_MM2).astype(np.float32)
    return PhantomStudy(
        hu=hu,
        masks=masks,
        labels=np.concatenate([found.max(1, keepdims=True), found], axis=1),
        positions=cut.positions(),
        orientation=cut.orientation,
        pixel_spacing=np.array([cut.pixel_mm, cut.pixel_mm]),
        thickness=cut.thickness,
        truth={
            "seed": seed,
            "subtypes": tuple(names),
            "volumes_ml": dict(zip(SUBTYPES, volumes.tolist(), strict=True)),
            "tilt_degrees": cut.tilt_degrees,
            "atrophy": head.brain.atrophy,
            "midline_shift_mm": head.bleeding.shift.mm,
            "noise_hu": scanner.noise_hu,
            "child": head.scale != 1,
            "mimics": head.mimics.facts(),
            "ghosts": tuple(sorted(scanner.ghosts)),
        },
    )
