"""Judging weights on labelled scans: the figures that go into a model card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from inference import card as cards
from inference.card import ModelCard
from inference.decision import ScanRule, judge
from inference.models import ScanModel, build
from inference.result import ANY, LABELS
from training import heads, manifest
from training.dataset import Scan
from training.errors import DataError
from training.guard import refuse_patients
from training.manifest import DATASET_FILE
from training.metrics import auc, log_loss, operating_point, prior_log_loss, rate, scan_figures
from training.stages import Described, describe

Scores = NDArray[np.float64]
FEWEST = 8
"""Scans on either side that an operating point is chosen from."""


@dataclass(frozen=True, kw_only=True)
class Read:
    """What a model said about one scan: scores (slices, labels) in 0…1, beside the scan itself."""

    scan: Scan
    scores: Scores


@torch.inference_mode()
def read(model: ScanModel, described: Sequence[Described]) -> list[Read]:
    """Every scan read whole from its descriptors."""
    model.eval()
    device = next(model.parameters()).device
    return [
        Read(scan=one.scan, scores=model.decide(one.descriptors[None].to(device))[0].double().sigmoid().cpu().numpy())
        for one in described
    ]


def scan_scores(readings: Sequence[Read], *, label: int, rule: ScanRule) -> Scores:
    """One score for each scan. Prepared scans are evenly cut, so that the slice's number stands for its position."""
    return np.array(
        [
            judge(reading.scores[:, label], positions_mm=range(len(reading.scan)), rule=rule, threshold=0.5).score
            for reading in readings
        ]
    )


def truth(readings: Sequence[Read], *, label: int) -> NDArray[np.bool_]:
    """Whether each scan bears the label; those of which nobody said are to be left out before: see `labelled`."""
    return np.array([bool(reading.scan.study_labels[label] == 1) for reading in readings])


def labelled(readings: Sequence[Read], *, label: int) -> list[Read]:
    """The scans of which somebody said whether they bear the label."""
    return [reading for reading in readings if not np.isnan(reading.scan.study_labels[label])]


def choose_thresholds(readings: Sequence[Read], *, labels: Sequence[str], rule: ScanRule) -> dict[str, float]:
    """The operating point of each label on these scans (greatest sensitivity + specificity under `rule`).

    A label that fewer than `FEWEST` scans bear, or lack, keeps 0.5: so few say nothing about where to stand.
    """
    thresholds = {}
    for index, label in enumerate(labels):
        known = labelled(readings, label=LABELS.index(label))
        bearing = truth(known, label=LABELS.index(label))
        enough = min(bearing.sum(), (~bearing).sum()) >= FEWEST
        scores = scan_scores(known, label=index, rule=rule)
        thresholds[label] = operating_point(scores, bearing) if enough else 0.5
    return thresholds


def figures(
    readings: Sequence[Read],
    *,
    labels: Sequence[str],
    thresholds: Mapping[str, float],
    rule: ScanRule,
    prior: NDArray[np.floating],
) -> dict[str, Any]:
    """Figures of slices and of scans, as plain JSON values.

    Parameters
    ----------
    prior : array of shape (6,)
        Frequencies of all labels in the training slices: the trivial predictor's answer.
    """
    columns = [LABELS.index(label) for label in labels]
    scores = np.concatenate([reading.scores for reading in readings])
    found = np.concatenate([reading.scan.labels for reading in readings])[:, columns]
    known = ~np.isnan(found).any(1)  # slices of studies with a label of the whole only say nothing here
    scores, found = scores[known], found[known]
    slices = {
        "cases": len(found),
        "weighted_log_loss": log_loss(scores, found) if len(found) else None,
        "weighted_log_loss_of_prior": prior_log_loss(found, prior[columns]) if len(found) else None,
        "auc": {label: auc(scores[:, i], found[:, i]) for i, label in enumerate(labels)},
    }
    scans = {}
    for i, label in enumerate(labels):
        judged = labelled(readings, label=columns[i])
        scans[label] = scan_figures(
            scan_scores(judged, label=i, rule=rule), truth(judged, label=columns[i]), threshold=thresholds[label]
        ).to_json()
    return {"slices": slices, "scans": scans, "found_by_subtype": _by_subtype(readings, thresholds[ANY], rule)}


