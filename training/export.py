"""From a trained network to a model directory: operating points, figures, card and weights."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from inference import card as cards
from inference.card import ModelCard, Provenance
from inference.decision import ScanRule
from inference.models import ScanModel
from inference.preprocess import Preprocessing
from inference.result import LABELS
from training import certainty, evaluate
from training.dataset import Scan
from training.reading import read, recalibrated
from training.stages import Described

INTENDED_USE = (
    "Demonstration only: trained and judged on synthetic phantoms, never on a patient. Not for clinical use. "
    "The figures say that the machinery works, nothing about how well it reads patients."
)


@dataclass(frozen=True, kw_only=True)
class Description:
    """What the card says beside the figures."""

    name: str
    family: str
    version: str
    architecture: dict[str, Any]
    preprocessing: Preprocessing
    labels: tuple[str, ...]
    rule: ScanRule
    recipe: str
    data: str
    seeds: tuple[int, int]
    """The first head and the one after the last, so that nobody judges the model on them."""
    seed: int


def round_as_stored(model: nn.Module) -> None:
    """Round matrices and kernels to float16, as they will be stored, so that what follows sees the final numbers."""
    with torch.no_grad():
        for value in model.state_dict().values():
            if value.ndim > 1 and value.is_floating_point():
                value.copy_(value.half().float())


def export(
    model: ScanModel,
    directory: Path,
    description: Description,
    *,
    training: Sequence[Scan],
    validation: Sequence[Described],
    test: Sequence[Described],
) -> ModelCard:
    """Write the model to `directory` with what is fitted on `validation` and figures on `test`; return its card.

    The descriptors must come from the model after `round_as_stored`, which is applied again to what stands behind them.
    """
    round_as_stored(model)
    fitted = certainty.fit(
        model, validation, labels=description.labels, rule=description.rule, data=f"{len(validation)} validation scans"
    )
    prior = np.concatenate([scan.labels for scan in training]).mean(0)
    card = _card(description, thresholds=fitted.thresholds, figures={})
    card = certainty.put(card, fitted, model, test, on=f"{len(test)} scans of patients dealt aside")
    how: dict[str, Any] = {
        "labels": card.labels,
        "thresholds": card.thresholds,
        "rule": card.rule,
        "prior": prior,
    }
    dealt = {"validation": validation, "test": test}
    readings = {n: recalibrated(read(model, d), card.calibration, labels=card.labels) for n, d in dealt.items()}
    figures = {
        **card.figures,
        "claim": INTENDED_USE,
        "seeds": list(description.seeds),
        "heads": {"training": len(training), "validation": len(validation), "test": len(test)},
        "prior": dict(zip(LABELS, prior.tolist(), strict=True)),
        "operating_points_from": "validation",
        **{name: evaluate.by_group(read_, **how) for name, read_ in readings.items()},
    }
    features = fitted.watch.features if fitted.watch else None
    return cards.save(directory, replace(card, figures=figures), model.state_dict(), half=True, features=features)


def _card(description: Description, *, thresholds: dict[str, float], figures: dict[str, Any]) -> ModelCard:
    return ModelCard(
        name=description.name,
        family=description.family,
        version=description.version,
        architecture=description.architecture,
        preprocessing=description.preprocessing,
        labels=description.labels,
        thresholds=thresholds,
        rule=description.rule,
        demonstration=True,
        intended_use=INTENDED_USE,
        provenance=Provenance(
            recipe=description.recipe,
            data=description.data,
            seed=description.seed,
            commit=commit(),
            date=datetime.now(UTC).isoformat(timespec="seconds"),
        ),
        figures=figures,
    )


def commit() -> str:
    """The commit of the code that runs, or nothing outside a repository."""
    found = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return found.stdout.strip()
