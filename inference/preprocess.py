"""From Hounsfield units to what a network sees: windows, resampling, normalisation. One code for training and serving.

Every slice is prepared by itself, so that a slice can be encoded before the next one has arrived, and always gives the
same image whatever stands beside it in the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Self

import numpy as np
import torch
from torch import Tensor

from inference.image_place import ImagePlace
from inference.resampling import Cut, Resampling
from inference.result import Json
from inference.threads import in_threads, one_thread

BRAIN = (40.0, 80.0)
SUBDURAL = (75.0, 215.0)
BONE = (600.0, 2800.0)
"""Windows as (level, width) in HU (Nguyen et al. 2020, section 2)."""

WIDER_SUBDURAL = (80.0, 200.0)
SOFT_TISSUE = (40.0, 380.0)
"""The other two windows of Vultur's 2D network (2021, section 6.2.1); values of Burduja et al. 2020, which it follows.
"""

SOFT_WINDOWS_MEAN = (0.1738, 0.1433, 0.1970)
SOFT_WINDOWS_STD = (0.3161, 0.2850, 0.3111)
"""Of brain, subdural and soft tissue window over the RSNA training slices (Burduja et al. 2020)."""

FROM_AIR_TO_BONE = (-300.0, 1400.0)
"""-1000…400 HU, Vultur's 3D network (2021, section 6.2.2)."""

EQUALISED_CHANNELS = 3
"""The one equalised plane stands in every channel of a trunk made for colours."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

WIDE_FIELD_MM = 260.0
"""A field of view wider than this need not have the head in its middle; the head's centroid is used instead."""

TISSUE_HU = -200
"""Above this a pixel is head rather than air, foam or bedding."""

BLUR = 0.15
BLURRED_BRAIN = 0.05
"""A head is where the brain window, averaged over this part of the slice's side, exceeds this value."""

HEAD_GRID = 128


@dataclass(frozen=True, kw_only=True)
class Preprocessing(Json):
    """How Hounsfield units become the images of one model. Stored in its card.

    Attributes
    ----------
    windows : tuple of (level, width)
        One channel each, in HU; the window's lower edge becomes 0, its upper edge 1. Empty with `quantiles`.
    size : int
        Rows and columns of the image.
    pixel_mm : float or None
        Size of the image's pixels; the field of view is then ``size * pixel_mm``, cut out or padded with 0. None keeps
        the field of view as acquired (made square by padding with 0, never distorted) and scales it to the image.
    mean, std : tuple of float
        Subtracted from and divided into each channel at the end; empty for none.
    eight_bit : bool
        Windows with whole-numbered half widths, rounded down to 256 grey levels: the images with which the weights
        that Nguyen et al. published were trained.
    quantiles : tuple of float
        In place of windows: rising HU values that become equally spaced from 0 to 1, with straight lines between. One
        plane, three times.
    head_square : bool
        Cuts out the square around the head in each slice, in place of the field of view.
    blank_below : float
        Slices with a smaller fraction of pixels between 0 and 80 HU are not read at all; 0 reads every slice.
    header : tuple of str
        In place of windows: the header facts (`inference.metadata.FACTS`) of a model that sees no pixels.
    """

    windows: tuple[tuple[float, float], ...]
    size: int
    pixel_mm: float | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    eight_bit: bool = False
    quantiles: tuple[float, ...] = ()
    head_square: bool = False
    blank_below: float = 0.0
    header: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuses what cannot be carried out, with ``ValueError``."""
        if self.header and (self.windows or self.quantiles):
            raise ValueError("a model that reads headers has neither windows nor quantiles")
        if not (self.windows or self.quantiles or self.header) or any(width <= 0 for _, width in self.windows):
            raise ValueError("preprocessing needs at least one window, each of positive width")
        if self.quantiles and (
            self.windows or len(self.quantiles) < 2 or any(not low < high for low, high in pairwise(self.quantiles))
        ):
            raise ValueError("quantiles must be at least two rising HU values, without windows beside them")
        if self.head_square and self.pixel_mm is not None:
            raise ValueError("the square around the head has no fixed pixel size")
        if not 0 <= self.blank_below < 1:
            raise ValueError("blank_below is a fraction of the pixels, from 0 to below 1")
        if self.size < 1 or (self.pixel_mm is not None and self.pixel_mm <= 0):
            raise ValueError("preprocessing needs a positive size and pixel size")
        if {len(self.mean), len(self.std)} - {0, self.channels} or len(self.mean) != len(self.std):
            raise ValueError(f"mean and std need one value for each of the {self.channels} channels, or none")
        if any(value <= 0 for value in self.std):
            raise ValueError("std must be positive")

    @classmethod
    def radnet(cls, *, size: int = 250, pixel_mm: float = 1.0) -> Self:
        """As Grewal et al. (section 2.2.1): brain window to 0…1, 1 mm pixels, 250 mm field of view."""
        return cls(windows=(BRAIN,), size=size, pixel_mm=pixel_mm)

    @classmethod
    def three_windows(cls, *, size: int = 512, eight_bit: bool = False) -> Self:
        """As Nguyen et al. (section 2): brain, subdural and bone window as red, green and blue of an ImageNet image."""
        windows = (BRAIN, SUBDURAL, BONE)
        return cls(windows=windows, size=size, mean=IMAGENET_MEAN, std=IMAGENET_STD, eight_bit=eight_bit)

    @classmethod
    def soft_windows(cls, *, size: int = 256) -> Self:
        """As Vultur's 2D network (section 6.2.1): brain, subdural and soft tissue window, their own mean and spread."""
        windows = (BRAIN, WIDER_SUBDURAL, SOFT_TISSUE)
        return cls(windows=windows, size=size, mean=SOFT_WINDOWS_MEAN, std=SOFT_WINDOWS_STD)

    @classmethod
    def full_range(cls, *, size: int = 256) -> Self:
        """As Vultur's 3D network (section 6.2.2): -1000…400 HU to 0…1, minus 0.25. Air is then -0.25."""
        return cls(windows=(FROM_AIR_TO_BONE,), size=size, mean=(0.25,), std=(1.0,))

    @classmethod
    def equalised(cls, quantiles: Sequence[float], *, size: int = 256, blank_below: float = 0.02) -> Self:
        """As Khandelwal and Ganguli (section III): no window, the square around the head, no blank slices.

        Their text drops slices with "less than 20%" of brain; the notebooks it follows cut at 2 %, and only that leaves
        as many images as the paper counts. `quantiles` as from `equalising_quantiles` of the training slices.
        """
        return cls(
            windows=(),
            size=size,
            mean=IMAGENET_MEAN,
            std=IMAGENET_STD,
            quantiles=tuple(quantiles),
            head_square=True,
            blank_below=blank_below,
        )

    @property
    def channels(self) -> int:
        """Channels of the image."""
        return EQUALISED_CHANNELS if self.quantiles else len(self.windows) or len(self.header)


