"""From slice scores to one statement about the scan: calibration, scan rules, and the combination of several models."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inference.result import Json


@dataclass(frozen=True, kw_only=True)
class ScanRule(Json):
    """How slice scores become one score of the scan: exactly one of three rules.

    Attributes
    ----------
    run : int or None
        The best run of so many consecutive slices, judged by its weakest slice. ``run=3`` is RADnet's "hemorrhage in
        consecutive three or more slices" (Grewal et al., section 2.3).
    extent_mm : float or None
        The same, with as many slices as cover this extent along the normal.
    max : bool
        The most suspicious slice (Nguyen et al., section 3.2).
    """

    run: int | None = None
    extent_mm: float | None = None
    max: bool = False

    def __post_init__(self) -> None:
        """Refuses anything but one rule, with ``ValueError``."""
        if [self.run is not None, self.extent_mm is not None, self.max].count(True) != 1:
            raise ValueError("a scan rule is exactly one of run, extent_mm and max")
        if (self.run is not None and self.run < 1) or (self.extent_mm is not None and not self.extent_mm > 0):
            raise ValueError("a scan rule needs a run of at least one slice, or a positive extent")

    def to_json(self) -> dict[str, Any]:
        """The one rule that holds, for example ``{"run": 3}``."""
        return {name: value for name, value in super().to_json().items() if value}


@dataclass(frozen=True, kw_only=True)
class Calibration(Json):
    """Temperature scaling (Guo et al., ICML 2017): each label's logits are divided by its temperature.

    `temperature` maps label → T > 0; labels not named have T = 1.
    """

    temperature: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuses temperatures that are not positive numbers, with ``ValueError``."""
        if any(not (value > 0 and math.isfinite(value)) for value in self.temperature.values()):
            raise ValueError("a calibration temperature must be a positive number")

    def probabilities(self, logits: NDArray[np.floating[Any]], *, labels: Sequence[str]) -> NDArray[np.float64]:
        """Values (s, labels) in 0…1 from logits (s, labels)."""
        temperatures = np.array([self.temperature.get(label, 1.0) for label in labels])
        scaled = np.clip(np.asarray(logits, dtype=np.float64) / temperatures, -700, 700)
        values: NDArray[np.float64] = 1 / (1 + np.exp(-scaled))
        return values
