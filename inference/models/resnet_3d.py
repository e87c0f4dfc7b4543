"""The 3D network of a comparison of 2D and 3D: MedicalNet's ResNet-18 on the whole scan, or on five adjacent slices.

Vultur, "2D vs 3D Convolutional Neural Networks in Hemorrhage Detection", thesis, University of Bucharest, 2021,
sections 4.2.2, 6.2.2 and 6.3.2, on the network of Chen et al., "Med3D: Transfer learning for 3D medical image
analysis", 2019: convolutions of stage 3 and 4 keep their resolution and are spread by 2 and 4 instead, shortcuts
between stages of different width are filled up with noughts ("type A"). Modules bear the names of its published
weights, whose segmentation layer the thesis replaces by pooling, dropout and six sigmoids.

Where we differ: scans shorter than the network is deep go on as air, not as water, which the thesis' "HU units of
value 0" would be; and so do the ends of a scan for five slices. The published code lets no gradient through the
shortcuts between stages (its ``.data`` cuts it off); `Resnet3dConfig.detach_shortcut` brings that back. The thesis has
no scan of more than 60 slices; the slices of longer ones are averaged to as many thicker ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from inference.models.scan_model import ScanModel
from inference.result import Json

WIDTHS = (64, 128, 256, 512)
STRIDES = (1, 2, 1, 1)
DILATIONS = (1, 1, 2, 4)


@dataclass(frozen=True, kw_only=True)
class Resnet3dConfig(Json):
    """The network's measures. The defaults are the thesis' network for whole scans.

    Attributes
    ----------
    depth : int
        Slices the network sees at once.
    per_slice : bool
        False: the slices are the scan, and there is one set of logits for it. True: they are a slice with its
        neighbours, as many before as behind it, and there are logits for each slice; the thesis has a depth of 5.
    air : float
        What air is in a prepared image.
    detach_shortcut : bool
        No gradient flows back through the shortcuts between stages, as in the published code.
    """

    depth: int = 60
    per_slice: bool = False
    labels: int = 6
    dropout: float = 0.5
    size: int = 256
    air: float = -0.25
    detach_shortcut: bool = False


class Block3d(nn.Module):
    """Two 3×3×3 convolutions and a shortcut without weights."""

    def __init__(self, channels: int, width: int, *, stride: int, dilation: int, detach: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(channels, width, 3, stride=stride, padding=dilation, dilation=dilation, bias=False)
        self.bn1 = nn.BatchNorm3d(width)
        self.conv2 = nn.Conv3d(width, width, 3, padding=dilation, dilation=dilation, bias=False)
        self.bn2 = nn.BatchNorm3d(width)
        self.stride = stride
        self.missing = width - channels
        self.detach = detach

    def forward(self, maps: Tensor) -> Tensor:
        """Maps (n, width, d / stride, h / stride, w / stride)."""
        inner = torch.relu_(self.bn1(self.conv1(maps)))
        inner = self.bn2(self.conv2(inner))
        return torch.relu_(inner + self._shortcut(maps))

    def _shortcut(self, maps: Tensor) -> Tensor:
        if self.stride == 1 and not self.missing:
            return maps
        shortcut = maps[:, :, :: self.stride, :: self.stride, :: self.stride]
        shortcut = functional.pad(shortcut, (0, 0, 0, 0, 0, 0, 0, self.missing))
        return shortcut.detach() if self.detach else shortcut


class MedicalResNet18(nn.Module):
    """MedicalNet's ResNet-18 up to its pooled features, under the names of its published weights."""

    def __init__(self, *, detach_shortcut: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(1, WIDTHS[0], 7, stride=2, padding=(0, 3, 3), bias=False)
        self.bn1 = nn.BatchNorm3d(WIDTHS[0])
        self.maxpool = nn.MaxPool3d(3, stride=2, padding=1)
        before = WIDTHS[0]
        for number, (width, stride, dilation) in enumerate(zip(WIDTHS, STRIDES, DILATIONS, strict=True), 1):
            first = Block3d(before, width, stride=stride, dilation=dilation, detach=detach_shortcut)
            second = Block3d(width, width, stride=1, dilation=dilation, detach=detach_shortcut)
            self.add_module(f"layer{number}", nn.Sequential(first, second))
            before = width
        self.apply(_initialise)

    def maps(self, volumes: Tensor) -> Tensor:
        """The last maps (n, 512, d / 8, h / 8, w / 8), rounded up, of volumes (n, 1, d, h, w)."""
        # Padded here and not by the convolution: of volumes less than 8 deep, whose padding the kernel would meet at
        # both ends at once, oneDNN's gradient on the CPU writes past its buffers (torch 2.15).
        volumes = functional.pad(volumes, (0, 0, 0, 0, 3, 3))
        maps: Tensor = self.maxpool(torch.relu_(self.bn1(self.conv1(volumes))))
        for number in range(1, len(WIDTHS) + 1):
            maps = self.get_submodule(f"layer{number}")(maps)
        return maps

    def forward(self, volumes: Tensor) -> Tensor:
        """Features (n, 512)."""
        return self.maps(volumes).mean((2, 3, 4))


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv3d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


class Resnet3d(ScanModel):
    """The 3D network. It begins with several slices at once, so that a slice's descriptor is its image in float16.

    Half precision resolves half a Hounsfield unit near water and one in bone, and 2000 slices fit into 256 MiB.
    """

    channels = 1
    descriptor_type = torch.float16
    costly_decide = True
    describes = False
    memory_format = torch.contiguous_format

    def __init__(self, config: Resnet3dConfig) -> None:
        super().__init__()
        if config.depth < 1 or (config.per_slice and config.depth % 2 == 0):
            raise ValueError(f"a depth of {config.depth} slices has no middle, or is none")
        self.size = config.size
        self.labels = config.labels
        self.descriptor_size = config.size**2
        self.depth = config.depth
        self.per_slice = config.per_slice
        self.context = config.depth // 2 if config.per_slice else None
        self.air = config.air
        self.trunk = MedicalResNet18(detach_shortcut=config.detach_shortcut)
        self.dropout = nn.Dropout(config.dropout)
        self.classify = nn.Linear(WIDTHS[-1], config.labels)

    @property
    def costly_shape(self) -> tuple[int, ...]:
        """The shape of one volume: (1, depth, size, size)."""
        return (self.channels, self.depth, self.size, self.size)

    def encode(self, images: Tensor) -> Tensor:
        """Descriptors (n, size²), float16: the images themselves."""
        return images.flatten(1).to(self.descriptor_type)

    def decide(self, descriptors: Tensor) -> Tensor:
        """Logits (…, s, labels) of each slice between its neighbours, or (…, 1, labels) of the scan as a whole."""
        scans = descriptors.reshape(-1, descriptors.shape[-2], self.size, self.size)
        volumes = self._neighbourhoods(scans) if self.per_slice else self._whole(scans)
        logits = self.classified(volumes.to(self.classify.weight.dtype))
        return logits.reshape(*descriptors.shape[:-2], -1, self.labels)

    def classified(self, volumes: Tensor) -> Tensor:
        """Logits (n, labels) of volumes (n, 1, depth, size, size)."""
        logits: Tensor = self.classify(self.dropout(self.trunk(volumes)))
        return logits

    def _neighbourhoods(self, scans: Tensor) -> Tensor:
        """Each slice with its neighbours, (b · s, 1, depth, size, size); air beyond the ends of the scan."""
        reach = self.depth // 2
        padded = functional.pad(scans, (0, 0, 0, 0, reach, reach), value=self.air)
        return padded.unfold(1, self.depth, 1).permute(0, 1, 4, 2, 3).flatten(0, 1)[:, None]

    def _whole(self, scans: Tensor) -> Tensor:
        """The scans (b, 1, depth, size, size): air above short ones, long ones averaged to thicker slices."""
        slices = scans.shape[1]
        if slices <= self.depth:
            return functional.pad(scans, (0, 0, 0, 0, 0, self.depth - slices), value=self.air)[:, None]
        bounds = [(i * slices // self.depth, -(-(i + 1) * slices // self.depth)) for i in range(self.depth)]
        return torch.stack([scans[:, start:stop].float().mean(1) for start, stop in bounds], 1)[:, None]

    def over_slices(self, maps: Tensor, *, slices: int) -> Tensor:
        """Maps (slices, h, w) of a scan's slices from maps (d, h, w) of the volume that they were made into."""
        spread = _stretched(maps, self.depth)
        return spread[:slices] if slices <= self.depth else _stretched(spread, slices)


def _stretched(maps: Tensor, depth: int) -> Tensor:
    size = (depth, *maps.shape[1:])
    stretched: Tensor = functional.interpolate(maps[None, None], size, mode="trilinear")[0, 0]
    return stretched
