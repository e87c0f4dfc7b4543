"""A ResNet's maps on the way: what segmentation heads that help its training look at."""

from __future__ import annotations

from torch import Tensor, nn

STAGES = ("layer1", "layer2", "layer3", "layer4")


def stage_maps(trunk: nn.Module, images: Tensor) -> list[Tensor]:
    """The maps (n, c, h, w) that each of the four stages of a torchvision ResNet or an `SEResNeXt50` ends with."""
    parts = dict(trunk.named_children())
    maps = images
    for name in ("layer0",) if "layer0" in parts else ("conv1", "bn1", "relu", "maxpool"):
        maps = parts[name](maps)
    found = []
    for name in STAGES:
        maps = parts[name](maps)
        found.append(maps)
    return found
