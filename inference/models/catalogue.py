"""The networks of the five papers by the names they have there, and our own: what `hemonode models` lists."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from inference.models import FAMILIES
from inference.result import LABELS, SUBTYPES

GREWAL = "Grewal et al. 2018, RADnet"
NGUYEN = "Nguyen et al. 2020, A CNN-LSTM architecture"
NGO = "Ngo et al. 2022, Deep descriptors of adjacent slices"
VULTUR = "Vultur 2021, 2D vs 3D convolutional neural networks"
KHANDELWAL = "Khandelwal and Ganguli, Detection of ICH and its subtypes"
OURS = "Hemonode's own"


@dataclass(frozen=True, kw_only=True)
class Published:
    """One network of a paper, or our own: how to have it, and what it decides."""

    name: str
    family: str
    paper: str
    decides: str
    architecture: Mapping[str, Any] = field(default_factory=dict)

    def facts(self) -> dict[str, Any]:
        """The same with its measures: input, outputs, parameters. Made without memory for weights."""
        with torch.device("meta"):
            network = FAMILIES[self.family](self.architecture)
        return {
            "name": self.name,
            "family": self.family,
            "paper": self.paper,
            "decides": self.decides,
            "architecture": dict(self.architecture),
            "input": [network.channels, network.size, network.size],
            "outputs": network.labels,
            "context": network.context,
            "reach": network.reach,
            "parameters": sum(parameter.numel() for parameter in network.parameters()),
        }


_ALL = f"{len(LABELS)} labels of every slice"
_SUBTYPES = f"{len(SUBTYPES)} subtypes of a slice that bleeds"

PUBLISHED = (
    Published(
        name="Hemonode", family="hemonode", paper=OURS, decides=f"{_ALL}, over the scan; each slice among others"
    ),
    Published(
        name="DenseNet-40",
        family="radnet",
        paper=GREWAL,
        decides="bleed or not, slice by slice",
        architecture={"attention": False, "recurrent": False},
    ),
    Published(
        name="DenseNet-A",
        family="radnet",
        paper=GREWAL,
        decides="bleed or not, slice by slice; three masks",
        architecture={"recurrent": False},
    ),
    Published(name="RADnet", family="radnet", paper=GREWAL, decides="bleed or not over the scan; three masks"),
    Published(
        name="CNN-LSTM, ResNet-50",
        family="cnn_lstm",
        paper=NGUYEN,
        decides=f"{_ALL}, over the scan",
        architecture={"trunk": "resnet50"},
    ),
    Published(name="CNN-LSTM, SE-ResNeXt-50", family="cnn_lstm", paper=NGUYEN, decides=f"{_ALL}, over the scan"),
    Published(name="Adjacent slices", family="adjacent", paper=NGO, decides=f"{_ALL}, from seven"),
    Published(name="2D ResNet-18", family="resnet_2d", paper=VULTUR, decides=_ALL),
    Published(name="2D ResNet-50", family="resnet_2d", paper=VULTUR, decides=_ALL, architecture={"trunk": "resnet50"}),
    Published(name="3D ResNet-18, whole scan", family="resnet_3d", paper=VULTUR, decides="6 labels of the scan"),
    Published(
        name="3D ResNet-18, five slices",
        family="resnet_3d",
        paper=VULTUR,
        decides=f"{_ALL}, from five",
        architecture={"depth": 5, "per_slice": True},
    ),
    Published(name="ResNet-18", family="classifiers", paper=KHANDELWAL, decides="bleed or not, slice by slice"),
    *(
        Published(
            name=name,
            family="classifiers",
            paper=KHANDELWAL,
            decides=_SUBTYPES,
            architecture={"trunk": trunk, "labels": len(SUBTYPES)},
        )
        for name, trunk in (
            ("ResNet-50", "resnet50"),
            ("ResNet-101", "resnet101"),
            ("DenseNet-121", "densenet121"),
            ("AlexNet", "alexnet"),
        )
    ),
    Published(
        name="Metadata forest",
        family="metadata_forest",
        paper=KHANDELWAL,
        decides="bleed or not, from headers alone (a baseline)",
        architecture={"facts": 17, "trees": 100, "nodes": 1, "depth": 0},
    ),
)
"""Our own network, then every network of the five papers, in the order of the papers."""
