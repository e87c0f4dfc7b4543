"""Everything that is said about a model on one test set, as one JSON value: what the page shows and the gate reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inference.card import ModelCard
from inference.decision import ScanRule
from inference.result import ANY, LABELS
from training.calibration import reliability
from training.errors import DataError
from training.judging.cohorts import cohorts
from training.judging.errors import errors
from training.judging.intervals import bootstrap, delong, delong_difference, mcnemar, paired_difference
from training.judging.multilabel import Multilabel, multilabel
from training.judging.points import SPECIFICITIES, reliability_table, sensitivity_at
from training.judging.readers import readers
from training.judging.scans import Judged, by_card, digest, judged, paired
from training.judging.waiting import Site, simulate
from training.losses import weight_of_any
from training.metrics import log_loss, prior_log_loss
from training.reading import Read

FORMAT = 1
HALF = 0.5
"""Where the papers cut probabilities into calls."""

PUBLISHED_RULES = {
    "three slices (Grewal et al.)": ScanRule(run=3),
    "maximum (Nguyen et al., Ngo et al.)": ScanRule(max=True),
}
"""How the papers come from slices to scans, each at one half."""


def report(
    card: ModelCard,
    readings: Sequence[Read],
    *,
    sources: Sequence[str],
    other: tuple[ModelCard, Sequence[Read]] | None = None,
    site: Site | None = None,
) -> dict[str, Any]:
    """The report on `card`, whose calibration the `readings` have already got.

    With `other`, a second model that read the same scans, the two are compared; with `site`, waiting is simulated.
    """
    by_label = {label: by_card(card, readings, label) for label in card.labels}
    found: dict[str, Any] = {
        "format": FORMAT,
        "model": _identity(card),
        "data": {
            "sources": list(sources),
            "studies": len(readings),
            "patients": len({one.scan.facts.patient for one in readings}),
            "sha256": digest([one.scan for one in readings]),
        },
        "slices": slices(card, readings),
        "scans": {label: scans(card, one) for label, one in by_label.items()},
        "scan_labels": _all_labels(list(by_label.values())),
    }
    if ANY in by_label:
        found |= {
            "rules": published_rules(card, readings),
            "cohorts": {name: [one.to_json() for one in rows] for name, rows in cohorts(by_label[ANY]).items()},
            "readers": [row.to_json() for row in readers(by_label[ANY])],
            "errors": errors(by_label[ANY], column=card.labels.index(ANY)).to_json(),
        }
    if other is not None:
        found["comparison"] = comparison((card, readings), other)
    if site is not None:
        if ANY not in by_label:
            raise DataError(f"{card.name} does not tell {ANY!r}, by which studies are flagged")
        whole = by_label[ANY]
        found["queue"] = simulate(
            site, scores=whole.scores, bleeding=whole.bearing, threshold=whole.threshold
        ).to_json()
    return found


def _identity(card: ModelCard) -> dict[str, Any]:
    return {
        "name": card.name,
        "family": card.family,
        "version": card.version,
        "sha256": card.sha256,
        "demonstration": card.demonstration,
        "intended_use": card.intended_use,
        "rule": card.rule.to_json(),
        "thresholds": dict(card.thresholds),
    }


def slices(card: ModelCard, readings: Sequence[Read]) -> dict[str, Any]:
    """Figures of the slices whose labels are all known; calls are made at one half, as in the papers."""
    columns = [LABELS.index(label) for label in card.labels]
    scores = np.concatenate([one.scores for one in readings])
    truth = np.concatenate([one.scan.labels for one in readings])[:, columns]
    known = ~np.isnan(truth).any(1)
    owners = np.repeat([one.scan.facts.patient for one in readings], [len(one.scan) for one in readings])[known]
    scores, truth = scores[known], truth[known]
    if not len(truth):
        return {"cases": 0}
    prior = np.array([card.figures.get("prior", {}).get(label, HALF) for label in card.labels])
    return {
        "cases": len(truth),
        "weighted_log_loss": log_loss(scores, truth, any_weight=weight_of_any(card.labels)),
        "weighted_log_loss_of_prior": prior_log_loss(truth, prior, any_weight=weight_of_any(card.labels)),
        "multilabel": multilabel(scores >= HALF, truth == 1, any_first=_any_first(card.labels)).to_json(),
        "labels": {
            label: _ranking(scores[:, i], truth[:, i] == 1, list(owners), times=200)
            | {"calibration": _calibration(scores[:, i], truth[:, i] == 1)}
            for i, label in enumerate(card.labels)
        },
    }


def scans(card: ModelCard, found: Judged) -> dict[str, Any]:
    """Figures of the scans for one label, at the threshold in force."""
    curve = card.calibration.scan.get(found.label)
    values = curve.curve(found.scores) if curve else found.scores
    return {
        "cases": len(found.bearing),
        "threshold": found.threshold,
        **found.figures().to_json(),
        **_ranking(found.scores, found.bearing, found.patients),
        "probabilities": curve is not None,
        "calibration": _calibration(values, found.bearing),
        "roc": _curve(found),
    }


def published_rules(card: ModelCard, readings: Sequence[Read]) -> dict[str, Any]:
    """Accuracy, recall, precision and F1 of scans (Grewal et al. 2018, table 1) by the papers' own rules, for *any*."""
    return {
        name: judged(readings, label=ANY, labels=card.labels, rule=rule, threshold=HALF).figures().to_json()
        for name, rule in PUBLISHED_RULES.items()
    }


