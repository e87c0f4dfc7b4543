"""Calibration: what turns a network's logits into slice scores, and the score of a scan into a probability."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inference.result import Json


@dataclass(frozen=True, kw_only=True)
class Curve(Json):
    """A rising line through points (score, probability): straight between them, level beyond the first and the last.

    This is what isotonic regression gives (Zadrozny and Elkan, KDD 2002).
    """

    scores: tuple[float, ...]
    probabilities: tuple[float, ...]

    def __post_init__(self) -> None:
        """Refuses anything but finite numbers in 0…1 that rise, with ``ValueError``."""
        if not self.scores or len(self.scores) != len(self.probabilities):
            raise ValueError("a calibration curve needs as many scores as probabilities, at least one")
        values = (*self.scores, *self.probabilities)
        if any(isinstance(v, bool) or not isinstance(v, int | float) or not 0 <= v <= 1 for v in values):
            raise ValueError("a calibration curve holds numbers between 0 and 1")
        if any(not a < b for a, b in pairwise(self.scores)):
            raise ValueError("the scores of a calibration curve must rise")
        if any(a > b for a, b in pairwise(self.probabilities)):
            raise ValueError("the probabilities of a calibration curve must not fall")

    def __call__(self, scores: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """The probabilities of scores, of any shape."""
        return np.interp(np.asarray(scores, np.float64), self.scores, self.probabilities)


@dataclass(frozen=True, kw_only=True)
class ScanCalibration(Json):
    """How the score of a scan becomes the probability that the scan bears the label.

    A probability holds where the label is as frequent as among the scans it was fitted on; `prevalence` says how
    frequent that was, `data` which scans they were.
    """

    curve: Curve
    prevalence: float
    scans: int
    data: str

    def __post_init__(self) -> None:
        """Refuses a prevalence that is none, and a fit on nobody knows what, with ``ValueError``."""
        if not 0 < self.prevalence < 1 or self.scans < 2 or not self.data:
            raise ValueError("a calibration of scans names its scans, at least two, with and without the label")

    def probability(self, score: float) -> float:
        """The probability that a scan of this score bears the label."""
        return float(self.curve(np.array(score)))


@dataclass(frozen=True, kw_only=True)
class Calibration(Json):
    """What is calibrated, label by label, and how. A label that is not named is not calibrated there.

    Slice scores and the score of a scan are calibrated apart: the weakest of the best three slices is no probability
    of the scan, however well each slice's score is one of the slice.

    Attributes
    ----------
    temperature : dict
        Label → T > 0, which divides the logits of its slices (Guo et al., ICML 2017).
    isotonic : dict
        Label → curve for the scores of its slices, after the temperature where both are given.
    scan : dict
        Label → calibration of the score of the scan. It gives a probability beside the score and changes no decision.
    """

    temperature: dict[str, float] = field(default_factory=dict)
    isotonic: dict[str, Curve] = field(default_factory=dict)
    scan: dict[str, ScanCalibration] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuses temperatures that are not positive numbers, with ``ValueError``."""
        if any(not (value > 0 and math.isfinite(value)) for value in self.temperature.values()):
            raise ValueError("a calibration temperature must be a positive number")

    @property
    def labels(self) -> set[str]:
        """Every label that is named anywhere."""
        return {*self.temperature, *self.isotonic, *self.scan}

    def slice_scores(self, logits: NDArray[np.floating[Any]], *, labels: Sequence[str]) -> NDArray[np.float64]:
        """Scores (s, labels) in 0…1 from logits (s, labels): of calibrated labels, probabilities of a slice."""
        temperatures = np.array([self.temperature.get(label, 1.0) for label in labels])
        scaled = np.clip(np.asarray(logits, dtype=np.float64) / temperatures, -700, 700)
        scores: NDArray[np.float64] = 1 / (1 + np.exp(-scaled))
        for i, label in enumerate(labels):
            if label in self.isotonic:
                scores[:, i] = self.isotonic[label](scores[:, i])
        return scores

    def in_words(self, label: str) -> str:
        """What is calibrated of a label and how, for example "slices by temperature 1.31, scans at 54 % positive"."""
        temperature, scan = self.temperature.get(label), self.scan.get(label)
        parts = [f"slices by temperature {temperature:.3g}"] if temperature is not None else []
        parts += ["slices by isotonic regression"] if label in self.isotonic else []
        parts += [f"scans by isotonic regression on {scan.data}, {scan.prevalence:.0%} with it"] if scan else []
        return ", ".join(parts) or "not calibrated"
