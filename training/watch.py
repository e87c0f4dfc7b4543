"""Early warnings: what makes a training worthless, said while it can still be stopped."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from inference.result import LABELS
from training.dataset import Scan
from training.loop import Progress
from training.metrics import auc

TOO_GOOD = 0.995
"""An area under the curve that no reader reaches."""
GUESSED = 0.8
"""Headers that tell the label this well were not collected blindly."""
FEWEST_STUDIES = 30
FEWEST_SLICES = 10
CONSTANT = 1e-3
RISEN = 1.5
RECENT = 3

log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Watch:
    """Gives each warning once. `labels` are the network's outputs; `said` holds what was said."""

    labels: Sequence[str]
    said: list[str] = field(default_factory=list)
    _losses: list[float] = field(default_factory=list)
    _kinds: set[str] = field(default_factory=set)

    def data(self, scans: Sequence[Scan]) -> None:
        """Look at the training scans before anything is trained."""
        found = np.concatenate([scan.labels for scan in scans])
        for name in self.labels:
            column = found[:, LABELS.index(name)]
            if not (column == 1).any():
                self._say(
                    f"dead {name}", f"dead class: no training slice is labelled {name}; the network cannot learn it"
                )
            elif not (column == 0).any():
                self._say(f"dead {name}", f"dead class: every labelled training slice is {name}")
        guessed = headers_auc(scans)
        if guessed is not None and guessed >= GUESSED:
            self._say(
                "headers",
                f"label leakage: thickness, size, maker and kernel alone tell bleeding studies with an AUC of "
                f"{guessed:.2f}; the network will learn where a study comes from",
            )

    def training(self, now: Progress) -> None:
        """Look at a report of the loop."""
        self._losses.append(now.loss)
        recent = self._losses[-RECENT:]
        if len(self._losses) > RECENT and min(recent) > RISEN * self._losses[0]:
            self._say(
                "rate",
                f"step {now.step}: the loss has risen from {self._losses[0]:.3g} to {now.loss:.3g}; "
                f"the learning rate ({now.rate:.2g}) is too high",
            )

    def validation(self, scores: NDArray[np.floating], truth: NDArray[np.floating], *, number: int) -> None:
        """Look at the `number`-th validation, from 0: scores and truth of slices, (slices, labels), truth 0, 1, NaN."""
        for index, name in enumerate(self.labels):
            known = ~np.isnan(truth[:, index])
            here, bears = scores[known, index], truth[known, index] == 1
            if min(int(bears.sum()), int((~bears).sum())) < FEWEST_SLICES:
                continue
            area = auc(here, bears)
            if number == 0 and area is not None and area >= TOO_GOOD:
                self._say(
                    f"leak {name}",
                    f"label leakage: {name} has an AUC of {area:.4f} at the first validation: what gives it away?",
                )
            if number > 0 and float(np.ptp(here)) < CONSTANT:
                self._say(f"same {name}", f"dead class: the network gives every slice the same score for {name}")

    def _say(self, kind: str, warning: str) -> None:
        if kind not in self._kinds:
            self._kinds.add(kind)
            self.said.append(warning)
            log.warning("%s", warning)


def headers_auc(scans: Sequence[Scan], *, folds: int = 5) -> float | None:
    """How well a random forest tells bleeding studies from their headers alone, on patients it has not seen.

    Chance is 0.5. None where there are too few studies, or no scikit-learn. (Khandelwal and Ganguli train such a forest
    on the metadata as a finder; here it is the alarm.)
    """
    try:
        from sklearn.ensemble import RandomForestClassifier
        from sklearn.model_selection import GroupKFold, cross_val_predict
    except ImportError:
        return None
    known = [scan for scan in scans if not np.isnan(scan.study_labels[0])]
    truth = np.array([scan.study_labels[0] == 1 for scan in known])
    patients = [scan.facts.patient for scan in known]
    if len(set(patients)) < FEWEST_STUDIES or truth.all() or not truth.any():
        return None
    forest = RandomForestClassifier(n_estimators=50, min_samples_leaf=2, random_state=0)
    guesses = cross_val_predict(
        forest, _header_table(known), truth, groups=patients, cv=GroupKFold(folds), method="predict_proba"
    )
    return auc(guesses[:, -1], truth)


def _header_table(scans: Sequence[Scan]) -> NDArray[np.float64]:
    """One row a scan; words as their place among the words, what is missing as −1."""
    rows = [scan.facts.cohort.to_json() | {"source": scan.facts.source, "cut": len(scan)} for scan in scans]
    columns = []
    for name in rows[0]:
        values = [row[name] for row in rows]
        words = {word: place for place, word in enumerate(sorted({v for v in values if isinstance(v, str)}))}
        columns.append([-1.0 if v is None else float(words.get(v, v)) for v in values])
    return np.array(columns, np.float64).T
