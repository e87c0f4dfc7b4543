"""Phantom heads as training data: which heads are drawn, and where they lie once prepared for each model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from inference.headcheck import check_head
from inference.novelty import measure
from inference.place import place_of
from inference.preprocess import Preprocessing
from inference.result import Json
from inference.study import thumbnail
from inference.volume import Slice
from training import dataset
from training.dataset import Scan
from training.sources.phantom import PRESETS, PhantomStudy, Spec, make_study


@dataclass(frozen=True, kw_only=True)
class Heads(Json):
    """A population of phantom heads; head `n` is drawn from seed ``first + n`` and belongs to the patient of that name.

    Half of them bleed. Sizes and thicknesses are listed as often as they shall occur.
    """

    first: int
    count: int
    presets: tuple[str, ...] = ("easy", "easy", "real")
    sizes: tuple[int, ...] = (512, 512, 512, 256)
    thicknesses_mm: tuple[float, ...] = (3.0, 4.0, 5.0, 5.0, 5.0, 6.0)
    """Nominal thickness, equal to the distance of the slices"""

    def spec(self, seed: int) -> tuple[str, Spec]:
        """Name of the preset of head `seed`, and what is asked of the phantom."""
        rng = np.random.default_rng((seed, 77))
        preset = self.presets[rng.integers(len(self.presets))]
        size = self.sizes[rng.integers(len(self.sizes))]
        thickness = self.thicknesses_mm[rng.integers(len(self.thicknesses_mm))]
        return preset, replace(PRESETS[preset], size=size, thickness_mm=thickness)


@dataclass(frozen=True, kw_only=True)
class Head:
    """A phantom study as `training.dataset.LabelledStudy`."""

    study: PhantomStudy

    @property
    def hu(self) -> NDArray[np.int16]:
        """Hounsfield units, (slices, rows, columns)."""
        return self.study.hu

    @property
    def masks(self) -> NDArray[np.bool_]:
        """One mask for each subtype, (5, slices, rows, columns)."""
        return self.study.masks

    @property
    def labels(self) -> NDArray[np.float32]:
        """0 or 1 for each slice, *any* first, (slices, 6)."""
        return self.study.labels

    @property
    def pixel_spacing(self) -> tuple[float, float]:
        """Distance of rows and of columns in mm."""
        rows, columns = self.study.pixel_spacing.tolist()
        return rows, columns

    @property
    def slices(self) -> tuple[Slice, ...]:
        """The slices as a reader would have them from their files."""
        x, y, z, u, v, w = self.study.orientation.tolist()
        return tuple(
            Slice(
                sop_instance_uid=str(i),
                hu=hu,
                position=(position[0], position[1], position[2]),
                orientation=(x, y, z, u, v, w),
                pixel_spacing=self.pixel_spacing,
                thickness=thickness,
            )
            for i, (hu, position, thickness) in enumerate(
                zip(self.hu, self.study.positions.tolist(), self.study.thickness.tolist(), strict=True)
            )
        )


def make(folder: Path, heads: Heads, models: Mapping[str, Preprocessing], *, workers: int = 1) -> None:
    """Draw every head that is not on disk yet and write it to ``folder/model/seed`` for each of the `models`."""
    seeds = range(heads.first, heads.first + heads.count)
    missing = [s for s in seeds if not all((place(folder, name, s) / "scan.json").exists() for name in models)]
    work = partial(_make_one, folder, heads, dict(models))
    if workers == 1 or len(missing) < workers:
        for seed in missing:
            work(seed)
        return
    with ProcessPoolExecutor(
        workers, mp_context=get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        for _ in pool.map(work, missing):
            pass


def load(folder: Path, model: str, heads: Heads) -> list[Scan]:
    """The prepared heads of one model, in the order of their seeds."""
    return [dataset.load(place(folder, model, s)) for s in range(heads.first, heads.first + heads.count)]


def place(folder: Path, model: str, seed: int) -> Path:
    """Where head `seed` lies once it is prepared for one model."""
    return folder / model / f"{seed:08d}"


def of(scans: Sequence[Scan], patients: Sequence[str]) -> list[Scan]:
    """The scans of these patients."""
    wanted = set(patients)
    return [scan for scan in scans if scan.facts.patient in wanted]


def _make_one(folder: Path, heads: Heads, models: dict[str, Preprocessing], seed: int) -> None:
    preset, spec = heads.spec(seed)
    study = Head(study=make_study(seed=seed, spec=spec))
    slices = study.slices
    thumbnails = [thumbnail(piece) for piece in slices]
    measures = measure(thumbnails, check_head(thumbnails))
    for name, preprocessing in models.items():
        dataset.prepare(
            study,
            place(folder, name, seed),
            patient=f"phantom-{seed}",
            group=preset,
            preprocessing=preprocessing,
            positions_mm=tuple(place_of(piece).position_mm for piece in slices),
            measures=measures,
        )
