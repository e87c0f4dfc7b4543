"""The families of networks, one file each, and the one place that knows them all by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from inference.models.adjacent import Adjacent, AdjacentConfig
from inference.models.classifiers import Classifier, ClassifierConfig
from inference.models.cnn_lstm import CnnLstm, CnnLstmConfig
from inference.models.hemonode import Hemonode, HemonodeConfig
from inference.models.metadata_forest import MetadataForest, MetadataForestConfig
from inference.models.radnet import RADnet, RadnetConfig
from inference.models.resnet_2d import Resnet2d, Resnet2dConfig
from inference.models.resnet_3d import Resnet3d, Resnet3dConfig
from inference.models.scan_model import ScanModel

if TYPE_CHECKING:
    from inference.card import ModelCard

FAMILIES: dict[str, Callable[[Mapping[str, Any]], ScanModel]] = {
    "radnet": lambda architecture: RADnet(RadnetConfig.from_json(architecture)),
    "cnn_lstm": lambda architecture: CnnLstm(CnnLstmConfig.from_json(architecture)),
    "adjacent": lambda architecture: Adjacent(AdjacentConfig.from_json(architecture)),
    "resnet_2d": lambda architecture: Resnet2d(Resnet2dConfig.from_json(architecture)),
    "resnet_3d": lambda architecture: Resnet3d(Resnet3dConfig.from_json(architecture)),
    "classifiers": lambda architecture: Classifier(ClassifierConfig.from_json(architecture)),
    "metadata_forest": lambda architecture: MetadataForest(MetadataForestConfig.from_json(architecture)),
    "hemonode": lambda architecture: Hemonode(HemonodeConfig.from_json(architecture)),
}
"""Family → how to make its network from the architecture in a model card. Adding a family is adding a line."""


def build(card: ModelCard) -> ScanModel:
    """A new, untrained network as the card describes it.

    Raises ``KeyError`` for an unknown family, ``TypeError`` or ``ValueError`` for an impossible architecture.
    """
    return FAMILIES[card.family](card.architecture)


__all__ = [
    "FAMILIES",
    "Adjacent",
    "AdjacentConfig",
    "Classifier",
    "ClassifierConfig",
    "CnnLstm",
    "CnnLstmConfig",
    "Hemonode",
    "HemonodeConfig",
    "MetadataForest",
    "MetadataForestConfig",
    "RADnet",
    "RadnetConfig",
    "Resnet2d",
    "Resnet2dConfig",
    "Resnet3d",
    "Resnet3dConfig",
    "ScanModel",
    "build",
]
