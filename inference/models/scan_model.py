"""What every family of networks can do: encode one slice by itself, decide over all slices of a scan."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn


class ScanModel(nn.Module, ABC):
    """A network in two parts: the first sees one slice, the second sees the descriptors of a whole scan.

    The cut between the two is what lets a node encode slices while the scanner is still sending. Usually the first part
    is the costly one; it may see a little of the slice's neighbours. A network that looks at several whole slices from
    its first layer on has nothing to do before these are there: its descriptor is the image itself, and its second part
    is the costly one.

    Attributes
    ----------
    channels, size : int
        One slice is an image of shape (channels, size, size).
    reach : int
        How many slices before and behind it `encode` sees beside a slice: see `among`.
    descriptor_size : int
        Length of the descriptor of one slice.
    labels : int
        How many logits `decide` gives.
    descriptor_type : torch.dtype
        In which descriptors are kept: float32, or float16 where they are images.
    context : int or None
        On how many slices before and behind it a slice's logits depend; None: on the whole scan.
    per_slice : bool
        Whether there are logits for each slice; if not, one set for the whole scan.
    costly_decide : bool
        Whether `decide` is the costly part, to be run in reduced precision and, where `context` allows it, for a few
        slices at a time.
    memory_format : torch.memory_format
        In which the weights lie best.
    describes : bool
        Whether a descriptor says what was seen in the slice, so that the distance between two means something; not
        where it is the image itself.
    last_maps : str
        The module whose output are the last maps (n, c, …) with a place in the image: what Grad-CAM looks at.
    beyond : tuple of int
        By how many of the image's pixels these maps reach beyond it, before and behind.
    draws_masks : bool
        Whether `attend` gives masks that were trained as segmentations.
    """

    channels: int
    size: int
    descriptor_size: int
    labels: int
    reach: int = 0
    descriptor_type: torch.dtype = torch.float32
    context: int | None = None
    per_slice: bool = True
    costly_decide: bool = False
    memory_format: torch.memory_format = torch.channels_last
    describes: bool = True
    last_maps: str = "trunk.layer4"
    beyond: tuple[int, int] = (0, 0)
    draws_masks: bool = False

    @property
    def seen(self) -> int:
        """Channels of what `encode` sees of a slice: its own, and one of each neighbour within reach."""
        return self.channels + 2 * self.reach

    @property
    def costly_shape(self) -> tuple[int, ...]:
        """The shape of one of the images that the costly part sees: (seen, size, size)."""
        return (self.seen, self.size, self.size)

    def among(self, images: Tensor) -> Tensor:
        """What `encode` sees of the slices of a scan, (…, s, seen, size, size), from feet to head.

        Behind a slice's own channels stands the first channel of each neighbour within reach, the lowest first. Beyond
        either end of the scan its last slice stands again. `images` has shape (…, s, channels, size, size).
        """
        if not self.reach:
            return images
        places = torch.arange(images.shape[-4], device=images.device)
        planes = [images[..., (places + step).clamp(0, len(places) - 1), :1, :, :] for step in steps_of(self.reach)]
        return torch.cat((images, *planes), -3)

    @abstractmethod
    def encode(self, images: Tensor) -> Tensor:
        """Descriptors (n, descriptor_size) of n images (n, seen, size, size), each independent of the others."""

    @abstractmethod
    def decide(self, descriptors: Tensor) -> Tensor:
        """Logits (…, s, labels) of the s slices of a scan, in positional order, from descriptors (…, s, d).

        They are (…, 1, labels) where there are none for each slice.
        """

    def attend(self, images: Tensor) -> Tensor:
        """Masks (n, masks, size, size) in 0…1. Raises ``ValueError`` for a network that draws none."""
        raise ValueError("this network was made without attention and has no masks")

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Logits (b, s, labels) of b scans of s slices, and the family's auxiliary maps where it has any.

        `images` has shape (b, s, channels, size, size).
        """
        scans, slices = images.shape[:2]
        return self.decide(self.encode(self.among(images).flatten(0, 1)).reshape(scans, slices, -1)), None


def steps_of(reach: int) -> tuple[int, ...]:
    """Where the neighbours within `reach` lie beside a slice, in the order in which a network sees them."""
    return (*range(-reach, 0), *range(1, reach + 1))
