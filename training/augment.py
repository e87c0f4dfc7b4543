"""Random changes of images and masks: one draw for a whole run of slices, one interpolation for everything.

What is drawn are a few numbers for each run of a batch; the images are changed together, on whichever device they lie.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torchvision.transforms.v2.functional import gaussian_blur

CELLS = 5
"""Of a side, in grid distortion."""


@dataclass(frozen=True, kw_only=True)
class Ranges:
    """From which ranges the changes are drawn."""

    rotation: float = 15.0
    """Degrees to either side (Grewal et al. 2018, section 2.2.3)."""
    rotation_chance: float = 1.0
    """Chance that the image is turned at all."""
    flip: float = 0.5
    """Chance of a left-right flip."""
    scale: float = 0.0
    """Share by which the image grows or shrinks at most."""
    shift: float = 0.0
    """Share of the side by which the image moves at most."""
    upside_down: float = 0.0
    """Chance of an up-down flip."""
    crop: float = 0.0
    """Share of the area that a random crop leaves out at most; what is left fills the image."""
    optical: float = 0.0
    """Largest k of the radial distortion r → r (1 + k r² + k r⁴), r in sides of the image from its middle."""
    grid: float = 0.0
    """Share by which the columns and rows of a grid of `CELLS` × `CELLS` grow or shrink at most."""
    noise: float = 0.0
    """Largest standard deviation of added white noise, in the units of the image."""
    gain: float = 0.0
    """Share by which contrast changes at most."""
    offset: float = 0.0
    """Largest constant added, in the units of the image."""
    blur: float = 0.0
    """Largest standard deviation of a Gaussian blur, in pixels."""
    blur_chance: float = 1.0
    """Chance that the image is blurred at all."""
    kernel: float = 0.0
    """How much of a 3 × 3 average at most takes the image's place, or is taken from it: smooth and sharp kernels."""


@dataclass(frozen=True, kw_only=True)
class Changes:
    """What was drawn for each run of slices of a batch; None where its range is nought.

    Attributes
    ----------
    maps : (runs, 2, 3)
        From the result's coordinates to the image's, both −1..1 along x and y.
    cells : (runs, 2, CELLS)
        Widths of the columns and of the rows of the grid that is distorted.
    optical, gain, offset, kernel, noise : (runs,)
    blur : per run
        Standard deviation, 0 where the run is not blurred.
    seed : int
        Of the noise.
    """

    maps: Tensor
    cells: Tensor | None = None
    optical: Tensor | None = None
    gain: Tensor | None = None
    offset: Tensor | None = None
    kernel: Tensor | None = None
    noise: Tensor | None = None
    blur: tuple[float, ...] = ()
    seed: int = 0

    def to(self, device: torch.device) -> Changes:
        """The same on `device`."""
        moved: dict[str, Any] = {
            one.name: value.to(device, non_blocking=True)
            for one in fields(self)
            if isinstance(value := getattr(self, one.name), Tensor)
        }
        return replace(self, **moved)


def draw(
    ranges: Ranges, count: int, *, generator: torch.Generator, centres: Tensor | None = None, zoom: float = 1.0
) -> Changes:
    """Draw the changes of `count` runs.

    Parameters
    ----------
    centres : Tensor or None
        Where in the image (x, y) the middle of each result looks, shape (count, 2); the image's middle without it. A
        crop is a centre and a `zoom`.
    zoom : float
        Side of the result as a share of the image's side.
    """
    u = torch.rand(count, 18, generator=generator)

    def within(column: int, limit: float) -> Tensor:
        return limit * (2 * u[:, column] - 1)

    def drawn(column: int, limit: float) -> Tensor | None:
        return within(column, limit) if limit else None

    angle = within(0, math.radians(ranges.rotation)) * (u[:, 1] < ranges.rotation_chance)
    kept = (1 - ranges.crop * u[:, 2]).sqrt()
    size = zoom * (1 + within(3, ranges.scale)) * kept
    mirror = 1 - 2 * (u[:, 4] < ranges.flip).float()
    upright = 1 - 2 * (u[:, 5] < ranges.upside_down).float()
    x, y = (
        place + 2 * within(column, ranges.shift) + (1 - kept) * within(column + 1, 1.0)
        for place, column in zip((u.new_zeros(count, 2) if centres is None else centres).unbind(1), (6, 8), strict=True)
    )
    cos, sin = size * angle.cos(), size * angle.sin()
    maps = torch.stack([mirror * cos, -upright * sin, x, mirror * sin, upright * cos, y], 1).view(count, 2, 3)
    blurred = u[:, 10] < ranges.blur_chance
    return Changes(
        maps=maps,
        cells=1 + ranges.grid * (2 * torch.rand(count, 2, CELLS, generator=generator) - 1) if ranges.grid else None,
        optical=drawn(11, ranges.optical),
        gain=drawn(12, ranges.gain),
        offset=drawn(13, ranges.offset),
        kernel=drawn(14, ranges.kernel),
        noise=ranges.noise * u[:, 15] if ranges.noise else None,
        blur=tuple((ranges.blur * u[:, 16] * blurred).tolist()) if ranges.blur else (),
        seed=int(torch.randint(2**62, (1,), generator=generator)),
    )