def by_group(readings: Sequence[Read], **how: Any) -> dict[str, Any]:
    """`figures` of all scans and of each group of them, such as the presets of phantoms."""
    groups = {"all": list(readings)}
    for reading in readings:
        groups.setdefault(reading.scan.facts.group, []).append(reading)
    return {name: figures(group, **how) for name, group in sorted(groups.items())}


def _by_subtype(readings: Sequence[Read], threshold: float, rule: ScanRule) -> dict[str, Any]:
    """Of the scans with each subtype, alone or among others: how many are called positive."""
    called = scan_scores(readings, label=0, rule=rule) >= threshold
    shares = {}
    for index, label in enumerate(LABELS[1:], start=1):
        bearing = truth(readings, label=index)  # who is not known to bear it is no case of it
        shares[label] = rate(int((called & bearing).sum()), int(bearing.sum())).to_json()
    return shares


def judge_on(
    directory: Path, scans: Sequence[Scan], *, data: Mapping[str, Any], retune: bool, device: torch.device
) -> ModelCard:
    """The card of the model in `directory` with its figures on `scans`, prepared by the card's preprocessing.

    With `retune` the operating points are chosen anew on these scans, and the figures are those of ``validation``;
    figures at other operating points are dropped. Without, they are those of ``unseen``.

    Parameters
    ----------
    data : mapping
        What the scans are, for the card.

    Raises
    ------
    LeakageError
        When the model was made from studies of some of these patients, or its operating points were chosen on them.
    DataError
        When there is no scan.
    """
    if not scans:
        raise DataError("there is no study to judge the model on")
    card, state = cards.load(directory)
    here = {scan.facts.patient for scan in scans}
    refuse_patients(
        known_patients(directory, card, retune=retune), here, names=(f"the making of {card.name}", "--data")
    )
    model = build(card)
    model.load_state_dict(state)
    readings = read(model, describe(model.to(device), scans))
    thresholds = choose_thresholds(readings, labels=card.labels, rule=card.rule) if retune else card.thresholds
    prior = np.array([card.figures.get("prior", {}).get(label, 0.5) for label in LABELS])
    groups = by_group(readings, labels=card.labels, thresholds=thresholds, rule=card.rule, prior=prior)
    tuned_on = {"tuned_on": sorted(here)} if retune else {}
    found = {"validation" if retune else "unseen": {"data": dict(data), **groups}}
    stale = {"test", "unseen"} if retune else set()
    kept = {name: value for name, value in card.figures.items() if name not in stale}
    return replace(card, thresholds=thresholds, figures={**kept, **tuned_on, **found})


def known_patients(directory: Path, card: ModelCard, *, retune: bool) -> set[str]:
    """The patients from whose studies the model was made, as it says itself.

    Those of its test are not among them, nor those on whom operating points were chosen when `retune` replaces these.
    """
    drawn = {heads.patient_of(seed) for seed in range(*card.figures.get("seeds", (0, 0)))}
    tuned = set() if retune else set(card.figures.get("tuned_on", ())) | _validation_heads(card)
    path = directory / DATASET_FILE
    return drawn | tuned | (manifest.patients(path, besides=("test",)) if path.exists() else set())


def _validation_heads(card: ModelCard) -> set[str]:
    """The phantoms on which operating points were chosen, as the demonstration weights' cards name them."""
    chosen = card.figures.get("validation", {}).get("heads", {"first": 0, "count": 0})
    return {heads.patient_of(seed) for seed in range(chosen["first"], chosen["first"] + chosen["count"])}
