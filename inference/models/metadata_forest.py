"""The random forest on header metadata: what can be said of a slice without a look at it. A baseline, not a reader.

Khandelwal and Ganguli, "Detection of Intracranial hemorrhage and its subtypes", section III-D i: a random forest on the
metadata alone is right in half of the cases, so that they go on with the images. It is kept for that comparison, and
because a forest that does better than chance on an archive shows that its headers give the labels away.

The trees are plain arrays, made by scikit-learn (`training/recipes/metadata_forest.py`) and walked through here. A
"descriptor" is the slice's header facts, `inference.metadata` reads them; no image is ever encoded.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from inference.models.scan_model import ScanModel
from inference.result import Json

SURE = 1e-6
"""A forest may be all of one opinion; its logits stay finite."""


@dataclass(frozen=True, kw_only=True)
class MetadataForestConfig(Json):
    """The forest's measures: how many facts it asks about, trees, nodes of the largest tree, and its depth."""

    facts: int
    trees: int
    nodes: int
    depth: int


class MetadataForest(ScanModel):
    """Trees side by side: node n of tree t asks whether fact ``ask[t, n]`` is at most ``limit[t, n]``.

    If so the way goes on at node ``yes[t, n]``, else at ``no[t, n]``; a leaf leads to itself, and ``positive[t, n]`` is
    what part of the training slices that came there bled.
    """

    size = 1
    labels = 1
    context = 0

    def __init__(self, config: MetadataForestConfig) -> None:
        super().__init__()
        self.channels = self.descriptor_size = config.facts
        self.depth = config.depth
        shape = (config.trees, config.nodes)
        for name in ("ask", "yes", "no"):
            self.register_buffer(name, torch.zeros(shape, dtype=torch.int64))
        for name in ("limit", "positive"):
            self.register_buffer(name, torch.zeros(shape))

    def encode(self, images: Tensor) -> Tensor:
        """Raises ``ValueError``: this model has no use for pixels."""
        raise ValueError("a forest on header metadata reads no images")

    def decide(self, descriptors: Tensor) -> Tensor:
        """Logits (…, s, 1), each slice's from its own facts (…, s, d)."""
        facts = descriptors.reshape(-1, self.descriptor_size)
        ask, limit, yes, no, positive = (self.get_buffer(name) for name in ("ask", "limit", "yes", "no", "positive"))
        tree = torch.arange(len(ask), device=facts.device)
        node = torch.zeros((len(facts), len(ask)), dtype=torch.int64, device=facts.device)
        for _ in range(self.depth):
            goes_on = facts.gather(1, ask[tree, node]) <= limit[tree, node]
            node = torch.where(goes_on, yes[tree, node], no[tree, node])
        share = positive[tree, node].double().mean(1).clamp(SURE, 1 - SURE)
        return share.logit().float().reshape(*descriptors.shape[:-1], 1)
