"""Hounsfield units become the images the papers describe, slice by slice."""

import json
import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from inference.preprocess import (
    BRAIN,
    IMAGENET_MEAN,
    IMAGENET_STD,
    Preprocessing,
    brain_fraction,
    equalising_quantiles,
    image_places,
    prepare,
    resample_masks,
)
from inference.resampling import Cut, Resampling
from inference.threads import in_threads


def slices(*, count: int = 2, rows: int = 64, columns: int = 64, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-1000, 1500, (count, rows, columns), generator=generator).to(torch.int16)


def square_head(*, rows: int, columns: int, top: int, left: int, side: int, hu: int = 40) -> Tensor:
    image = torch.full((1, rows, columns), -1000, dtype=torch.int16)
    image[:, top : top + side, left : left + side] = hu
    return image


def test_the_brain_window_maps_0_to_80_hu_to_0_to_1_and_clips_beyond() -> None:
    hu = torch.tensor([-1000, -1, 0, 20, 40, 80, 81, 2000], dtype=torch.int16).reshape(1, 1, 8).expand(1, 8, 8)
    image = prepare(hu, pixel_spacing=[(1, 1)], preprocessing=Preprocessing(windows=(BRAIN,), size=8))
    assert image[0, 0, 0].tolist() == [0, 0, 0, 0.25, 0.5, 1, 1, 1]


def test_three_windows_are_normalised_like_an_imagenet_image() -> None:
    hu = torch.full((1, 4, 4), 40, dtype=torch.int16)
    image = prepare(hu, pixel_spacing=[(0.5, 0.5)], preprocessing=Preprocessing.three_windows(size=4))
    windowed = torch.tensor([0.5, (40 + 32.5) / 215, (40 + 800) / 2800])
    expected = (windowed - torch.tensor(IMAGENET_MEAN)) / torch.tensor(IMAGENET_STD)
    torch.testing.assert_close(image[0, :, 1, 1], expected)


def test_eight_bit_windows_have_whole_numbered_halves_and_256_grey_levels() -> None:
    hu = torch.arange(-40, 24, dtype=torch.int16).reshape(1, 8, 8)
    chosen = Preprocessing(windows=((75.0, 215.0),), size=8, eight_bit=True)
    levels = prepare(hu, pixel_spacing=[(1, 1)], preprocessing=chosen).flatten() * 255
    torch.testing.assert_close(levels, levels.round())
    assert levels[8].item() == pytest.approx(0)  # -32 HU: 75 - 215 // 2
    assert levels[9].item() == pytest.approx(1)  # 255 / 214 rounded down


def test_the_full_range_maps_air_to_minus_a_quarter_and_bone_to_three_quarters() -> None:
    hu = torch.tensor([[[-1000, 400], [-300, 3000]]], dtype=torch.int16)
    image = prepare(hu, pixel_spacing=[(1, 1)], preprocessing=Preprocessing.full_range(size=2))
    torch.testing.assert_close(image, torch.tensor([[[[-0.25, 0.75], [0.25, 0.75]]]]))


def test_equalising_makes_quantiles_equally_spaced_with_straight_lines_between() -> None:
    hu = torch.tensor([-1024, -1000, -950, 0, 10, 20, 60, 80, 1500, 3000], dtype=torch.int16)
    chosen = Preprocessing(windows=(), quantiles=QUANTILES, size=10)
    image = prepare(hu.expand(1, 10, 10), pixel_spacing=[(1, 1)], preprocessing=chosen)
    expected = torch.tensor([0, 0, 0.5, 2, 2.5, 3, 4.5, 5, 6, 6]) / 6
    torch.testing.assert_close(image, expected.expand(1, 3, 10, 10))


def test_after_equalising_with_its_own_quantiles_a_scan_has_every_grey_equally_often() -> None:
    hu = (torch.randn(4, 64, 64, generator=torch.Generator().manual_seed(0)) * 300 + 100).to(torch.int16)
    quantiles = equalising_quantiles(hu)
    assert len(quantiles) == 102
    chosen = Preprocessing(windows=(), quantiles=quantiles, size=64)
    grey = prepare(hu, pixel_spacing=[(1, 1)] * 4, preprocessing=chosen)[:, 0]
    counts = torch.histc(grey, bins=10, min=0, max=1) / grey.numel()
    assert counts.min() > 0.09
    assert counts.max() < 0.11