def prepare(hu: Tensor, *, pixel_spacing: Sequence[tuple[float, float]], preprocessing: Preprocessing) -> Tensor:
    """Images (n, channels, size, size), float32, of n slices of equal shape, on the device on which `hu` lies.

    Parameters
    ----------
    hu : Tensor of int16, shape (n, rows, columns)
        Hounsfield units.
    pixel_spacing : sequence of n (row, column) distances
        In mm, as in the attribute Pixel Spacing (0028,0030): first between rows, then between columns.
    """
    if hu.ndim != 3 or len(pixel_spacing) != len(hu):
        raise ValueError(f"{len(pixel_spacing)} pixel spacings for slices of shape {tuple(hu.shape)}")
    if preprocessing.header:
        raise ValueError("this model reads headers: there is no image to prepare")
    images = torch.empty((len(hu), preprocessing.channels, *(preprocessing.size,) * 2), device=hu.device)
    to_grey, unit = _equalising(preprocessing.quantiles) if preprocessing.quantiles else _windowing(preprocessing)
    channels = preprocessing.channels
    lowest = torch.tensor(preprocessing.mean or (0.0,) * channels)[:, None, None].mul(unit).to(hu.device)
    width = torch.tensor(preprocessing.std or (1.0,) * channels)[:, None, None].mul(unit).to(hu.device)

    def work(piece: _Piece) -> None:
        part, resample = piece
        grey = to_grey(hu[part, resample.rows, resample.columns].transpose(0, 1))
        torch.sub(resample(grey).permute(1, 2, 0, 3), lowest, out=images[part]).div_(width)

    in_threads(work, _pieces(hu, _cuts(hu, pixel_spacing, preprocessing), preprocessing.size))
    return images


def resample_masks(
    masks: Tensor, hu: Tensor, *, pixel_spacing: Sequence[tuple[float, float]], preprocessing: Preprocessing
) -> Tensor:
    """Masks (n, c, size, size), float32 in 0…1, cut and scaled exactly as `prepare` does it with the slices `hu`.

    `masks` has shape (n, c, rows, columns), any numeric type.
    """
    size = preprocessing.size
    resampled = torch.empty((*masks.shape[:2], size, size), device=masks.device)
    for part, resample in _pieces(hu, _cuts(hu, pixel_spacing, preprocessing), size):
        planes = masks[part, :, resample.rows, resample.columns].permute(2, 0, 1, 3)
        resampled[part] = resample(planes.float().contiguous()).permute(1, 2, 0, 3)
    return resampled


