"""The model card beside the weights: all that must be known to use a model, and the proof that card and weights agree.

A model is a directory with ``card.json`` and ``weights.safetensors``, and ``features.safetensors`` where its
out-of-distribution guard looks at the network's features. Nothing else is ever read: a safetensors file holds numbers
and names and cannot execute code.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from inference.calibration import Calibration
from inference.decision import ScanRule
from inference.errors import InferenceError
from inference.models import FAMILIES, ScanModel, build
from inference.novelty import Features, Guard, Watch
from inference.preprocess import Preprocessing
from inference.result import ANY, LABELS, Json, OperatingPoint

FORMAT = 1
"""Version of the card's layout. Raised when an older reader would misunderstand a newer card."""

CARD_FILE = "card.json"
WEIGHTS_FILE = "weights.safetensors"
FEATURES_FILE = "features.safetensors"
MOST_NAMED = 5


class ModelError(InferenceError):
    """A model cannot be used; the message names the file and what was expected."""


class WeightsMissing(ModelError):
    """There is no card or no weights file where one was configured."""


class CardInvalid(ModelError):
    """The card is not what this version can read."""


class CardMismatch(ModelError):
    """Card and weights do not belong together."""


@dataclass(frozen=True, kw_only=True)
class Provenance(Json):
    """Where the weights come from. `date` is ISO 8601 in UTC; `commit` identifies the code that trained them."""

    recipe: str = ""
    data: str = ""
    seed: int | None = None
    commit: str = ""
    date: str = ""


@dataclass(frozen=True, kw_only=True)
class ModelCard(Json):
    """What travels with the weights.

    Attributes
    ----------
    name, version : str
        What the report calls the algorithm.
    family : str
        Key of `inference.models.FAMILIES`.
    architecture : dict
        The family's configuration.
    preprocessing : Preprocessing
        How slices become images; the same in training and in serving.
    labels : tuple of str
        The network's outputs in order, from `inference.result.LABELS`.
    thresholds : dict
        The threshold in force for each label, in 0…1, on the score of the scan.
    operating_points : dict
        The thresholds a label may have, by name and with what was measured at them. Where there are any for a label,
        its threshold is that of one of them.
    rule : ScanRule
        How slice scores become one score of the scan.
    calibrated : bool
        The claim that scans get probabilities that hold: every label then has a calibration of the scan. Without the
        claim findings have scores only, whatever `calibration` holds.
    calibration : Calibration
        What is calibrated, of slices and of scans, and how. That of slices is applied always.
    guard : Guard or None
        What the scans of training were like.
    bleeding_only : bool
        Trained on slices that bleed only: it says which kind, never whether. It is heard only about slices in which
        another model finds bleeding, see `inference.reading.where_bleeding`.
    demonstration : bool
        Not for clinical use; everything made from these weights says so.
    figures : dict
        What training measured, by name.
    sha256 : str
        Digest (hex) of the weights file; filled in by `save`.
    """

    format: int = FORMAT
    name: str
    family: str
    version: str
    architecture: dict[str, Any]
    preprocessing: Preprocessing
    labels: tuple[str, ...]
    thresholds: dict[str, float]
    operating_points: dict[str, tuple[OperatingPoint, ...]] = field(default_factory=dict)
    rule: ScanRule
    calibrated: bool = False
    calibration: Calibration = field(default_factory=Calibration)
    guard: Guard | None = None
    bleeding_only: bool = False
    demonstration: bool
    intended_use: str
    provenance: Provenance = field(default_factory=Provenance)
    figures: dict[str, Any] = field(default_factory=dict)
    sha256: str = ""

    def __post_init__(self) -> None:
        """Refuses a card that contradicts itself, with ``ValueError``."""
        if self.format != FORMAT:
            raise ValueError(f"format is {self.format!r}, this version reads format {FORMAT}")
        if self.family not in FAMILIES:
            raise ValueError(f"family is {self.family!r}, known are {', '.join(FAMILIES)}")
        if not self.labels or set(self.labels) - set(LABELS) or len(set(self.labels)) != len(self.labels):
            raise ValueError(f"labels are {list(self.labels)}, expected some of {', '.join(LABELS)}")
        if set(self.thresholds) != set(self.labels):
            raise ValueError(f"thresholds are given for {sorted(self.thresholds)}, expected {sorted(self.labels)}")
        if self.bleeding_only and ANY in self.labels:
            raise ValueError(f"a model that knows only slices that bleed cannot tell {ANY!r}")
        if any(not 0 <= value <= 1 for value in self.thresholds.values()):
            raise ValueError("thresholds must lie between 0 and 1")
        for what, named in (("calibration", self.calibration.labels), ("operating points", set(self.operating_points))):
            if named - set(self.labels):
                raise ValueError(f"{what} names labels other than {sorted(self.labels)}")
        if self.calibrated and (lacking := set(self.labels) - set(self.calibration.scan)):
            raise ValueError(f"it claims to be calibrated, and has no calibration of scans for {sorted(lacking)}")
        for label, points in self.operating_points.items():
            if points and self.operating_point(label) is None:
                raise ValueError(f"the threshold {self.thresholds[label]} of {label} is none of its operating points")

    def operating_point(self, label: str) -> OperatingPoint | None:
        """What was measured at the threshold in force; None where nothing was."""
        points = self.operating_points.get(label, ())
        return next((point for point in points if point.threshold == self.thresholds[label]), None)

    def certainty_in_words(self) -> dict[str, str]:
        """How sure the model is, for people: operating points, calibration and guard, by what they are."""
        points = [
            f"{label}, {point}{' (in force)' if point == self.operating_point(label) else ''}"
            for label in self.labels
            for point in self.operating_points.get(label, ())
        ]
        return {
            "operating points": "\n".join(points) or "nothing was measured",
            "calibration": "\n".join(f"{label}: {self.calibration.in_words(label)}" for label in self.labels),
            "out of distribution": self.guard.in_words() if self.guard else "no guard: every scan is taken for usual",
        }


