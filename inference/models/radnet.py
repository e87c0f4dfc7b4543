"""RADnet and its two ablations: DenseNet-40, attention by auxiliary segmentation, one bidirectional LSTM.

Grewal et al., "RADnet: Radiologist level accuracy using deep learning for hemorrhage detection in CT scans", ISBI 2018,
on the DenseNet of Huang et al., CVPR 2017. The paper's table 1 compares three networks; here they are one class:

=============  ===============  ================
network        ``attention``    ``recurrent``
=============  ===============  ================
DenseNet       False            False
DenseNet-A     True             False
RADnet         True             True
=============  ===============  ================

"Attention" in this paper is not a gate: three segmentation losses, one after each dense block (section 2.2.2), draw
the features towards the bleeding during training. Nothing is multiplied by a mask, so `RADnet.encode` computes none.

Where the paper is silent: growth rate 12 is the only 40-layer configuration of the DenseNet paper; the first
convolution has stride 2, which figure 1's upsampling by 2, 4 and 8 forces; 250 is not divisible by 8, so images are
padded to 256 and the maps cropped again; 128 hidden units per direction.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from inference.models.scan_model import ScanModel
from inference.result import Json

BLOCKS = 3
UPSAMPLING = (2, 4, 8)
"""Figure 1: how much smaller the maps after each dense block are than the image."""


@dataclass(frozen=True, kw_only=True)
class RadnetConfig(Json):
    """The network's measures. The defaults are the paper's RADnet: one label, hemorrhage in this slice."""

    growth: int = 12
    layers: int = 12
    stem: int = 16
    dropout: float = 0.2
    hidden: int = 128
    labels: int = 1
    attention: bool = True
    recurrent: bool = True
    size: int = 250


class DenseLayer(nn.Module):
    """Batch normalisation, ReLU, 3×3 convolution, dropout: `growth` new maps from all maps before it."""

    def __init__(self, channels: int, growth: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.conv = nn.Conv2d(channels, growth, 3, padding=1, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, maps: Tensor) -> Tensor:
        """New maps (n, growth, h, w) from maps (n, channels, h, w)."""
        new: Tensor = self.dropout(self.conv(functional.relu(self.norm(maps), inplace=True)))
        return new


class DenseBlock(nn.Module):
    """Dense layers, each of which sees the block's input and everything the layers before it made."""

    def __init__(self, channels: int, config: RadnetConfig) -> None:
        super().__init__()
        widths = [channels + i * config.growth for i in range(config.layers)]
        self.layers = nn.ModuleList(DenseLayer(width, config.growth, config.dropout) for width in widths)
        self.out_channels = channels + config.layers * config.growth

    def forward(self, maps: Tensor) -> Tensor:
        """All maps (n, out_channels, h, w), the block's input first."""
        for layer in self.layers:
            maps = torch.cat((maps, layer(maps)), 1)
        return maps


