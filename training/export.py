"""From a trained network to a model directory: operating points, figures, card and weights."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from torch import nn

from inference import card as cards
from inference.card import ModelCard, Provenance
from inference.decision import ScanRule
from inference.models import ScanModel
from inference.novelty import Features
from inference.preprocess import Preprocessing
from inference.result import LABELS
from training import certainty, evaluate
from training.dataset import Scan
from training.described import Described
from training.manifest import DATASET_FILE
from training.reading import read

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
    seed: int
    demonstration: bool
    intended_use: str
    bleeding_only: bool = False
    figures: dict[str, Any] = field(default_factory=dict)
    """What else the card shall say about the training, such as the seeds of the heads it was made from."""


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
    beside: Mapping[str, bytes] = MappingProxyType({}),
) -> ModelCard:
    """Write the model to `directory` with what is fitted on `validation` and figures on `test`; return its card.

    `beside` are files that are written beside the card, such as the list of the studies. The descriptors must come from
    the model after `round_as_stored`, which is applied again to what stands behind them.
    """
    round_as_stored(model)
    fitted = certainty.fit(
        model,
        validation,
        labels=description.labels,
        rule=description.rule,
        data=f"{len(validation)} validation scans",
        bleeding_only=description.bleeding_only,
    )
    figures = {
        "claim": description.intended_use,
        **description.figures,
        "scans": {"training": len(training), "validation": len(validation), "test": len(test)},
        "prior": dict(zip(LABELS, frequencies(training).tolist(), strict=True)),
        "operating_points_from": "validation",
    }
    card = _card(description, thresholds=fitted.thresholds, figures=figures)
    card = certainty.put(card, fitted, model, test, on=f"{len(test)} scans of patients dealt aside")
    sides = {"validation": validation, "test": test}
    readings = {name: read(model, side, bleeding_only=card.bleeding_only) for name, side in sides.items()}
    judged = {name: evaluate.groups(card, said) if said else {} for name, said in readings.items()}
    card = replace(card, figures={**card.figures, **judged})
    features = fitted.watch.features if fitted.watch else None
    card = cards.save(directory, card, model.state_dict(), half=True, features=features)
    for name, content in beside.items():
        (directory / name).write_bytes(content)
    return card


def rewrite(directory: Path, card: ModelCard, *, features: Features | None) -> None:
    """The model in `directory` has this card and these features of its guard; weights and list of studies stay."""
    path = directory / DATASET_FILE
    listed = path.read_bytes() if path.exists() else None
    with safe_open(directory / cards.WEIGHTS_FILE, framework="pt") as file:
        half = any(file.get_slice(name).get_dtype() == "F16" for name in file.keys())  # noqa: SIM118  # no mapping
    cards.save(directory, card, cards.load(directory)[1], half=half, features=features)
    if listed is not None:
        path.write_bytes(listed)


def frequencies(scans: Sequence[Scan]) -> NDArray[np.float64]:
    """How often each of the six labels stands among the labelled slices; 0 where none is labelled."""
    labels = np.concatenate([scan.labels for scan in scans])
    counts = (~np.isnan(labels)).sum(0)
    return np.asarray(np.nansum(labels, 0, dtype=np.float64) / np.maximum(counts, 1))


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
        bleeding_only=description.bleeding_only,
        demonstration=description.demonstration,
        intended_use=description.intended_use,
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
