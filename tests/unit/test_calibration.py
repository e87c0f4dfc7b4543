"""A number is called a probability only where it was calibrated as one; scikit-learn is the second opinion."""

import json

import numpy as np
import pytest
from scipy.special import logit
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss

from inference.calibration import Calibration, Curve, ScanCalibration
from inference.card import ModelCard
from inference.place import SlicePlace
from inference.reading import of_slices, watched
from inference.result import ModelReading, Novelty
from tests.small_models import radnet_card
from training.calibration import fit_curve, fit_isotonic, fit_logistic, fit_temperature, reliability

RISING = Curve(scores=(0.2, 0.6), probabilities=(0.1, 0.9))
SCAN = ScanCalibration(curve=RISING, prevalence=0.25, scans=40, data="40 scans of a site")


def overconfident(*, count: int = 4000, factor: float = 3.0) -> tuple[np.ndarray, np.ndarray]:
    """Logits `factor` times too large, and what is true."""
    rng = np.random.default_rng(0)
    honest = rng.normal(-0.5, 1.5, count)
    return factor * honest, (rng.random(count) < 1 / (1 + np.exp(-honest))).astype(float)


def test_the_temperature_is_that_of_a_logistic_regression_without_intercept() -> None:
    logits, truth = overconfident()
    fitted = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-10).fit(logits[:, None], truth)
    assert fit_temperature(logits, truth) == pytest.approx(1 / fitted.coef_[0, 0], rel=1e-4)
    assert fit_temperature(logits, truth) == pytest.approx(3.0, rel=0.1)


def test_the_temperature_of_logits_that_tell_everything_or_nothing_stays_within_bounds() -> None:
    logits = np.linspace(-4, 4, 50)
    assert fit_temperature(logits, logits > 0) == pytest.approx(0.05)
    assert fit_temperature(logits, logits < 0) == pytest.approx(20)
    assert fit_temperature(np.zeros(8), np.ones(8)) > 0


def test_a_temperature_makes_scores_better_probabilities_and_changes_no_order() -> None:
    logits, truth = overconfident()
    labels = ("any",)
    before = Calibration().slice_scores(logits[:, None], labels=labels)[:, 0]
    calibration = Calibration(temperature={"any": fit_temperature(logits, truth)})
    after = calibration.slice_scores(logits[:, None], labels=labels)[:, 0]
    assert reliability(after, truth).ece < 0.3 * reliability(before, truth).ece
    assert reliability(after, truth).brier < reliability(before, truth).brier
    assert (np.argsort(before, kind="stable") == np.argsort(after, kind="stable")).all()


