"""Random changes of images and masks: one draw for a whole run of slices, one interpolation for everything."""

from __future__ import annotations

import math
from dataclasses import dataclass

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


def draw(
    ranges: Ranges, *, generator: torch.Generator, centre: tuple[float, float] = (0.0, 0.0), zoom: float = 1.0
) -> Tensor:
    """Draw one map from the result's coordinates to the image's, both −1..1 along x and y.

    Parameters
    ----------
    centre : (float, float)
        Where in the image (x, y) the middle of the result looks: a crop is a `centre` and a `zoom`.
    zoom : float
        Side of the result as a share of the image's side.

    Returns
    -------
    Tensor
        Shape (2, 3), as ``torch.nn.functional.affine_grid`` takes it.
    """
    u = torch.rand(5, generator=generator).tolist()
    turned = ranges.rotation_chance == 1 or float(torch.rand(1, generator=generator)) < ranges.rotation_chance
    angle = math.radians(ranges.rotation * (2 * u[0] - 1)) * turned
    size = zoom * (1 + ranges.scale * (2 * u[1] - 1))
    mirror = -1.0 if u[2] < ranges.flip else 1.0
    x = centre[0] + 2 * ranges.shift * (2 * u[3] - 1)
    y = centre[1] + 2 * ranges.shift * (2 * u[4] - 1)
    if ranges.crop:
        v = torch.rand(3, generator=generator).tolist()
        kept = math.sqrt(1 - ranges.crop * v[0])
        x, y, size = x + (1 - kept) * (2 * v[1] - 1), y + (1 - kept) * (2 * v[2] - 1), size * kept
    cos, sin = size * math.cos(angle), size * math.sin(angle)
    upright = -1.0 if ranges.upside_down and float(torch.rand(1, generator=generator)) < ranges.upside_down else 1.0
    return torch.tensor([[mirror * cos, -upright * sin, x], [mirror * sin, upright * cos, y]])


def draw_grid(ranges: Ranges, transform: Tensor, *, side: int, generator: torch.Generator) -> Tensor:
    """Where each of the result's `side` × `side` pixels looks, (side, side, 2): `transform` of a distorted grid.

    Optical and grid distortion come before the affine map, so that everything together is one interpolation.
    """
    along = (torch.arange(side) + 0.5) * 2 / side - 1
    x, y = along, along
    if ranges.grid:
        x, y = (_uneven(along, ranges.grid, generator) for _ in range(2))
    points = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)
    if ranges.optical:
        strength = ranges.optical * (2 * float(torch.rand(1, generator=generator)) - 1)
        squared = (points / 2).square().sum(-1, keepdim=True)
        points = points * (1 + strength * (squared + squared.square()))
    return points @ transform[:, :2].T + transform[:, 2]


def _uneven(along: Tensor, limit: float, generator: torch.Generator) -> Tensor:
    """−1..1 mapped to itself by straight pieces, one for each cell; none of them is folded over."""
    widths = 1 + limit * (2 * torch.rand(CELLS, generator=generator) - 1)
    edges = torch.cat([torch.zeros(1), widths.cumsum(0)]) * 2 / widths.sum() - 1
    place = (along + 1) / 2 * CELLS
    cell = place.long().clamp(0, CELLS - 1)
    return edges[cell] + (place - cell) * (edges[cell + 1] - edges[cell])


def warp(planes: Tensor, grid: Tensor, *, fill: Tensor | float = 0.0) -> Tensor:
    """Planes ``(n, channels, rows, columns)`` where `grid`, from `draw_grid`, looks; `fill` beyond the edge.

    `fill` is a number or one number for each channel, shape ``(channels, 1, 1)``.
    """
    grids = grid.expand(len(planes), *grid.shape)
    warped: Tensor = functional.grid_sample(planes - fill, grids, mode="bilinear", align_corners=False)
    return warped.add(fill)


def perturb(images: Tensor, ranges: Ranges, *, generator: torch.Generator) -> Tensor:
    """Images with another contrast, brightness, sharpness and noise, drawn once for the run."""
    u = torch.rand(3, generator=generator).tolist()
    changed: Tensor = images * (1 + ranges.gain * (2 * u[0] - 1)) + ranges.offset * (2 * u[1] - 1)
    if ranges.blur and float(torch.rand(1, generator=generator)) < ranges.blur_chance:
        changed = _blurred(changed, ranges.blur * float(torch.rand(1, generator=generator)))
    if ranges.kernel:
        share = ranges.kernel * (2 * float(torch.rand(1, generator=generator)) - 1)
        smooth = functional.avg_pool2d(changed, 3, stride=1, padding=1, count_include_pad=False)
        changed = changed.lerp(smooth, share)
    if ranges.noise:
        changed = changed + torch.randn(images.shape, generator=generator) * (ranges.noise * u[2])
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