def _ranking(
    scores: NDArray[np.float64], truth: NDArray[np.bool_], patients: Sequence[str], *, times: int = 1000
) -> dict[str, Any]:
    """AUC with both intervals, and sensitivity where the specificity is fixed."""
    by_ranks, by_draws = delong(scores, truth), bootstrap(scores, truth, patients=patients, times=times)
    return {
        "auc_delong": by_ranks.to_json() if by_ranks else None,
        "auc_bootstrap": by_draws.to_json() if by_draws else None,
        "sensitivity_at_specificity": {
            f"{wanted:g}": sensitivity_at(scores, truth, specificity=wanted).to_json() for wanted in SPECIFICITIES
        },
    }


def _calibration(values: NDArray[np.float64], truth: NDArray[np.bool_]) -> dict[str, Any] | None:
    if not len(values):
        return None
    table = [row.to_json() for row in reliability_table(values, truth)]
    return reliability(values, truth).to_json() | {"table": table}


def _curve(found: Judged) -> list[list[float]]:
    """False positive and true positive rate at every threshold that changes them, from none called to all."""
    bearing = found.bearing
    if not bearing.any() or bearing.all():
        return []
    order = np.argsort(-found.scores, kind="stable")
    last = np.append(np.diff(found.scores[order]) != 0, True)
    hits = np.cumsum(bearing[order])[last] / bearing.sum()
    alarms = np.cumsum(~bearing[order])[last] / (~bearing).sum()
    return [[0.0, 0.0], *([float(x), float(y)] for x, y in zip(alarms, hits, strict=True))]


def _all_labels(found: Sequence[Judged]) -> dict[str, Any] | None:
    """Figures of all labels of a scan at once, on the scans whose labels are all known."""
    known = [{id(one.scan) for one in each.readings} for each in found]
    common = set.intersection(*known)
    if not common:
        return None
    kept = [each.of(np.array([id(one.scan) in common for one in each.readings], bool)) for each in found]
    called, truth = (np.stack(columns, 1) for columns in ([k.called for k in kept], [k.bearing for k in kept]))
    whole: Multilabel = multilabel(called, truth, any_first=_any_first([k.label for k in kept]))
    return whole.to_json()


def _any_first(labels: Sequence[str]) -> bool:
    return len(labels) > 1 and labels[0] == ANY


def comparison(first: tuple[ModelCard, Sequence[Read]], second: tuple[ModelCard, Sequence[Read]]) -> dict[str, Any]:
    """What the `second` model gains over the `first` on the scans that both read, label by label."""
    labels = [label for label in first[0].labels if label in second[0].labels]
    pairs = {label: paired(by_card(*first, label), by_card(*second, label)) for label in labels}
    return {
        "first": _identity(first[0]),
        "second": _identity(second[0]),
        "labels": {label: _gain(*pair) for label, pair in pairs.items()},
    }


def _gain(before: Judged, after: Judged) -> Mapping[str, Any]:
    bearing = before.bearing
    right = (before.right, after.right)
    figures = {
        "auc": delong_difference(before.scores, after.scores, bearing),
        "accuracy": paired_difference(*right),
        "sensitivity": paired_difference(*(one[bearing] for one in right)),
        "specificity": paired_difference(*(one[~bearing] for one in right)),
    }
    return {
        "cases": len(bearing),
        "mcnemar": mcnemar(*right).to_json(),
        **{name: one.to_json() if one else None for name, one in figures.items()},
    }
