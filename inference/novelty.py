"""Whether a scan is like those a model was trained on: what is measured of it, and how far that lies from them.

Two distances are held against limits that come with the model. The *input* distance looks at the images: sizes,
densities, noise, geometry. The *feature* distance looks at the network's own descriptors, averaged over the scan: the
Mahalanobis distance to the training scans' (Lee et al., NeurIPS 2018), with a covariance that is shrunk (Ledoit and
Wolf 2004).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import SafetensorError

from inference.geometry import analyse
from inference.headcheck import BODY_HU, HeadCheck
from inference.result import Json, Novelty, Rate
from inference.volume import Slice

Floats = NDArray[np.float64]

PERCENTILES = (5, 25, 50, 75, 95)
"""Of the Hounsfield units of everything denser than air, over all slices."""

MOST_NAMED = 3

WORDS = {
    "slices": "number of slices",
    "spacing_mm": "distance of slices (mm)",
    "thickness_mm": "slice thickness (mm)",
    "pixel_mm": "thinned pixels (mm)",
    "covered_mm": "length covered (mm)",
    "body_mm": "width of the head (mm)",
    "skull_mm": "width of the skull (mm)",
    "extent_mm": "length of brain within skull (mm)",
    "air": "part of the head that is air",
    "bone": "part of the head that is bone",
    "tissue": "part of the head that is soft tissue",
    "inside": "part of the skull's inside that is soft tissue",
    "ring": "closedness of the skull",
    "noise": "noise (HU)",
    "brain_hu": "density of the brain (HU)",
    **{f"hu_{p}": f"{p} % of the head below (HU)" for p in PERCENTILES},
}
"""What is measured of a scan, in words."""


@dataclass(frozen=True, kw_only=True)
class Guard(Json):
    """The part of the out-of-distribution guard that stands in the card.

    Attributes
    ----------
    ranges : dict
        The least and the greatest value of each measure over the scans the guard was fitted on.
    input_limit : float
        Of the largest distance of a measure from its range, in widths of the range.
    feature_limit : float or None
        Of the Mahalanobis distance; None where the network's descriptors describe nothing (they are images).
    features_sha256 : str
        Digest (hex) of the file with the descriptors' mean and covariance; filled in by `inference.card.save`.
    data, scans : str, int
        What the guard was fitted on.
    over : Rate or None
        How many scans of the same kind, which it was not fitted on, it took for unlike.
    """

    ranges: dict[str, tuple[float, float]]
    input_limit: float
    feature_limit: float | None = None
    features_sha256: str = ""
    data: str
    scans: int
    over: Rate | None = None

    def __post_init__(self) -> None:
        """Refuses what cannot be held against anything, with ``ValueError``."""
        if unknown := set(self.ranges) - set(WORDS):
            raise ValueError(f"the guard knows no measure {sorted(unknown)}")
        if not self.ranges or any(not low < high for low, high in self.ranges.values()):
            raise ValueError("the guard needs ranges that rise")
        limits = [self.input_limit] if self.feature_limit is None else [self.input_limit, self.feature_limit]
        if not all(0 < limit < np.inf for limit in limits):
            raise ValueError("the guard's limits must be positive numbers")

    def input_distance(self, measures: Mapping[str, float]) -> float:
        """How far the measure that is furthest out lies outside its range, in widths of the range; 0 within all."""
        return max(self._outside(measures).values(), default=0.0)

    def furthest(self, measures: Mapping[str, float]) -> list[str]:
        """The measures over the limit, in words, the furthest first."""
        outside = self._outside(measures)
        over = sorted((n for n in outside if outside[n] > self.input_limit), key=lambda name: -outside[name])
        return [
            f"{WORDS[name]} {measures[name]:.3g}, usual are {self.ranges[name][0]:.3g} to {self.ranges[name][1]:.3g}"
            for name in over[:MOST_NAMED]
        ]

    def in_words(self) -> str:
        """What the guard was fitted on, and how often it took more such scans for unlike."""
        looks_at = "images and features" if self.feature_limit is not None else "images"
        tried = f"; takes {self.over} of others like them for unlike" if self.over else ""
        return f"looks at {looks_at}, fitted on {self.data}{tried}"

    def _outside(self, measures: Mapping[str, float]) -> dict[str, float]:
        return {
            name: max(low - measures[name], measures[name] - high, 0.0) / (high - low)
            for name, (low, high) in self.ranges.items()
            if name in measures
        }


@dataclass(frozen=True, kw_only=True, eq=False)
class Features:
    """Where the training scans' pooled descriptors lie: their mean and, by its axes, their covariance.

    Attributes
    ----------
    mean : float64 (d,)
    axes : float64 (k, d)
        Orthonormal directions of greatest variance.
    variances : float64 (k,)
        Along these.
    rest : float64 (1,)
        Variance along every other direction.
    """

    mean: Floats
    axes: Floats
    variances: Floats
    rest: Floats

    def __post_init__(self) -> None:
        """Refuses what is no covariance, with ``ValueError``."""
        k = len(self.variances)
        if self.axes.shape != (k, len(self.mean)) or self.rest.shape != (1,):
            raise ValueError("axes, variances and mean of the descriptors do not belong together")
        numbers = np.concatenate([array.ravel() for array in (self.mean, self.axes, self.variances, self.rest)])
        if not np.isfinite(numbers).all() or not (self.variances > 0).all() or not self.rest[0] > 0:
            raise ValueError("the descriptors' variances must be positive, finite numbers")

    def distance(self, pooled: Floats) -> float:
        """The Mahalanobis distance of one scan's pooled descriptor (d,)."""
        away = np.asarray(pooled, np.float64) - self.mean
        along = self.axes @ away
        rest = max(float(away @ away - along @ along), 0.0) / float(self.rest[0])
        return float(np.sqrt((along**2 / self.variances).sum() + rest))

    def to_bytes(self) -> bytes:
        """As a safetensors file, in single precision."""
        arrays = {name: np.asarray(getattr(self, name), np.float32) for name in self.__dataclass_fields__}
        return safetensors.numpy.save(arrays)

    @classmethod
    def from_bytes(cls, data: bytes) -> Features:
        """What `to_bytes` wrote. Raises ``ValueError``."""
        try:
            arrays = safetensors.numpy.load(data)
            return cls(**{name: np.asarray(array, np.float64) for name, array in arrays.items()})
        except (SafetensorError, TypeError) as error:
            raise ValueError(f"no features: {error}") from error


