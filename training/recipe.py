"""What `hemonode train` needs of a recipe: how its network is built, fed and trained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from inference.decision import ScanRule
from inference.preprocess import Preprocessing
from inference.result import Json


@dataclass(frozen=True, kw_only=True)
class FromSlices:
    """A preprocessing that depends on the slices of the training patients.

    Attributes
    ----------
    make : callable
        From rows and columns of the network's image, the recipe's values and volumes in HU, int16 (slices, rows,
        columns), to the preprocessing.
    """

    make: Callable[[int, Any, Sequence[Tensor]], Preprocessing]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One way to train one family of networks.

    Attributes
    ----------
    values : type
        A frozen dataclass whose defaults are the paper's; ``--set`` changes them by name.
    architecture : dict
        The family's configuration, of the paper's size.
    preprocessing : callable or FromSlices
        From rows and columns of the network's image to the preprocessing that makes it.
    bleeding_only : bool
        The network learns from slices that bleed only: it is validated on such, and its card says so.
    train : callable
        ``train(model, scans, recipe=values, run=run)`` trains on prepared scans and returns the number of steps.
    """

    name: str
    paper: str
    values: type[Json]
    family: str
    architecture: dict[str, Any]
    preprocessing: Callable[[int], Preprocessing] | FromSlices
    labels: tuple[str, ...]
    rule: ScanRule
    train: Callable[..., int]
    bleeding_only: bool = False
