"""Slice scores become one statement about the scan, and several models one outcome."""

import itertools
import json
import math
from dataclasses import replace

import numpy as np
import pytest

from inference.calibration import Calibration
from inference.combination import Combination, combine
from inference.decision import ScanDecision, ScanRule, judge
from inference.result import Finding, ModelReading, Novelty, Outcome

RUN3 = ScanRule(run=3)


def decide(
    scores: list[float],
    *,
    positions: list[float] | None = None,
    thickness: list[float | None] | None = None,
    rule: ScanRule = RUN3,
    threshold: float = 0.5,
) -> ScanDecision:
    places = positions or [5.0 * i for i in range(len(scores))]
    return judge(np.array(scores), positions_mm=places, thickness_mm=thickness, rule=rule, threshold=threshold)


def evenly(*runs: tuple[int, float]) -> list[float]:
    """Positions that begin at 0 and go on by each distance as often as said."""
    return list(itertools.accumulate([0.0, *(step for count, step in runs for _ in range(count))]))


def test_three_consecutive_slices_are_positive_and_two_are_not() -> None:
    assert decide([0.1, 0.9, 0.8, 0.7, 0.1]).present
    assert not decide([0.1, 0.9, 0.8, 0.1, 0.9]).present


def test_the_score_is_the_weakest_slice_of_the_best_run() -> None:
    assert decide([0.9, 0.2, 0.6, 0.7, 0.65, 0.1]).score == 0.6


def test_the_score_crosses_every_threshold_exactly_when_the_rule_fires() -> None:
    generator = np.random.default_rng(0)
    for threshold in (0.1, 0.5, 0.9):
        for _ in range(200):
            scores = generator.random(12).round(1)
            bits = scores >= threshold
            expected = any(bits[i : i + 3].all() for i in range(10))
            verdict = decide(scores.tolist(), threshold=threshold)
            assert verdict.present is bool(expected)
            assert (verdict.score >= threshold) is verdict.present
            assert bool(verdict.key_slices) is verdict.present


def test_the_order_in_which_slices_are_given_does_not_matter() -> None:
    scores, positions = [0.1, 0.9, 0.8, 0.7, 0.1], [0.0, 5.0, 10.0, 15.0, 20.0]
    for order in itertools.permutations(range(5)):
        verdict = decide([scores[i] for i in order], positions=[positions[i] for i in order])
        assert verdict.score == 0.7
        assert [order[i] for i in verdict.key_slices] == [1, 2, 3]


def test_a_missing_slice_ends_a_run() -> None:
    scores = [0.1, 0.1, 0.9, 0.9, 0.9, 0.1, 0.1]
    assert decide(scores, positions=evenly((6, 5.0))).present
    broken = evenly((3, 5.0), (1, 10.0), (2, 5.0))
    assert not decide(scores, positions=broken).present
    assert not decide(scores, positions=broken, thickness=[5.0] * 7).present


def test_two_missing_slices_in_a_row_of_gaps_end_runs_too() -> None:
    assert not decide([0.1, 0.1, 0.9, 0.9, 0.9, 0.1, 0.1], positions=evenly((2, 4.0), (2, 8.0), (2, 4.0))).present


@pytest.mark.parametrize("after", [7.0, 10.0, 20.0])
def test_a_series_that_changes_its_spacing_is_one_stretch(after: float) -> None:
    scores = [0.1, 0.1, 0.1, 0.9, 0.9, 0.9, 0.1, 0.1]
    assert decide(scores, positions=evenly((4, 4.0), (3, after))).present
    assert decide(scores[::-1], positions=evenly((3, after), (4, 4.0))).present


def test_a_single_thicker_slice_at_the_end_is_known_by_its_thickness() -> None:
    scores, positions = [0.1, 0.1, 0.9, 0.9, 0.9], evenly((3, 4.0), (1, 7.0))
    assert not decide(scores, positions=positions).present
    assert decide(scores, positions=positions, thickness=[4.0, 4.0, 4.0, 4.0, 7.0]).present


