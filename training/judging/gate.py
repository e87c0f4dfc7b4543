"""Whether new weights may take the place of those in use: what speaks against it, from the same scans read by both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from inference.card import ModelCard
from inference.result import Json, Rate
from training.judging.cohorts import FEW, Cohort, cohorts
from training.judging.intervals import Difference, delong, delong_difference, paired_difference
from training.judging.scans import Judged


@dataclass(frozen=True, kw_only=True)
class Gate(Json):
    """What new weights must keep.

    Attributes
    ----------
    margin : float
        AUC, sensitivity and specificity for *any* may be lower by less than this, by the lower end of the paired 95 %
        interval: the new weights are not inferior.
    limit : float
        In no group of at least ten scans that bleed, or that do not, may sensitivity or specificity fall by more.
    limits : dict
        Another limit for a dimension of the cohorts, such as ``{"thickness": 0.02}``.
    """

    margin: float = 0.05
    limit: float = 0.1
    limits: dict[str, float] = field(default_factory=dict)


def gains(before: Judged, after: Judged) -> dict[str, Difference | None]:
    """What `after` gains on the scans that both read."""
    bearing = before.bearing
    right = before.right, after.right
    return {
        "AUC": delong_difference(before.scores, after.scores, bearing),
        "sensitivity": paired_difference(right[0][bearing], right[1][bearing]),
        "specificity": paired_difference(right[0][~bearing], right[1][~bearing]),
    }


def against(cards: tuple[ModelCard, ModelCard], before: Judged, after: Judged, gate: Gate) -> list[str]:
    """Every reason not to put the second card's model in the place of the first's, in words; none means it may."""
    old, new = cards
    found = [f"it no longer tells {label}" for label in old.labels if label not in new.labels]
    if new.demonstration and not old.demonstration:
        found.append("it is for demonstration only, the one in use is not")
    measured = gains(before, after)
    for name, gain in measured.items():
        if gain is None:
            found.append(f"{name} cannot be compared: these scans have too few of one kind")
        elif gain.low <= -gate.margin:
            found.append(
                f"{name} may be lower by {-gain.low:.3f} (measured {gain.value:+.3f}), the margin is {gate.margin:g}"
            )
    if not any(gain is not None and gain.value > 0 for gain in measured.values()):
        found.append("it is better in none of AUC, sensitivity and specificity")
    # Groups are those of the same images: outlines of another size might give another volume.
    return found + _worse_groups(cohorts(before), cohorts(replace(after, readings=before.readings)), gate)


def against_the_first(after: Judged) -> list[str]:
    """Where nothing is in use yet: weights must tell scans that bleed from those that do not."""
    area = delong(after.scores, after.bearing)
    if area is None:
        return ["these scans have too few of one kind to tell whether it can tell them apart"]
    return [f"its AUC of {area.value:.3f} may be {area.low:.3f}: no better than chance"] if area.low <= 0.5 else []


def _worse_groups(before: Mapping[str, list[Cohort]], after: Mapping[str, list[Cohort]], gate: Gate) -> list[str]:
    found = []
    for dimension, rows in before.items():
        limit = gate.limits.get(dimension, gate.limit)
        now = {row.name: row for row in after[dimension]}
        for row in rows:
            for name in ("sensitivity", "specificity"):
                fallen = _fallen(getattr(row, name), getattr(now[row.name], name))
                if fallen > limit + 1e-9:
                    found.append(f"{dimension} {row.name}: {name} falls by {fallen:.3f}, the limit is {limit:g}")
    return found


def _fallen(before: Rate, after: Rate) -> float:
    if before.cases < FEW or before.value is None or after.value is None:
        return 0.0
    return before.value - after.value
