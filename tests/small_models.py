"""Models of every family in a small size, untrained: real cards, real files, milliseconds instead of seconds."""

from __future__ import annotations

from pathlib import Path

import torch

from inference.card import ModelCard, save
from inference.decision import ScanRule
from inference.models import build
from inference.preprocess import Preprocessing
from inference.result import LABELS


def radnet_card(*, threshold: float) -> ModelCard:
    """A RADnet of three layers a block on 64² pixels of 4 mm."""
    return ModelCard(
        name="RADnet",
        family="radnet",
        version="small",
        architecture={"growth": 3, "layers": 3, "stem": 6, "hidden": 4, "size": 64},
        preprocessing=Preprocessing.radnet(size=64, pixel_mm=4.0),
        labels=("any",),
        thresholds={"any": threshold},
        rule=ScanRule(run=3),
        demonstration=True,
        intended_use="Tests.",
    )


def cnn_lstm_card(*, threshold: float) -> ModelCard:
    """A ResNet-18 with a narrow LSTM on 64² pixels."""
    return ModelCard(
        name="CNN-LSTM",
        family="cnn_lstm",
        version="small",
        architecture={"trunk": "resnet18", "hidden": 8, "size": 64},
        preprocessing=Preprocessing.three_windows(size=64),
        labels=LABELS,
        thresholds=dict.fromkeys(LABELS, threshold),
        rule=ScanRule(max=True),
        demonstration=True,
        intended_use="Tests.",
    )


def small_models(root: Path, *, threshold: float) -> dict[str, Path]:
    """The directory of each model by name. `threshold` 0 finds everything, 1 finds nothing."""
    torch.manual_seed(0)
    cards = {"radnet": radnet_card(threshold=threshold), "cnn-lstm": cnn_lstm_card(threshold=threshold)}
    for name, card in cards.items():
        save(root / name, card, build(card).state_dict())
    return {name: root / name for name in cards}