def test_slices_at_the_same_place_count_once_with_the_more_suspicious() -> None:
    twice = [0.0, 5.0, 5.0, 10.0, 15.0]
    assert not decide([0.1, 0.9, 0.8, 0.9, 0.1], positions=twice).present
    verdict = decide([0.6, 0.2, 0.7, 0.8, 0.1], positions=twice)
    assert verdict.present
    assert verdict.key_slices == (3, 2, 0)


def test_a_series_shorter_than_the_rule_uses_all_its_slices() -> None:
    assert decide([0.9]).present
    assert decide([0.9, 0.8]).score == 0.8
    assert not decide([0.9, 0.1]).present


def test_stretches_all_shorter_than_the_rule_are_still_judged() -> None:
    positions = [0.0, 5.0, 50.0, 55.0, 100.0, 105.0]
    verdict = decide([0.1, 0.1, 0.9, 0.8, 0.1, 0.1], positions=positions, thickness=[5.0] * 6)
    assert verdict.present
    assert verdict.score == 0.8
    assert "2 needed" in verdict.rule


def test_the_maximum_rule_takes_the_most_suspicious_slice() -> None:
    verdict = decide([0.1, 0.7, 0.2, 0.9], rule=ScanRule(max=True))
    assert (verdict.score, verdict.present, verdict.key_slices) == (0.9, True, (3, 1))


@pytest.mark.parametrize(("spacing", "needed"), [(0.5, 6), (1.0, 3), (1.25, 3), (2.0, 2), (3.0, 1), (5.0, 1)])
def test_an_extent_asks_for_as_many_slices_as_cover_it(spacing: float, needed: int) -> None:
    rule, positions = ScanRule(extent_mm=3), [spacing * i for i in range(12)]
    enough = [0.9 if 2 <= i < 2 + needed else 0.1 for i in range(12)]
    short = [0.9 if 2 <= i < 1 + needed else 0.1 for i in range(12)]
    assert decide(enough, positions=positions, rule=rule).present
    assert not decide(short, positions=positions, rule=rule).present


def test_an_extent_in_a_mixed_series_follows_the_spacing_at_each_place() -> None:
    positions = evenly((6, 1.0), (6, 5.0))
    rule = ScanRule(extent_mm=3)
    assert not decide([0.1, 0.9, 0.9] + [0.1] * 10, positions=positions, rule=rule).present
    assert decide([0.1, 0.9, 0.9, 0.9] + [0.1] * 9, positions=positions, rule=rule).present
    assert decide([0.1] * 10 + [0.9] + [0.1] * 2, positions=positions, rule=rule).present


def test_a_series_thinner_than_the_extent_uses_all_its_slices() -> None:
    assert decide([0.9, 0.8], positions=[0.0, 1.0], rule=ScanRule(extent_mm=10)).score == 0.8
    assert decide([0.9], positions=[0.0], rule=ScanRule(extent_mm=10)).present


def test_key_slices_are_at_most_five_and_the_most_suspicious_first() -> None:
    verdict = decide([0.6, 0.7, 0.9, 0.8, 0.95, 0.65, 0.55, 0.1, 0.99])
    assert verdict.key_slices == (4, 2, 3, 1, 5)


