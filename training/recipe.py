"""What `hemonode train` needs of a recipe: how its network is built, fed and trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from inference.decision import ScanRule
from inference.preprocess import Preprocessing
from inference.result import Json


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One way to train one family of networks.

    Attributes
    ----------
    values : type
        A frozen dataclass whose defaults are the paper's; ``--set`` changes them by name.
    architecture : dict
        The family's configuration, of the paper's size.
    preprocessing : callable
        From rows and columns of the network's image to the preprocessing that makes it.
    train : callable
        ``train(model, scans, recipe=values, run=run)`` trains on prepared scans and returns the number of steps.
    """

    name: str
    paper: str
    values: type[Json]
    family: str
    architecture: dict[str, Any]
    preprocessing: Callable[[int], Preprocessing]
    labels: tuple[str, ...]
    rule: ScanRule
    train: Callable[..., int]
