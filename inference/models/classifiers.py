"""Classifiers of single slices: an ImageNet trunk under a head of two linear layers, for "bleed or not" or subtypes.

Khandelwal and Ganguli, "Detection of Intracranial hemorrhage and its subtypes": a ResNet-18 tells slices with a bleed
from others (section III-D i), a ResNet-50, ResNet-101, DenseNet-121 or AlexNet tells the subtypes of slices that have
one (section III-D ii and IV-A). The second kind was trained on slices with a bleed only; what it says of others means
nothing by itself.

The paper trains with fast.ai and does not describe the head; this is the one fast.ai puts on a trunk: average and
maximum of the last maps side by side, then twice batch normalisation, dropout and a linear layer without bias. Of
AlexNet and DenseNet only the convolutional part is kept, as fast.ai cuts them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torchvision import models as torchvision_models

from inference.models.scan_model import ScanModel
from inference.result import Json

HIDDEN = 512


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig(Json):
    """The network's measures. The defaults are the paper's first network, bleed or not.

    With one label the network has two outputs and a softmax, as in the paper; with more, a sigmoid for each.
    """

    trunk: str = "resnet18"
    labels: int = 1
    dropout: float = 0.5
    size: int = 256


class AverageAndMaximum(nn.Module):
    """Of all maps their averages, then their maxima."""

    def forward(self, maps: Tensor) -> Tensor:
        """Features (n, 2 · channels, 1, 1) of maps (n, channels, h, w)."""
        return torch.cat((maps.mean((2, 3), keepdim=True), maps.amax((2, 3), keepdim=True)), 1)


def _resnet(make: Callable[..., Any]) -> nn.Module:
    network: nn.Module = make(weights=None)
    network.avgpool = AverageAndMaximum()
    network.fc = nn.Identity()
    return network


def _features(make: Callable[..., Any]) -> nn.Module:
    parts: list[tuple[str, nn.Module]] = [
        ("features", make(weights=None).features),
        ("pool", AverageAndMaximum()),
        ("flatten", nn.Flatten()),
    ]
    return nn.Sequential(OrderedDict(parts))


TRUNKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "resnet18": (lambda: _resnet(torchvision_models.resnet18), 512),
    "resnet50": (lambda: _resnet(torchvision_models.resnet50), 2048),
    "resnet101": (lambda: _resnet(torchvision_models.resnet101), 2048),
    "densenet121": (lambda: _features(torchvision_models.densenet121), 1024),
    "alexnet": (lambda: _features(torchvision_models.alexnet), 256),
}
"""Name of a trunk → how to make it up to the pooled features, and how many maps it ends with."""


class Classifier(ScanModel):
    """Trunk and head; every slice by itself."""

    channels = 3
    context = 0

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__()
        if config.trunk not in TRUNKS:
            raise ValueError(f"unknown trunk {config.trunk!r}; known are {', '.join(TRUNKS)}")
        make, maps = TRUNKS[config.trunk]
        self.config = config
        self.size = config.size
        self.labels = config.labels
        self.descriptor_size = 2 * maps
        self.trunk = make()
        self.last_maps = "trunk.layer4" if config.trunk.startswith("resnet") else "trunk.features"
        self.head = nn.Sequential(
            nn.BatchNorm1d(2 * maps),
            nn.Dropout(config.dropout / 2),
            nn.Linear(2 * maps, HIDDEN, bias=False),
            nn.ReLU(),
            nn.BatchNorm1d(HIDDEN),
            nn.Dropout(config.dropout),
        )
        self.classify = nn.Linear(HIDDEN, 2 if config.labels == 1 else config.labels, bias=False)

    def encode(self, images: Tensor) -> Tensor:
        """Descriptors (n, 2 · maps): averages and maxima of the trunk's last maps."""
        descriptors: Tensor = self.trunk(images)
        return descriptors

    def decide(self, descriptors: Tensor) -> Tensor:
        """Logits (…, s, labels), each slice's from its own descriptor.

        Of two outputs under a softmax the second's probability is the sigmoid of their difference.
        """
        outputs: Tensor = self.classify(self.head(descriptors.flatten(0, -2)))
        logits = outputs.diff(dim=1) if self.labels == 1 else outputs
        return logits.reshape(*descriptors.shape[:-1], self.labels)