def test_quantiles_of_few_values_are_those_values() -> None:
    assert equalising_quantiles(torch.tensor([[-1000, -1000, 40, 40]], dtype=torch.int16)) == (-1000.0, 40.0)


def test_the_brain_fraction_counts_what_lies_between_0_and_80_hu() -> None:
    hu = torch.tensor([[[-5, 0, 1, 79], [80, 81, 40, 40]]], dtype=torch.int16)
    assert brain_fraction(hu).tolist() == [0.5]


def test_the_square_around_the_head_fills_the_image_wherever_the_head_lies_and_however_pixels_are_spaced() -> None:
    hu = torch.full((2, 200, 200), -1000, dtype=torch.int16)
    hu[0, 20:80, 120:150] = 40
    hu[1, 100:160, 30:60] = 40
    hu[:, :, 190:] = 1500  # a table is no head
    chosen = Preprocessing(windows=(BRAIN,), size=64, head_square=True)
    images = prepare(hu, pixel_spacing=[(1.0, 2.0)] * 2, preprocessing=chosen)[:, 0]
    torch.testing.assert_close(images[0], images[1])
    rows, columns = (images[0].sum(axis) > 0 for axis in (1, 0))
    shown_rows, shown_columns = int(rows.sum()), int(columns.sum())
    assert shown_rows == shown_columns, "60 rows of 1 mm are as long as 30 columns of 2 mm"
    assert 35 < shown_rows <= 64
    assert abs(int(rows.nonzero().float().mean()) - 31) <= 1


def test_a_slice_without_a_head_is_shown_whole() -> None:
    air = torch.full((1, 40, 40), -1000, dtype=torch.int16)
    chosen = Preprocessing(windows=(BRAIN,), size=8, head_square=True)
    assert prepare(air, pixel_spacing=[(1, 1)], preprocessing=chosen).tolist() == torch.zeros(1, 1, 8, 8).tolist()


def test_radnet_sees_millimetres_whatever_the_pixel_spacing() -> None:
    """A square of 60 mm covers 60 × 60 pixels of the image, also where rows and columns are spaced differently."""
    image = torch.full((1, 500, 400), -1000, dtype=torch.int16)
    image[:, 250 - 75 : 250 + 75, 200 - 60 : 200 + 60] = 80
    seen = prepare(image, pixel_spacing=[(0.4, 0.5)], preprocessing=Preprocessing.radnet())[0, 0]
    assert seen.shape == (250, 250)
    assert seen.sum().item() == pytest.approx(60 * 60, rel=1e-4)
    assert seen[96:154, 96:154].min() > 0.99
    middle = torch.arange(250) + 0.5
    for axis in (0, 1):
        centre = (seen.sum(1 - axis) * middle).sum() / seen.sum()
        assert centre.item() == pytest.approx(125, abs=0.25)  # half a pixel of the slice


def test_a_small_field_of_view_is_padded_with_air() -> None:
    hu = torch.full((1, 200, 200), 80, dtype=torch.int16)
    image = prepare(hu, pixel_spacing=[(1.0, 1.0)], preprocessing=Preprocessing.radnet())[0, 0]
    assert image[25:225, 25:225].eq(1).all()
    assert image.sum() == 200 * 200


def test_in_a_wide_field_of_view_the_head_is_brought_to_the_middle() -> None:
    hu = square_head(rows=300, columns=300, top=120, left=20, side=160, hu=80)
    hu[:, 290, :] = 80  # a strip of the table
    image = prepare(hu, pixel_spacing=[(1.0, 1.0)], preprocessing=Preprocessing.radnet())[0, 0]
    columns = torch.nonzero(image.sum(0) > 80).flatten()
    assert columns.float().mean().item() == pytest.approx(124.5, abs=1)
    assert image[45:205, 45:205].mean() > 0.98


