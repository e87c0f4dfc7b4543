"""A small network of every family and trunk with its card: whatever the engine promises, it promises for each."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import nn
from torchvision.models.resnet import Bottleneck

from inference.card import ModelCard
from inference.decision import ScanRule
from inference.models import ScanModel
from inference.preprocess import Preprocessing
from inference.result import LABELS
from tests.small_scan import SmallSlice, a_network, images, small_head

SIDE = 64
RESIDUE = 0.2


def _card(family: str, architecture: dict[str, Any], preprocessing: Preprocessing, **changes: Any) -> ModelCard:
    labels = changes.get("labels", LABELS)
    return ModelCard(
        name=family,
        family=family,
        version="small",
        architecture=architecture | {"size": preprocessing.size},
        preprocessing=preprocessing,
        labels=labels,
        thresholds=dict.fromkeys(labels, 0.5),
        rule=ScanRule(run=3) if labels == ("any",) else ScanRule(max=True),
        demonstration=True,
        intended_use="Tests.",
    )


WINDOWS = Preprocessing.three_windows(size=SIDE)
EQUALISED = Preprocessing.equalised((-1000.0, 0.0, 20.0, 40.0, 60.0, 1000.0), size=SIDE, blank_below=0.0)

EVERY: dict[str, ModelCard] = {
    "radnet": _card(
        "radnet",
        {"growth": 3, "layers": 3, "stem": 6, "hidden": 4},
        Preprocessing.radnet(size=SIDE, pixel_mm=3.0),
        labels=("any",),
    ),
    "densenet-a": _card(
        "radnet",
        {"growth": 3, "layers": 3, "stem": 6, "recurrent": False},
        Preprocessing.radnet(size=SIDE, pixel_mm=3.0),
        labels=("any",),
    ),
    "cnn-lstm": _card("cnn_lstm", {"trunk": "resnet18", "hidden": 8}, WINDOWS),
    "cnn-lstm se-resnext": _card("cnn_lstm", {"hidden": 8}, WINDOWS),
    "hemonode": _card("hemonode", {"hidden": 8}, WINDOWS),
    "hemonode mirrored": _card(
        "hemonode", {"trunk": "resnet50", "hidden": 8, "reach": 2, "study": False, "mirrored": True}, WINDOWS
    ),
    "adjacent": _card("adjacent", {"trunk": "resnet18"}, WINDOWS),
    "adjacent resnet50": _card("adjacent", {}, WINDOWS),
    "resnet-2d": _card("resnet_2d", {}, Preprocessing.soft_windows(size=SIDE)),
    "resnet-3d whole": _card("resnet_3d", {"depth": 12}, Preprocessing.full_range(size=32)),
    "resnet-3d five": _card("resnet_3d", {"depth": 5, "per_slice": True}, Preprocessing.full_range(size=32)),
    "classifier": _card("classifiers", {}, EQUALISED, labels=("any",)),
    "classifier resnet50": _card("classifiers", {"trunk": "resnet50", "labels": 6}, EQUALISED),
    "classifier resnet101": _card("classifiers", {"trunk": "resnet101", "labels": 6}, EQUALISED),
    "classifier densenet121": _card("classifiers", {"trunk": "densenet121", "labels": 6}, EQUALISED),
    "classifier alexnet": _card("classifiers", {"trunk": "alexnet", "labels": 6}, EQUALISED),
}


@cache
def head() -> Sequence[SmallSlice]:
    """The scan that they read."""
    return small_head(7)


@cache
def network_of(name: str) -> ScanModel:
    """Untrained, but its normalisations have seen the scan, as in training: what comes out is of the order of 1.

    Each block of three convolutions adds little to its shortcut, as in a trained network; with the weights of the first
    day, rounding errors grow from block to block. One for all tests, not to be changed.
    """
    card = EVERY[name]
    network = a_network(card)
    for block in network.modules():
        if isinstance(block, Bottleneck):
            nn.init.constant_(block.bn3.weight, RESIDUE)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d | nn.BatchNorm3d):
            layer.train()
            layer.momentum = None
    with torch.no_grad():
        network(images(card, head())[None])
    return network.eval().requires_grad_(False)
