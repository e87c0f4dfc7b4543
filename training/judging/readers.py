"""Readers beside the model: Table 2 of RADnet (Grewal et al. 2018, section 3), for *any*."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from inference.result import LABELS, Json, Rate
from training.judging.intervals import Discordance, mcnemar
from training.judging.scans import Judged
from training.metrics import rate


@dataclass(frozen=True, kw_only=True)
class Reader(Json):
    """One column of the table: who read, and how rightly.

    `against_model` compares the reader (first) with the model (second) on the scans that the reader read; None for the
    model itself.
    """

    name: str
    scans: int
    accuracy: Rate
    recall: Rate
    precision: Rate
    specificity: Rate
    f1: float | None
    against_model: Discordance | None = None


def readers(found: Judged) -> list[Reader]:
    """Every reader on the scans that he read, then the model on those that any of them read; empty without readers.

    Where the truth is the readers' majority, it leans towards each of them, and the model is judged more strictly.
    """
    column = LABELS.index(found.label)
    names = sorted({name for one in found.readings for name in one.scan.facts.readers})
    votes = np.array(
        [[_vote(one.scan.facts.readers.get(name), column) for name in names] for one in found.readings], np.float64
    ).reshape(len(found.readings), len(names))
    rows = []
    for place, name in enumerate(names):
        read = ~np.isnan(votes[:, place])
        said, model = votes[read, place] == 1, found.of(read)
        if len(said):
            against = mcnemar(said == model.bearing, model.right)
            rows.append(_row(name, said, model.bearing, against))
    if not rows:
        return []
    shared = found.of(np.asarray(~np.isnan(votes).all(1), bool))
    return [*rows, _row("model", shared.called, shared.bearing, None)]


def _vote(labels: tuple[float | None, ...] | None, column: int) -> float:
    vote = labels[column] if labels else None
    return np.nan if vote is None else vote


def _row(name: str, said: NDArray[np.bool_], bearing: NDArray[np.bool_], against: Discordance | None) -> Reader:
    hits, rejected = int((said & bearing).sum()), int((~said & ~bearing).sum())
    wrong = len(said) - hits - rejected
    return Reader(
        name=name,
        scans=len(said),
        accuracy=rate(hits + rejected, len(said)),
        recall=rate(hits, int(bearing.sum())),
        precision=rate(hits, int(said.sum())),
        specificity=rate(rejected, int((~bearing).sum())),
        f1=2 * hits / (2 * hits + wrong) if hits + wrong else None,
        against_model=against,
    )
