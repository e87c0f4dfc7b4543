"""What bfloat16 must not round away: the digits of the images, the biases, and what each filter sums up to.

A bfloat16 has eight binary digits. A rounded map errs differently everywhere, and sums over hundreds of pixels hardly
notice. A rounded grey value or bias errs the same way over a whole region, and moves scores by hundredths. So does a
filter whose rounded weights have another sum than the weights had: maps are smooth and, behind a ReLU, never negative.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from inference.threads import in_threads

CONVOLUTIONS = (nn.Conv2d, nn.Conv3d)
LEADING_HALF = -(1 << 16)
"""The bits of a float32 that a bfloat16 has too."""


def in_halves(images: Tensor, *, memory_format: torch.memory_format) -> Tensor:
    """Images (n, 2 · channels, …), bfloat16: rounded, then what that leaves; together they have sixteen digits."""
    shape = (images.shape[0], 2 * images.shape[1], *images.shape[2:])
    halves = torch.empty(shape, dtype=torch.bfloat16, device=images.device, memory_format=memory_format)
    coarse, fine = halves.chunk(2, 1)
    coarse.copy_(images)
    torch.sub(images, coarse, out=fine)
    return halves


def in_wide_halves(images: Tensor) -> Tensor:
    """As `in_halves`, in float32 (n, 2 · channels, …), contiguous: cut off instead of rounded, which is faster.

    `images` are float32, on a CPU.
    """
    halves = images.new_empty((images.shape[0], 2 * images.shape[1], *images.shape[2:]))

    def put(part: slice) -> None:
        coarse, fine = halves[part].chunk(2, 1)
        torch.bitwise_and(images[part].view(torch.int32), LEADING_HALF, out=coarse.view(torch.int32))
        torch.sub(images[part], coarse, out=fine)

    share = -(-len(images) // torch.get_num_threads())
    in_threads(put, [slice(start, start + share) for start in range(0, len(images), share)])
    return halves


def widened(part: nn.Module) -> nn.Module:
    """The first convolution takes images as from `in_halves` now; changes `part` itself."""
    first = next(module for module in part.modules() if isinstance(module, CONVOLUTIONS))
    first.weight = nn.Parameter(torch.cat((first.weight, first.weight), 1), requires_grad=False)
    first.in_channels *= 2
    return part


def keeping_sums(weight: Tensor) -> Tensor:
    """Weights (out, in, …) that bfloat16 takes exactly, in float32; each filter sums up to what it did.

    From the largest weight of a filter to the smallest, each takes over what the ones before were rounded by: what is
    left in the end is lost in the last one's digits. Filters of a single pixel are rounded.
    """
    filters = weight.flatten(2)
    order = filters.abs().argsort(-1, descending=True)
    rounded, over = filters.gather(-1, order), torch.zeros_like(filters[..., 0])
    for number in range(rounded.shape[-1]):
        wanted = rounded[..., number] + over
        rounded[..., number] = wanted.bfloat16()
        over = wanted - rounded[..., number]
    return torch.empty_like(filters).scatter_(-1, order, rounded).reshape(weight.shape)


def with_sums_kept(part: nn.Module) -> nn.Module:
    """The weights of every convolution are those of `keeping_sums` now; changes `part` itself."""
    for layer in part.modules():
        if isinstance(layer, CONVOLUTIONS):
            layer.weight = nn.Parameter(keeping_sums(layer.weight.detach()), requires_grad=False)
    return part


def with_biases_in_sums(part: nn.Module) -> nn.Module:
    """Every convolution with a bias is a `BiasInSums` now; changes `part` itself."""
    for parent in list(part.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, CONVOLUTIONS) and child.bias is not None:
                setattr(parent, name, BiasInSums(child, child.bias))
    return part


class BiasInSums(nn.Module):
    """A convolution and its bias for torch on a CPU with bfloat16: the bias joins the sums before they are rounded.

    `nn.Conv2d` would want the bias in bfloat16 as well.
    """

    def __init__(self, convolution: nn.Conv2d | nn.Conv3d, bias: Tensor) -> None:
        super().__init__()
        self.offset = nn.Parameter(bias.detach(), requires_grad=False)
        convolution.bias = None
        self.convolution = convolution

    def forward(self, maps: Tensor) -> Tensor:
        """As the convolution, in bfloat16."""
        c = self.convolution
        padding = [int(width) for width in c.padding]
        sums: Tensor = torch.mkldnn_convolution(maps, c.weight, self.offset, padding, c.stride, c.dilation, c.groups)
        return sums
