"""Descriptors of adjacent slices: a ResNet-50 says six probabilities of a slice, a small network weighs seven slices.

Ngo et al., "Slice-level detection of intracranial hemorrhage on CT using deep descriptors of adjacent slices", 2022.
The two stages of the paper are trained one after the other: first trunk and first layer on slices (section II-A), then
the fusion network on their probabilities (section II-B).

Where the paper is silent: the two convolutions have 16 and 32 maps of 3×3 with a border of noughts, and beyond either
end of the scan its last slice is repeated. The convolutions run across the labels as well as the slices, so the labels'
order is part of the weights.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from inference.models.cnn_lstm import TRUNKS
from inference.models.scan_model import ScanModel
from inference.result import Json

KNOWN = ("resnet18", "resnet50")
REACH = 3
"""Slices before and behind the one that is refined."""

BLOCK = 2 * REACH + 1
FUSION_MAPS = (16, 32)


@dataclass(frozen=True, kw_only=True)
class AdjacentConfig(Json):
    """The network's measures. The defaults are the paper's; its text does not give the image size."""

    trunk: str = "resnet50"
    labels: int = 6
    size: int = 512


class Adjacent(ScanModel):
    """Both stages: a slice's descriptor is its six probabilities; seven of them make the logits of the middle slice."""

    channels = 3
    context = REACH

    def __init__(self, config: AdjacentConfig) -> None:
        super().__init__()
        if config.trunk not in KNOWN:
            raise ValueError(f"unknown trunk {config.trunk!r}; known are {', '.join(KNOWN)}")
        make, features = TRUNKS[config.trunk]
        self.size = config.size
        self.labels = self.descriptor_size = config.labels
        self.trunk = make()
        self.describe = nn.Linear(features, config.labels)
        first, second = FUSION_MAPS
        self.fuse = nn.Sequential(
            nn.Conv2d(1, first, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(first, second, 3, padding=1),
            nn.ReLU(),
            nn.Flatten(),
        )
        self.classify = nn.Linear(second * BLOCK * config.labels, config.labels)

    def describe_logits(self, images: Tensor) -> Tensor:
        """Logits (n, labels) of the first stage, each slice by itself: what its training compares with the labels."""
        logits: Tensor = self.describe(self.trunk(images))
        return logits

    def encode(self, images: Tensor) -> Tensor:
        """Descriptors (n, labels): the first stage's probabilities."""
        return self.describe_logits(images).float().sigmoid()

    def decide(self, descriptors: Tensor) -> Tensor:
        """Logits (…, s, labels): each slice's from the 7 × 6 descriptors around it."""
        slices, labels = descriptors.shape[-2:]
        around = torch.arange(-REACH, REACH + 1, device=descriptors.device)
        middle = torch.arange(slices, device=descriptors.device)
        blocks = descriptors[..., (middle[:, None] + around).clamp(0, slices - 1), :]
        logits: Tensor = self.classify(self.fuse(blocks.reshape(-1, 1, BLOCK, labels)))
        return logits.reshape(descriptors.shape)
