"""A frame as a picture: rescaled, windowed, cut out and scaled as asked (PS3.18 8.3.5), as PNG or JPEG."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom import Dataset
from pydicom.pixels.processing import apply_color_lut, apply_voi
from starlette.requests import Request

from node.errors import RequestRefused
from node.web.pixels import Pixels

LARGEST_SIDE = 4096
_FUNCTIONS = {"linear": "LINEAR", "linear-exact": "LINEAR_EXACT", "sigmoid": "SIGMOID"}


@dataclass(frozen=True, kw_only=True)
class Window:
    """How values become grey (PS3.3 C.11.2.1.2, C.11.2.1.3)."""

    center: float
    width: float
    function: str = "LINEAR"

    def apply(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """The values between 0 and 1."""
        if self.function == "SIGMOID":
            return np.asarray(1 / (1 + np.exp(-4 * (values - self.center) / self.width)))
        exact = self.function == "LINEAR_EXACT"
        center, width = (self.center, self.width) if exact else (self.center - 0.5, max(self.width - 1, 1e-9))
        return np.clip((values - center) / width + 0.5, 0, 1)


@dataclass(frozen=True, kw_only=True)
class Viewport:
    """The size of the picture, and the region of the image that fills it (columns, rows; whole where it is None)."""

    width: int
    height: int
    region: tuple[float, float, float, float] | None


@dataclass(frozen=True, kw_only=True)
class Look:
    """How a picture is wanted."""

    window: Window | None
    viewport: Viewport | None
    quality: int


def look_of(request: Request) -> Look:
    """What the query parameters ask for. Raises ``RequestRefused`` (400)."""
    given = request.query_params
    try:
        quality = int(given.get("quality", "90"))
        look = Look(window=_window(given.get("window")), viewport=_viewport(given.get("viewport")), quality=quality)
    except (ValueError, KeyError) as error:
        raise RequestRefused("window, viewport or quality is not as PS3.18 8.3.5 has it", status=400) from error
    if not 1 <= quality <= 100:
        raise RequestRefused("quality is 1 to 100", status=400)
    return look


def _window(text: str | None) -> Window | None:
    if text is None:
        return None
    center, width, *function = text.split(",")
    window = Window(
        center=float(center), width=float(width), function=_FUNCTIONS[function[0] if function else "linear"]
    )
    if not np.isfinite([window.center, window.width]).all() or window.width <= 0 or len(function) > 1:
        raise ValueError("no window")
    return window


def _viewport(text: str | None) -> Viewport | None:
    if text is None:
        return None
    width, height, *region = (float(part or 0) for part in text.split(","))
    if not 1 <= width <= LARGEST_SIDE or not 1 <= height <= LARGEST_SIDE or len(region) not in (0, 4):
        raise ValueError("no viewport")
    if region and (min(region[:2]) < 0 or min(region[2:]) <= 0):
        raise ValueError("no region")
    cut = (region[0], region[1], region[2], region[3]) if region else None
    return Viewport(width=int(width), height=int(height), region=cut)


def picture(pixels: Pixels, index: int, look: Look, *, image_format: str) -> bytes:
    """The frame as a file in this format, "PNG" or "JPEG"."""
    image = Image.fromarray(_shown(pixels, index, look.window))
    if look.viewport is not None:
        image = _placed(image, look.viewport)
    file = BytesIO()
    image.save(file, image_format, **({"quality": look.quality} if image_format == "JPEG" else {}))
    return file.getvalue()


def _shown(pixels: Pixels, index: int, window: Window | None) -> NDArray[np.uint8]:
    """Grey (rows, columns) or RGB (rows, columns, 3), eight bits."""
    values, header = pixels.values(index), pixels.header
    if header.get("PhotometricInterpretation") == "PALETTE COLOR":
        values = apply_color_lut(values, header)
    if values.ndim == 3:
        top = np.iinfo(values.dtype).max if header.PhotometricInterpretation == "PALETTE COLOR" else 0
        depth = int(top).bit_length() or int(header.get("BitsStored") or 8)
        return (values >> max(0, depth - 8)).astype(np.uint8)
    grey = _grey(values, _display(header, index), window)
    if header.get("PhotometricInterpretation") == "MONOCHROME1":
        grey = 1 - grey
    return (grey * 255 + 0.5).astype(np.uint8)


def _grey(values: NDArray[Any], display: Dataset, window: Window | None) -> NDArray[np.float64]:
    rescaled = values.astype(np.float64) * _number(display, "RescaleSlope", 1) + _number(display, "RescaleIntercept", 0)
    if window is None and (width := _number(display, "WindowWidth", 0)) > 0 and "WindowCenter" in display:
        function = str(display.get("VOILUTFunction") or "LINEAR")
        window = Window(center=_number(display, "WindowCenter", 0), width=width, function=function)
    if window is None and display.get("VOILUTSequence"):
        looked_up = apply_voi(rescaled.astype(np.int32), display).astype(np.float64)
        return _spread(looked_up)
    return window.apply(rescaled) if window else _spread(rescaled)


def _spread(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """From the least value, black, to the greatest, white."""
    low, high = float(values.min()), float(values.max())
    return (values - low) / (high - low) if high > low else np.zeros_like(values)


def _display(header: Dataset, index: int) -> Dataset:
    """Rescale and window of one frame: its own functional groups, those of all frames, or the header itself."""
    per_frame = header.get("PerFrameFunctionalGroupsSequence") or []
    groups = [*(header.get("SharedFunctionalGroupsSequence") or [])[:1], *per_frame[index : index + 1]]
    display = Dataset()
    for source in (header, *(item for group in groups for item in _macros(group))):
        for keyword in ("RescaleSlope", "RescaleIntercept", "WindowCenter", "WindowWidth", "VOILUTFunction",
                        "VOILUTSequence"):  # fmt: skip
            if source.get(keyword) not in (None, ""):
                display[keyword] = source[keyword]
    return display


def _macros(group: Dataset) -> list[Dataset]:
    return [
        item
        for keyword in ("PixelValueTransformationSequence", "FrameVOILUTSequence")
        for item in (group.get(keyword) or [])[:1]
    ]


def _number(display: Dataset, keyword: str, default: float) -> float:
    value = display.get(keyword, default)
    first = value if isinstance(value, int | float | str) else next(iter(value), default)
    return float(first)


def _placed(image: Image.Image, viewport: Viewport) -> Image.Image:
    """The region, as large as fits into the viewport with its proportions kept (PS3.18 8.3.5.1.3)."""
    left, top, width, height = viewport.region or (0.0, 0.0, float(image.width), float(image.height))
    box = (left, top, min(left + width, image.width), min(top + height, image.height))
    if box[2] <= box[0] or box[3] <= box[1]:
        raise RequestRefused("the region lies outside the image", status=400)
    scale = min(viewport.width / (box[2] - box[0]), viewport.height / (box[3] - box[1]))
    size = (max(1, round((box[2] - box[0]) * scale)), max(1, round((box[3] - box[1]) * scale)))
    return image.resize(size, Image.Resampling.BILINEAR, box=box)
