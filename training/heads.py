"""Phantom heads as labelled studies: which heads are drawn, and how."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from inference.facts import facts
from inference.result import Json
from inference.stacks import planes_of
from training.dataset import Scan
from training.sources.folder import of_planes
from training.sources.phantom import MAKERS, PRESETS, Spec, make_study
from training.sources.phantom.dicom import instances
from training.study import Arrays, CohortFacts, LabelledStudy, slice_digests, volume_key

SMALL = 64
"""Rows and columns of a head of which only the headers are wanted."""

DRAWN = 2
"""Raised when a seed draws another head, so that no cache gives the old one."""


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


def studies(heads: Heads) -> Iterator[LabelledStudy]:
    """The heads in the order of their seeds; each is drawn when it is decoded."""
    for seed in range(heads.first, heads.first + heads.count):
        preset, spec = heads.spec(seed)
        yield LabelledStudy(
            source="phantom",
            patient=patient_of(seed),
            study_uid=f"phantom-{seed}",
            group=preset,
            key=volume_key("phantom", DRAWN, seed, asdict(spec)),
            decode=partial(_drawn, seed, spec),
            headers=partial(_headers, seed, spec),
            facts=CohortFacts(thickness_mm=spec.thickness_mm, spacing_mm=spec.thickness_mm),
        )


def patient_of(seed: int) -> str:
    """The patient to whom the head of `seed` belongs. Not hashed: it is nobody."""
    return f"phantom-{seed}"


def of(scans: Sequence[Scan], patients: Sequence[str]) -> list[Scan]:
    """The scans of these patients."""
    wanted = set(patients)
    return [scan for scan in scans if scan.facts.patient in wanted]


def _drawn(seed: int, spec: Spec) -> Arrays:
    study: Any = make_study(seed=seed, spec=spec)
    bits = sum(mask.astype(np.uint8) << index for index, mask in enumerate(study.masks))
    along = study.positions - study.positions[0]
    return {
        "hu": study.hu,
        "spacing": np.asarray(study.pixel_spacing, np.float64),
        "positions": np.linalg.norm(along, axis=1),
        "thickness": np.asarray(study.thickness, np.float64),
        "uids": np.array([str(place) for place in range(len(study.hu))]),
        "digests": slice_digests(study.hu),
        "labels": study.labels,
        "masks": np.asarray(bits, np.uint8),
    }


def _headers(seed: int, spec: Spec) -> Arrays:
    """What a scanner of one maker after the other would write into the headers, without drawing more than it must."""
    study: Any = make_study(seed=seed, spec=replace(spec, size=SMALL))
    maker = list(MAKERS.values())[seed % len(MAKERS)]
    planes = planes_of([facts(header) for header in instances(study, maker=maker)])
    along = np.argsort(study.positions[:, 2])
    planes.sort(key=lambda plane: plane.facts.positions[0][2] if plane.facts.positions[0] else 0.0)
    return {**of_planes(planes), "labels": study.labels[along]}
