"""The random forest on header metadata (Khandelwal and Ganguli, section III-D i), grown by scikit-learn.

``python -m training.recipes.metadata_forest --out runs/metadata-forest --heads 60`` grows it on the headers of phantom
slices, bleeding and not in equal parts, and judges it on other heads. On phantoms, whose headers know nothing of the
blood, it does what the paper saw: about half of the slices are called rightly.

The paper names neither the facts nor the forest's measures; ours are the numbers of the sparest public headers
(`inference.metadata.FACTS`) and scikit-learn's defaults with leaves of at least 5 slices.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.ensemble import RandomForestClassifier

from inference import card as cards
from inference.card import ModelCard, Provenance
from inference.decision import ScanRule
from inference.metadata import FACTS, header_facts
from inference.models.metadata_forest import MetadataForestConfig
from inference.preprocess import Preprocessing
from inference.result import ANY
from inference.series import Plane, facts
from training.errors import DataError
from training.export import INTENDED_USE
from training.metrics import auc, rate
from training.sources.phantom import EASY, MAKERS, make_study
from training.sources.phantom.dicom import instances

LEAST_LEAF = 5
THRESHOLD = 0.5


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


def grow(slices: Slices, *, trees: int, seed: int) -> RandomForestClassifier:
    """A forest grown on these slices."""
    forest = RandomForestClassifier(n_estimators=trees, min_samples_leaf=LEAST_LEAF, random_state=seed)
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


def export(directory: Path, forest: RandomForestClassifier, *, figures: Mapping[str, object], data: str) -> ModelCard:
    """`directory` holds the forest and its card."""
    config, state = as_arrays(forest)
    card = ModelCard(
        name="Metadata forest",
        family="metadata_forest",
        version="baseline-1",
        architecture=config.to_json(),
        preprocessing=Preprocessing(windows=(), size=1, header=tuple(FACTS)),
        labels=(ANY,),
        thresholds={ANY: THRESHOLD},
        rule=ScanRule(max=True),
        demonstration=True,
        intended_use=f"A baseline that sees no pixels: what it finds, the headers give away. {INTENDED_USE}",
        provenance=Provenance(
            recipe="python -m training.recipes.metadata_forest",
            data=data,
            seed=forest.random_state,
            date=datetime.now(UTC).isoformat(timespec="seconds"),
        ),
        figures=dict(figures),
    )
    return cards.save(directory, card, state)


def of_phantoms(seeds: Sequence[int]) -> Slices:
    """Header facts and labels of phantom heads, as every maker's scanner in turn would send them."""
    makers = list(MAKERS.values())
    rows, bleeds = [], []
    for seed in seeds:
        study = make_study(seed=seed, spec=replace(EASY, size=64))
        headers = instances(study, maker=makers[seed % len(makers)])
        planes = [Plane(facts=facts(header)) for header in headers]
        along = np.argsort(study.positions[:, 2])
        rows.append(header_facts(sorted(planes, key=_height), list(FACTS)))
        bleeds.append(study.labels[along, 0] > 0)
    return Slices(facts=np.concatenate(rows), bleeds=np.concatenate(bleeds))


def _height(plane: Plane) -> float:
    position = plane.facts.positions[0]
    return position[2] if position else 0.0


def judged(forest: RandomForestClassifier, slices: Slices) -> dict[str, object]:
    """How often slices, half of them with a bleed, are called rightly; and the AUC."""
    scores = forest.predict_proba(slices.facts)[:, list(forest.classes_).index(True)]
    right = int(((scores >= THRESHOLD) == slices.bleeds).sum())
    return {"accuracy": rate(right, len(scores)).to_json(), "auc": auc(scores, slices.bleeds)}


def main(argv: Sequence[str] | None = None) -> None:
    """Grow a forest on the headers of phantom heads, judge it on others, and write it with its card."""
    parser = argparse.ArgumentParser(prog="python -m training.recipes.metadata_forest", description=main.__doc__)
    parser.add_argument("--out", type=Path, required=True, help="the model directory to write")
    parser.add_argument("--heads", type=int, default=60, help="heads to grow on; half as many to judge on")
    parser.add_argument("--first", type=int, default=70_000, help="seed of the first head")
    parser.add_argument("--trees", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args(argv)
    rng = np.random.default_rng(asked.seed)
    middle, last = asked.first + asked.heads, asked.first + asked.heads + max(1, asked.heads // 2)
    forest = grow(of_phantoms(range(asked.first, middle)).balanced(rng), trees=asked.trees, seed=asked.seed)
    unseen = judged(forest, of_phantoms(range(middle, last)).balanced(rng))
    data = f"phantom heads {asked.first} to {middle - 1}, judged on {middle} to {last - 1}"
    export(asked.out, forest, figures={"headers_only": unseen}, data=data)


if __name__ == "__main__":
    main()
