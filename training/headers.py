"""One training of the forest on headers, from its sources to a model directory: `hemonode train metadata_forest`.

It reads no pixels and has no use for validation: what `--split` deals out for it is grown on as well. Everything else,
its sources, the split by patient, the leakage guard, the list of studies beside the weights, is as with networks.
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

from inference import card as cards
from inference.card import ModelCard, Provenance
from inference.decision import ScanRule
from inference.metadata import FACTS
from inference.preprocess import Preprocessing
from inference.result import ANY
from training import manifest
from training.dataset import split
from training.errors import DataError, TrainingError
from training.export import commit
from training.guard import refuse_patients
from training.manifest import DATASET_FILE
from training.recipes.metadata_forest import (
    NAME,
    PAPER,
    THRESHOLD,
    ForestRecipe,
    Slices,
    as_arrays,
    grow,
    judged,
    together,
)
from training.run import INVESTIGATIONAL, SYNTHETIC, Asked, Told, changed, same_data, shares_of
from training.sources.named import open_source
from training.study import LabelledStudy

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Headers:
    """What is known of a study without its pixels; `slices` are those of which somebody said whether they bleed."""

    facts: LabelledStudy
    labels: NDArray[np.float32]
    study_labels: NDArray[np.float32]
    slices: Slices


def train(asked: Asked, *, told: Told = lambda _, __: lambda ___: None) -> ModelCard:
    """Grow a forest, judge it and write it, with its card, to ``asked.out / "model"``.

    Raises
    ------
    TrainingError
        Something asked for is not there or means nothing to a forest, patients stand on two sides, or a side lacks
        slices of one kind.
    """
    if asked.architecture or asked.start_from:
        raise TrainingError(f"{NAME}: a forest has no --architecture, and begins with nothing")
    recipe = changed(ForestRecipe(), asked.values, "--set")
    sides = _sides(asked, told)
    listed = manifest.of(sides, said={"data": asked.data, "test": asked.test, "seed": asked.seed, "start": "nothing"})
    same_data(asked.out / DATASET_FILE, listed)
    digest = hashlib.sha256(listed).hexdigest()
    rng = np.random.default_rng(asked.seed)
    forest = grow(together([one.slices for one in sides["training"]]).balanced(rng), recipe=recipe, seed=asked.seed)
    figures = {}
    if sides["test"]:
        figures = {"headers_only": judged(forest, together([one.slices for one in sides["test"]]).balanced(rng))}
    config, state = as_arrays(forest)
    synthetic = all(one.facts.source == "phantom" for studies in sides.values() for one in studies)
    card = ModelCard(
        name=f"{NAME} ({PAPER})",
        family="metadata_forest",
        version=digest[:12],
        architecture=config.to_json(),
        preprocessing=Preprocessing(windows=(), size=1, header=tuple(FACTS)),
        labels=(ANY,),
        thresholds={ANY: THRESHOLD},
        rule=ScanRule(max=True),
        demonstration=synthetic,
        intended_use="A baseline that sees no pixels: what it finds, the headers give away. "
        + (SYNTHETIC if synthetic else INVESTIGATIONAL),
        provenance=Provenance(
            recipe=f"hemonode train {NAME}: {json.dumps(recipe.to_json())}",
            data=f"{', '.join(asked.data + asked.test)}; {DATASET_FILE} has SHA-256 {digest}",
            seed=asked.seed,
            date=datetime.now(UTC).isoformat(timespec="seconds"),
            commit=commit(),
        ),
        figures=figures,
    )
    written = cards.save(asked.out / "model", card, state)
    (asked.out / "model" / DATASET_FILE).write_bytes(listed)
    return written


def _sides(asked: Asked, told: Told) -> dict[str, list[_Headers]]:
    """Training and test; a patient on both is refused."""
    index = asked.cache / "index"
    studies = [study for text in asked.data for study in open_source(text, index=index)]
    dealt = split([study.patient for study in studies], shares=shares_of(asked), seed=asked.seed)
    tested = {patient for patients in dealt[2:] for patient in patients}
    grown = [study for study in studies if study.patient not in tested]
    unseen = [study for study in studies if study.patient in tested]
    if asked.test:
        unseen = [study for text in asked.test for study in open_source(text, index=index)]
    names = ("training", "test")
    refuse_patients({study.patient for study in grown}, {study.patient for study in unseen}, names=names)
    move = told("reading headers", len(grown) + len(unseen))
    read: dict[str, list[_Headers]] = {name: [] for name in names}
    for side, some, before in zip(names, (grown, unseen), (0, len(grown)), strict=True):
        for number, study in enumerate(some, 1):
            read[side] += [headers] if (headers := _read(study)) else []
            move(before + number)
    if not read["training"]:
        raise DataError("no study has headers to grow a forest on")
    return read


def _read(study: LabelledStudy) -> _Headers | None:
    if study.headers is None:
        log.warning("%s %s left out: it has no DICOM headers", study.source, study.study_uid)
        return None
    found = study.headers()
    labels = study.label_slices(found)
    known = ~np.isnan(labels[:, 0])
    return _Headers(
        facts=study,
        labels=labels,
        study_labels=study.label_study(labels),
        slices=Slices(facts=found["header"][known], bleeds=labels[known, 0] == 1),
    )
