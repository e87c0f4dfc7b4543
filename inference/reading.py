"""What the scores of one model say about one scan: findings, slice readings and key slices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inference.card import ModelCard
from inference.decision import KEY_SLICES, ScanDecision, judge
from inference.place import SlicePlace
from inference.result import ANY, Finding, ModelReading, Novelty, SliceReading

UNHEARD = "it knows only slices that bleed, and says nothing"


@dataclass(frozen=True, kw_only=True)
class Said:
    """The part of a `ModelReading` that comes from the scores."""

    rule: str
    findings: tuple[Finding, ...]
    slices: tuple[SliceReading, ...]
    key_slices: tuple[str, ...]


def of_slices(card: ModelCard, scores: NDArray[np.floating[Any]], places: Sequence[SlicePlace]) -> Said:
    """What follows from the scores (s, labels) of the slices at `places`, under the card's scan rule."""
    verdicts = [_verdict(card, label, scores[:, i], places) for i, label in enumerate(card.labels)]
    return Said(
        rule=verdicts[0].rule,
        findings=_findings(card, verdicts),
        slices=tuple(_slice_reading(card, *pair) for pair in zip(places, scores, strict=True)),
        key_slices=_key_slices(verdicts, places),
    )


def of_whole(card: ModelCard, scores: NDArray[np.floating[Any]]) -> Said:
    """What follows from the scores (1, labels) of a network that says nothing about single slices."""
    verdicts = [_verdict_on_whole(float(scores[0, i]), card.thresholds[label]) for i, label in enumerate(card.labels)]
    return Said(rule=verdicts[0].rule, findings=_findings(card, verdicts), slices=(), key_slices=())


def _verdict(
    card: ModelCard, label: str, scores: NDArray[np.floating[Any]], places: Sequence[SlicePlace]
) -> ScanDecision:
    return judge(
        scores,
        positions_mm=[place.position_mm for place in places],
        thickness_mm=[place.thickness_mm for place in places],
        rule=card.rule,
        threshold=card.thresholds[label],
    )


def _verdict_on_whole(score: float, threshold: float) -> ScanDecision:
    present = score >= threshold
    # Rounded down, so that a score below the threshold never reads like the threshold.
    seen = f"{math.floor(score * 100) / 100:.2f}"
    rule = f"the scan as a whole {seen}, {'at or above' if present else 'below'} {threshold:.2f}"
    return ScanDecision(score=score, present=present, rule=rule, key_slices=())


def _findings(card: ModelCard, verdicts: Sequence[ScanDecision]) -> tuple[Finding, ...]:
    return tuple(_finding(card, label, verdict) for label, verdict in zip(card.labels, verdicts, strict=True))


def _finding(card: ModelCard, label: str, verdict: ScanDecision) -> Finding:
    scan = card.calibration.scan[label] if card.calibrated else None
    return Finding(
        label=label,
        present=verdict.present,
        score=verdict.score,
        threshold=card.thresholds[label],
        calibrated=scan is not None,
        probability=scan.probability(verdict.score) if scan else None,
        prevalence=scan.prevalence if scan else None,
        operating_point=card.operating_point(label),
    )


def where_bleeding(
    card: ModelCard, reading: ModelReading, others: Sequence[ModelReading], places: Sequence[SlicePlace]
) -> ModelReading:
    """What remains of the reading of a model that knows only slices that bleed, given what the `others` found.

    It is heard about the slices in which another model finds *any*: those at or above that finding's threshold, or its
    key slices where none is. Where there are none it has no findings: it can call no study positive or negative.
    `places` are those of the scan's slices.
    """
    bleeding = {key for other in others for key in _bleeding(other)}
    by_key = {(place.sop_instance_uid, place.frame): place for place in places}
    kept = [piece for piece in reading.slices if _key(piece) in bleeding]
    if not kept:
        says = f"{UNHEARD}: no other model finds a slice that bleeds"
        return replace(reading, findings=(), slices=(), key_slices=(), rule=says, warnings=(*reading.warnings, says))
    scores = np.array([[piece.scores[label] for label in card.labels] for piece in kept])
    said = of_slices(card, scores, [by_key[_key(piece)] for piece in kept])
    told = f"heard only about the {len(kept)} of {len(reading.slices)} slices in which another model finds bleeding"
    return replace(
        reading,
        findings=said.findings,
        slices=said.slices,
        key_slices=said.key_slices,
        rule=said.rule,
        warnings=(*reading.warnings, told),
    )


def _key(piece: SliceReading) -> tuple[str, int | None]:
    return piece.sop_instance_uid, piece.frame


def _bleeding(reading: ModelReading) -> list[tuple[str, int | None]]:
    """The slices in which a model finds *any*."""
    finding = reading.finding(ANY)
    if finding is None or not finding.present:
        return []
    above = [_key(piece) for piece in reading.slices if piece.scores[ANY] >= finding.threshold]
    return above or [_key(piece) for piece in reading.slices if piece.sop_instance_uid in reading.key_slices]


def watched(reading: ModelReading, novelty: Novelty) -> ModelReading:
    """The reading with what the guard says of the scan. Nothing that was found is lowered or removed.

    Of a scan unlike those of training no probability is known: its findings keep their scores alone.
    """
    if not novelty.unlike:
        return replace(reading, novelty=novelty)
    return replace(
        reading,
        novelty=novelty,
        findings=tuple(replace(f, calibrated=False, probability=None, prevalence=None) for f in reading.findings),
        warnings=(*reading.warnings, f"the scan is unlike those the model was trained on: {novelty.sentence}"),
    )


def _slice_reading(card: ModelCard, place: SlicePlace, scores: NDArray[np.floating[Any]]) -> SliceReading:
    return SliceReading(
        sop_instance_uid=place.sop_instance_uid,
        frame=place.frame,
        position_mm=place.position_mm,
        scores=dict(zip(card.labels, map(float, scores), strict=True)),
    )


def _key_slices(verdicts: Sequence[ScanDecision], places: Sequence[SlicePlace]) -> tuple[str, ...]:
    """The instances that carried the decisions, those of the first label first; each once, at most five."""
    indices = [index for verdict in verdicts for index in verdict.key_slices]
    return tuple(dict.fromkeys(places[index].sop_instance_uid for index in indices))[:KEY_SLICES]
