"""Convolutions over volumes with many input channels, as sums of several with fewer.

In bfloat16 oneDNN leaves its fast ways where a 3×3×3 kernel has more than 256 input channels: on a processor with AMX
MedicalNet's last maps, with 512 and dilation 4, then take fifty times longer than both halves together.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

MOST_CHANNELS = 256


def parted(part: nn.Module) -> nn.Module:
    """Every convolution over volumes with more input channels is a `Parted` now; changes `part` itself."""
    for parent in list(part.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Conv3d) and child.groups == 1 and child.in_channels > MOST_CHANNELS:
                setattr(parent, name, Parted(child))
    return part


class Parted(nn.Module):
    """The convolution as a sum of convolutions of `MOST_CHANNELS` input channels each; the first one has the bias."""

    def __init__(self, convolution: nn.Conv3d) -> None:
        super().__init__()
        self.parts = nn.ModuleList()
        for number, weights in enumerate(torch.split(convolution.weight, MOST_CHANNELS, dim=1)):
            few = copy.deepcopy(convolution)
            few.in_channels = weights.shape[1]
            few.weight = nn.Parameter(weights.detach().clone(), requires_grad=False)
            if number:
                few.bias = None
            self.parts.append(few)

    def forward(self, maps: Tensor) -> Tensor:
        """As the convolution, but for the order in which it adds."""
        sums = [few(some) for few, some in zip(self.parts, torch.split(maps, MOST_CHANNELS, dim=1), strict=True)]
        total: Tensor = sums[0]
        for more in sums[1:]:
            total = torch.add(total, more)
        return total
