"""What the scanner adds: blur, beam hardening, streaks, and noise with the texture of a reconstruction kernel."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy import sparse

from training.sources.phantom.plane import cubic
from training.sources.phantom.shapes import Field

GRID, ANGLES = 80, 72
"""Size of the image and number of views in which artefacts are computed: they are smooth."""
WATER_PER_MM = 0.02
"""Attenuation of water at the effective energy of a head scan, 1/mm."""


def blur_and_refine(fine: int, coarse: int, *, pixel_mm: float, sigma_mm: float) -> npt.NDArray[np.float32]:
    """The matrix (fine, coarse) that takes one axis to `fine` pixels through a Gaussian point spread function."""
    at = (np.arange(fine) + 0.5) * coarse / fine - 0.5
    taps = np.arange(fine)
    spread = np.exp(-0.5 * ((taps[:, None] - taps[None]) * pixel_mm / sigma_mm) ** 2)
    spread /= spread.sum(1, keepdims=True)
    out: npt.NDArray[np.float32] = (spread.astype(np.float32) @ cubic(at, coarse)).astype(np.float32)
    return out


def averaging(fine: int, coarse: int) -> npt.NDArray[np.float32]:
    """The matrix (coarse, fine) that averages one axis of `fine` pixels down to `coarse` wider ones."""
    edges = np.arange(coarse + 1) * fine / coarse
    low, high = edges[:-1, None], edges[1:, None]
    pixel = np.arange(fine)[None]
    overlap = np.clip(np.minimum(high, pixel + 1) - np.maximum(low, pixel), 0, 1)
    out: npt.NDArray[np.float32] = (overlap * coarse / fine).astype(np.float32)
    return out


def interpolating(fine: int, coarse: int) -> npt.NDArray[np.float32]:
    """The matrix (fine, coarse) that interpolates one axis linearly, so that parts of one stay parts of one."""
    at = np.clip((np.arange(fine) + 0.5) * coarse / fine - 0.5, 0, coarse - 1)
    near: npt.NDArray[np.float32] = np.clip(1 - np.abs(at[:, None] - np.arange(coarse)), 0, 1).astype(np.float32)
    return near


@dataclass(frozen=True, kw_only=True, eq=False)
class Projector:
    """A parallel-beam scanner: `forward` takes images to sinograms, `back` lays filtered sinograms out again."""

    forward: sparse.csr_matrix
    back: sparse.csr_matrix
    detectors: int
    ramp: npt.NDArray[np.float32]


@lru_cache(maxsize=1)
def projector() -> Projector:
    """The scanner of `GRID` × `GRID` pixels and `ANGLES` views, with linear interpolation and a Hann-windowed ramp."""
    detectors = int(np.ceil(GRID * 1.45))
    centred = np.arange(GRID) - (GRID - 1) / 2
    y, x = np.meshgrid(centred, centred, indexing="ij")
    pixels = np.arange(GRID * GRID)
    rows, columns, values = [], [], []
    for view, angle in enumerate(np.arange(ANGLES) * np.pi / ANGLES):
        at = (x * np.cos(angle) + y * np.sin(angle)).ravel() + (detectors - 1) / 2
        left = np.floor(at).astype(int)
        rows += [view * detectors + left, view * detectors + left + 1]
        columns += [pixels, pixels]
        values += [1 - (at - left), at - left]
    entries = (np.concatenate(values).astype(np.float32), (np.concatenate(rows), np.concatenate(columns)))
    forward = sparse.csr_matrix(entries, shape=(ANGLES * detectors, GRID * GRID))
    frequency = np.fft.rfftfreq(2 * detectors)
    ramp = 2 * np.abs(frequency) * (0.5 + 0.5 * np.cos(2 * np.pi * frequency))
    return Projector(forward=forward, back=forward.T.tocsr(), detectors=detectors, ramp=ramp.astype(np.float32))


def _reconstruct(scanner: Projector, sinogram: Field) -> Field:
    """Filtered back projection of (views × detectors, slices) to (slices, GRID, GRID)."""
    stack = sinogram.reshape(ANGLES, scanner.detectors, -1)
    spectrum = np.fft.rfft(stack, 2 * scanner.detectors, axis=1) * scanner.ramp[None, :, None]
    filtered = np.fft.irfft(spectrum, 2 * scanner.detectors, axis=1)[:, : scanner.detectors].astype(np.float32)
    image = scanner.back @ filtered.reshape(ANGLES * scanner.detectors, -1)
    out: Field = (image * (np.pi / (2 * ANGLES))).astype(np.float32).T.reshape(-1, GRID, GRID)
    return out


def artefacts(
    volume: Field, *, pixel_mm: float, rng: np.random.Generator, hardening: float, streaks: float
) -> npt.NDArray[np.float32]:
    """HU errors (slices, GRID, GRID) by bone: dark bars and cupping, and streaks where few photons arrive.

    The error is that of second order in the bone's path length (Joseph and Spital 1978); noise grows with
    exp(path / 2), as counting statistics have it.
    """
    scanner = projector()
    down = averaging(volume.shape[1], GRID)
    small = np.matmul(np.matmul(down, volume), down.T).reshape(len(volume), -1).T
    step_mm = pixel_mm * volume.shape[1] / GRID
    scale = step_mm * WATER_PER_MM
    paths = (scanner.forward @ np.clip(small / 1000 + 1, 0, None).astype(np.float32)) * scale
    bone = (scanner.forward @ (np.clip(small - 200, 0, None) / 1000).astype(np.float32)) * scale
    error = -hardening * (bone * bone + 0.45 * bone * np.maximum(paths - bone, 0))
    noise = rng.standard_normal(paths.shape, dtype=np.float32) * np.exp(np.minimum(paths, 7.5) / 2) * streaks
    return _reconstruct(scanner, ((error + noise) * (1000 / scale)).astype(np.float32)).astype(np.float32)


class Noise:
    """Quantum noise whose power spectrum is that of filtered back projection: f · exp(−(f / cutoff)²).

    A few periodic tiles are made once; each slice gets the sum of two of them, shifted at random. That is new noise
    for every slice at a tenth of the time.
    """

    def __init__(self, size: int, *, pixel_mm: float, sd_hu: float, cutoff: float, rng: np.random.Generator) -> None:
        fy, fx = np.fft.fftfreq(size, pixel_mm)[:, None], np.fft.rfftfreq(size, pixel_mm)[None]
        f = np.sqrt(fx * fx + fy * fy)
        gain = np.sqrt(f * np.exp(-((f / cutoff) ** 2)) + 2e-4).astype(np.float32)
        white = rng.standard_normal((4, size, size), dtype=np.float32)
        tiles = np.fft.irfft2(np.fft.rfft2(white) * gain, s=(size, size)).astype(np.float32)
        self._tiles = tiles * (sd_hu / float(np.sqrt(2)) / tiles.std(axis=(1, 2), keepdims=True))
        self._rng = rng

    def next(self) -> npt.NDArray[np.float32]:
        """The noise of one more slice, in HU."""
        first, second = self._rng.choice(len(self._tiles), size=2, replace=False)
        size = self._tiles.shape[1]
        a = np.roll(self._tiles[first], tuple(self._rng.integers(0, size, 2)), (0, 1))
        b = np.roll(self._tiles[second], tuple(self._rng.integers(0, size, 2)), (0, 1))
        a += b[::-1]
        return np.asarray(a, np.float32)


def louder_inside(across: Field, down: Field) -> npt.NDArray[np.float32]:
    """The factor by which noise rises towards the middle of the head: 1.35 in the centre."""
    square = across[None] ** 2 + down[:, None] ** 2
    return (1 + 0.35 * np.exp(-square / (2 * 60.0**2))).astype(np.float32)
