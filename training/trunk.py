"""A ResNet trunk, helped while it is trained by segmentation heads that look at its maps on the way."""

from __future__ import annotations

from torch import Tensor, nn

from inference.result import SUBTYPES
from training.average import Averaged
from training.batches import Batch
from training.losses import attention_loss, weighted_log_loss

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


class Helped(nn.Module):
    """A trunk and the linear layer behind it, beside the average of both, with segmentation heads.

    Each of the trunk's four stages has twice the maps of the one before.
    """

    def __init__(self, trunk: nn.Module, classify: nn.Linear, *, average: float) -> None:
        super().__init__()
        self.both = Averaged(nn.ModuleList([trunk, classify]), decay=average)
        widths = [classify.in_features >> places for places in (3, 2, 1, 0)]
        self.masks = nn.ModuleList(nn.Conv2d(width, len(SUBTYPES), 1) for width in widths)

    def forward(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Logits (n, labels), and mask logits (n, 5, h, w) of each of the four stages."""
        trunk, classify = self.both.trained.children()
        maps = stage_maps(trunk, images)
        masks = [head(each) for head, each in zip(self.masks, maps, strict=True)]
        return classify(maps[-1].mean((2, 3))), masks


def helped_loss(model: Helped, images: Tensor, batch: Batch, *, weight: float) -> Tensor:
    """Weighted log loss of the slices, and `weight` times the segmentation losses of those that are outlined.

    `images` (n, channels, h, w) are those of the batch, all runs behind one another.
    """
    logits, maps = model(images)
    total = weighted_log_loss(logits, batch.labels.flatten(0, 1))
    outlined = batch.outlined.flatten()
    if weight and bool(outlined.any()):
        masks, maps = batch.masks.flatten(0, 1)[outlined], [logits[outlined] for logits in maps]
        total = total + attention_loss(maps, masks, weight=weight, overlap=0.3)
    return total
