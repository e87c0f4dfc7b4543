"""What the header says of a slice, as numbers; and the reading of models that look at nothing else.

Such a model needs neither pixels nor a device nor a batch. It reads beside the engine, from the planes of the stack.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray

from inference import reading
from inference.card import ModelCard, ModelError, load
from inference.models import ScanModel, build
from inference.place import SlicePlace
from inference.result import ModelReading
from inference.stacks import Plane

ABSENT = -9999.0
"""Stands for what a header does not say."""

Number = float | int | None


def _spacing(plane: Plane, *, index: int) -> Number:
    return plane.facts.pixel_spacing[index] if plane.facts.pixel_spacing else None


def _of_frame(plane: Plane, *, what: str, index: int) -> Number:
    values: Sequence[Sequence[float] | None] = getattr(plane.facts, what)
    found = values[plane.index] if plane.index < len(values) else None
    return None if found is None else found[index]


FACTS: dict[str, Callable[[Plane], Number]] = {
    "rows": lambda plane: plane.facts.rows,
    "columns": lambda plane: plane.facts.columns,
    "bits_stored": lambda plane: plane.facts.bits_stored,
    "pixel_representation": lambda plane: plane.facts.pixel_representation,
    "rescale_slope": lambda plane: plane.facts.rescale_slope,
    "rescale_intercept": lambda plane: plane.facts.rescale_intercept,
    "spacing_rows": partial(_spacing, index=0),
    "spacing_columns": partial(_spacing, index=1),
    **{f"position_{axis}": partial(_of_frame, what="positions", index=i) for i, axis in enumerate("xyz")},
    **{f"orientation_{i}": partial(_of_frame, what="orientations", index=i) for i in range(6)},
}
"""The numbers that even the sparest public headers hold, by the name that a card gives them."""


def header_facts(planes: Sequence[Plane], names: Sequence[str]) -> NDArray[np.float32]:
    """The facts (n, d) of these names, in float32 as scikit-learn's trees see them; `ABSENT` where there is none."""
    rows = [[FACTS[name](plane) for name in names] for plane in planes]
    return np.array([[ABSENT if v is None else v for v in row] for row in rows], np.float32).reshape(-1, len(names))


@dataclass(frozen=True, kw_only=True, eq=False)
class HeaderModel:
    """A model on header facts, under its name in node.toml."""

    name: str
    card: ModelCard
    network: ScanModel

    @classmethod
    def load(cls, name: str, directory: Path) -> Self:
        """The model in `directory`. Raises ``ModelError`` as `inference.card.load`, and for facts nobody knows."""
        card, state = load(directory)
        if unknown := set(card.preprocessing.header) - set(FACTS):
            raise ModelError(f"{directory}: header facts {sorted(unknown)} are not known; known are {', '.join(FACTS)}")
        network = build(card)
        network.load_state_dict(state)
        return cls(name=name, card=card, network=network.eval())

    def read(self, planes: Mapping[tuple[str, int | None], Plane], places: Sequence[SlicePlace]) -> ModelReading:
        """The reading of the slices at `places`, whose planes are found by SOP Instance UID and frame."""
        began = time.monotonic()
        ordered = sorted(places, key=lambda place: place.position_mm)
        facts = header_facts([planes[p.sop_instance_uid, p.frame] for p in ordered], self.card.preprocessing.header)
        with torch.inference_mode():
            logits = self.network.decide(torch.from_numpy(facts)).numpy()
        said = reading.of_slices(
            self.card, self.card.calibration.slice_scores(logits, labels=self.card.labels), ordered
        )
        return ModelReading(
            name=self.name,
            family=self.card.family,
            version=self.card.version,
            digest=self.card.sha256,
            demonstration=self.card.demonstration,
            rule=said.rule,
            findings=said.findings,
            slices=said.slices,
            key_slices=said.key_slices,
            seconds=time.monotonic() - began,
            warnings=("this model saw the images' headers only, not one pixel",),
        )
