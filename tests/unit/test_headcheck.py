"""A head with brain is told from everything else a CT scanner can send, by its pixels."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom.data import get_testdata_file

from inference.headcheck import HeadCheck, check_head
from inference.volume import Slice, order, read_slices
from training.sources.phantom import REAL as REAL_PHANTOM
from training.sources.phantom import make_study

REAL = Path(os.environ.get("HEMONODE_HEAD_CT", Path(__file__).parents[3] / "shared" / "data" / "head_ct_ge"))
real_scan = pytest.mark.skipif(not REAL.is_dir(), reason="the real head CT is not on this machine")

SIZE, FOV_MM = 128, 250.0
Picture = NDArray[np.float64]
Draw = Callable[[Picture, Picture, float], Picture]


def ellipse(x: Picture, y: Picture, wide: float, high: float, *, at: tuple[float, float] = (0, 0)) -> NDArray[np.bool_]:
    """Pixels within an ellipse given by its full width and height in mm."""
    return np.asarray(((x - at[0]) / (wide / 2)) ** 2 + ((y - at[1]) / (high / 2)) ** 2 < 1)


def scan(
    draw: Draw,
    *,
    slices: int = 28,
    step: float = 5.0,
    noise: float = 5.0,
    fov: float = FOV_MM,
    centre: tuple[float, float] = (0.0, 0.0),
    tilt: float = 0.0,
) -> list[Slice]:
    """Axial slices of what `draw(x, y, z)` says in HU, with noise; z from 0 at the lowest slice."""
    rng = np.random.default_rng(7)
    mm = fov / SIZE
    axis = (np.arange(SIZE) - (SIZE - 1) / 2) * mm
    x, y = np.meshgrid(axis - centre[0], axis - centre[1])
    cosine, sine = math.cos(math.radians(tilt)), math.sin(math.radians(tilt))
    return [
        Slice(
            sop_instance_uid=f"1.{i}",
            hu=np.clip(draw(x, y, i * step) + rng.normal(0, noise, x.shape), -1024, 32767).astype(np.int16),
            position=(0.0, 0.0, i * step / cosine),
            orientation=(1.0, 0.0, 0.0, 0.0, cosine, -sine),
            pixel_spacing=(mm, mm),
            thickness=step,
        )
        for i in range(slices)
    ]


# Heads


def head(*, scale: float = 1.0, skull_mm: float = 7.0, skull_hu: float = 900.0) -> Draw:
    """Scalp, skull, brain with ventricles, and below 40 mm a skull base with air in it."""

    def draw(x: Picture, y: Picture, z: float) -> Picture:
        narrowing = scale * math.sqrt(max(0.05, 1 - (max(0.0, z - 50 * scale) / (95 * scale)) ** 2))
        wide, high = 150 * narrowing, 190 * narrowing
        picture = np.full(x.shape, -1000.0)
        picture[ellipse(x, y, wide, high)] = 40
        picture[ellipse(x, y, wide - 10, high - 10)] = skull_hu
        inner = ellipse(x, y, wide - 10 - 2 * skull_mm, high - 10 - 2 * skull_mm)
        picture[inner] = 33
        if z > 40 * scale:
            picture[inner & ellipse(x, y, 30 * scale, 60 * scale)] = 6
        else:
            for side in (-1, 1):
                picture[inner & ellipse(x, y, 50 * scale, 22 * scale, at=(side * 40 * scale, 5))] = 700
            picture[inner & ellipse(x, y, 40 * scale, 40 * scale, at=(0, -60 * scale))] = -900
        return picture

    return draw


HEADS: dict[str, list[Slice]] = {
    "adult": scan(head()),
    "small child": scan(head(scale=0.62, skull_mm=2.5, skull_hu=450), step=3, slices=32),
    "large adult": scan(head(scale=1.18), slices=34),
    "thick slices": scan(head(), step=10, slices=14),
    "thin noisy slices": scan(head(), step=1, slices=140, noise=20),
    "tilted": scan(head(), tilt=18.5),
    "off-centre": scan(head(), centre=(35, -20)),
    "wide field of view": scan(head(), fov=450),
    "narrow field of view that cuts the sides": scan(head(), fov=135),
    "mostly skull base": scan(head(), slices=13),
    "without the vertex": scan(head(), slices=20),
    "vertex only": scan(lambda x, y, z: head()(x, y, z + 60), slices=16),
}


@pytest.mark.parametrize("name", HEADS)
def test_a_head_is_a_head(name: str) -> None:
    found = check_head(HEADS[name])
    assert found.ok, found
    assert found.reason.startswith("brain within skull over ")
    assert 15 < found.measures["brain_hu"] < 45


def test_a_craniectomy_is_a_head() -> None:
    def opened(x: Picture, y: Picture, z: float) -> Picture:
        picture = head()(x, y, z)
        window = (np.abs(np.arctan2(y, x)) < math.radians(48)) & (picture > 500)
        return np.where(window & (z > 30), 40.0, picture)

    assert check_head(scan(opened)).ok


def test_metal_and_a_head_holder_do_not_hide_a_head() -> None:
    def dressed(x: Picture, y: Picture, z: float) -> Picture:
        picture = head()(x, y, z)
        shell = ellipse(x, y, 232, 236) & ~ellipse(x, y, 226, 230) & (y > 0)
        picture[shell] = 60
        picture[ellipse(x, y, 8, 8, at=(20, 20))] = 3071
        return picture

    assert check_head(scan(dressed)).ok


def test_a_large_bleed_with_midline_shift_is_a_head() -> None:
    def bled(x: Picture, y: Picture, z: float) -> Picture:
        picture = head()(x, y, z)
        return np.where((picture < 100) & ellipse(x, y, 70, 90, at=(25, 10)) & (picture > -100), 70.0, picture)

    assert check_head(scan(bled)).ok


def test_a_head_with_the_neck_below_it_is_a_head() -> None:
    def down_to_the_chest(x: Picture, y: Picture, z: float) -> Picture:
        if z >= 150:
            return head()(x, y, z - 150)
        picture = np.full(x.shape, -1000.0)
        picture[ellipse(x, y, 130, 140)] = 50
        picture[ellipse(x, y, 40, 35, at=(0, 30))] = 500
        picture[ellipse(x, y, 18, 16, at=(0, -20))] = -950
        return picture

    assert check_head(scan(down_to_the_chest, slices=58)).ok


@pytest.mark.parametrize("every", [1, 2])
def test_thinned_out_slices_and_shuffled_ones_give_the_same_answer(every: int) -> None:
    thinned = [
        dataclasses.replace(
            s, hu=np.ascontiguousarray(s.hu[::every, ::every]), pixel_spacing=(s.pixel_spacing[0] * every,) * 2
        )
        for s in HEADS["adult"]
    ]
    assert check_head(thinned[::-1]).ok
    assert check_head(thinned[::-1]) == check_head(thinned)


# Everything else


def chest(*, scale: float = 1.0) -> Draw:
    """Fat, muscle, ribs that slant through the slices, lungs, heart, spine and sternum."""

    def draw(x: Picture, y: Picture, z: float) -> Picture:
        x, y = x / scale, y / scale
        picture = np.full(x.shape, -1000.0)
        picture[ellipse(x, y, 340, 240)] = -90
        picture[ellipse(x, y, 310, 210)] = 55
        for lung in (-1, 1):
            picture[ellipse(x, y, 120, 165, at=(lung * 72, -2))] = -850
        picture[ellipse(x, y, 90, 80, at=(15, -35))] = 40
        picture[ellipse(x, y, 45, 40, at=(0, 75))] = 350
        picture[ellipse(x, y, 35, 14, at=(0, -92))] = 300
        turn = np.arctan2(y / 210, x / 310)
        wall = ellipse(x, y, 300, 200) & ~ellipse(x, y, 278, 178)
        picture[wall & (np.sin(7 * turn + z / 4) > 0.2)] = 500
        return picture

    return draw


def abdomen(*, scale: float = 1.0) -> Draw:
    """Fat, liver, bowel with air, kidneys and spine."""

    def draw(x: Picture, y: Picture, z: float) -> Picture:
        x, y = x / scale, y / scale
        picture = np.full(x.shape, -1000.0)
        picture[ellipse(x, y, 330, 240)] = -100
        picture[ellipse(x, y, 290, 200)] = 50
        picture[ellipse(x, y, 120, 130, at=(-70, -10))] = 60
        picture[ellipse(x, y, 60, 50, at=(60, -40))] = -700
        picture[ellipse(x, y, 45, 40, at=(0, 70))] = 400
        return picture

    return draw


def knees(x: Picture, y: Picture, _z: float) -> Picture:
    picture = np.full(x.shape, -1000.0)
    for side in (-1, 1):
        at = (side * 62.0, 0.0)
        picture[ellipse(x, y, 118, 125, at=at)] = 55
        picture[ellipse(x, y, 85, 75, at=at)] = 900
        picture[ellipse(x, y, 75, 65, at=at)] = 150
    return picture


def thigh(x: Picture, y: Picture, _z: float) -> Picture:
    picture = np.full(x.shape, -1000.0)
    picture[ellipse(x, y, 170, 175)] = 55
    picture[ellipse(x, y, 34, 34)] = 1300
    picture[ellipse(x, y, 18, 18)] = 20
    return picture


def cylinder(inside: float, *, wall: float = 120.0, wide: float = 200.0) -> Draw:
    def draw(x: Picture, y: Picture, _z: float) -> Picture:
        picture = np.full(x.shape, -1000.0)
        picture[ellipse(x, y, wide, wide)] = wall
        picture[ellipse(x, y, wide - 14, wide - 14)] = inside
        return picture

    return draw


def constant(value: float) -> Draw:
    return lambda x, _y, _z: np.full(x.shape, value)


def neck(x: Picture, y: Picture, _z: float) -> Picture:
    picture = np.full(x.shape, -1000.0)
    picture[ellipse(x, y, 130, 140)] = 50
    picture[ellipse(x, y, 45, 40, at=(0, 25))] = 500
    picture[ellipse(x, y, 16, 16, at=(0, 25))] = 25
    picture[ellipse(x, y, 18, 16, at=(0, -20))] = -950
    return picture


OTHERS: dict[str, tuple[list[Slice], str]] = {
    "chest": (scan(chest(), fov=380, slices=50), "air"),
    "chest of a child": (scan(chest(scale=0.5), fov=220), "air"),
    "chest of a baby in a head's field of view": (scan(chest(scale=0.35)), "air"),
    "abdomen": (scan(abdomen(), fov=380), "not a head"),
    "abdomen of a child": (scan(abdomen(scale=0.5)), "not a head"),
    "water phantom": (scan(cylinder(0)), "no bone"),
    "solid phantom": (scan(cylinder(120)), "no bone"),
    "phantom with the density of brain": (scan(cylinder(35)), "no bone"),
    "water within a ring like bone": (scan(cylinder(0, wall=900)), "measures 0 HU"),
    "air": (scan(constant(-1000)), "nothing but air"),
    "padding": (scan(constant(-1024), noise=0), "nothing but air"),
    "zeros": (scan(constant(0), noise=0), "no bone"),
    "knees": (scan(knees), "not a head"),
    "thigh": (scan(thigh), "not a head"),
    "neck": (scan(neck), "not a head"),
    "noise": (scan(constant(0), noise=600), "noise of"),
    "noise around the density of brain": (scan(constant(35), noise=120, fov=200), "noise of"),
    "a head lost in noise": (scan(head(), noise=150), "noise of"),
    "bone": (scan(constant(1000)), "not a head"),
    "metal": (scan(constant(3071), noise=0), "not a head"),
    "unsigned values without their offset": (scan(lambda x, y, z: head()(x, y, z) + 1024), "only 0%"),
    "no more than 10 mm of a head": (scan(lambda x, y, z: head()(x, y, z + 60), slices=10, step=1), "only"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_anything_else_is_not_a_head_and_the_sentence_says_why(name: str) -> None:
    slices, sentence = OTHERS[name]
    found = check_head(slices)
    assert not found.ok, found
    assert sentence in found.reason


def test_no_slices_are_not_a_head() -> None:
    assert check_head([]) == HeadCheck(ok=False, reason="there is no slice to look at")


def test_one_slice_of_brain_is_not_enough() -> None:
    assert not check_head(HEADS["adult"][12:13]).ok


def test_the_answer_survives_json() -> None:
    found = check_head(HEADS["adult"])
    assert HeadCheck.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_forty_slices_are_checked_within_a_tenth_of_a_second() -> None:
    slices = scan(head(), slices=40, step=3.5)
    best = math.inf
    for _ in range(5):
        start = time.perf_counter()
        check_head(slices)
        best = min(best, time.perf_counter() - start)
    assert best < 0.1


@pytest.mark.parametrize("seed", range(2))
def test_phantom_heads_with_and_without_blood_are_heads(seed: int) -> None:
    study = make_study(seed=seed, spec=dataclasses.replace(REAL_PHANTOM, size=128))
    spacing = (float(study.pixel_spacing[0]), float(study.pixel_spacing[1]))
    orientation = tuple(map(float, study.orientation))
    assert len(orientation) == 6
    slices = [
        Slice(
            sop_instance_uid=f"1.{i}",
            hu=hu,
            position=(float(place[0]), float(place[1]), float(place[2])),
            orientation=orientation,
            pixel_spacing=spacing,
        )
        for i, (hu, place) in enumerate(zip(study.hu, study.positions, strict=True))
    ]
    assert check_head(slices).ok


def test_a_real_abdomen_is_not_a_head() -> None:
    path = get_testdata_file("CT_small.dcm", download=False)
    assert path is not None
    (one,) = read_slices(str(path))
    found = check_head([dataclasses.replace(one, position=(0.0, 0.0, 5.0 * i)) for i in range(30)])
    assert not found.ok


# The real scan, and what can happen to one


def real() -> list[Slice]:
    return [s for path in sorted(REAL.glob("*.dcm")) for s in read_slices(path)]


@real_scan
def test_the_real_scan_is_a_head() -> None:
    found = check_head(real())
    assert found.ok
    assert found.measures["extent_mm"] > 60
    assert 20 < found.measures["brain_hu"] < 40


@real_scan
@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("a child", lambda s: dataclasses.replace(s, pixel_spacing=(0.3, 0.3))),
        ("cut on the left", lambda s: dataclasses.replace(s, hu=np.ascontiguousarray(s.hu[:, 150:]))),
        ("cut all round", lambda s: dataclasses.replace(s, hu=np.ascontiguousarray(s.hu[90:-90, 130:-130]))),
        ("lying on the side", lambda s: dataclasses.replace(s, hu=np.ascontiguousarray(np.rot90(s.hu)))),
        ("prone", lambda s: dataclasses.replace(s, hu=np.ascontiguousarray(s.hu[::-1]))),
        ("turned by 45 degrees", lambda s: dataclasses.replace(s, hu=turned(s.hu))),
        ("thinned out", lambda s: dataclasses.replace(
            s, hu=np.ascontiguousarray(s.hu[::4, ::4]), pixel_spacing=(s.pixel_spacing[0] * 4, s.pixel_spacing[1] * 4)
        )),
        ("with contrast", lambda s: dataclasses.replace(s, hu=np.where(s.hu > 0, s.hu + 12, s.hu).astype(np.int16))),
    ],
)  # fmt: skip
def test_what_happens_to_real_heads_leaves_them_heads(name: str, change: Callable[[Slice], Slice]) -> None:
    found = check_head([change(s) for s in real()])
    assert found.ok, (name, found)


@real_scan
def test_a_bone_flap_taken_from_the_real_scan_leaves_it_a_head() -> None:
    def opened(s: Slice) -> Slice:
        y, x = np.mgrid[: s.hu.shape[0], : s.hu.shape[1]]
        window = (np.abs(np.arctan2(y - 260, x - 256)) < math.radians(50)) & (s.hu > 150)
        return dataclasses.replace(s, hu=np.where(window, 45, s.hu).astype(np.int16))

    assert check_head([opened(s) for s in real()]).ok


@real_scan
def test_averaged_slices_of_the_real_scan_are_a_head() -> None:
    slices = order(real()).slices
    pairs = [
        dataclasses.replace(a, hu=((a.hu.astype(np.int32) + b.hu) // 2).astype(np.int16))
        for a, b in zip(slices[::2], slices[1::2], strict=True)
    ]
    assert check_head(pairs).ok


def turned(hu: NDArray[np.int16]) -> NDArray[np.int16]:
    """The picture turned by 45 degrees, nearest pixel."""
    size = hu.shape[0]
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    half = math.sqrt(0.5)
    row = np.rint((x + y) * half + (size - 1) / 2).astype(int)
    column = np.rint((x - y) * half + (size - 1) / 2).astype(int)
    inside = (row >= 0) & (row < size) & (column >= 0) & (column < size)
    return np.where(inside, hu[np.clip(row, 0, size - 1), np.clip(column, 0, size - 1)], -1024).astype(np.int16)
