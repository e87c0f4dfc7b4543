"""One training from its sources to a model directory: what `hemonode train` does.

::

    OUT/dataset.json      every study and its side of the split
    OUT/log.csv, curves.png, tensorboard/
    OUT/checkpoint.safetensors, best.safetensors
    OUT/model/            card, weights and dataset.json: what a node reads, and what judges the model later

A run that was stopped, however, is continued by the same command.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from inference.card import ModelCard, ModelError
from inference.importing import fit_weights
from inference.models import FAMILIES, ScanModel
from inference.preprocess import Preprocessing
from inference.result import ANY, LABELS, Json
from training import finder, manifest
from training.cache import VolumeCache
from training.dataset import Scan, prepare_all, sampled_volumes, split
from training.described import describe
from training.errors import DataError, TrainingError
from training.evaluate import begun_from, inherited
from training.export import Description, export, round_as_stored
from training.guard import refuse_overlap, refuse_patients
from training.loop import Keep, Progress, Run, write_whole
from training.losses import weight_of_any
from training.manifest import DATASET_FILE
from training.metrics import auc, log_loss
from training.reading import read
from training.recipe import FromSlices, Recipe
from training.recipes import RECIPES
from training.recipes.metadata_forest import NAME as HEADERS
from training.record import RunLog
from training.sources.named import open_source
from training.study import LabelledStudy
from training.team import ALONE, Team
from training.watch import Watch

SIDES = ("training", "validation", "test")
SYNTHETIC = (
    "Demonstration only: trained and judged on synthetic phantoms, never on a patient. Not for clinical use. "
    "The figures say that the machinery works, nothing about how well it reads patients."
)
INVESTIGATIONAL = (
    "Investigational: figures are those of its own split. Not for clinical use until a site has judged and released it."
)
KINDS_ONLY = (
    "Trained on slices that bleed only: it says which kind bleeds where another model finds bleeding, and nothing "
    "about other slices. Its figures are those of slices that bleed."
)

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the command line asks for.

    `data` are sources by name; `test` likewise, in place of a share of `data`. `shares` are those of training,
    validation and test, by patient. `values` change the recipe's, `architecture` the network's.
    """

    recipe: str
    data: tuple[str, ...]
    test: tuple[str, ...] = ()
    out: Path
    cache: Path
    cache_gb: float
    seed: int = 0
    shares: tuple[float, ...] = (0.7, 0.15, 0.15)
    minutes: float = float("inf")
    values: dict[str, Any] = field(default_factory=dict)
    architecture: dict[str, Any] = field(default_factory=dict)
    start_from: Path | None = None
    """A file of weights from elsewhere, in one of the layouts of `inference.importing`"""
    checkpoint_every: int = 200
    validate_every: int = 500
    workers: int = 2


Values = TypeVar("Values", bound=Json)
Told = Callable[[str, int | None], Callable[[int], None]]
"""Begins a progress bar with this text and total, and gives what moves it to a place."""


def train(asked: Asked, *, team: Team = ALONE, told: Told = lambda _, __: lambda ___: None) -> ModelCard | None:
    """Train, judge and export; returns the card, or None in a process that does not lead its team.

    Raises
    ------
    TrainingError
        Something asked for is not there, patients or pixels stand on two sides, or the loss diverged.
    """
    recipe = _recipe(asked)
    values = changed(recipe.values(), asked.values, "--set")
    model = _network(recipe, asked)
    start = _started(model, asked.start_from)
    pretrained = asked.start_from is not None and "trunk" not in start.untrained
    cache = VolumeCache(asked.cache / "volumes", limit=int(asked.cache_gb * 1e9))
    before = inherited(asked.start_from) if asked.start_from else {}
    with _first(team):
        sides, preprocessing = _sides(asked, recipe, values, model, cache, told)
        _refuse_known(before, sides)
        listed = manifest.of(
            sides, said={"data": asked.data, "test": asked.test, "seed": asked.seed, "start": str(start)}
        )
        same_data(asked.out / DATASET_FILE, listed)
    watch = Watch(labels=recipe.labels)
    if team.leads:
        watch.data(sides["training"])
    session = _Session(asked=asked, recipe=recipe, model=model, validation=sides["validation"], watch=watch)
    run = Run(
        seed=asked.seed,
        minutes=asked.minutes,
        keep=Keep(path=asked.out / "checkpoint.safetensors", every=asked.checkpoint_every),
        report=session.reporter(told) if team.leads else None,
        report_every=session.report_every,
        team=team,
        workers=asked.workers,
        pretrained=pretrained,
    )
    try:
        steps = recipe.train(model, sides["training"], recipe=values, run=run)
        if not team.leads:
            return None
        session.validate(steps)
    finally:
        session.log.close()
    session.take_best()
    return _exported(asked, recipe, values, model, preprocessing, sides, listed, watch, str(start), before)