@pytest.mark.parametrize(
    ("scores", "rule", "threshold", "words"),
    [
        (
            [0.1, 0.9, 0.9, 0.9, 0.1],
            RUN3,
            0.5,
            "3 consecutive slices at or above 0.50 (3 needed): slices at 5.0…15.0 mm",
        ),
        ([0.9] * 5, RUN3, 0.5, "5 consecutive slices at or above 0.50 (3 needed): slices at 0.0…20.0 mm"),
        (
            [0.1, 0.4999, 0.4999, 0.4999],
            RUN3,
            0.5,
            "no 3 consecutive slices at or above 0.50; the best run reaches 0.49",
        ),
        ([0.1, 0.3], ScanRule(max=True), 0.5, "no slice at or above 0.50; the highest slice reaches 0.30"),
        ([0.1, 0.6, 0.1], ScanRule(max=True), 0.5, "1 slice at or above 0.50 (1 needed): slice at 5.0 mm"),
        (
            [0.1, 0.02, 0.02],
            ScanRule(max=True),
            0.015,
            "3 consecutive slices at or above 0.015 (1 needed): slices at 0.0…10.0 mm",
        ),
        ([0.1, 0.9, 0.1], ScanRule(extent_mm=3), 0.5, "1 slice at or above 0.50 (3 mm, 1 needed): slice at 5.0 mm"),
        (
            [0.1, 0.2, 0.1],
            ScanRule(extent_mm=8),
            0.5,
            "no 2 consecutive slices at or above 0.50 (8 mm); the best run reaches 0.10",
        ),
    ],
)
def test_the_decision_says_in_words_what_was_found(
    scores: list[float], rule: ScanRule, threshold: float, words: str
) -> None:
    assert decide(scores, rule=rule, threshold=threshold).rule == words


@pytest.mark.parametrize("scores", [[], [0.1, float("nan"), 0.2], [0.1, float("inf")]])
def test_scores_that_say_nothing_are_refused(scores: list[float]) -> None:
    with pytest.raises(ValueError, match="at least one slice"):
        decide(scores)


def test_each_score_needs_its_position() -> None:
    with pytest.raises(ValueError, match="zip"):
        judge(np.array([0.1, 0.2]), positions_mm=[0.0], rule=RUN3, threshold=0.5)


@pytest.mark.parametrize("rule", [{}, {"run": 3, "max": True}, {"run": 0}, {"extent_mm": 0.0}, {"extent_mm": -1.0}])
def test_a_rule_that_is_not_exactly_one_is_refused(rule: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="a scan rule"):
        ScanRule.from_json(rule)


@pytest.mark.parametrize("rule", [RUN3, ScanRule(extent_mm=3.0), ScanRule(max=True)])
def test_a_rule_survives_a_round_trip_through_json_text(rule: ScanRule) -> None:
    assert ScanRule.from_json(json.loads(json.dumps(rule.to_json()))) == rule


def test_temperatures_divide_the_logits_of_their_label_only() -> None:
    logits = np.array([[2.0, 2.0], [-1.0, 1000.0]], dtype=np.float32)
    calibrated = Calibration(temperature={"any": 2.0}).slice_scores(logits, labels=("any", "subdural"))
    expected = 1 / (1 + np.exp(-np.array([[1.0, 2.0], [-0.5, 700.0]])))
    np.testing.assert_allclose(calibrated, expected)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("inf"), float("nan")])
def test_an_impossible_temperature_is_refused(temperature: float) -> None:
    with pytest.raises(ValueError, match="temperature"):
        Calibration(temperature={"any": temperature})


def reading(name: str, **present: bool) -> ModelReading:
    findings = tuple(
        Finding(label=label, present=found, score=0.9 if found else 0.2, threshold=0.5)
        for label, found in present.items()
    )
    return ModelReading(
        name=name,
        family="radnet",
        version="1",
        digest="00",
        demonstration=False,
        rule="3 consecutive slices" if findings and findings[0].present else "no 3 consecutive slices",
        findings=findings,
    )


@pytest.mark.parametrize(("first", "second"), list(itertools.product([True, False], repeat=2)))
def test_by_default_any_model_that_finds_any_hemorrhage_makes_the_study_positive(first: bool, second: bool) -> None:
    outcome, reason = combine([reading("radnet", any=first), reading("cnn_lstm", any=second, subdural=False)])
    assert outcome == (Outcome.POSITIVE if first or second else Outcome.NEGATIVE)
    expected = [f"{n}: {'' if p else 'no '}3 consecutive slices" for n, p in (("radnet", first), ("cnn_lstm", second))]
    assert reason == "; ".join(e for e, p in zip(expected, (first, second), strict=True) if p or not (first or second))


