"""The moving average of a network's weights: what is judged and kept, while the weights themselves are trained."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.optim import Optimizer


class Averaged(nn.Module):
    """Two of a network: `trained`, a copy that learns, and the network given, which follows as its moving average.

    After step t the average is ``d · average + (1 - d) · trained`` with ``d = min(decay, (1 + t) / (10 + t))``: so a
    short run is not held back by the weights it began with. Running statistics are averaged likewise. A decay of 0 is
    no average.
    """

    def __init__(self, average: nn.Module, *, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.trained = copy.deepcopy(average).requires_grad_(True)
        self.average = average.requires_grad_(False)
        self.register_buffer("followed", torch.zeros((), dtype=torch.long))

    def after(self, optimizer: Optimizer) -> None:
        """The average follows each of the optimiser's steps from now on."""
        optimizer.register_step_post_hook(lambda *_: self.follow())

    @torch.no_grad()
    def follow(self) -> None:
        """One step."""
        done = int(self.get_buffer("followed").add_(1))
        decay = min(self.decay, (1 + done) / (10 + done)) if self.decay else 0.0
        trained = self.trained.state_dict()
        for name, value in self.average.state_dict().items():
            if value.is_floating_point():
                value.lerp_(trained[name], 1 - decay)
            else:
                value.copy_(trained[name])
