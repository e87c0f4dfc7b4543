"""Judging weights on labelled scans: what goes into a model card, and the command that writes it there.

``python -m training.evaluate inference/weights/demo-radnet --first 50000 --heads 200 --write`` draws phantom heads that
the model has not seen, judges the model as it lies on disk, and puts the figures into its card.
"""

from __future__ import annotations

import argparse
import json
import sys
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
from training import heads
from training.dataset import Scan
from training.errors import LeakageError
from training.heads import Heads
from training.loop import keep_memory
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
    return [
        Read(scan=one.scan, scores=model.decide(one.descriptors[None])[0].double().sigmoid().numpy())
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
    """Whether any slice of each scan bears the label."""
    return np.array([bool(reading.scan.labels[:, label].any()) for reading in readings])


def choose_thresholds(readings: Sequence[Read], *, labels: Sequence[str], rule: ScanRule) -> dict[str, float]:
    """The operating point of each label on these scans (greatest sensitivity + specificity under `rule`).

    A label that fewer than `FEWEST` scans bear, or lack, keeps 0.5: so few say nothing about where to stand.
    """
    thresholds = {}
    for index, label in enumerate(labels):
        bearing = truth(readings, label=LABELS.index(label))
        enough = min(bearing.sum(), (~bearing).sum()) >= FEWEST
        scores = scan_scores(readings, label=index, rule=rule)
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
    slices = {
        "cases": len(found),
        "weighted_log_loss": log_loss(scores, found),
        "weighted_log_loss_of_prior": prior_log_loss(found, prior[columns]),
        "auc": {label: auc(scores[:, i], found[:, i]) for i, label in enumerate(labels)},
    }
    scans = {
        label: scan_figures(
            scan_scores(readings, label=i, rule=rule), truth(readings, label=columns[i]), threshold=thresholds[label]
        ).to_json()
        for i, label in enumerate(labels)
    }
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
        bearing = truth(readings, label=index)
        shares[label] = rate(int((called & bearing).sum()), int(bearing.sum())).to_json()
    return shares


def judge_on_heads(directory: Path, population: Heads, *, work: Path, workers: int, retune: bool) -> ModelCard:
    """The card of the model in `directory` with its figures on phantom heads, through the card's preprocessing.

    With `retune` the operating points are chosen anew on these heads, and the figures are those of ``validation``;
    figures at other operating points are dropped. Without, they are those of ``unseen``.

    Raises
    ------
    LeakageError
        When the model was made from some of these heads.
    """
    card, state = cards.load(directory)
    _refuse_known(card, population, retune=retune)
    model = build(card)
    model.load_state_dict(state)
    heads.make(work, population, {card.family: card.preprocessing}, workers=workers)
    readings = read(model, describe(model, heads.load(work, card.family, population)))
    thresholds = choose_thresholds(readings, labels=card.labels, rule=card.rule) if retune else card.thresholds
    prior = np.array([card.figures["prior"][label] for label in LABELS])
    groups = by_group(readings, labels=card.labels, thresholds=thresholds, rule=card.rule, prior=prior)
    found = {"validation" if retune else "unseen": {"heads": population.to_json(), **groups}}
    stale = {"test", "unseen"} if retune else set()
    kept = {name: value for name, value in card.figures.items() if name not in stale}
    return replace(card, thresholds=thresholds, figures={**kept, **found})


def _refuse_known(card: ModelCard, population: Heads, *, retune: bool) -> None:
    seeds = set(range(population.first, population.first + population.count))
    made_from = set(range(*card.figures["seeds"]))
    chosen_on = card.figures["validation"].get("heads", {"first": 0, "count": 0})
    tuned_on = set() if retune else set(range(chosen_on["first"], chosen_on["first"] + chosen_on["count"]))
    if seeds & (made_from | tuned_on):
        raise LeakageError(f"{card.name} was made from some of the heads {min(seeds)} to {max(seeds)}")


def main(argv: Sequence[str] | None = None) -> None:
    """Judge a model on phantom heads that it has not seen, and print the figures as JSON."""
    parser = argparse.ArgumentParser(prog="python -m training.evaluate", description=main.__doc__)
    parser.add_argument("model", type=Path, help="directory with card.json and weights.safetensors")
    parser.add_argument("--first", type=int, default=50_000, help="seed of the first head")
    parser.add_argument("--heads", type=int, default=200, help="how many heads")
    parser.add_argument("--work", type=Path, default=Path("runs/evaluation"), help="where heads are kept")
    parser.add_argument("--workers", type=int, default=2, help="processes that draw heads")
    parser.add_argument("--retune", action="store_true", help="choose the operating points on these heads")
    parser.add_argument("--write", action="store_true", help="put operating points and figures into the card")
    asked = parser.parse_args(argv)
    keep_memory()
    population = Heads(first=asked.first, count=asked.heads)
    card = judge_on_heads(asked.model, population, work=asked.work, workers=asked.workers, retune=asked.retune)
    if asked.write:
        cards.save(asked.model, card, cards.load(asked.model)[1], half=True)
    json.dump(card.figures["validation" if asked.retune else "unseen"], sys.stdout, indent=2)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