def grid_of(changes: Changes, *, side: int) -> Tensor:
    """Where each of a result's `side` × `side` pixels looks, (runs, side, side, 2).

    Optical and grid distortion come before the affine map, so that everything together is one interpolation.
    """
    maps = changes.maps
    along = (torch.arange(side, device=maps.device) + 0.5) * 2 / side - 1
    x = y = along.expand(len(maps), side)
    if changes.cells is not None:
        x, y = (_uneven(along, widths) for widths in changes.cells.unbind(1))
    x, y = x[:, None, :], y[:, :, None]
    if changes.optical is not None:
        squared = (x / 2).square() + (y / 2).square()
        longer = 1 + changes.optical[:, None, None] * (squared + squared.square())
        x, y = x * longer, y * longer
    a, b, c, d, e, f = (value[:, None, None] for value in maps.flatten(1).unbind(1))
    return torch.stack((a * x + b * y + c, d * x + e * y + f), -1)


def _uneven(along: Tensor, widths: Tensor) -> Tensor:
    """−1..1 mapped to itself by straight pieces, (runs, side), one for each of the cells; none of them is folded over.

    `widths` (runs, CELLS) are those of the cells, in any unit.
    """
    edges = torch.cat([torch.zeros_like(widths[:, :1]), widths.cumsum(1)], 1) * 2 / widths.sum(1, keepdim=True) - 1
    place = (along + 1) / 2 * CELLS
    cell = place.long().clamp(0, CELLS - 1)
    return edges[:, cell] + (place - cell) * (edges[:, cell + 1] - edges[:, cell])


def warp(planes: Tensor, grid: Tensor, *, fill: Tensor | float = 0.0) -> Tensor:
    """Planes ``(runs, slices, channels, rows, columns)`` where `grid`, from `grid_of`, looks; `fill` beyond the edge.

    `fill` is a number, or what spreads over the planes, such as one number for each run and channel.
    """
    runs, slices, channels = planes.shape[:3]
    lifted = (planes - fill).flatten(1, 2)
    warped: Tensor = functional.grid_sample(lifted, grid, mode="bilinear", align_corners=False)
    return warped.view(runs, slices, channels, *grid.shape[1:3]).add_(fill)


def perturb(images: Tensor, changes: Changes) -> Tensor:
    """Images (runs, slices, channels, rows, columns) with another contrast, brightness, sharpness and noise."""

    def spread(values: Tensor) -> Tensor:
        return values[:, None, None, None, None]

    changed = images
    if changes.gain is not None:
        changed = changed * spread(1 + changes.gain)
    if changes.offset is not None:
        changed = changed + spread(changes.offset)
    if any(changes.blur):
        changed = torch.stack([_blurred(one, by) for one, by in zip(changed, changes.blur, strict=True)])
    if changes.kernel is not None:
        smooth = functional.avg_pool2d(changed.flatten(0, 1), 3, stride=1, padding=1, count_include_pad=False)
        changed = changed.lerp(smooth.view_as(changed), spread(changes.kernel))
    if changes.noise is not None:
        generator = torch.Generator(images.device).manual_seed(changes.seed)
        noise = torch.randn(images.shape, generator=generator, device=images.device)
        changed = changed.addcmul(noise, spread(changes.noise))
    return changed


def _blurred(images: Tensor, deviation: float) -> Tensor:
    """Images (n, channels, rows, columns) after a Gaussian blur, cut off at three standard deviations."""
    reach = min(math.ceil(3 * deviation), min(images.shape[-2:]) - 1)
    if not reach:
        return images
    blurred: Tensor = gaussian_blur(images, [2 * reach + 1] * 2, [deviation] * 2)
    return blurred


def cutmix(images: Tensor, labels: Tensor, *, alpha: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Paste a box of another image of the batch into each image and mix the labels by area (CutMix, Yun et al. 2019).

    The share that is kept is drawn from Beta(`alpha`, `alpha`) with α = 1: uniform (Nguyen et al. 2020, section 3.1).
    """
    rows, columns = images.shape[-2:]
    kept = (
        float(torch.rand(1, generator=generator))
        if alpha == 1
        else float(torch.distributions.Beta(alpha, alpha).sample())
    )
    height, width = round(rows * math.sqrt(1 - kept)), round(columns * math.sqrt(1 - kept))
    row = int(torch.randint(0, rows - height + 1, (1,), generator=generator))
    column = int(torch.randint(0, columns - width + 1, (1,), generator=generator))
    order = torch.randperm(len(images), generator=generator)
    mixed = images.clone()
    mixed[..., row : row + height, column : column + width] = images[order][
        ..., row : row + height, column : column + width
    ]
    share = 1 - height * width / (rows * columns)
    return mixed, labels * share + labels[order] * (1 - share)


def turned(images: Tensor, which: Tensor, reach: int) -> Tensor:
    """Images (n, seen, …) with the neighbours of some, `which` (n,), in the opposite order: the scan upside down.

    The last 2 · `reach` channels are the neighbours'; see `ScanModel.among`.
    """
    if not reach:
        return images
    own, beside = images[:, : -2 * reach], images[:, -2 * reach :]
    return torch.cat((own, beside.flip(1).where(which[:, None, None, None], beside)), 1)
