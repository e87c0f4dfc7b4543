"""From the readings of several models to one outcome of the study."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from inference.decision import floored
from inference.result import ANY, Json, ModelReading, Outcome

UNLIKE = "the scan is unlike those the models were trained on"


@dataclass(frozen=True, kw_only=True)
class Combination(Json):
    """Which findings make a study positive: model name → label that triggers.

    The study is positive when any of `any_of` is present, or all of `all_of` are. With both empty every model's "any"
    triggers by itself. With `abstain` a model finds nothing absent in a scan unlike those it was trained on: what it
    finds present stands, the rest is unknown.
    """

    any_of: dict[str, str] = field(default_factory=dict)
    all_of: dict[str, str] = field(default_factory=dict)
    abstain: bool = False


def combine(readings: Sequence[ModelReading], how: Combination | None = None) -> tuple[Outcome, str]:
    """The outcome of the study, and the reason in one sentence.

    A model that is named but gave no reading of its label can neither trigger nor clear, nor can one that abstains:
    where the others leave the question open the study is *not analysed*, never negative.
    """
    how = how or Combination()
    any_of = how.any_of if how.any_of or how.all_of else {reading.name: ANY for reading in readings}
    triggers = list(dict.fromkeys([*any_of.items(), *how.all_of.items()]))
    by_name = {reading.name: reading for reading in readings}
    said = {trigger: _said(by_name.get(trigger[0]), trigger[1], how) for trigger in triggers}
    verdicts = [_any([said[trigger] for trigger in any_of.items()])] if any_of else []
    verdicts += [_all([said[trigger] for trigger in how.all_of.items()])] if how.all_of else []
    verdict = _any(verdicts)
    match verdict:
        case True:
            outcome, telling = Outcome.POSITIVE, [t for t in triggers if said[t]]
        case False if triggers:
            outcome, telling = Outcome.NEGATIVE, [t for t in triggers if said[t] is not None]
        case _:
            outcome, telling = Outcome.NOT_ANALYSED, [t for t in triggers if said[t] is None]
    reason = "; ".join(_reason(by_name.get(name), name, label, outcome) for name, label in telling)
    if outcome is Outcome.NOT_ANALYSED and any(name in by_name and by_name[name].unlike for name, _ in telling):
        return outcome, f"not analysed: {UNLIKE} ({reason})"
    if any(by_name[name].unlike for name, _ in telling if name in by_name):
        return outcome, f"{reason}; note: {UNLIKE}"
    return outcome, reason or "no model gave a reading"


def _said(reading: ModelReading | None, label: str, how: Combination) -> bool | None:
    """Whether the model finds the label; None where it said nothing about it, or abstains."""
    finding = reading.finding(label) if reading else None
    if reading is None or finding is None or (how.abstain and reading.unlike and not finding.present):
        return None
    return finding.present


def _any(values: Sequence[bool | None]) -> bool | None:
    """Three-valued or: True if any is, else None if any is unknown."""
    return True if True in values else None if None in values else False


def _all(values: Sequence[bool | None]) -> bool | None:
    """Three-valued and: False if any is, else None if any is unknown."""
    return False if False in values else None if None in values else True


def _reason(reading: ModelReading | None, name: str, label: str, outcome: Outcome) -> str:
    finding = reading.finding(label) if reading else None
    if reading is None or finding is None:
        return f"{name}: gave no reading of {label}"
    if outcome is Outcome.NOT_ANALYSED and reading.novelty is not None:
        return f"{name}: {reading.novelty.sentence}"
    if label == reading.findings[0].label:
        return f"{name}: {reading.rule}"
    side = "at or above" if finding.present else "below"
    return f"{name}: {label} {floored(finding.score)}, {side} {finding.threshold:.2f}"
