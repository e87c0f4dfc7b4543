"""The CNN-LSTM: one convolutional trunk per slice, two bidirectional LSTM layers over the scan, six labels per slice.

Nguyen et al., "A CNN-LSTM architecture for detection of intracranial hemorrhage on CT scans", MIDL 2020. The paper's
trunks are ResNet-50 and SE-ResNeXt-50 (32×4d); ResNet-18 is for weights that must be small.
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


@dataclass(frozen=True, kw_only=True)
class CnnLstmConfig(Json):
    """The network's measures. The defaults are the paper's better model; its text does not give the image size."""

    trunk: str = "se_resnext50_32x4d"
    hidden: int = 512
    layers: int = 2
    labels: int = 6
    dropout: float = 0.0
    size: int = 512


class SqueezeExcitation(nn.Module):
    """Channel attention (Hu et al., CVPR 2018): each map is scaled by what the average of all maps says about it."""

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, channels // reduction, 1)
        self.fc2 = nn.Conv2d(channels // reduction, channels, 1)

    def forward(self, maps: Tensor) -> Tensor:
        """Maps of the same shape."""
        scale = torch.relu(self.fc1(maps.mean((2, 3), keepdim=True)))
        return maps * torch.sigmoid(self.fc2(scale))


class SEResNeXtBottleneck(nn.Module):
    """1×1, grouped 3×3 and 1×1 convolution, squeeze and excitation, shortcut."""

    def __init__(self, channels: int, planes: int, stride: int) -> None:
        super().__init__()
        width, out = 2 * planes, 4 * planes
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, groups=32, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out)
        self.se_module = SqueezeExcitation(out)
        self.downsample = (
            nn.Sequential(nn.Conv2d(channels, out, 1, stride=stride, bias=False), nn.BatchNorm2d(out))
            if stride != 1 or channels != out
            else None
        )

    def forward(self, maps: Tensor) -> Tensor:
        """Maps (n, 4 · planes, h / stride, w / stride)."""
        shortcut = maps if self.downsample is None else self.downsample(maps)
        inner = torch.relu_(self.bn1(self.conv1(maps)))
        inner = torch.relu_(self.bn2(self.conv2(inner)))
        inner = self.se_module(self.bn3(self.conv3(inner)))
        return torch.relu_(inner + shortcut)


class SEResNeXt50(nn.Module):
    """SE-ResNeXt-50 (32×4d) up to its pooled features, under the names of its published ImageNet weights."""

    def __init__(self) -> None:
        super().__init__()
        stem: list[tuple[str, nn.Module]] = [
            ("conv1", nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)),
            ("bn1", nn.BatchNorm2d(64)),
            ("relu1", nn.ReLU(inplace=True)),
            ("pool", nn.MaxPool2d(3, stride=2, ceil_mode=True)),
        ]
        self.layer0 = nn.Sequential(OrderedDict(stem))
        self.layer1 = _stage(64, planes=64, blocks=3, stride=1)
        self.layer2 = _stage(256, planes=128, blocks=4, stride=2)
        self.layer3 = _stage(512, planes=256, blocks=6, stride=2)
        self.layer4 = _stage(1024, planes=512, blocks=3, stride=2)
        self.apply(_initialise)

    def forward(self, images: Tensor) -> Tensor:
        """Features (n, 2048)."""
        maps: Tensor = self.layer4(self.layer3(self.layer2(self.layer1(self.layer0(images)))))
        return maps.mean((2, 3))


def _stage(channels: int, *, planes: int, blocks: int, stride: int) -> nn.Sequential:
    first = SEResNeXtBottleneck(channels, planes, stride)
    return nn.Sequential(first, *(SEResNeXtBottleneck(4 * planes, planes, 1) for _ in range(blocks - 1)))


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _without_classifier(make: Callable[..., Any]) -> nn.Module:
    """The torchvision network up to its pooled features, not trained, He-initialised."""
    network: nn.Module = make(weights=None)
    network.fc = nn.Identity()
    return network


TRUNKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "resnet18": (lambda: _without_classifier(torchvision_models.resnet18), 512),
    "resnet50": (lambda: _without_classifier(torchvision_models.resnet50), 2048),
    "se_resnext50_32x4d": (SEResNeXt50, 2048),
}
"""Name of a trunk → how to make it, and how many features it gives for one slice."""


class CnnLstm(ScanModel):
    """The paper's network: trunk, LSTM over the slices in both directions, one linear layer to the labels."""

    channels = 3

    def __init__(self, config: CnnLstmConfig) -> None:
        super().__init__()
        if config.trunk not in TRUNKS:
            raise ValueError(f"unknown trunk {config.trunk!r}; known are {', '.join(TRUNKS)}")
        make, self.descriptor_size = TRUNKS[config.trunk]
        self.size = config.size
        self.labels = config.labels
        self.trunk = make()
        self.recurrent = nn.LSTM(
            self.descriptor_size,
            config.hidden,
            num_layers=config.layers,
            batch_first=True,
            dropout=config.dropout,
            bidirectional=True,
        )
        self.classify = nn.Linear(2 * config.hidden, config.labels)

    def encode(self, images: Tensor) -> Tensor:
        """Descriptors (n, 2048), or (n, 512) of ResNet-18: the trunk's pooled features."""
        descriptors: Tensor = self.trunk(images)
        return descriptors

    def decide(self, descriptors: Tensor) -> Tensor:
        """Logits (…, s, labels): through the LSTM layers over the s slices, then one linear layer."""
        descriptors, _ = self.recurrent(descriptors)
        logits: Tensor = self.classify(descriptors)
        return logits
