"""The phantom's scanner and its planes: noise, artefacts, interpolation, and the shortcuts that make them cheap."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from training.sources.phantom.physics import (
    GRID,
    Noise,
    artefacts,
    averaging,
    blur_and_refine,
    interpolating,
    louder_inside,
)
from training.sources.phantom.plane import Plane, Waves, refine


def oblique_plane() -> Plane:
    axis = np.linspace(-60, 60, 91).astype(np.float32)
    return Plane(origin=(3.0, -5.0, 30.0), across=(0.99, 0.1, 0.1), down=(-0.1, 0.95, 0.29), u=axis, v=axis[:70])


def noise(seed: int = 1, size: int = 128) -> Noise:
    return Noise(size, pixel_mm=0.5, sd_hu=5.0, cutoff=0.4, rng=np.random.default_rng(seed))


def test_a_field_on_a_plane_is_the_field_at_its_points() -> None:
    field, plane = Waves.draw(np.random.default_rng(2), wavelength=20), oblique_plane()
    assert field.on(plane) == pytest.approx(field.at(plane.x, plane.y, plane.z), abs=2e-4)
    stretched = field.on(plane, (2.0, 1.0, 0.5))
    assert stretched == pytest.approx(field.at(plane.x * 2, plane.y, plane.z * 0.5), abs=3e-4)


def test_a_field_has_unit_variance() -> None:
    fields = [Waves.draw(np.random.default_rng(seed), wavelength=9).on(oblique_plane()) for seed in range(30)]
    assert np.std(fields) == pytest.approx(1, abs=0.1)


def test_a_smooth_function_survives_the_coarse_lattice() -> None:
    plane = oblique_plane()
    coarse = plane.every(3)
    smooth = np.hypot(coarse.x, coarse.y + 90) + np.cos(coarse.z / 9)
    wanted = np.hypot(plane.x, plane.y + 90) + np.cos(plane.z / 9)
    off = np.abs(refine(smooth, plane, 3) - wanted)[4:-4, 4:-4]
    assert np.percentile(off, 99) < 0.02


@pytest.mark.parametrize(
    "matrix",
    [blur_and_refine(100, 60, pixel_mm=0.5, sigma_mm=0.6), averaging(100, 40), interpolating(100, 60)],
    ids=["blur", "average", "interpolate"],
)
def test_every_change_of_grid_keeps_a_flat_image_flat(matrix: npt.NDArray[np.float32]) -> None:
    assert matrix.sum(1) == pytest.approx(np.ones(len(matrix)), abs=1e-5)


def test_noise_has_the_asked_strength_and_no_memory() -> None:
    source = noise()
    slices = np.stack([source.next() for _ in range(24)])
    assert slices.std() == pytest.approx(5.0, rel=0.05)
    alike = np.asarray(np.corrcoef(slices.reshape(24, -1)))
    assert np.abs(alike[~np.eye(24, dtype=bool)]).max() < 0.1


def test_noise_has_the_band_of_a_reconstruction_kernel() -> None:
    source = noise()
    power = np.mean([np.abs(np.fft.rfft2(source.next())) ** 2 for _ in range(12)], axis=0)
    f = np.hypot(np.fft.fftfreq(128, 0.5)[:, None], np.fft.rfftfreq(128, 0.5)[None])
    low, peak, high = (power[(f > a) & (f < b)].mean() for a, b in ((0.005, 0.04), (0.2, 0.4), (0.85, 1.0)))
    assert low < 0.5 * peak
    assert high < 0.1 * peak


def test_noise_is_loudest_in_the_middle_of_the_head() -> None:
    axis = np.linspace(-110, 110, 45).astype(np.float32)
    factor = louder_inside(axis, axis)
    assert factor[22, 22] == pytest.approx(1.35, abs=1e-3)
    assert factor[0, 0] < 1.05


def test_two_dense_bones_darken_what_lies_between_them() -> None:
    x = np.linspace(-1, 1, 160, dtype=np.float32)[None]
    y = x.T
    head = np.where(x**2 + y**2 < 0.7, 30.0, -1000.0).astype(np.float32)
    for side in (-0.55, 0.55):
        head[(x - side) ** 2 + y**2 < 0.02] = 1600.0
    error = artefacts(head[None], pixel_mm=1.4, rng=np.random.default_rng(1), hardening=0.012, streaks=0.0)
    assert error.shape == (1, GRID, GRID)
    middle, quarter = GRID // 2, GRID // 4
    between = error[0, middle - 2 : middle + 2, middle - 6 : middle + 6].mean()
    above = error[0, quarter : quarter + 4, middle - 6 : middle + 6].mean()
    assert between < above - 2


def test_streaks_grow_where_fewer_photons_arrive() -> None:
    thin, thick = (np.full((1, 160, 160), -1000.0, np.float32) for _ in range(2))
    thin[0, 70:90, 70:90] = thick[0, 20:140, 20:140] = 30.0
    spread = [
        float(artefacts(v, pixel_mm=1.4, rng=np.random.default_rng(1), hardening=0.0, streaks=0.0008).std())
        for v in (thin, thick)
    ]
    assert spread[1] > 2 * spread[0]