class Transition(nn.Module):
    """Between two blocks: batch normalisation, ReLU, 1×1 convolution to as many maps, dropout, 2×2 average pooling."""

    def __init__(self, channels: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.conv = nn.Conv2d(channels, channels, 1, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, maps: Tensor) -> Tensor:
        """Maps (n, channels, h / 2, w / 2).

        Without dropout the pooling goes first: it commutes with a 1×1 convolution, which then costs a quarter.
        """
        maps = functional.relu(self.norm(maps), inplace=True)
        if not self.training:
            pooled: Tensor = self.conv(functional.avg_pool2d(maps, 2))
            return pooled
        return functional.avg_pool2d(self.dropout(self.conv(maps)), 2)


class MaskHead(nn.Module):
    """One auxiliary task: 1×1 convolution to one map, deconvolution to the image's size (section 2.2.2)."""

    def __init__(self, channels: int, factor: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 1, 1)
        self.deconv = nn.ConvTranspose2d(1, 1, 2 * factor, stride=factor, padding=factor // 2)

    def forward(self, maps: Tensor) -> Tensor:
        """Logits (n, 1, factor · h, factor · w) that a pixel belongs to a hemorrhage."""
        logits: Tensor = self.deconv(self.conv(maps))
        return logits


class RADnet(ScanModel):
    """The three networks of the paper's table 1, as its configuration says."""

    channels = 1
    last_maps = "rectify"

    def __init__(self, config: RadnetConfig) -> None:
        super().__init__()
        self.size = config.size
        self.beyond = _padding(config.size)[:2]
        self.draws_masks = config.attention
        self.labels = config.labels
        self.stem = nn.Conv2d(1, config.stem, 3, stride=2, padding=1, bias=False)
        blocks: list[DenseBlock] = []
        for i in range(BLOCKS):
            blocks.append(DenseBlock(blocks[i - 1].out_channels if i else config.stem, config))
        widths = [block.out_channels for block in blocks]
        self.blocks = nn.ModuleList(blocks)
        self.transitions = nn.ModuleList(Transition(width, config.dropout) for width in widths[:-1])
        self.norm = nn.BatchNorm2d(widths[-1])
        self.rectify = nn.ReLU()
        self.descriptor_size = widths[-1]
        heads = zip(widths, UPSAMPLING, strict=True) if config.attention else ()
        self.masks = nn.ModuleList(MaskHead(width, factor) for width, factor in heads)
        self.recurrent = (
            nn.LSTM(widths[-1], config.hidden, batch_first=True, bidirectional=True) if config.recurrent else None
        )
        self.classify = nn.Linear(2 * config.hidden if config.recurrent else widths[-1], config.labels)
        self.apply(_initialise)

    def encode(self, images: Tensor) -> Tensor:
        """Descriptors (n, 448): the global average of the last block's maps, before the LSTM."""
        return self._pool(self._blocks(images, self.size)[-1])

    def decide(self, descriptors: Tensor) -> Tensor:
        """Logits (…, s, labels): through the bidirectional LSTM over the s slices, then one linear layer."""
        if self.recurrent is not None:
            descriptors, _ = self.recurrent(descriptors)
        logits: Tensor = self.classify(descriptors)
        return logits

    def attend(self, images: Tensor) -> Tensor:
        """Where each block looks: probabilities (n, 3, size, size) that a pixel belongs to a hemorrhage.

        Raises ``ValueError`` for a network without the auxiliary tasks.
        """
        if not self.masks:
            return super().attend(images)
        return self._mask_logits(self._blocks(images, self.size), self.size).sigmoid()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Logits (b, s, labels) and mask logits (b, s, 3, side, side), None without attention.

        Images of any side will do, for a network may be trained on crops.
        """
        scans, slices, *_, side = images.shape
        per_block = self._blocks(images.flatten(0, 1), side)
        logits = self.decide(self._pool(per_block[-1]).reshape(scans, slices, -1))
        masks = self._mask_logits(per_block, side) if self.masks else None
        return logits, None if masks is None else masks.reshape(scans, slices, *masks.shape[1:])

    def _blocks(self, images: Tensor, side: int) -> list[Tensor]:
        """The maps after the last concatenation of each block."""
        maps = self.stem(functional.pad(images, _padding(side)))
        per_block = []
        for i, block in enumerate(self.blocks):
            maps = block(self.transitions[i - 1](maps) if i else maps)
            per_block.append(maps)
        return per_block

    def _pool(self, maps: Tensor) -> Tensor:
        pooled: Tensor = self.rectify(self.norm(maps)).mean((2, 3))
        return pooled

    def _mask_logits(self, per_block: list[Tensor], side: int) -> Tensor:
        maps = torch.cat([head(maps) for head, maps in zip(self.masks, per_block, strict=True)], 1)
        left, _, top, _ = _padding(side)
        return maps[..., top : top + side, left : left + side]


def _padding(size: int) -> tuple[int, int, int, int]:
    """What makes `size` divisible by the largest upsampling, equally on both sides (left, right, top, bottom)."""
    missing = -size % UPSAMPLING[-1]
    before, after = missing // 2, missing - missing // 2
    return before, after, before, after


def _initialise(module: nn.Module) -> None:
    """He-normal weights (section 2.2.3); deconvolutions begin as bilinear interpolation; the LSTM keeps its own."""
    if isinstance(module, nn.ConvTranspose2d):
        factor = module.stride[0]
        ramp = 1 - (torch.arange(2 * factor) - (factor - 0.5)).abs() / factor
        with torch.no_grad():
            module.weight.copy_((ramp[:, None] * ramp[None, :]).expand_as(module.weight))
    elif isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    if isinstance(module, nn.ConvTranspose2d | nn.Conv2d | nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
