"""What a network says about labelled scans: scores of slices and of scans, beside the truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from inference.calibration import Calibration
from inference.decision import ScanRule, judge
from inference.models import ScanModel
from training.dataset import Scan
from training.described import Described

Scores = NDArray[np.float64]

CERTAIN = 1e-15
"""Scores closer to 0 or 1 have no logit in double precision."""


@dataclass(frozen=True, kw_only=True)
class Read:
    """What a model said about one scan: scores (slices, labels) in 0…1, beside the scan itself."""

    scan: Scan
    scores: Scores

    def of(self, chosen: NDArray[np.bool_]) -> Read:
        """These slices alone."""
        return Read(scan=self.scan.of(chosen), scores=self.scores[chosen])


@torch.inference_mode()
def read(model: ScanModel, described: Sequence[Described], *, bleeding_only: bool = False) -> list[Read]:
    """Every scan read whole from its descriptors, as the node reads it; the scores are not calibrated.

    Blank slices have the score 0. With `bleeding_only`, for a model that knows no others, only the slices that are
    labelled as bleeding are read, and the scans that have some.
    """
    model.eval()
    device = next(model.parameters()).device
    readings = []
    for one in described:
        scores = model.decide(one.descriptors[None].to(device))[0].double().sigmoid().cpu().numpy()
        readings.append(Read(scan=one.scan, scores=_without_blank(scores, one.scan)))
    if not bleeding_only:
        return readings
    return [one.of(bleeds) for one in readings if (bleeds := one.scan.labels[:, 0] == 1).any()]


def _without_blank(scores: Scores, scan: Scan) -> Scores:
    return np.where(scan.shown[:, None], scores, 0.0)


def logits(readings: Sequence[Read], *, label: int) -> Scores:
    """The logits (n,) of all slices, from scores that are not calibrated."""
    scores = np.clip(np.concatenate([one.scores[:, label] for one in readings]), CERTAIN, 1 - CERTAIN)
    found: Scores = np.log(scores) - np.log1p(-scores)
    return found


def recalibrated(readings: Sequence[Read], calibration: Calibration, *, labels: Sequence[str]) -> list[Read]:
    """The readings with the scores that a card with this calibration gives; before, they were not calibrated."""
    calibrated = []
    for one in readings:
        columns = [logits([one], label=i) for i in range(len(labels))]
        scores = calibration.slice_scores(np.stack(columns, 1), labels=labels)
        calibrated.append(replace(one, scores=_without_blank(scores, one.scan)))
    return calibrated


def scan_scores(readings: Sequence[Read], *, label: int, rule: ScanRule) -> Scores:
    """One score for each scan, by the slices' positions; by their order where positions are not known."""
    return np.array(
        [
            judge(
                reading.scores[:, label],
                positions_mm=reading.scan.facts.positions_mm or range(len(reading.scan)),
                thickness_mm=reading.scan.facts.thicknesses_mm or None,
                rule=rule,
                threshold=0.5,
            ).score
            for reading in readings
        ]
    )


def truth(readings: Sequence[Read], *, label: int) -> NDArray[np.bool_]:
    """Whether each scan bears the label; those of which nobody said are to be left out before: see `labelled`."""
    return np.array([bool(reading.scan.study_labels[label] == 1) for reading in readings], bool)


def labelled(readings: Sequence[Read], *, label: int) -> list[Read]:
    """The scans of which somebody said whether they bear the label."""
    return [reading for reading in readings if not np.isnan(reading.scan.study_labels[label])]


def labelled_throughout(readings: Sequence[Read], *, label: int) -> list[Read]:
    """The scans of which somebody said it of each slice."""
    return [reading for reading in readings if not np.isnan(reading.scan.labels[:, label]).any()]
