"""What a network sees can be put back where it was on the slice, whatever was cut off, added or scaled on the way."""

import numpy as np
import pytest
import torch

from inference.image_place import ImagePlace
from inference.preprocess import Preprocessing, image_places, prepare, resample_masks

AS_ACQUIRED = Preprocessing.three_windows(size=128)
MILLIMETRES = Preprocessing.radnet(size=250)
AROUND_THE_HEAD = Preprocessing.equalised((-1000.0, 0.0, 80.0, 1000.0), size=96)


def a_slice(*, rows: int, columns: int, blob: tuple[float, float]) -> torch.Tensor:
    """A head of brain off the middle of air, with a smooth bleed around `blob`: HU (1, rows, columns)."""
    y, x = np.mgrid[:rows, :columns]
    hu = np.where(np.hypot((y - 0.45 * rows) / 0.36 / rows, (x - 0.55 * columns) / 0.3 / columns) < 1, 20.0, -1000)
    hu += 50 * np.exp(-((y - blob[0]) ** 2 + (x - blob[1]) ** 2) / (2 * (0.04 * rows) ** 2)) * (hu > 0)
    return torch.from_numpy(hu.round().astype(np.int16))[None]


@pytest.mark.parametrize(
    ("preprocessing", "shape", "spacing"),
    [
        (MILLIMETRES, (512, 512), (0.45, 0.45)),
        (MILLIMETRES, (512, 512), (0.6, 0.6)),  # a wide field of view: cut around the head, not the middle
        (MILLIMETRES, (128, 128), (2.0, 2.0)),
        (AS_ACQUIRED, (512, 512), (0.45, 0.45)),
        (AS_ACQUIRED, (300, 400), (0.5, 0.7)),
        (AS_ACQUIRED, (100, 90), (1.0, 1.0)),
        (AROUND_THE_HEAD, (512, 400), (0.5, 0.5)),
    ],
)
def test_a_bleed_comes_back_to_where_it_was(
    preprocessing: Preprocessing, shape: tuple[int, int], spacing: tuple[float, float]
) -> None:
    blob = (0.4 * shape[0], 0.6 * shape[1])
    hu = a_slice(rows=shape[0], columns=shape[1], blob=blob)
    image = prepare(hu, pixel_spacing=[spacing], preprocessing=preprocessing)[0, :1].numpy()
    (place,) = image_places(hu, pixel_spacing=[spacing], preprocessing=preprocessing)
    back = place.on_slice(image)[0]
    assert back.shape == shape
    # Compared with the same slice whose image was not scaled: brain is 20 HU, the bleed is up to 50 more.
    bright = np.clip(back - np.median(back[hu[0].numpy() == 20]), 0, None) * (hu[0].numpy() > 0)
    y, x = np.mgrid[: shape[0], : shape[1]]
    middle = ((bright * y).sum() / bright.sum(), (bright * x).sum() / bright.sum())
    assert middle == pytest.approx(blob, abs=0.5)


def test_the_way_there_and_back_of_a_smooth_map_is_the_map() -> None:
    hu = a_slice(rows=512, columns=512, blob=(200, 300))
    y, x = np.mgrid[:512, :512]
    smooth = np.exp(-((y - 200) ** 2 + (x - 300) ** 2) / (2 * 30**2)).astype(np.float32)
    (place,) = image_places(hu, pixel_spacing=[(0.45, 0.45)], preprocessing=MILLIMETRES)
    there = resample_masks(
        torch.from_numpy(smooth)[None, None], hu, pixel_spacing=[(0.45, 0.45)], preprocessing=MILLIMETRES
    )
    np.testing.assert_allclose(place.on_slice(there[0].numpy())[0], smooth, atol=0.01)


def test_where_the_scales_are_equal_pixels_come_back_as_they_were_and_beyond_the_image_is_nothing() -> None:
    place = ImagePlace(shape=(8, 6), corner=(2, -1), extent=(4, 5))
    image = np.arange(1.0, 21.0).reshape(1, 4, 5)
    back = place.on_slice(image)[0]
    np.testing.assert_allclose(back[2:6, :4], image[0, :, 1:], rtol=1e-6)
    back[2:6, :4] = 0
    assert not back.any()


def test_the_mean_over_an_area_survives_a_coarser_grid() -> None:
    fine = np.random.default_rng(0).random((1, 64, 64))
    place = ImagePlace(shape=(16, 16), corner=(0, 0), extent=(16, 16))
    assert place.on_slice(fine).mean() == pytest.approx(fine.mean(), abs=0.01)


def test_a_map_of_a_padded_image_is_as_much_wider_as_the_padding() -> None:
    place = ImagePlace(shape=(512, 512), corner=(6, 6), extent=(500, 500))
    wider = place.wider(size=250, before=3, behind=3)
    assert (wider.corner, wider.extent) == ((0, 0), (512, 512))