def image_places(
    hu: Tensor, *, pixel_spacing: Sequence[tuple[float, float]], preprocessing: Preprocessing
) -> list[ImagePlace]:
    """Where on each of the slices `hu` the image lies that `prepare` makes of it."""
    shape = (hu.shape[1], hu.shape[2])
    cuts = _cuts(hu, pixel_spacing, preprocessing)
    return [
        ImagePlace(shape=shape, corner=cut.corner, extent=(preprocessing.size * rows, preprocessing.size * columns))
        for cut in cuts
        for rows, columns in (cut.step,)
    ]


def brain_fraction(hu: Tensor) -> Tensor:
    """What part (n,) of each slice (n, rows, columns) lies inside the brain window, between 0 and 80 HU."""
    return ((hu > 0) & (hu < 80)).float().mean((1, 2))


def equalising_quantiles(hu: Tensor, *, bins: int = 100) -> tuple[float, ...]:
    """HU values that part the pixels of `hu`, of any shape, into `bins` parts of equal size: at most ``bins + 2``.

    They are the middles of the parts, with one value in a thousand beyond either end; equal ones count once.
    """
    values = hu.flatten().sort().values
    inner = (torch.arange(bins, dtype=torch.float64) + 0.5) / bins
    wanted = torch.cat((torch.tensor([0.001], dtype=torch.float64), inner, torch.tensor([0.999], dtype=torch.float64)))
    chosen = values[(wanted.sort().values * len(values)).long().to(values.device)]
    return tuple(sorted(set(map(float, chosen.tolist()))))


Grey = Callable[[Tensor], Tensor]
"""Grey planes (rows, n, planes, columns), float32, of Hounsfield units (rows, n, columns)."""


def _equalising(quantiles: tuple[float, ...]) -> tuple[Grey, Tensor]:
    """To one plane, and what its grey values have to be divided by to lie in 0…1.

    There are only so many int16 values: a table holds what each becomes.
    """
    lowest, highest = torch.iinfo(torch.int16).min, torch.iinfo(torch.int16).max
    grey = np.interp(np.arange(lowest, highest + 1), quantiles, np.linspace(0, 1, len(quantiles)))
    table = torch.from_numpy(grey.astype(np.float32))

    def looked_up(hu: Tensor) -> Tensor:
        places = (hu.int() - lowest).flatten()
        return table.to(hu.device).index_select(0, places).view(hu.shape)[:, :, None]

    return looked_up, torch.ones(1, 1, 1)


