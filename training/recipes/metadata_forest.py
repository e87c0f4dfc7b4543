"""The random forest on header metadata (Khandelwal and Ganguli, section III-D i), grown by scikit-learn.

``hemonode train metadata_forest --data SOURCE --out DIR`` grows it on the headers of labelled slices, bleeding and not
in equal parts, and judges it on those of other patients. No pixel is read. On phantoms, whose headers know nothing of
the blood, it does what the paper saw: about half of the slices are called rightly.

The paper names neither the facts nor the forest's measures; ours are the numbers of the sparest public headers
(`inference.metadata.FACTS`) and scikit-learn's defaults with leaves of at least 5 slices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.ensemble import RandomForestClassifier

from inference.models.metadata_forest import MetadataForestConfig
from inference.result import Json
from training.errors import DataError
from training.metrics import auc, rate

NAME = "metadata_forest"
PAPER = "Khandelwal and Ganguli"
THRESHOLD = 0.5


@dataclass(frozen=True, kw_only=True)
class ForestRecipe(Json):
    """The values; all are scikit-learn's, but for the leaves."""

    trees: int = 100
    least_leaf: int = 5
    """slices"""


@dataclass(frozen=True, kw_only=True, eq=False)
class Slices:
    """Header facts (n, d) of labelled slices, and whether each bleeds (n,)."""

    facts: NDArray[np.float32]
    bleeds: NDArray[np.bool_]

    def balanced(self, rng: np.random.Generator) -> Slices:
        """As many slices with a bleed as without. Raises ``DataError`` where one kind is lacking."""
        chosen = [np.flatnonzero(self.bleeds == wanted) for wanted in (True, False)]
        count = min(map(len, chosen))
        if not count:
            raise DataError("a forest needs slices with a bleed and without")
        kept = np.sort(np.concatenate([rng.permutation(indices)[:count] for indices in chosen]))
        return Slices(facts=self.facts[kept], bleeds=self.bleeds[kept])


def together(parts: Sequence[Slices]) -> Slices:
    """The slices of all parts."""
    return Slices(
        facts=np.concatenate([part.facts for part in parts]), bleeds=np.concatenate([part.bleeds for part in parts])
    )


def grow(slices: Slices, *, recipe: ForestRecipe, seed: int) -> RandomForestClassifier:
    """A forest grown on these slices."""
    forest = RandomForestClassifier(n_estimators=recipe.trees, min_samples_leaf=recipe.least_leaf, random_state=seed)
    return forest.fit(slices.facts, slices.bleeds)


def as_arrays(forest: RandomForestClassifier) -> tuple[MetadataForestConfig, dict[str, torch.Tensor]]:
    """The forest as the state of a `MetadataForest`, which gives the same probabilities."""
    trees = [estimator.tree_ for estimator in forest.estimators_]
    nodes, depth = max(tree.node_count for tree in trees), max(tree.max_depth for tree in trees)
    state = {name: np.zeros((len(trees), nodes), np.int64) for name in ("ask", "yes", "no")}
    state |= {name: np.zeros((len(trees), nodes), np.float32) for name in ("limit", "positive")}
    bleeding = list(forest.classes_).index(True)
    for i, tree in enumerate(trees):
        here, leaf = slice(0, tree.node_count), tree.children_left < 0
        itself = np.arange(tree.node_count)
        state["ask"][i, here] = np.where(leaf, 0, tree.feature)
        state["yes"][i, here] = np.where(leaf, itself, tree.children_left)
        state["no"][i, here] = np.where(leaf, itself, tree.children_right)
        state["limit"][i, here] = _rounded_down(tree.threshold)
        share = tree.value[:, 0] / tree.value[:, 0].sum(1, keepdims=True)
        state["positive"][i, here] = share[:, bleeding]
    config = MetadataForestConfig(facts=forest.n_features_in_, trees=len(trees), nodes=nodes, depth=depth)
    return config, {name: torch.from_numpy(values) for name, values in state.items()}


def _rounded_down(limits: NDArray[np.float64]) -> NDArray[np.float32]:
    """The largest float32 at or below each limit: exactly the same float32 facts are then at most the limit."""
    nearest = limits.astype(np.float32)
    return np.where(nearest > limits, np.nextafter(nearest, np.float32(-np.inf)), nearest)


def judged(forest: RandomForestClassifier, slices: Slices) -> dict[str, object]:
    """How often slices, half of them with a bleed, are called rightly; and the AUC."""
    scores = forest.predict_proba(slices.facts)[:, list(forest.classes_).index(True)]
    right = int(((scores >= THRESHOLD) == slices.bleeds).sum())
    return {"accuracy": rate(right, len(scores)).to_json(), "auc": auc(scores, slices.bleeds)}
