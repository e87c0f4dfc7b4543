"""Torch as it is, without what inference does not need: normalisations folded away, weights in bfloat16 throughout."""

from __future__ import annotations

import copy
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from inference.backends.run import Run

CONVOLUTIONS = (nn.Conv2d, nn.Conv3d)
NORMALISATIONS = (nn.BatchNorm2d, nn.BatchNorm3d)


def eager(part: nn.Module, *, bf16: bool, memory_format: torch.memory_format) -> Run:
    """Runs a copy of `part`, folded and where `bf16` says so in bfloat16; `part` is left alone.

    Weights are converted once. Autocast would do it again for every batch, and normalise in two passes over the maps.
    """
    part = folded(copy.deepcopy(part))
    if bf16:
        _halve(part)
    part = part.to(memory_format=memory_format)
    dtype = torch.bfloat16 if bf16 else torch.float32

    def run(images: Tensor) -> Tensor:
        features: Tensor = part(images.to(dtype).contiguous(memory_format=memory_format))
        return features.float()

    return run


def folded(module: nn.Module) -> nn.Module:
    """Every batch normalisation that follows a convolution is part of that convolution now; changes `module` itself.

    They are named one after the other in every trunk here, as in torchvision's. Where the normalisation comes first
    (RADnet's layers) there is a ReLU in between, and nothing to fold.
    """
    for parent in list(module.modules()):
        for (name, before), (following, after) in pairwise(list(parent.named_children())):
            if not isinstance(before, CONVOLUTIONS) or not isinstance(after, NORMALISATIONS):
                continue
            if before.out_channels == after.num_features:
                setattr(parent, name, fuse_conv_bn_eval(before, after))
                setattr(parent, following, nn.Identity())
    return module


def _halve(module: nn.Module) -> None:
    """Weights that multiply become bfloat16; normalisations keep theirs, whose variances need more digits."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Conv3d | nn.Linear):
            layer.to(torch.bfloat16)
