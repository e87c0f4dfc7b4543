"""Pictures of where a model looked: each slice in the brain window with the map in colour over it, for people."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageOps

from inference.attention import Kind, ScanMaps
from inference.place import ScanSlice
from inference.result import ModelReading

BRAIN_HU = (0.0, 80.0)
STRIP = 44
"""Rows under the picture for what is said about it."""

SHEET_SIDE = 160
SHEET_COLUMNS = 8
STRONGEST = 0.65
"""How much of the grey the colour covers at most."""

_KINDS = {Kind.MASK: "mask trained as a segmentation", Kind.GRAD_CAM: "Grad-CAM: what raised the score, no outline"}


def write(
    folder: Path, reading: ModelReading, maps: ScanMaps, slices: Iterable[ScanSlice], *, warning: str
) -> list[Path]:
    """A PNG of every slice in ``folder/model``, numbered from feet to head, and one sheet of all beside them.

    `warning` stands on each of them.
    """
    target = folder / reading.name
    target.mkdir(parents=True, exist_ok=True)
    written, small = [], []
    for number, (picture, lines) in enumerate(_pictures(reading, maps, slices), start=1):
        small.append(ImageOps.contain(picture, (SHEET_SIDE, SHEET_SIDE)))
        written.append(target / f"{number:04d}.png")
        _labelled(picture, [*lines, warning]).save(written[-1])
    written.append(folder / f"{reading.name}.png")
    _sheet(small, [_said_of(reading, maps), warning]).save(written[-1])
    return written


def _pictures(
    reading: ModelReading, maps: ScanMaps, slices: Iterable[ScanSlice]
) -> Iterator[tuple[Image.Image, list[str]]]:
    scores = {(s.sop_instance_uid, s.frame): s.scores for s in reading.slices}
    for seen, piece in zip(maps.slices, slices, strict=True):
        score = scores.get((piece.sop_instance_uid, piece.frame), {}).get(maps.label)
        said = f"{seen.place.position_mm:.1f} mm" + ("" if score is None else f", {maps.label} {score:.2f}")
        yield Image.fromarray(coloured(piece.hu, seen.on_slice())), [said, _said_of(reading, maps)]


def coloured(hu: NDArray[np.int16], seen: NDArray[np.floating]) -> NDArray[np.uint8]:
    """RGB (rows, columns, 3): the brain window in grey, the map from red to yellow over it, nothing where it is 0."""
    low, high = BRAIN_HU
    grey = np.clip((hu.astype(np.float32) - low) / (high - low), 0, 1)[..., None].repeat(3, axis=2)
    strength = np.clip(seen, 0, 1)[..., None]
    colour = np.concatenate([np.ones_like(strength), strength, np.zeros_like(strength)], axis=2)
    mixed = grey * (1 - STRONGEST * strength) + colour * STRONGEST * strength
    eight_bit: NDArray[np.uint8] = np.rint(255 * mixed).astype(np.uint8)
    return eight_bit


def _said_of(reading: ModelReading, maps: ScanMaps) -> str:
    return f"{reading.name} {reading.version}, {maps.label}: {_KINDS[maps.kind]}"


def _labelled(picture: Image.Image, lines: list[str]) -> Image.Image:
    canvas = Image.new("RGB", (max(picture.width, 320), picture.height + STRIP))
    canvas.paste(picture)
    drawing = ImageDraw.Draw(canvas)
    for i, line in enumerate(lines):
        drawing.text((3, picture.height + 2 + 14 * i), line, fill=(255, 255, 255))
    return canvas


def _sheet(pictures: list[Image.Image], lines: list[str]) -> Image.Image:
    rows = -(-len(pictures) // SHEET_COLUMNS)
    sheet = Image.new("RGB", (SHEET_COLUMNS * SHEET_SIDE, rows * SHEET_SIDE))
    for i, picture in enumerate(pictures):
        sheet.paste(picture, (i % SHEET_COLUMNS * SHEET_SIDE, i // SHEET_COLUMNS * SHEET_SIDE))
    return _labelled(sheet, lines)
