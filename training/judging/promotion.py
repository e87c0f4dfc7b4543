"""One promotion: the model in use and the new one read the same fixed scans, and the gate speaks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from inference.result import ANY
from training.errors import TrainingError
from training.evaluate import Judgement, Studies, judge
from training.judging.gate import Gate, against, against_the_first, gains
from training.judging.scans import Judged, by_card, digest, paired
from training.judging.slot import Entry, Slot


def promote(
    candidate: Path,
    slot: Slot,
    opened: Callable[[Path], Studies],
    *,
    gate: Gate,
    override: str,
    device: torch.device,
) -> Entry:
    """`candidate` is in use in `slot`; returns what the record says.

    `opened` gives the test set, prepared for the model in a directory.

    Raises
    ------
    TrainingError
        Something speaks against it and `override` gives no reason, it does not tell *any*, or it is in use already.
    LeakageError
        One of the two was made from patients of the test set.
    """
    studies = opened(candidate)
    new = judge(candidate, studies, device=device)
    after = _judged(candidate, new)
    test_set = digest(studies.scans)
    reasons = _another_test_set(slot, test_set)
    measured = {}
    if (current := slot.current) is None:
        reasons += against_the_first(after)
    else:
        old = judge(current, opened(current), device=device)
        pair = paired(_judged(current, old), after)
        reasons += against((old.card, new.card), *pair, gate)
        measured = {name: gain.to_json() for name, gain in gains(*pair).items() if gain}
    return slot.promote(candidate, test_set=test_set, against=tuple(reasons), override=override, gains=measured)


def _judged(directory: Path, found: Judgement) -> Judged:
    if ANY not in found.card.labels:
        raise TrainingError(f"{directory} does not tell {ANY!r}, by which models are promoted")
    return by_card(found.card, found.readings, ANY)


def _another_test_set(slot: Slot, test_set: str) -> list[str]:
    fixed = slot.test_set
    if fixed is None or fixed == test_set:
        return []
    return [f"the test set is {test_set[:12]}…, not {fixed[:12]}… as before"]
