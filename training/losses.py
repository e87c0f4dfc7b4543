"""The losses of the papers, all computed in float32 on logits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from inference.result import ANY

ANY_WEIGHT = 2.0
"""Weight of *any* beside 1 for each subtype (Nguyen et al. 2020, section 3.2: 2/7 and 1/7)."""


def weight_of_any(labels: Sequence[str]) -> float:
    """The `any_weight` of the losses for these labels: 1, the plain mean, where *any* is none of them."""
    return ANY_WEIGHT if ANY in labels else 1.0


def label_weights(count: int, *, any_weight: float = ANY_WEIGHT) -> Tensor:
    """Weights of `count` labels, *any* first; their sum is 7 for the six labels."""
    weights = torch.ones(count)
    if count > 1:
        weights[0] = any_weight
    return weights


def weighted_log_loss(
    logits: Tensor, labels: Tensor, *, positive_weight: float = 1.0, any_weight: float = ANY_WEIGHT
) -> Tensor:
    """Weighted mean of the labels' binary cross-entropies (Nguyen et al. 2020, section 3.2).

    Parameters
    ----------
    logits, labels : Tensor
        Shape ``(..., labels)``, *any* first. Soft labels (0..1) are allowed: CutMix makes them. A label that is NaN,
        because nobody said, adds nothing.
    positive_weight : float
        Multiplies the positive term; 1 is the metric itself.
    any_weight : float
        Of the first label beside 1 for each other; 1 is the plain mean.
    """
    weights = label_weights(logits.shape[-1], any_weight=any_weight).to(logits.device)
    known = ~labels.isnan()
    losses = functional.binary_cross_entropy_with_logits(
        logits.float(),
        labels.float().where(known, 0.5),
        reduction="none",
        pos_weight=torch.full((logits.shape[-1],), positive_weight, device=logits.device),
    )
    return (losses * weights * known).sum(-1).mean() / weights.sum()


def attention_loss(
    maps: Sequence[Tensor],
    masks: Tensor,
    *,
    weight: float = 1 / 3,
    positive_weight: float = 5.0,
    overlap: float = 0.0,
) -> Tensor:
    """Sum of the auxiliary segmentation losses, each times `weight` (Grewal et al. 2018, section 2.2.2).

    Parameters
    ----------
    maps : sequence of Tensor
        Logits ``(n, channels, rows, columns)``, one for each level.
    masks : Tensor
        0 or 1, ``(n, channels, rows, columns)``; a map of another size is compared with the mask averaged to its size.
    positive_weight : float
        Multiplies the term of bleeding pixels, which are few.
    overlap : float
        Weight of an added soft Dice loss over the whole batch; 0, the paper's, leaves it out.
    """
    total = masks.new_zeros((), dtype=torch.float32)
    for logits in maps:
        truth = masks.float()
        rows, columns = logits.shape[-2:]
        if truth.shape[-2:] != (rows, columns):
            truth = functional.adaptive_avg_pool2d(truth, (rows, columns))
        total = total + weight * _pixel_loss(logits.float(), truth, positive_weight)
        if overlap:
            total = total + weight * overlap * _dice_loss(logits.float(), truth)
    return total


def _pixel_loss(logits: Tensor, truth: Tensor, positive_weight: float) -> Tensor:
    weight = torch.tensor(positive_weight, device=logits.device)
    return functional.binary_cross_entropy_with_logits(logits, truth, pos_weight=weight)


def _dice_loss(logits: Tensor, truth: Tensor) -> Tensor:
    probabilities = logits.sigmoid()
    axes = (0, 2, 3)
    common = (probabilities * truth).sum(axes)
    size = probabilities.sum(axes) + truth.sum(axes)
    return (1 - (2 * common + 1) / (size + 1)).mean()
