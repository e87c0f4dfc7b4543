"""Judging weights on labelled scans: what goes into a model card, and the command that writes it there.

``python -m training.evaluate inference/weights/demo-radnet --first 50000 --heads 100 --write`` draws phantom heads that
the model has not seen, judges the model as it lies on disk, and puts the figures into its card. With
``--fit-first 20250 --fit-heads 160`` calibration, operating points and the out-of-distribution guard are fitted anew on
those heads before.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from inference import card as cards
from inference.card import ModelCard, load_watch
from inference.decision import ScanRule
from inference.models import ScanModel, build
from inference.novelty import Features
from inference.result import ANY, LABELS
from training import certainty, dataset, heads
from training.errors import LeakageError
from training.heads import Heads
from training.loop import keep_memory
from training.metrics import auc, log_loss, prior_log_loss, rate, scan_figures
from training.reading import Read, read, recalibrated, scan_scores, truth
from training.stages import Described, describe


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


def judge_on_heads(
    directory: Path, population: Heads, *, work: Path, workers: int, fit_on: Heads | None = None
) -> tuple[ModelCard, Features | None]:
    """The card of the model in `directory` with its figures on phantom heads, and the features of its guard.

    With `fit_on` calibration, operating points and guard are fitted anew on those heads, whose figures become those of
    ``validation``; figures of before are dropped. The figures on `population` are those of ``unseen``.

    Raises
    ------
    LeakageError
        When the model was made from some of these heads, or fitted on some that it shall be judged on.
    """
    card, state = cards.load(directory)
    watch = load_watch(directory, card)
    features = watch.features if watch else None
    model = build(card)
    model.load_state_dict(state)
    model.to(memory_format=model.memory_format)
    for asked in (fit_on, population) if fit_on else (population,):
        _refuse_known(card, asked)
        heads.make(work, asked, {card.family: card.preprocessing}, workers=workers)
    unseen = _described(model, card, population, work=work)
    if fit_on:
        scans = _described(model, card, fit_on, work=work)
        fitted = certainty.fit(model, scans, labels=card.labels, rule=card.rule, data=in_words(fit_on))
        card = certainty.put(card, fitted, model, unseen, on=f"{in_words(population)} that it had not seen")
        features = fitted.watch.features if fitted.watch else None
        validation = {"heads": fit_on.to_json(), **_groups(card, read(model, scans))}
        kept = {name: value for name, value in card.figures.items() if name not in ("test", "unseen")}
        card = replace(card, figures={**kept, "validation": validation})
    _refuse_fitted_on(card, population)
    found = {"heads": population.to_json(), **_groups(card, read(model, unseen))}
    return replace(card, figures={**card.figures, "unseen": found}), features


def _described(model: ScanModel, card: ModelCard, population: Heads, *, work: Path) -> list[Described]:
    """The heads with their descriptors, which are kept beside them under the digest of the weights."""
    described = []
    for seed in range(population.first, population.first + population.count):
        folder = heads.place(work, card.family, seed)
        kept = folder / f"descriptors-{card.sha256[:12]}.npy"
        if not kept.exists():
            (fresh,) = describe(model, [dataset.load(folder)])
            np.save(kept, fresh.descriptors.numpy())
        described.append(Described(scan=dataset.load(folder), descriptors=torch.from_numpy(np.load(kept))))
    return described


def in_words(population: Heads) -> str:
    """For example "100 phantom heads (seeds 50000 to 50099)"."""
    return f"{population.count} phantom heads (seeds {population.first} to {population.first + population.count - 1})"


def _groups(card: ModelCard, readings: Sequence[Read]) -> dict[str, Any]:
    """Figures of readings that are not calibrated yet, as the card calibrates them."""
    prior = np.array([card.figures["prior"][label] for label in LABELS])
    calibrated = recalibrated(readings, card.calibration, labels=card.labels)
    return by_group(calibrated, labels=card.labels, thresholds=card.thresholds, rule=card.rule, prior=prior)


def _refuse_known(card: ModelCard, population: Heads) -> None:
    """Raises ``LeakageError`` where the model has learnt from some of these heads."""
    _refuse_common(card, population, range(*card.figures["seeds"]))


def _refuse_fitted_on(card: ModelCard, population: Heads) -> None:
    """Raises ``LeakageError`` where operating points and the like come from some of these heads."""
    fitted_on = card.figures["validation"].get("heads", {"first": 0, "count": 0})
    _refuse_common(card, population, range(fitted_on["first"], fitted_on["first"] + fitted_on["count"]))


def _refuse_common(card: ModelCard, population: Heads, known: range) -> None:
    last = population.first + population.count - 1
    if population.first < known.stop and last >= known.start:
        raise LeakageError(f"{card.name} was made from some of the heads {population.first} to {last}")


def main(argv: Sequence[str] | None = None) -> None:
    """Judge a model on phantom heads that it has not seen, and print the figures as JSON."""
    parser = argparse.ArgumentParser(prog="python -m training.evaluate", description=main.__doc__)
    parser.add_argument("model", type=Path, help="directory with card.json and weights.safetensors")
    parser.add_argument("--first", type=int, default=50_000, help="seed of the first head")
    parser.add_argument("--heads", type=int, default=200, help="how many heads")
    parser.add_argument("--fit-first", type=int, default=20_250, help="seed of the first head that is fitted on")
    parser.add_argument("--fit-heads", type=int, default=0, help="fit calibration, operating points and guard on these")
    parser.add_argument("--work", type=Path, default=Path("runs/evaluation"), help="where heads are kept")
    parser.add_argument("--workers", type=int, default=2, help="processes that draw heads")
    parser.add_argument("--write", action="store_true", help="put what was fitted and measured into the card")
    asked = parser.parse_args(argv)
    keep_memory()
    population = Heads(first=asked.first, count=asked.heads)
    fit_on = Heads(first=asked.fit_first, count=asked.fit_heads) if asked.fit_heads else None
    card, features = judge_on_heads(asked.model, population, work=asked.work, workers=asked.workers, fit_on=fit_on)
    if asked.write:
        cards.save(asked.model, card, cards.load(asked.model)[1], half=True, features=features)
    json.dump(card.figures["unseen"], sys.stdout, indent=2)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