@pytest.mark.parametrize(("first", "second"), list(itertools.product([True, False], repeat=2)))
def test_all_of_needs_every_model(first: bool, second: bool) -> None:
    how = Combination(all_of={"radnet": "any", "cnn_lstm": "subdural"})
    outcome, _ = combine([reading("radnet", any=first), reading("cnn_lstm", any=True, subdural=second)], how)
    assert outcome == (Outcome.POSITIVE if first and second else Outcome.NEGATIVE)


def test_a_subtype_can_trigger_and_its_score_is_the_reason() -> None:
    how = Combination(any_of={"cnn_lstm": "epidural"})
    outcome, reason = combine([reading("cnn_lstm", any=False, epidural=True)], how)
    assert outcome == Outcome.POSITIVE
    assert reason == "cnn_lstm: epidural 0.90, at or above 0.50"


def test_a_model_without_a_reading_never_clears_a_study() -> None:
    how = Combination(any_of={"radnet": "any", "cnn_lstm": "any"})
    outcome, reason = combine([reading("radnet", any=False)], how)
    assert (outcome, reason) == (Outcome.NOT_ANALYSED, "cnn_lstm: gave no reading of any")
    assert combine([reading("radnet", any=True)], how)[0] == Outcome.POSITIVE
    needs_both = Combination(all_of={"radnet": "any", "cnn_lstm": "any"})
    assert combine([reading("radnet", any=True)], needs_both)[0] == Outcome.NOT_ANALYSED
    assert combine([reading("radnet", any=False)], needs_both)[0] == Outcome.NEGATIVE


def test_no_reading_at_all_is_not_analysed() -> None:
    assert combine([]) == (Outcome.NOT_ANALYSED, "no model gave a reading")


TOGETHER = ScanRule(noisy_or_mm=5)


def test_a_noisy_or_is_one_minus_the_chance_that_every_slice_is_clean() -> None:
    verdict = decide([0.1, 0.5, 0.2], rule=TOGETHER)
    assert verdict.score == pytest.approx(1 - 0.9 * 0.5 * 0.8)
    assert verdict.present
    assert decide([0.5], rule=TOGETHER).score == pytest.approx(0.5)
    assert decide([0.0, 1.0, 0.3], rule=TOGETHER).score == 1.0
    assert decide([0.0, 0.0], rule=TOGETHER).score == 0.0


@pytest.mark.parametrize("spacing", [0.5, 1.0, 2.5])
def test_thin_slices_of_the_same_head_are_not_more_suspicious_for_their_number(spacing: float) -> None:
    """Thick slices of 5 mm against as many thin ones as lie in each of them."""
    thick = np.array([0.05, 0.1, 0.3, 0.2, 0.05])
    parts = round(5 / spacing)
    thin = np.repeat(thick, parts)
    expected = decide(thick.tolist(), rule=TOGETHER).score
    verdict = decide(thin.tolist(), positions=[spacing * i for i in range(len(thin))], rule=TOGETHER)
    assert verdict.score == pytest.approx(expected)


def test_a_thousand_thin_slices_that_are_hardly_suspicious_stay_negative() -> None:
    positions = [0.15 * i for i in range(1000)]
    assert decide([0.01] * 1000, positions=positions, rule=TOGETHER).score == pytest.approx(1 - 0.99**30)
    assert not decide([0.01] * 1000, positions=positions, rule=TOGETHER).present


def test_slices_far_apart_and_slices_twice_at_one_place_count_once_in_a_noisy_or() -> None:
    scores = [0.3, 0.2, 0.1]
    expected = decide(scores, rule=TOGETHER).score
    assert decide(scores, positions=[0.0, 10.0, 20.0], rule=TOGETHER).score == pytest.approx(expected)
    twice = decide([0.3, 0.3, 0.2, 0.15, 0.1], positions=[0.0, 0.0, 5.0, 5.05, 10.0], rule=TOGETHER)
    assert twice.score == pytest.approx(expected)


def test_a_missing_slice_adds_nothing_to_a_noisy_or() -> None:
    positions, thickness = evenly((3, 2.0), (1, 8.0), (3, 2.0)), [2.0] * 8
    whole = decide([0.2] * 8, positions=evenly((7, 2.0)), thickness=thickness, rule=TOGETHER).score
    assert decide([0.2] * 8, positions=positions, thickness=thickness, rule=TOGETHER).score == pytest.approx(whole)