def save(
    directory: Path,
    card: ModelCard,
    state: Mapping[str, Tensor],
    *,
    half: bool = False,
    features: Features | None = None,
) -> ModelCard:
    """Writes card and weights so that `directory` holds the old model or the new one whole; returns the card written.

    The digests are filled in. With `half`, matrices and kernels are stored as float16 (`load` gives float32 back).
    `features` belong to the card's guard.

    Raises ``CardMismatch`` where `state` does not fit the card's architecture, or the guard lacks its features or has
    no use for them: such a model could never be loaded.
    """
    _require_fit(card, state, directory)
    statistics = features.to_bytes() if features else b""
    if bool(statistics) != (card.guard is not None and card.guard.feature_limit is not None):
        raise CardMismatch(f"{directory}: the card's guard and the features given do not belong together")
    if card.guard is not None and statistics:
        card = replace(card, guard=replace(card.guard, features_sha256=hashlib.sha256(statistics).hexdigest()))
    stored = {name: _to_store(tensor, half=half) for name, tensor in state.items()}
    weights = safetensors.torch.save(stored, {"format": "pt"})
    card = replace(card, sha256=hashlib.sha256(weights).hexdigest())
    directory.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    try:
        _write(fresh / WEIGHTS_FILE, weights)
        if statistics:
            _write(fresh / FEATURES_FILE, statistics)
        _write(fresh / CARD_FILE, _readable(card.to_json()).encode())
        fresh.chmod(0o755)
        _put_in_place(fresh, directory)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return card


def read_card(directory: Path) -> ModelCard:
    """The card alone, without a look at the weights. Raises ``WeightsMissing`` or ``CardInvalid``."""
    path = directory / CARD_FILE
    try:
        return ModelCard.from_json(json.loads(path.read_bytes()))
    except FileNotFoundError as error:
        raise WeightsMissing(
            f"{path} does not exist; a model is a directory with {CARD_FILE} and {WEIGHTS_FILE}"
        ) from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CardInvalid(f"{path} is not a model card of format {FORMAT}: {error}") from error


def load(directory: Path) -> tuple[ModelCard, dict[str, Tensor]]:
    """The card and the weights (CPU, float32) of one model, after every check that they belong together.

    Raises
    ------
    WeightsMissing
        There is no such file.
    CardInvalid
        The card has an unknown key, another format, or contradicts itself.
    CardMismatch
        The weights' digest, names or shapes are not the card's.
    """
    card = read_card(directory)
    path = directory / WEIGHTS_FILE
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise WeightsMissing(f"{path} does not exist, though {CARD_FILE} lies beside it") from error
    digest = hashlib.sha256(data).hexdigest()
    if digest != card.sha256:
        raise CardMismatch(f"{path} has SHA-256 {digest}, the card expects {card.sha256 or 'nothing'}")
    try:
        stored = safetensors.torch.load(data)
    except SafetensorError as error:
        raise CardMismatch(f"{path} is not a safetensors file: {error}") from error
    state = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in stored.items()}
    _require_fit(card, state, path)
    return card, state