def _windowing(preprocessing: Preprocessing) -> tuple[Grey, Tensor]:
    """To one plane for each window, and what the planes (windows, 1, 1) have to be divided by to lie in 0…1.

    Resampling and normalising commute: pixels of the slice are only moved and clipped, those of the image are divided.
    """
    halves = [width // 2 if preprocessing.eight_bit else width / 2 for _, width in preprocessing.windows]
    units = [255.0 if preprocessing.eight_bit else 2 * half for half in halves]

    def clipped(hu: Tensor) -> Tensor:
        values = hu.float()
        planes = values.new_empty((*hu.shape[:2], len(halves), hu.shape[2]))
        for plane, half, (level, _) in zip(planes.unbind(2), halves, preprocessing.windows, strict=True):
            torch.sub(values, level - half, out=plane)
            if preprocessing.eight_bit:
                plane.div_(2 * half).clamp_(0, 1).mul_(255).floor_()
            else:
                plane.clamp_(0, 2 * half)
        return planes

    return clipped, torch.tensor(units)[:, None, None]


_Piece = tuple[slice, Resampling]


def _pieces(hu: Tensor, cuts: Sequence[Cut], size: int) -> list[_Piece]:
    """Slices that are cut alike, and how: on a CPU an equal share for each thread, on a GPU all together."""
    share = -(-len(hu) // torch.get_num_threads()) if hu.device.type == "cpu" else len(hu)
    pieces = []
    start = 0
    for cut, alike in groupby(cuts):
        stop = start + len(list(alike))
        resampling = Resampling.of(cut, shape=(hu.shape[1], hu.shape[2]), size=size, device=hu.device)
        pieces += [(slice(first, min(first + share, stop)), resampling) for first in range(start, stop, share)]
        start = stop
    return pieces


def _cuts(hu: Tensor, pixel_spacing: Sequence[tuple[float, float]], preprocessing: Preprocessing) -> list[Cut]:
    """One cut for each slice, to the nearest whole pixel; it may begin before the slice and end behind it."""
    if preprocessing.head_square:
        return _square_cuts(hu, pixel_spacing, preprocessing.size)
    shape = hu.shape[1:]
    centres = [(shape[0] / 2, shape[1] / 2)] * len(pixel_spacing)
    if preprocessing.pixel_mm is not None:
        fields = [max(shape[0] * row, shape[1] * column) for row, column in pixel_spacing]
        wide = [i for i, field in enumerate(fields) if field > WIDE_FIELD_MM]
        for i, centre in zip(wide, _head_centres(hu[wide]), strict=True):
            centres[i] = centre
    cuts = []
    for centre, (row, column) in zip(centres, pixel_spacing, strict=True):
        if preprocessing.pixel_mm is not None:
            step = (preprocessing.pixel_mm / row, preprocessing.pixel_mm / column)
        else:
            # Ratios first: a square slice then has a step of exactly 1 where it has the image's size.
            extent = (max(shape[0], shape[1] * (column / row)), max(shape[0] * (row / column), shape[1]))
            step = (extent[0] / preprocessing.size, extent[1] / preprocessing.size)
        top, left = (round(c - preprocessing.size * s / 2) for c, s in zip(centre, step, strict=True))
        cuts.append(Cut((top, left), step))
    return cuts


def _square_cuts(hu: Tensor, pixel_spacing: Sequence[tuple[float, float]], size: int) -> list[Cut]:
    """The smallest square, in mm, around the head of each slice; around the whole slice where there is none."""
    with one_thread():
        boxes = _head_boxes(hu)
    cuts = []
    for box, (row, column) in zip(boxes, pixel_spacing, strict=True):
        side_mm = max((box[1] - box[0]) * row, (box[3] - box[2]) * column)
        step = (side_mm / (size * row), side_mm / (size * column))
        middle = ((box[0] + box[1]) / 2, (box[2] + box[3]) / 2)
        top, left = (round(centre - size * s / 2) for centre, s in zip(middle, step, strict=True))
        cuts.append(Cut((top, left), step))
    return cuts


def _head_boxes(hu: Tensor) -> list[list[int]]:
    """Top, bottom (exclusive), left and right (exclusive) of the head in each slice (n, rows, columns).

    What is blurred is the brain window without what saturates it: neither skull nor table make a head. A grid of some
    128 points a side is fine enough for that.
    """
    pitch = max(1, max(hu.shape[1:]) // HEAD_GRID)
    rows, columns = hu.shape[1:]
    hu = hu[:, ::pitch, ::pitch]
    brain = hu.float().clamp_(0, BRAIN[1])
    brain = brain.masked_fill_(brain == BRAIN[1], 0)
    below, beside = (_near(length, device=hu.device) for length in hu.shape[1:])
    # Whole numbers all along, so that no rounding decides where a head ends.
    head: Tensor = below @ brain @ beside > BLURRED_BRAIN * BRAIN[1] * torch.outer(below.sum(1), beside.sum(1))
    ends = []
    for axis, across in ((1, 2), (2, 1)):
        occupied = head.any(across).int()
        found = occupied.any(1)
        ends.append(torch.where(found, occupied.argmax(1), 0))
        ends.append(torch.where(found, hu.shape[axis] - occupied.flip(1).argmax(1), hu.shape[axis]))
    boxes: list[list[int]] = (torch.stack(ends, 1) * pitch).tolist()
    return [[top, min(bottom, rows), left, min(right, columns)] for top, bottom, left, right in boxes]


def _near(length: int, *, device: torch.device) -> Tensor:
    """1 where two of `length` places are so close that one is blurred into the other, else 0; (length, length)."""
    places = torch.arange(length, device=device)
    return ((places[:, None] - places).abs() <= round(BLUR * length / 2)).float()


def _head_centres(hu: Tensor) -> list[tuple[float, float]]:
    """The middle of each head, in pixels from the upper left corner; the slice's middle where there is no tissue.

    The median along each axis, not the mean: a head rest or a strip of the table hardly moves it.
    """
    tissue = hu > TISSUE_HU
    centres = []
    for axis, across in ((1, 2), (2, 1)):
        so_far = tissue.sum(across).cumsum(1)
        total = so_far[:, -1:]
        median = (so_far * 2 < total).sum(1) + 0.5
        centres.append(torch.where(total[:, 0] > 0, median, hu.shape[axis] / 2).tolist())
    return list(zip(*centres, strict=True))