def pooled(descriptors: NDArray[np.floating[Any]], *, blank_marked: bool) -> Floats:
    """The mean descriptor (d,) of the slices (s, d) that are read.

    With `blank_marked` a last column says which those are, and does not count itself.
    """
    rows = np.asarray(descriptors, np.float64)
    if blank_marked:
        rows = rows[rows[:, -1] > 0, :-1]
    mean: Floats = rows.mean(0)
    return mean


def measure(thumbnails: Sequence[Slice], head: HeadCheck) -> dict[str, float]:
    """What is measured of a scan of at least one slice, from thinned-out slices and what the head check measured."""
    body = np.concatenate([piece.hu[piece.hu > BODY_HU] for piece in thumbnails])
    geometry = analyse(positions=[s.position for s in thumbnails], orientations=[s.orientation for s in thumbnails])
    at = np.array(geometry.positions_mm)
    thicknesses = [piece.thickness for piece in thumbnails if piece.thickness is not None]
    found = {name: value for name, value in head.measures.items() if name in WORDS}
    found |= {"slices": float(len(at)), "pixel_mm": float(np.median([s.pixel_spacing for s in thumbnails]))}
    if len(at) > 1:
        found |= {"spacing_mm": float(np.median(np.diff(at))), "covered_mm": float(at[-1] - at[0])}
    if thicknesses:
        found["thickness_mm"] = float(np.median(thicknesses))
    if body.size:
        found |= {f"hu_{p}": float(v) for p, v in zip(PERCENTILES, np.percentile(body, PERCENTILES), strict=True)}
    return {name: round(value, 3) for name, value in found.items()}


@dataclass(frozen=True, kw_only=True, eq=False)
class Watch:
    """The whole guard of one model: what stands in the card, and the descriptors' statistics beside it."""

    guard: Guard
    features: Features | None = field(default=None)

    def judge(
        self, measures: Mapping[str, float], descriptors: NDArray[np.floating[Any]], *, blank_marked: bool
    ) -> Novelty:
        """How unlike the scans of training a scan is, from its measures and its slices' descriptors as for `pooled`."""
        seen = self.guard.input_distance(measures)
        felt = self.features.distance(pooled(descriptors, blank_marked=blank_marked)) if self.features else None
        limit = self.guard.feature_limit
        reasons = self.guard.furthest(measures)
        # Not "felt > limit": a distance that is no number is no proof of likeness.
        if felt is not None and limit is not None and not felt <= limit:
            reasons.append(
                f"the network's features lie {felt:.1f} from those of training, at most {limit:.1f} is usual"
            )
        return Novelty(
            unlike=bool(reasons),
            sentence="; ".join(reasons),
            input_distance=seen,
            input_limit=self.guard.input_limit,
            feature_distance=felt,
            feature_limit=limit,
            measures=dict(measures),
        )