def test_a_wide_field_of_view_without_tissue_is_cut_at_its_middle() -> None:
    hu = torch.full((1, 300, 300), -1000, dtype=torch.int16)
    image = prepare(hu, pixel_spacing=[(1.0, 1.0)], preprocessing=Preprocessing.radnet())
    assert image.shape == (1, 1, 250, 250)
    assert not image.any()


def test_resampling_agrees_with_torch_antialiased_interpolation() -> None:
    hu = slices(count=1, rows=64, columns=64)
    ours = prepare(hu, pixel_spacing=[(0.5, 0.5)], preprocessing=Preprocessing(windows=(BRAIN,), size=24))
    theirs = functional.interpolate(
        ((hu[:, None].float()) / 80).clamp(0, 1), size=(24, 24), mode="bilinear", antialias=True, align_corners=False
    )
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("spacing", [(0.31, 0.31), (0.426661, 0.426661), (0.5, 0.4), (0.98, 0.98), (1.7, 1.7)])
@pytest.mark.parametrize("shape", [(512, 512), (300, 430)])
def test_any_ratio_has_the_numbers_of_torch_also_where_the_slice_ends(
    shape: tuple[int, int], spacing: tuple[float, float]
) -> None:
    """Slices are cut out, or stand on air, and are scaled down or up: networks were trained with torch's numbers."""
    hu = slices(count=1, rows=shape[0], columns=shape[1])
    size = 250
    ours = prepare(hu, pixel_spacing=[spacing], preprocessing=Preprocessing(windows=(BRAIN,), size=size, pixel_mm=1.0))
    (place,) = image_places(
        hu, pixel_spacing=[spacing], preprocessing=Preprocessing(windows=(BRAIN,), size=size, pixel_mm=1.0)
    )
    top, left = (int(corner) for corner in place.corner)
    rows, columns = (math.ceil(extent - 1e-6) for extent in place.extent)
    canvas = functional.pad(
        (hu[:, None].float() / 80).clamp(0, 1), (-left, left + columns - shape[1], -top, top + rows - shape[0])
    )
    theirs = functional.interpolate(
        canvas,
        scale_factor=tuple((1 + 1e-9) * s for s in spacing),
        mode="bilinear",
        antialias=True,
        recompute_scale_factor=False,
    )[:, :, :size, :size]
    torch.testing.assert_close(ours, theirs, atol=2e-6, rtol=0)


@pytest.mark.parametrize("corner", [(70, -9), (-40, 3), (0, 64), (-90, 99)])
@pytest.mark.parametrize("step", [(0.5, 2.0), (1.0, 1.0)])
def test_what_lies_wholly_outside_of_the_slice_is_air(corner: tuple[int, int], step: tuple[float, float]) -> None:
    resampling = Resampling.of(Cut(corner, step), shape=(64, 64), size=16, device=torch.device("cpu"))
    pixels = torch.ones(64, 1, 1, 64)[resampling.rows, :, :, resampling.columns]
    assert resampling(pixels).tolist() == torch.zeros(16, 1, 1, 16).tolist()


def test_the_number_of_threads_changes_no_number() -> None:
    hu = slices(count=5, rows=300, columns=300)
    made = {}
    for threads in (1, 3):
        usual = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            made[threads] = prepare(hu, pixel_spacing=[(0.6, 0.6)] * 5, preprocessing=Preprocessing.soft_windows())
            assert torch.get_num_threads() == threads
        finally:
            torch.set_num_threads(usual)
    assert torch.equal(made[1], made[3])


def test_what_goes_wrong_in_a_thread_is_raised_and_the_other_pieces_are_done() -> None:
    done = []

    def work(piece: int) -> None:
        if piece == 1:
            raise MemoryError("no room for the second")
        done.append((piece, torch.is_inference_mode_enabled()))

    usual = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        with torch.inference_mode(), pytest.raises(MemoryError, match="second"):
            in_threads(work, range(4))
        assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(usual)
    assert sorted(done) == [(0, True), (2, True), (3, True)]


