"""The 2D network of a comparison of 2D and 3D: a ResNet that labels one slice and knows no neighbours.

Vultur, "2D vs 3D Convolutional Neural Networks in Hemorrhage Detection", thesis, University of
Bucharest, 2021, sections 4.2.1 and 6.3.1: ResNet-18 (and -50) with its last layer replaced by dropout and six sigmoids.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from inference.models.cnn_lstm import TRUNKS
from inference.models.scan_model import ScanModel
from inference.result import Json

KNOWN = ("resnet18", "resnet50")


@dataclass(frozen=True, kw_only=True)
class Resnet2dConfig(Json):
    """The network's measures. The defaults are the thesis' ResNet-18."""

    trunk: str = "resnet18"
    labels: int = 6
    dropout: float = 0.5
    size: int = 256


class Resnet2d(ScanModel):
    """Trunk, dropout, one linear layer: every slice by itself."""

    channels = 3
    context = 0

    def __init__(self, config: Resnet2dConfig) -> None:
        super().__init__()
        if config.trunk not in KNOWN:
            raise ValueError(f"unknown trunk {config.trunk!r}; known are {', '.join(KNOWN)}")
        make, self.descriptor_size = TRUNKS[config.trunk]
        self.size = config.size
        self.labels = config.labels
        self.trunk = make()
        self.dropout = nn.Dropout(config.dropout)
        self.classify = nn.Linear(self.descriptor_size, config.labels)

    def encode(self, images: Tensor) -> Tensor:
        """Descriptors (n, 512), or (n, 2048) of ResNet-50: the trunk's pooled features."""
        descriptors: Tensor = self.trunk(images)
        return descriptors

    def decide(self, descriptors: Tensor) -> Tensor:
        """Logits (…, s, labels), each slice's from its own descriptor."""
        logits: Tensor = self.classify(self.dropout(descriptors))
        return logits
