"""What every family of networks can do: encode one slice by itself, decide over all slices of a scan."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn


class ScanModel(nn.Module, ABC):
    """A network in two parts: the costly one sees one slice, the cheap one sees the descriptors of a whole scan.

    The cut between the two is what lets a node encode slices while the scanner is still sending.

    Attributes
    ----------
    channels, size : int
        One encoded slice is an image of shape (channels, size, size).
    descriptor_size : int
        Length of the descriptor of one slice.
    """

    channels: int
    size: int
    descriptor_size: int

    @abstractmethod
    def encode(self, images: Tensor) -> Tensor:
        """Descriptors (n, descriptor_size) of n images (n, channels, size, size), each independent of the others."""

    @abstractmethod
    def decide(self, descriptors: Tensor) -> Tensor:
        """Logits (…, s, labels) of the s slices of a scan, in positional order, from descriptors (…, s, d)."""

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Logits (b, s, labels) of b scans of s slices, and the family's auxiliary maps where it has any.

        `images` has shape (b, s, channels, size, size).
        """
        scans, slices = images.shape[:2]
        return self.decide(self.encode(images.flatten(0, 1)).reshape(scans, slices, -1)), None