def load_watch(directory: Path, card: ModelCard) -> Watch | None:
    """The out-of-distribution guard of the model whose card was read from `directory`; None where it has none.

    Raises ``WeightsMissing`` or ``CardMismatch`` where the features' statistics are missing, or not the card's.
    """
    if card.guard is None or card.guard.feature_limit is None:
        return None if card.guard is None else Watch(guard=card.guard)
    path = directory / FEATURES_FILE
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise WeightsMissing(f"{path} does not exist, though the guard in {CARD_FILE} needs it") from error
    digest = hashlib.sha256(data).hexdigest()
    if digest != card.guard.features_sha256:
        expected = card.guard.features_sha256 or "nothing"
        raise CardMismatch(f"{path} has SHA-256 {digest}, the card expects {expected}")
    try:
        features = Features.from_bytes(data)
    except ValueError as error:
        raise CardMismatch(f"{path}: {error}") from error
    with torch.device("meta"):
        expected_size = build(card).descriptor_size
    if len(features.mean) != expected_size:
        raise CardMismatch(f"{path} is for {len(features.mean)} features, this {card.family} has {expected_size}")
    return Watch(guard=card.guard, features=features)


def _require_fit(card: ModelCard, state: Mapping[str, Tensor], path: Path) -> None:
    """Raises ``CardInvalid`` for an impossible architecture, ``CardMismatch`` unless `state` is exactly its state."""
    try:
        with torch.device("meta"):
            model = build(card)
    except (TypeError, ValueError, RuntimeError) as error:
        raise CardInvalid(
            f"{path}: no {card.family} network has the architecture {card.architecture}: {error}"
        ) from error
    if (model.channels, model.size) != (card.preprocessing.channels, card.preprocessing.size):
        raise CardInvalid(
            f"{path}: preprocessing gives {card.preprocessing.channels} × {card.preprocessing.size}² images, "
            f"the network takes {model.channels} × {model.size}²"
        )
    _require_sense(card, model, path)
    expected = model.state_dict()
    if missing := expected.keys() - state.keys():
        raise CardMismatch(f"{path}: {_some(missing)} missing of the {len(expected)} tensors of this {card.family}")
    if unexpected := state.keys() - expected.keys():
        raise CardMismatch(f"{path}: {_some(unexpected)} not part of this {card.family}")
    for name, tensor in state.items():
        if tensor.shape != expected[name].shape:
            found, wanted = tuple(tensor.shape), tuple(expected[name].shape)
            raise CardMismatch(f"{path}: {name} has shape {found}, this {card.family} expects {wanted}")
    if model.labels != len(card.labels):
        raise CardMismatch(f"{path}: the network has {model.labels} outputs, the card names {len(card.labels)} labels")


def _require_sense(card: ModelCard, model: ScanModel, path: Path) -> None:
    """Raises ``CardInvalid`` where the card asks of this network what it cannot give."""
    if not model.per_slice and not card.rule.max:
        raise CardInvalid(f"{path}: this {card.family} scores the scan as a whole, which allows no rule but max")
    if card.bleeding_only and model.context != 0:
        raise CardInvalid(
            f"{path}: this {card.family} looks at several slices, so it knows others than those that bleed"
        )
    if card.preprocessing.blank_below and model.context != 0:
        raise CardInvalid(f"{path}: this {card.family} looks at several slices, so none can be left out as blank")


def _readable(card: dict[str, Any]) -> str:
    """JSON for people: one line for each value, and lists of numbers in one line."""
    text = json.dumps(card, indent=2, ensure_ascii=False)
    return re.sub(r"\[\n[-+.\deE,\s]+\]", lambda numbers: " ".join(numbers[0].split()), text) + "\n"


def _some(names: Iterable[str]) -> str:
    ordered = sorted(names)
    more = f" and {len(ordered) - MOST_NAMED} more" if len(ordered) > MOST_NAMED else ""
    return ", ".join(ordered[:MOST_NAMED]) + more


def _to_store(tensor: Tensor, *, half: bool) -> Tensor:
    """A contiguous copy on the CPU. Vectors stay float32: variances can exceed what float16 holds, and cost nothing."""
    copy = tensor.detach().to("cpu", copy=True).contiguous()
    return copy.half() if half and copy.ndim > 1 and copy.is_floating_point() else copy


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _put_in_place(fresh: Path, directory: Path) -> None:
    """Renames `fresh` to `directory`; a model that was there is set aside until the new one stands, then removed."""
    if not directory.exists():
        fresh.rename(directory)
        return
    aside = fresh.with_name(f"{fresh.name}-before")
    directory.rename(aside)
    try:
        fresh.rename(directory)
    except OSError:
        aside.rename(directory)
        raise
    shutil.rmtree(aside)
