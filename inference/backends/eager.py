"""Torch as it is, without what inference does not need: normalisations folded away, weights in bfloat16 throughout."""

from __future__ import annotations

import copy
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from inference.backends.parting import parted
from inference.backends.rounding import CONVOLUTIONS, in_halves, widened, with_biases_in_sums, with_sums_kept
from inference.backends.run import Run
from inference.device import cpu_has_bf16

NORMALISATIONS = (nn.BatchNorm2d, nn.BatchNorm3d)


def eager(part: nn.Module, *, bf16: bool, memory_format: torch.memory_format, to_be_compiled: bool = False) -> Run:
    """Runs a copy of `part`, folded and where `bf16` says so in bfloat16; `part` is left alone.

    Weights are converted once. Autocast would do it again for every batch, and normalise in two passes over the maps.
    """
    part = folded(copy.deepcopy(part))
    on_cpu = next(part.parameters()).device.type == "cpu"
    if bf16:
        part = widened(with_sums_kept(part))
        _halve(parted(part) if on_cpu else part, own_bias=to_be_compiled)
    part = part.to(memory_format=memory_format)

    def run(images: Tensor) -> Tensor:
        if bf16:
            images = in_halves(images, memory_format=memory_format)
        features: Tensor = part(images.contiguous(memory_format=memory_format))
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


def _halve(part: nn.Module, *, own_bias: bool) -> None:
    """Weights that multiply become bfloat16; normalisations keep theirs, whose variances need more digits.

    So do biases on a CPU that computes in bfloat16 itself; elsewhere torch has no such convolution, and torch.compile
    cannot take it in: there each convolution keeps its `own_bias`, in bfloat16.
    """
    if not own_bias and next(part.parameters()).device.type == "cpu" and cpu_has_bf16():
        with_biases_in_sums(part)
    for layer in part.modules():
        if isinstance(layer, nn.Conv2d | nn.Conv3d | nn.Linear):
            layer.to(torch.bfloat16)