def test_a_slice_that_is_not_square_is_padded_and_not_distorted() -> None:
    hu = torch.full((1, 20, 40), 80, dtype=torch.int16)
    image = prepare(hu, pixel_spacing=[(1.0, 1.0)], preprocessing=Preprocessing(windows=(BRAIN,), size=40))[0, 0]
    assert image[10:30].eq(1).all()
    assert image.sum() == 20 * 40


@pytest.mark.parametrize("spacing", [0.45, 0.488281, 0.7])
def test_a_slice_of_the_size_of_the_image_is_not_resampled(spacing: float) -> None:
    hu = slices(count=1)
    image = prepare(hu, pixel_spacing=[(spacing, spacing)], preprocessing=Preprocessing(windows=(BRAIN,), size=64))
    assert torch.equal(image, (hu[:, None] / 80).clamp(0, 1))


QUANTILES = (-1000.0, -900.0, 0.0, 20.0, 40.0, 80.0, 1500.0)


@pytest.mark.parametrize(
    "chosen",
    [
        Preprocessing.radnet(size=40, pixel_mm=1.5),
        Preprocessing.three_windows(size=48),
        Preprocessing.soft_windows(size=48),
        Preprocessing.full_range(size=48),
        Preprocessing.equalised(QUANTILES, size=48),
    ],
)
def test_a_slice_gives_the_same_image_alone_and_among_others(chosen: Preprocessing) -> None:
    hu = slices(count=3)
    spacing = [(0.9, 0.9), (4.5, 4.5), (1.1, 0.7)]
    together = prepare(hu, pixel_spacing=spacing, preprocessing=chosen)
    for i in range(3):
        alone = prepare(hu[i : i + 1], pixel_spacing=spacing[i : i + 1], preprocessing=chosen)
        torch.testing.assert_close(together[i : i + 1], alone, atol=1e-6, rtol=0)


def test_masks_follow_the_slice_they_belong_to() -> None:
    hu = square_head(rows=300, columns=300, top=60, left=40, side=120)
    mask = (hu == 40)[:, None]
    chosen = Preprocessing.radnet()
    image = prepare(hu, pixel_spacing=[(1.0, 1.0)], preprocessing=chosen)
    moved = resample_masks(mask, hu, pixel_spacing=[(1.0, 1.0)], preprocessing=chosen)
    torch.testing.assert_close(moved, image * 2)


def test_preprocessing_survives_a_round_trip_through_json_text() -> None:
    for chosen in (
        Preprocessing.radnet(),
        Preprocessing.three_windows(size=256, eight_bit=True),
        Preprocessing.equalised(QUANTILES),
    ):
        assert Preprocessing.from_json(json.loads(json.dumps(chosen.to_json()))) == chosen


@pytest.mark.parametrize(
    "wrong",
    [
        {"windows": (), "size": 8},
        {"windows": ((40.0, 0.0),), "size": 8},
        {"windows": (BRAIN,), "size": 0},
        {"windows": (BRAIN,), "size": 8, "pixel_mm": -1.0},
        {"windows": (BRAIN,), "size": 8, "mean": (0.5, 0.5), "std": (1.0, 1.0)},
        {"windows": (BRAIN,), "size": 8, "mean": (0.5,)},
        {"windows": (BRAIN,), "size": 8, "mean": (0.5,), "std": (0.0,)},
        {"windows": (BRAIN,), "size": 8, "quantiles": (0.0, 1.0)},
        {"windows": (), "size": 8, "quantiles": (0.0,)},
        {"windows": (), "size": 8, "quantiles": (0.0, 0.0)},
        {"windows": (BRAIN,), "size": 8, "pixel_mm": 1.0, "head_square": True},
        {"windows": (BRAIN,), "size": 8, "blank_below": 1.0},
    ],
)
def test_impossible_preprocessing_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"preprocessing|mean and std|std must|quantiles|square|blank_below"):
        Preprocessing.from_json(wrong)


def test_as_many_pixel_spacings_as_slices_are_needed() -> None:
    with pytest.raises(ValueError, match="pixel spacings"):
        prepare(slices(count=2), pixel_spacing=[(1, 1)], preprocessing=Preprocessing.radnet())