@pytest.mark.parametrize("rule", [RUN3, TOGETHER, ScanRule(max=True), ScanRule(extent_mm=4)])
def test_every_rule_is_monotone_decides_by_its_score_and_names_what_carried_it(rule: ScanRule) -> None:
    generator = np.random.default_rng(1)
    for _ in range(100):
        positions = np.cumsum(generator.choice([1.0, 2.5, 5.0, 12.0], 12)).tolist()
        scores = generator.random(12).round(1)
        verdict = decide(scores.tolist(), positions=positions, rule=rule)
        assert verdict.present is (verdict.score >= 0.5) is bool(verdict.key_slices)
        assert len(verdict.key_slices) <= 5
        assert 0 <= verdict.score <= 1
        higher = scores.copy()
        higher[generator.integers(12)] = 1.0
        assert decide(higher.tolist(), positions=positions, rule=rule).score >= verdict.score


def test_the_key_slices_of_a_noisy_or_are_the_fewest_that_reach_the_threshold_alone() -> None:
    verdict = decide([0.1, 0.4, 0.3, 0.2, 0.1], rule=TOGETHER)
    assert verdict.key_slices == (1, 2)
    assert verdict.rule == (
        "all slices together 0.72, at or above 0.50 (noisy-or, one look in 5 mm): "
        "carried by the 2 slices at 5.0…10.0 mm"
    )
    assert decide([0.1, 0.1], rule=TOGETHER).rule == (
        "all slices together 0.19, below 0.50 (noisy-or, one look in 5 mm)"
    )
    assert decide([0.0], rule=TOGETHER, threshold=0.0).key_slices == (0,)


@pytest.mark.parametrize("length", [0.0, -1.0, math.inf, math.nan])
def test_a_noisy_or_needs_a_length(length: float) -> None:
    with pytest.raises(ValueError, match="positive length"):
        ScanRule(noisy_or_mm=length)


UNLIKE = Novelty(unlike=True, sentence="noise (HU) 30, usual are 2 to 7", input_distance=3.0, input_limit=1.0)


def strange(name: str, **present: bool) -> ModelReading:
    """A reading of a scan unlike those of training."""
    return replace(reading(name, **present), novelty=UNLIKE)


def test_a_model_that_abstains_never_calls_a_strange_scan_negative_nor_less_than_positive() -> None:
    abstain = Combination(abstain=True)
    assert combine([strange("radnet", any=True)], abstain)[0] is Outcome.POSITIVE
    outcome, reason = combine([strange("radnet", any=False)], abstain)
    assert outcome is Outcome.NOT_ANALYSED
    assert reason == (
        "not analysed: the scan is unlike those the models were trained on (radnet: noise (HU) 30, usual are 2 to 7)"
    )
    assert combine([strange("radnet", any=False), reading("cnn_lstm", any=True)], abstain)[0] is Outcome.POSITIVE
    assert combine([strange("radnet", any=False), reading("cnn_lstm", any=False)], abstain)[0] is Outcome.NOT_ANALYSED


def test_of_models_that_must_all_agree_one_that_knows_such_scans_can_still_clear() -> None:
    both = Combination(all_of={"radnet": "any", "cnn_lstm": "any"}, abstain=True)
    assert combine([strange("radnet", any=False), reading("cnn_lstm", any=False)], both)[0] is Outcome.NEGATIVE
    assert combine([strange("radnet", any=False), reading("cnn_lstm", any=True)], both)[0] is Outcome.NOT_ANALYSED
    assert combine([strange("radnet", any=True), reading("cnn_lstm", any=True)], both)[0] is Outcome.POSITIVE


def test_a_model_that_does_not_abstain_says_that_the_scan_is_strange() -> None:
    outcome, reason = combine([strange("radnet", any=False)], Combination())
    assert outcome is Outcome.NEGATIVE
    assert reason.endswith("note: the scan is unlike those the models were trained on")
