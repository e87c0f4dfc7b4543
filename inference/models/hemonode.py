"""Our own network: a trunk that sees a slice between its neighbours, then the whole scan's descriptors and their steps.

What is taken from where (figures and sources: the RSNA 2019 challenge, whose winners published their code):

* the slices next to a slice are channels of its image, as in the first solution (Wang, Shen et al. 2021);
* a recurrent network over the scan sees each descriptor and its differences to both neighbours, and a linear layer from
  the descriptor alone stands beside it, as in the second (Hanley and Larko);
* it reads the scan in both orders and takes the mean, as in the first;
* a study's logits are pooled from its slices' by attention (Ilse et al., "Attention-based deep multiple instance
  learning", ICML 2018), so that a network can learn from reports, which say nothing of slices.

Every one of these can be switched off.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from inference.models.cnn_lstm import TRUNKS
from inference.models.scan_model import ScanModel
from inference.result import Json

TIED = 0.1
"""How much of a study's logits each of its slices has before anything was learnt."""


@dataclass(frozen=True, kw_only=True)
class HemonodeConfig(Json):
    """The network's measures.

    Attributes
    ----------
    trunk : str
        One of the CNN-LSTM's.
    reach : int
        Neighbours in the image, on either side; 0 for none.
    sequence : bool
        Whether a recurrent network looks at the whole scan; if not, each slice's logits come from its descriptor alone.
    differences : bool
        Whether it sees a descriptor's differences to those of both neighbours.
    hidden, layers : int
        Of the recurrent network, in each direction.
    study : bool
        Whether the study has logits of its own, of which each slice has a learnt part.
    both_orders : bool
        The mean of the scan read from feet to head and from head to feet. Costs next to nothing.
    mirrored : bool
        The mean of a slice's descriptor and that of its mirror image. Doubles the cost.
    dropout : float
        Of what the recurrent network sees.
    """

    trunk: str = "resnet18"
    reach: int = 1
    sequence: bool = True
    differences: bool = True
    hidden: int = 128
    layers: int = 2
    study: bool = True
    both_orders: bool = True
    mirrored: bool = False
    dropout: float = 0.5
    labels: int = 6
    size: int = 256


class Weighed(NamedTuple):
    """What is said of scans: logits (…, s, labels) of their slices, and (…, labels) of each as a whole."""

    slices: Tensor
    study: Tensor


class Tail(nn.Module):
    """From descriptors of whole scans to logits of slices and of the scan."""

    def __init__(self, config: HemonodeConfig, features: int) -> None:
        super().__init__()
        self.labels = config.labels
        self.differences = config.differences
        self.both_orders = config.both_orders
        self.describe = nn.Linear(features, config.labels)
        self.recurrent: nn.LSTM | None = None
        width = features
        if config.sequence:
            self.dropout = nn.Dropout(config.dropout)
            self.norm = nn.LayerNorm(features)
            self.mix = nn.Linear(features * (3 if config.differences else 1), 2 * config.hidden)
            self.recurrent = nn.LSTM(
                2 * config.hidden, config.hidden, num_layers=config.layers, batch_first=True, bidirectional=True
            )
            width = 2 * config.hidden
            self.classify = nn.Linear(width, config.labels)
        self.study = config.study
        if config.study:
            self.attend = nn.Linear(width, config.labels)
            self.offset = nn.Parameter(torch.zeros(config.labels))
            self.tie = nn.Parameter(torch.full((config.labels,), TIED))

    def forward(self, descriptors: Tensor) -> Weighed:
        """What is said of scans with descriptors (…, s, d)."""
        scans = descriptors.reshape(-1, *descriptors.shape[-2:])
        logits, attention = self._in_order(scans)
        if self.both_orders and self.recurrent is not None and not self.training:
            others = self._in_order(scans.flip(1))
            logits, attention = ((a + b.flip(1)) / 2 for a, b in zip((logits, attention), others, strict=True))
        study = logits.amax(1)
        if self.study:
            shares = (logits + attention).softmax(1)
            study = (shares * logits).sum(1) + self.offset
            logits = logits + self.tie * study[:, None]
        leading = descriptors.shape[:-2]
        return Weighed(logits.reshape(*leading, -1, self.labels), study.reshape(*leading, self.labels))

    def _in_order(self, scans: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of slices (b, s, labels) and how much more the study's look at each than its logits say."""
        logits: Tensor = self.describe(scans)
        seen = scans
        if self.recurrent is not None:
            features = self.norm(scans)
            if self.differences:
                features = torch.cat((features, *_differences(features)), -1)
            seen, _ = self.recurrent(self.dropout(torch.relu(self.mix(self.dropout(features)))))
            logits = logits + self.classify(self.dropout(seen))
        return logits, self.attend(seen) if self.study else torch.zeros_like(logits)


def _differences(features: Tensor) -> tuple[Tensor, Tensor]:
    """Features (b, s, d) minus those of the slice before, and of the slice behind; 0 at the ends."""
    steps = features.diff(dim=1)
    none = torch.zeros_like(features[:, :1])
    return torch.cat((none, steps), 1), torch.cat((-steps, none), 1)


class Hemonode(ScanModel):
    """Trunk and tail."""

    channels = 3

    def __init__(self, config: HemonodeConfig) -> None:
        super().__init__()
        if config.trunk not in TRUNKS:
            raise ValueError(f"unknown trunk {config.trunk!r}; known are {', '.join(TRUNKS)}")
        if config.reach < 0:
            raise ValueError(f"a reach of {config.reach} slices is none")
        make, self.descriptor_size = TRUNKS[config.trunk]
        self.size = config.size
        self.labels = config.labels
        self.reach = config.reach
        self.context = None if config.sequence or config.study or config.reach else 0
        self.mirrored = config.mirrored
        self.trunk = make()
        stem = self.trunk.get_submodule("layer0") if config.trunk.startswith("se_") else self.trunk
        stem.conv1 = nn.Conv2d(self.seen, 64, 7, stride=2, padding=3, bias=False)
        nn.init.kaiming_normal_(stem.conv1.weight, mode="fan_out", nonlinearity="relu")
        self.tail = Tail(config, self.descriptor_size)

    def encode(self, images: Tensor) -> Tensor:
        """Descriptors (n, 512) of ResNet-18, or (n, 2048): the trunk's pooled features."""
        descriptors: Tensor = self.trunk(images)
        if self.mirrored:
            descriptors = (descriptors + self.trunk(images.flip(-1))) / 2
        return descriptors

    def decide(self, descriptors: Tensor) -> Tensor:
        """Logits (…, s, labels) of the s slices of a scan."""
        weighed: Weighed = self.tail(descriptors)
        return weighed.slices
