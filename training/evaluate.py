"""Judging weights on labelled scans: the figures that go into a model card, and what is fitted beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from inference import card as cards
from inference.card import ModelCard
from inference.decision import ScanRule
from inference.models import build
from inference.novelty import Features
from inference.result import ANY, LABELS
from training import certainty, heads, manifest
from training.dataset import Scan, split
from training.described import describe
from training.errors import DataError
from training.guard import refuse_overlap, refuse_patients
from training.losses import weight_of_any
from training.manifest import DATASET_FILE
from training.metrics import auc, log_loss, prior_log_loss, rate, scan_figures
from training.reading import Read, labelled, read, recalibrated, scan_scores, truth


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
    weight = weight_of_any(labels)
    slices = {
        "cases": len(found),
        "weighted_log_loss": log_loss(scores, found, any_weight=weight) if len(found) else None,
        "weighted_log_loss_of_prior": prior_log_loss(found, prior[columns], any_weight=weight) if len(found) else None,
        "auc": {label: auc(scores[:, i], found[:, i]) for i, label in enumerate(labels)},
    }
    scans = {}
    for i, label in enumerate(labels):
        judged = labelled(readings, label=columns[i])
        scans[label] = scan_figures(
            scan_scores(judged, label=i, rule=rule), truth(judged, label=columns[i]), threshold=thresholds[label]
        ).to_json()
    said = {"slices": slices, "scans": scans}
    return said | {"found_by_subtype": _by_subtype(readings, thresholds[ANY], rule)} if ANY in labels else said


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


@dataclass(frozen=True, kw_only=True)
class Studies:
    """Prepared scans, and the sources they come from."""

    scans: Sequence[Scan]
    sources: Sequence[str]

    def __str__(self) -> str:
        """For example "100 scans of cq500:/data/cq500"."""
        return f"{len(self.scans)} scans of {', '.join(self.sources)}"

    def dealt(self, share: float) -> tuple[Studies, Studies]:
        """The scans of this share of the patients, and those of the others; whose is whose never changes."""
        dealt = split(self.patients, shares=(share, 1 - share), seed=0)
        first, second = (self.of(set(patients)) for patients in dealt)
        return first, second

    def of(self, patients: set[str]) -> Studies:
        """Those of these patients."""
        return replace(self, scans=heads.of(self.scans, sorted(patients)))

    @property
    def patients(self) -> set[str]:
        """Whose scans they are."""
        return {scan.facts.patient for scan in self.scans}

    def to_json(self) -> dict[str, Any]:
        """What a card says of them."""
        return {"sources": list(self.sources), "studies": len(self.scans)}


@dataclass(frozen=True, kw_only=True, eq=False)
class Judgement:
    """The card with its figures, the features of its guard, and what the model said about the scans, calibrated."""

    card: ModelCard
    features: Features | None
    readings: Sequence[Read]


def judge(directory: Path, unseen: Studies, *, fit_on: Studies | None = None, device: torch.device) -> Judgement:
    """The model in `directory` judged on `unseen`.

    With `fit_on` calibration, operating points and guard are fitted anew on those studies, whose figures become those
    of ``validation``; figures of before are dropped. All are prepared by the card's preprocessing.

    Raises
    ------
    LeakageError
        When the model was made from studies of some of these patients, or fitted on some that it shall be judged on.
    DataError
        When there is no scan.
    """
    if not unseen.scans or (fit_on and not fit_on.scans):
        raise DataError("there is no study to judge the model on, or to fit it on")
    card, state = cards.load(directory)
    _refuse_known(directory, card, unseen, fit_on)
    watch = cards.load_watch(directory, card)
    features = watch.features if watch else None
    said_of = partial(read, bleeding_only=card.bleeding_only)
    model = build(card)
    model.load_state_dict(state)
    model.to(memory_format=model.memory_format).to(device)
    described = describe(model, unseen.scans)
    if fit_on:
        fitting = describe(model, fit_on.scans)
        fitted = certainty.fit(
            model, fitting, labels=card.labels, rule=card.rule, data=str(fit_on), bleeding_only=card.bleeding_only
        )
        card = certainty.put(card, fitted, model, described, on=f"{unseen} that it had not seen")
        features = fitted.watch.features if fitted.watch else None
        kept = {name: value for name, value in card.figures.items() if name not in ("test", "unseen")}
        validation = {"data": fit_on.to_json(), **groups(card, said_of(model, fitting))}
        card = replace(card, figures={**kept, "tuned_on": sorted(fit_on.patients), "validation": validation})
    readings = said_of(model, described)
    found = {"data": unseen.to_json(), **groups(card, readings)}
    return Judgement(
        card=replace(card, figures={**card.figures, "unseen": found}),
        features=features,
        readings=recalibrated(readings, card.calibration, labels=card.labels),
    )


def groups(card: ModelCard, readings: Sequence[Read]) -> dict[str, Any]:
    """Figures of readings that are not calibrated yet, as the card calibrates them, in all and group by group."""
    prior = np.array([card.figures.get("prior", {}).get(label, 0.5) for label in LABELS])
    calibrated = recalibrated(readings, card.calibration, labels=card.labels)
    return by_group(calibrated, labels=card.labels, thresholds=card.thresholds, rule=card.rule, prior=prior)


def _refuse_known(directory: Path, card: ModelCard, unseen: Studies, fit_on: Studies | None) -> None:
    making = f"the making of {card.name}"
    refuse_patients(
        known_patients(directory, card, refit=fit_on is not None), unseen.patients, names=(making, "--data")
    )
    if fit_on:
        refuse_patients(known_patients(directory, card, refit=True), fit_on.patients, names=(making, "--fit"))
        refuse_overlap({"--fit": fit_on.scans, "--data": unseen.scans})


def known_patients(directory: Path, card: ModelCard, *, refit: bool) -> set[str]:
    """The patients from whose studies the model was made, as it says itself.

    Those of its test are not among them, nor those on whom it was last fitted when a `refit` replaces that.
    """
    tuned = set() if refit else set(card.figures.get("tuned_on", ()))
    path = directory / DATASET_FILE
    return begun_from(card.figures) | tuned | (manifest.patients(path, besides=("test",)) if path.exists() else set())


def begun_from(figures: Mapping[str, Any]) -> set[str]:
    """The patients behind the weights with which a model began, as the figures of its card name them."""
    return set(figures.get("begun_from", ()))


def inherited(weights: Path) -> dict[str, Any]:
    """What the card of a model that begins with `weights` says of whom these were made from: ``begun_from``.

    Nothing where no card stands beside them. On whom thresholds were fitted does not count: the weights do not know.
    """
    directory = weights.parent
    if not (directory / cards.CARD_FILE).exists():
        return {}
    return {"begun_from": sorted(known_patients(directory, cards.read_card(directory), refit=True))}
