"""The other pictures of an exam, made from its slices: localizers, reformats, a bone kernel and a dose page."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from training.sources.phantom.makers import CORONAL
from training.sources.phantom.study import PhantomStudy

VOXEL_MM = 1.0
APART_MM = 5.0


@dataclass(frozen=True, kw_only=True, eq=False)
class Image:
    """One image with its place: `position` of the first pixel, `orientation`, `spacing` (rows, columns) in mm."""

    hu: npt.NDArray[np.int16]
    position: npt.NDArray[np.float64]
    orientation: npt.NDArray[np.float64]
    spacing: npt.NDArray[np.float64]
    thickness: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Straight:
    """The head on a grid of `VOXEL_MM` along the patient's axes: `hu` (z, y, x) from `origin` (x, y, z)."""

    hu: npt.NDArray[np.int16]
    origin: npt.NDArray[np.float64]


def straighten(study: PhantomStudy) -> Straight:
    """The slices resampled along the patient's axes, their tilt undone; air where none reaches."""
    row, column = study.pixel_spacing
    rise, run = float(study.orientation[5]), float(study.orientation[4])
    first = study.positions[:, 2]
    height, width = study.hu.shape[1:]
    lean = rise * row * (height - 1)
    z = np.arange(first.min() + min(lean, 0), first.max() + max(lean, 0), VOXEL_MM)
    y = np.arange(0, row * run * (height - 1), VOXEL_MM)
    x = np.arange(0, column * (width - 1), VOXEL_MM)
    slices = np.interp(z[:, None] - (y * rise / run)[None], first, np.arange(len(first)), left=-2, right=-2)
    rows = np.broadcast_to(y / (row * run), slices.shape)
    columns = np.rint(x / column).astype(int)
    out = np.empty((len(z), len(y), len(x)), np.int16)
    for i, c in enumerate(columns):
        out[:, :, i] = ndimage.map_coordinates(study.hu[:, :, c], (slices, rows), order=1, cval=-1024)
    return Straight(hu=out, origin=np.array([*study.positions[0, :2], z[0]]))


def reformats(study: PhantomStudy, kind: str) -> list[Image]:
    """Coronal or sagittal images every `APART_MM`, head up."""
    head = straighten(study)
    axis = 1 if kind == CORONAL else 2
    across = np.array([1.0, 0, 0]) if kind == CORONAL else np.array([0, 1.0, 0])
    images = []
    for i in range(0, head.hu.shape[axis], round(APART_MM / VOXEL_MM)):
        at = head.origin + np.array([0, i, 0] if kind == CORONAL else [i, 0, 0]) * VOXEL_MM
        images.append(_upright(np.take(head.hu, i, axis=axis), at, across, APART_MM))
    return images


def localizers(study: PhantomStudy) -> list[Image]:
    """A frontal and a lateral projection, as the table moves through before the scan."""
    head = straighten(study)
    path = np.clip(head.hu.astype(np.float32) + 1000, 0, None)
    return [
        _upright(_projection(path, axis), head.origin, across, 1.0)
        for axis, across in ((1, np.array([1.0, 0, 0])), (2, np.array([0, 1.0, 0])))
    ]


def _projection(path: npt.NDArray[np.float32], axis: int) -> npt.NDArray[np.int16]:
    total = path.sum(axis)
    return np.asarray(np.rint(total / max(float(total.max()), 1.0) * 1500 - 1000), np.int16)


def _upright(
    image: npt.NDArray[np.int16], origin: npt.NDArray[np.float64], across: npt.NDArray[np.float64], thickness: float
) -> Image:
    top = origin + np.array([0, 0, (len(image) - 1) * VOXEL_MM])
    return Image(
        hu=np.ascontiguousarray(image[::-1]),
        position=np.round(top, 4),
        orientation=np.concatenate([across, [0, 0, -1]]),
        spacing=np.array([VOXEL_MM, VOXEL_MM]),
        thickness=thickness,
    )


def bone_kernel(hu: npt.NDArray[np.int16]) -> npt.NDArray[np.int16]:
    """The slices as a sharp kernel shows them: crisp edges, and noise several times as loud."""
    out = np.empty_like(hu)
    for i, image in enumerate(hu):
        fine = image.astype(np.float32)
        fine += 2.0 * (fine - ndimage.uniform_filter(fine, 3))
        out[i] = np.clip(np.rint(fine), -1024, 3071)
    return out


def dose_page(seed: int) -> npt.NDArray[np.uint8]:
    """A page (512, 512) of bright marks in lines, as a dose report looks to a program that cannot read."""
    rng = np.random.default_rng((seed, 7))
    page = np.zeros((512, 512), np.uint8)
    page[[60, 100, 300], 20:492] = 200
    for line in range(30, 480, 22):
        for column in range(24, int(rng.uniform(200, 480)), 9):
            mark = rng.random((5, 3)) < 0.6
            page[line : line + 10, column : column + 6] = np.kron(mark, np.full((2, 2), 255)).astype(np.uint8)
    return page