@dataclass(kw_only=True)
class _Session:
    """What the leading process looks after while the network is trained."""

    asked: Asked
    recipe: Recipe
    model: ScanModel
    validation: Sequence[Scan]
    watch: Watch
    log: RunLog = field(init=False)
    validated: int = -1

    def __post_init__(self) -> None:
        self.log = RunLog(self.asked.out)

    @property
    def report_every(self) -> int:
        """Steps between two reports: fifty, or so many that validations fall on a report."""
        every = self.asked.validate_every
        return next(n for n in range(min(50, every), 0, -1) if every % n == 0)

    @property
    def _best(self) -> Path:
        return self.asked.out / "best.safetensors"

    def reporter(self, told: Told) -> Callable[[Progress], None]:
        """What the loop reports to."""
        move = told("training", 1000)

        def report(now: Progress) -> None:
            self.log.write(
                now.step,
                **{"training/loss": now.loss, "gradient_norm": now.norm, "learning_rate": now.rate,
                   "seconds": now.seconds},
            )  # fmt: skip
            self.watch.training(now)
            move(int(1000 * now.share))
            if now.judged and now.step % self.asked.validate_every == 0:
                self.validate(now.step)
                self.model.train()

        return report

    def validate(self, step: int) -> None:
        """Judge the network on the validation scans, and keep it where it is the best so far."""
        if not self.validation or step == self.validated:
            return
        self.validated = step
        readings = read(self.model, describe(self.model, self.validation), bleeding_only=self.recipe.bleeding_only)
        if not readings:
            return
        columns = [LABELS.index(label) for label in self.recipe.labels]
        scores = np.concatenate([reading.scores for reading in readings])
        truth = np.concatenate([reading.scan.labels for reading in readings])[:, columns]
        known = ~np.isnan(truth).any(1)
        if not known.any():
            return
        loss = log_loss(scores[known], truth[known], any_weight=weight_of_any(self.recipe.labels))
        area = auc(scores[known, 0], truth[known, 0] == 1) if self.recipe.labels[0] == ANY else None
        self.log.write(step, **{"validation/loss": loss} | ({} if area is None else {"validation/auc_any": area}))
        self.watch.validation(scores, truth, number=max(0, step // self.asked.validate_every - 1))
        if loss < self._best_loss(step):
            state = {name: value.detach().cpu().contiguous() for name, value in self.model.state_dict().items()}
            write_whole(self._best, state, {"loss": repr(loss), "step": str(step)})

    def _best_loss(self, step: int) -> float:
        """Of the best network before `step`. One that a killed life of this run kept later does not count yet."""
        if not self._best.exists():
            return float("inf")
        with safe_open(self._best, framework="pt") as file:
            facts = file.metadata()
        return float(facts["loss"]) if int(facts["step"]) < step else float("inf")

    def take_best(self) -> None:
        """The network is the best on validation, where there was any."""
        if self._best.exists():
            self.model.load_state_dict(load_file(self._best))


def _recipe(asked: Asked) -> Recipe:
    if asked.recipe not in RECIPES:
        raise TrainingError(f"no recipe {asked.recipe!r}; there are {', '.join((*RECIPES, HEADERS))}")
    return RECIPES[asked.recipe]


def changed(values: Values, changes: dict[str, Any], option: str) -> Values:
    """The values with some of them changed. Raises ``TrainingError``: there is no such value, or none of this kind."""
    before = values.to_json()
    if unknown := sorted(set(changes) - set(before)):
        raise TrainingError(f"{option}: no {', '.join(unknown)}; there are {', '.join(before)}")
    for name, value in changes.items():
        if not _alike(value, before[name]):
            raise TrainingError(f"{option} {name}: {value!r}, expected a value like {before[name]!r}")
    return type(values).from_json(before | changes)


def _alike(value: Any, before: Any) -> bool:
    """Whether a value may stand in place of another: a whole number for one, any number for a fraction, lists alike."""
    if isinstance(before, list):
        return isinstance(value, list) and bool(value) and all(_alike(item, before[0]) for item in value)
    if isinstance(before, bool) or isinstance(value, bool):
        return isinstance(before, bool) and isinstance(value, bool)
    return isinstance(value, int) or (isinstance(value, float) and isinstance(before, float))


def _network(recipe: Recipe, asked: Asked) -> ScanModel:
    torch.manual_seed(asked.seed)
    try:
        return FAMILIES[recipe.family](recipe.architecture | asked.architecture)
    except (TypeError, ValueError) as error:
        raise TrainingError(f"--architecture: no {recipe.family} network is like that: {error}") from error


@dataclass(frozen=True, kw_only=True)
class _Start:
    """What a network begins with: a file in words, and the parts of the network that it says nothing about."""

    file: str = ""
    untrained: tuple[str, ...] = ()

    def __str__(self) -> str:
        if not self.file:
            return "random weights"
        return f"{self.file}, random weights in {', '.join(self.untrained)}" if self.untrained else self.file


def _started(model: ScanModel, source: Path | None) -> _Start:
    """`model` begins with the weights of the file, where there is one; returns what it begins with."""
    if source is None:
        return _Start()
    try:
        fitted = fit_weights(source, model.state_dict(), other_labels=True)
    except ModelError as error:
        raise TrainingError(f"--start-from: {error}") from error
    model.load_state_dict(fitted.state)
    return _Start(file=f"{source.name} (layout {fitted.layout}, SHA-256 {fitted.sha256})", untrained=fitted.untrained)


@contextmanager
def _first(team: Team) -> Iterator[None]:
    """The leading process goes first: what it decodes, the others find."""
    if not team.leads:
        team.wait()
    yield
    if team.leads:
        team.wait()


def _sides(
    asked: Asked, recipe: Recipe, values: Json, model: ScanModel, cache: VolumeCache, told: Told
) -> tuple[dict[str, Sequence[Scan]], Preprocessing]:
    """The prepared scans of each side, and how they were prepared; an overlap is refused."""
    index = asked.cache / "index"
    studies = [study for text in asked.data for study in open_source(text, index=index)]
    dealt = split([study.patient for study in studies], shares=shares_of(asked), seed=asked.seed)
    if isinstance(recipe.preprocessing, FromSlices):
        seen = sampled_volumes([one for one in studies if one.patient in set(dealt[0])], cache=cache, seed=asked.seed)
        preprocessing = recipe.preprocessing.make(model.size, values, seen)
    else:
        preprocessing = recipe.preprocessing(model.size)

    def prepared(studies: Sequence[LabelledStudy]) -> list[Scan]:
        move, done = told("preparing scans", len(studies)), 0

        def one() -> None:
            nonlocal done
            done += 1
            move(done)

        return prepare_all(studies, cache=cache, preprocessing=preprocessing, workers=asked.workers, told=one)

    scans = prepared(studies)
    sides: dict[str, Sequence[Scan]] = {
        side: [scan for scan in scans if scan.facts.patient in patients]
        for side, patients in zip(SIDES, map(set, dealt), strict=False)
    }
    if asked.test:
        sides["test"] = prepared([study for text in asked.test for study in open_source(text, index=index)])
    if not sides["training"]:
        raise DataError("no study is left to train on")
    refuse_overlap(sides)
    return sides, preprocessing


def _refuse_known(before: dict[str, Any], sides: dict[str, Sequence[Scan]]) -> None:
    """Raise `LeakageError` where the weights to begin with were made from patients of the test."""
    patients = {scan.facts.patient for scan in sides.get("test", ())}
    refuse_patients(begun_from(before), patients, names=("what --start-from was made from", "test"))


def shares_of(asked: Asked) -> tuple[float, ...]:
    """Shares of the sides: of training and validation alone where the test has a source of its own."""
    kept = asked.shares[:2] if asked.test else asked.shares
    return tuple(share / sum(kept) for share in kept)


def same_data(path: Path, listed: bytes) -> None:
    """The list stands in `path`; a run that was begun with other studies is not continued."""
    if path.exists() and path.read_bytes() != listed:
        raise DataError(f"{path}: this run was begun with other studies or labels; take another --out")
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        path.write_bytes(listed)


def _exported(
    asked: Asked,
    recipe: Recipe,
    values: Json,
    model: ScanModel,
    preprocessing: Preprocessing,
    sides: dict[str, Sequence[Scan]],
    listed: bytes,
    watch: Watch,
    start: str,
    before: dict[str, Any],
) -> ModelCard:
    round_as_stored(model)
    synthetic = all(scan.facts.source == "phantom" for scans in sides.values() for scan in scans)
    claim = SYNTHETIC if synthetic else INVESTIGATIONAL
    description = Description(
        name=f"{recipe.name} ({recipe.paper})",
        family=recipe.family,
        version=hashlib.sha256(listed).hexdigest()[:12],
        architecture=recipe.architecture | asked.architecture,
        preprocessing=preprocessing,
        labels=recipe.labels,
        rule=recipe.rule,
        recipe=f"hemonode train {recipe.name}: {json.dumps(values.to_json())}, from {start}",
        data=f"{', '.join(asked.data + asked.test)}; {DATASET_FILE} has SHA-256 {hashlib.sha256(listed).hexdigest()}",
        seed=asked.seed,
        demonstration=synthetic,
        intended_use=f"{KINDS_ONLY} {claim}" if recipe.bleeding_only else claim,
        bleeding_only=recipe.bleeding_only,
        figures={"warnings": watch.said, "learning_rates_found": finder.found(asked.out), **before},
    )
    try:
        return export(
            model,
            asked.out / "model",
            description,
            training=sides["training"],
            validation=describe(model, sides["validation"]),
            test=describe(model, sides["test"]),
            beside={DATASET_FILE: listed},
        )
    except ModelError as error:
        raise TrainingError(f"the model cannot be written: {error}") from error
