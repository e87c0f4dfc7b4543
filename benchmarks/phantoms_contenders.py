"""Who takes part in ``benchmarks.phantoms``: the five papers' networks, ours, and ours without one ingredient each.

Two changes are made to all of them, because everything here begins from random weights and has to end on a machine
without a GPU: the image has `side` pixels instead of the papers' 250 to 512, and trunks are ResNet-18. Learning rates
that only continue ImageNet weights (10⁻⁵ of Vultur's 2D network) are raised. Khandelwal's, whose batches, search of a
learning rate and sizes of image take more slices than there are, gets one size and a batch of 64 with the rate that
goes with it. Ngo's fusion network, whose batches of 1024 are made for a hundred times as many slices, gets batches of
64, and as many epochs as ours reads its descriptors. Every other value is the recipe's own.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

RESNET18 = {"trunk": "resnet18"}


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A recipe, and what is changed of its network and its values.

    Attributes
    ----------
    first_stage_of : str
        The contender whose first stage, with the same seed, stands for its own, which would be the same once more.
    weights_of : str
        The contender whose weights, with the same seed, are read with this network: nothing is trained.
    sized : bool
        Its recipe goes through several sizes of image, of which it is given the last alone.
    """

    recipe: str
    said: str
    architecture: dict[str, Any] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)
    first_stage_of: str = ""
    weights_of: str = ""
    sized: bool = False


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two contenders of which a paper says, or we hope, that the second is better."""

    first: str
    second: str
    claim: str


PAPERS: dict[str, Contender] = {
    "densenet": Contender(recipe="densenet", said="DenseNet (Grewal)"),
    "densenet_a": Contender(recipe="densenet_a", said="DenseNet with attention (Grewal)"),
    "radnet": Contender(recipe="radnet", said="RADnet (Grewal)"),
    "resnet_2d": Contender(recipe="resnet_2d", said="2D ResNet-18 (Vultur)", values={"rate": 3e-4}),
    "cnn_lstm": Contender(recipe="cnn_lstm", said="CNN-LSTM (Nguyen)", architecture=RESNET18),
    "adjacent": Contender(
        recipe="adjacent",
        said="adjacent slices (Ngo)",
        architecture=RESNET18,
        values={"folds": 1, "fusion_batch": 64, "fusion_epochs": 40},
    ),
    "bleeding": Contender(
        recipe="bleeding",
        said="ResNet-18, bleed or not (Khandelwal)",
        values={"batch": 64, "rate": 1e-3},
        sized=True,
    ),
    "resnet_3d": Contender(recipe="resnet_3d", said="3D ResNet-18, whole scan (Vultur)", architecture={"depth": 32}),
    "resnet_3d_five": Contender(recipe="resnet_3d_five", said="3D ResNet-18, five slices (Vultur)"),
}
OURS = "hemonode"


def _ours(said: str, **changed: Any) -> Contender:
    return Contender(recipe=OURS, said=said, **changed)


LADDER: dict[str, Contender] = {
    "no neighbours": _ours("without neighbours in the image", architecture={"reach": 0}),
    "no segmentation": _ours("without segmentation losses", values={"segmentation": 0}),
    "no average": _ours("without averaged weights", values={"average": 0, "tail_average": 0}),
    "no sequence": _ours("without a network over the scan", architecture={"sequence": False}, first_stage_of=OURS),
    "no differences": _ours(
        "without differences to both neighbours", architecture={"differences": False}, first_stage_of=OURS
    ),
    "no study": _ours(
        "without a head for the study", architecture={"study": False}, values={"study": 0}, first_stage_of=OURS
    ),
    "no views": _ours("without descriptors of changed images", values={"views": 0}, first_stage_of=OURS),
    "folds": _ours(
        "with descriptors from trunks that do not know the patient (2 folds), twice the training",
        values={"folds": 2},
        first_stage_of=OURS,
    ),
    "one order": _ours("read in one order only", architecture={"both_orders": False}, weights_of=OURS),
    "mirrored": _ours("with mirror images averaged, twice the time", architecture={"mirrored": True}, weights_of=OURS),
}
CONTENDERS = PAPERS | {OURS: _ours("ours")} | LADDER

COMPARISONS = (
    Comparison(first="densenet", second="densenet_a", claim="Grewal et al., table 1: attention helps"),
    Comparison(first="densenet_a", second="radnet", claim="Grewal et al., table 1: so does the LSTM"),
    Comparison(first="resnet_2d", second="cnn_lstm", claim="Nguyen et al.: the LSTM over the slices helps"),
    Comparison(first="resnet_2d", second="adjacent", claim="Ngo et al.: fusing adjacent slices helps"),
    Comparison(first="cnn_lstm", second="adjacent", claim="Ngo et al.: as well as the LSTM"),
    Comparison(first="resnet_3d", second="resnet_2d", claim="Vultur: 2D beats 3D on whole scans"),
    Comparison(first="resnet_3d_five", second="resnet_2d", claim="Vultur: 2D beats 3D on five slices"),
)
