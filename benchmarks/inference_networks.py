"""The networks of ``benchmarks.inference`` at their papers' input sizes, our own, and the work that each of them is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from inference.backends import Costly
from inference.card import ModelCard
from inference.decision import ScanRule
from inference.models import build
from inference.preprocess import Preprocessing
from inference.result import LABELS

SMALLER = Preprocessing.three_windows(size=256)
THREE, SOFT, FULL = Preprocessing.three_windows(), Preprocessing.soft_windows(), Preprocessing.full_range()
EQUALISED = Preprocessing.equalised([float(hu) for hu in range(-1000, 1010, 20)], blank_below=0.0)

NETWORKS: dict[str, tuple[str, dict[str, Any], Preprocessing]] = {
    "hemonode resnet18": ("hemonode", {}, SMALLER),
    "hemonode resnet50": ("hemonode", {"trunk": "resnet50", "size": 512}, THREE),
    "cnn_lstm resnet18": ("cnn_lstm", {"trunk": "resnet18", "hidden": 128, "size": 256}, SMALLER),
    "radnet": ("radnet", {}, Preprocessing.radnet()),
    "cnn_lstm se_resnext50": ("cnn_lstm", {}, THREE),
    "cnn_lstm resnet50": ("cnn_lstm", {"trunk": "resnet50"}, THREE),
    "adjacent resnet50": ("adjacent", {}, THREE),
    "resnet_2d resnet18": ("resnet_2d", {}, SOFT),
    "resnet_2d resnet50": ("resnet_2d", {"trunk": "resnet50"}, SOFT),
    "resnet_3d whole": ("resnet_3d", {}, FULL),
    "resnet_3d five": ("resnet_3d", {"depth": 5, "per_slice": True}, FULL),
    "classifiers resnet18": ("classifiers", {"trunk": "resnet18", "labels": 5}, EQUALISED),
    "classifiers resnet50": ("classifiers", {"trunk": "resnet50", "labels": 5}, EQUALISED),
    "classifiers resnet101": ("classifiers", {"trunk": "resnet101", "labels": 5}, EQUALISED),
    "classifiers densenet121": ("classifiers", {"trunk": "densenet121", "labels": 5}, EQUALISED),
    "classifiers alexnet": ("classifiers", {"trunk": "alexnet", "labels": 5}, EQUALISED),
}


def card_of(name: str) -> ModelCard:
    """A card for the network, as training would write it."""
    family, architecture, preprocessing = NETWORKS[name]
    labels = {"radnet": LABELS[:1], "classifiers": LABELS[1:]}.get(family, LABELS)
    return ModelCard(
        name=name,
        family=family,
        version="benchmark",
        architecture=architecture,
        preprocessing=preprocessing,
        labels=labels,
        thresholds=dict.fromkeys(labels, 0.5),
        rule=ScanRule(max=True),
        demonstration=True,
        intended_use="Measuring time.",
    )


@dataclass(frozen=True, kw_only=True)
class Work:
    """One layer on one image: floating point operations, and numbers read and written (with the weights apart)."""

    flop: float
    numbers: float
    weights: float


def work_of(name: str) -> tuple[list[Work], bool]:
    """Every convolution and matrix of the costly part, on one image; and whether one image is a whole scan.

    Counted on tensors without contents. What lies between the layers is taken as fused into them, and the recurrent
    layers are left out: both cost time, neither has to.
    """
    layers: list[Work] = []

    def count(module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        per_output = module.weight[0].numel()
        moved = inputs[0].numel() + output.numel()
        layers.append(Work(flop=2.0 * output.numel() * per_output, numbers=moved, weights=module.weight.numel()))

    with torch.device("meta"):
        network = build(card_of(name)).eval()
        part = network.get_submodule("trunk") if network.costly_decide else Costly(network)
        for module in part.modules():
            if isinstance(module, nn.Conv2d | nn.Conv3d | nn.Linear):
                module.register_forward_hook(count)
        run: Callable[[Tensor], Tensor] = part
        run(torch.empty(1, *network.costly_shape))
    return layers, not network.per_slice


def roofline_seconds(name: str, *, slices: int, batch: int, flops: float, bandwidth: float, width: int) -> float:
    """The least time of a study: for each layer the longer of computing and moving `width` bytes a number."""
    layers, whole = work_of(name)
    images = 1 if whole else slices
    return sum(
        max(images * w.flop / flops, width * images * (w.numbers + w.weights / min(batch, images)) / bandwidth)
        for w in layers
    )