def test_a_curve_is_scikit_learns_isotonic_regression_of_platts_targets() -> None:
    rng = np.random.default_rng(1)
    scores = rng.random(120).round(2)
    truth = rng.random(120) < scores**2
    positives, negatives = truth.sum(), (~truth).sum()
    targets = np.where(truth, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    theirs = IsotonicRegression(out_of_bounds="clip").fit(scores, targets)
    curve = fit_isotonic(scores, truth)
    asked = np.linspace(-0.1, 1.1, 400)
    np.testing.assert_allclose(curve(asked), theirs.predict(asked), atol=1e-12)
    assert 0 < curve(asked).min() < curve(asked).max() < 1, "120 scans make nothing certain"


def test_few_scans_get_the_logistic_curve_of_scikit_learn_and_many_the_isotonic_one() -> None:
    rng = np.random.default_rng(3)
    scores = rng.uniform(0.01, 0.99, 1200)
    truth = rng.random(1200) < scores**2
    few = fit_curve(scores[:400], truth[:400])
    theirs = LogisticRegression(C=np.inf).fit(logit(scores[:400, None]), truth[:400])
    asked = np.linspace(0.02, 0.98, 50)
    np.testing.assert_allclose(few(asked), theirs.predict_proba(logit(asked[:, None]))[:, 1], atol=0.02)
    assert fit_curve(scores, truth) == fit_isotonic(scores, truth)
    assert len(few.scores) != len(fit_isotonic(scores[:400], truth[:400]).scores)


def test_scores_that_rise_where_the_truth_falls_get_one_probability() -> None:
    scores = np.linspace(0.1, 0.9, 60)
    curve = fit_logistic(scores, scores < 0.5)
    assert curve(np.array([0.0, 0.5, 1.0])) == pytest.approx([0.5, 0.5, 0.5], abs=0.02)


def test_probabilities_that_hold_are_not_refuted_and_others_are() -> None:
    rng = np.random.default_rng(4)
    values = rng.uniform(0.05, 0.95, 300)
    truth = rng.random(300) < values
    assert not reliability(values, truth).refuted
    assert reliability(values**4, truth).refuted
    assert reliability(np.array([0.0, 1.0, 1.0]), np.array([0, 1, 0])).refuted, "certain, and wrong once"
    assert not reliability(np.array([0.0, 1.0]), np.array([0, 1])).refuted


def test_the_brier_score_is_scikit_learns_and_certain_truths_have_no_error() -> None:
    rng = np.random.default_rng(2)
    values, truth = rng.random(500), rng.random(500) < 0.3
    assert reliability(values, truth).brier == pytest.approx(brier_score_loss(truth, values))
    assert reliability(truth.astype(float), truth).ece == 0
    assert reliability(np.full(500, 0.9), truth).ece == pytest.approx(0.9 - truth.mean())


@pytest.mark.parametrize(
    ("scores", "probabilities", "message"),
    [
        ((), (), "as many"),
        ((0.1,), (0.1, 0.2), "as many"),
        ((0.1, 0.1), (0.1, 0.2), "must rise"),
        ((0.2, 0.1), (0.1, 0.2), "must rise"),
        ((0.1, 0.2), (0.2, 0.1), "must not fall"),
        ((0.1, 2.0), (0.1, 0.2), "between 0 and 1"),
        ((0.1, float("nan")), (0.1, 0.2), "between 0 and 1"),
        ((0.1, "0.2"), (0.1, 0.2), "between 0 and 1"),
    ],
)
def test_a_curve_that_is_none_is_refused(
    scores: tuple[float, ...], probabilities: tuple[float, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Curve(scores=scores, probabilities=probabilities)


@pytest.mark.parametrize("changes", [{"prevalence": 0.0}, {"prevalence": 1.0}, {"scans": 1}, {"data": ""}])
def test_a_calibration_of_scans_must_say_on_what(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="names its scans"):
        ScanCalibration.from_json(SCAN.to_json() | changes)


def test_a_calibration_survives_a_round_trip_through_json_text() -> None:
    calibration = Calibration(temperature={"any": 1.5}, isotonic={"any": RISING}, scan={"any": SCAN})
    assert Calibration.from_json(json.loads(json.dumps(calibration.to_json()))) == calibration


def test_an_isotonic_curve_comes_after_the_temperature_and_for_its_label_only() -> None:
    calibration = Calibration(temperature={"any": 2.0}, isotonic={"any": RISING})
    logits = np.array([[2 * np.log(2 / 3), 0.0], [200.0, 1.0]])
    scores = calibration.slice_scores(logits, labels=("any", "subdural"))
    assert scores[:, 0] == pytest.approx([RISING(np.array(0.4)), 0.9])
    assert scores[:, 1] == pytest.approx([0.5, 1 / (1 + np.exp(-1))])


def a_reading(card: ModelCard) -> ModelReading:
    """Of slices with the scores 0.1, 0.4, 0.5, 0.4, 0.1."""
    places = [SlicePlace(sop_instance_uid=f"1.{i}", position_mm=5.0 * i) for i in range(5)]
    said = of_slices(card, np.array([[0.1], [0.4], [0.5], [0.4], [0.1]]), places)
    return ModelReading(
        name="radnet",
        family="radnet",
        version="1",
        digest="",
        demonstration=True,
        rule=said.rule,
        findings=said.findings,
    )


def card_with(calibration: Calibration, *, calibrated: bool) -> ModelCard:
    card = radnet_card(threshold=0.3).to_json()
    return ModelCard.from_json(card | {"calibration": calibration.to_json(), "calibrated": calibrated})


def test_calibrated_slices_make_no_probability_of_the_scan() -> None:
    (finding,) = a_reading(card_with(Calibration(temperature={"any": 1.5}), calibrated=False)).findings
    assert (finding.calibrated, finding.probability, finding.score) == (False, None, 0.4)


def test_a_calibrated_scan_has_a_probability_beside_the_score_that_decides() -> None:
    (finding,) = a_reading(card_with(Calibration(scan={"any": SCAN}), calibrated=True)).findings
    assert (finding.present, finding.score, finding.threshold) == (True, 0.4, 0.3)
    assert finding.calibrated
    assert finding.probability == pytest.approx(0.5)
    assert finding.prevalence == 0.25


def test_without_the_cards_claim_a_curve_gives_no_probability() -> None:
    (finding,) = a_reading(card_with(Calibration(scan={"any": SCAN}), calibrated=False)).findings
    assert not finding.calibrated


def test_a_claim_without_calibrated_scans_is_refused() -> None:
    with pytest.raises(ValueError, match="no calibration of scans for"):
        card_with(Calibration(temperature={"any": 1.5}), calibrated=True)


def test_of_a_scan_unlike_training_no_probability_is_known_and_nothing_found_is_lowered() -> None:
    reading = a_reading(card_with(Calibration(scan={"any": SCAN}), calibrated=True))
    usual = Novelty(unlike=False, sentence="", input_distance=0.1, input_limit=1.0)
    strange = Novelty(unlike=True, sentence="noise (HU) 30", input_distance=3.0, input_limit=1.0)
    assert watched(reading, usual).findings == reading.findings
    told = watched(reading, strange)
    assert told.findings[0].present
    assert (told.findings[0].score, told.findings[0].probability) == (0.4, None)
    assert told.warnings == ("the scan is unlike those the model was trained on: noise (HU) 30",)
