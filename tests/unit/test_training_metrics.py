"""Our figures agree with scikit-learn and with worked examples."""

import math

import numpy as np
import pytest
import torch
from sklearn import metrics as sklearn_metrics
from torch.nn import functional

from training.losses import attention_loss, weighted_log_loss
from training.metrics import (
    auc,
    log_loss,
    operating_point,
    prior_log_loss,
    rate,
    scan_figures,
    sensitive_point,
)
from training.schedules import thirds, warmup_cosine


def drawn(seed: int, slices: int = 60) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.random((slices, 6)), (rng.random((slices, 6)) < 0.3).astype(np.float64)


def test_the_weighted_log_loss_is_the_weighted_mean_of_scikit_learns_log_losses() -> None:
    probabilities, labels = drawn(1)
    each = [sklearn_metrics.log_loss(labels[:, i], probabilities[:, i]) for i in range(6)]
    assert log_loss(probabilities, labels) == pytest.approx((2 * each[0] + sum(each[1:])) / 7, rel=1e-9)


def test_the_training_loss_is_the_metric() -> None:
    probabilities, labels = drawn(2)
    logits = torch.logit(torch.from_numpy(probabilities))
    assert float(weighted_log_loss(logits, torch.from_numpy(labels))) == pytest.approx(
        log_loss(probabilities, labels), rel=1e-5
    )


def test_the_prior_of_the_rsna_training_labels_scores_as_published() -> None:
    """Frequencies of any, IPH, IVH, SAH, SDH, EDH among the 752,803 slices of the challenge's second stage."""
    counts = np.array([107_933, 36_118, 26_205, 35_675, 47_166, 3_145])
    total = 752_803
    rates = counts / total
    expected = -(rates * np.log(rates) + (1 - rates) * np.log(1 - rates)) @ [2, 1, 1, 1, 1, 1] / 7
    assert expected == pytest.approx(0.2311, abs=5e-5)
    labels = (np.arange(total)[:, None] < counts).astype(np.float64)
    assert prior_log_loss(labels) == pytest.approx(expected, rel=1e-9)


def test_certain_and_wrong_probabilities_are_clipped_and_stay_finite() -> None:
    assert math.isfinite(log_loss(np.zeros((1, 6)), np.ones((1, 6))))


@pytest.mark.parametrize("decimals", [1, 8])
def test_the_auc_is_scikit_learns_also_with_ties(decimals: int) -> None:
    rng = np.random.default_rng(3)
    scores, truth = np.round(rng.random(200), decimals), rng.random(200) < 0.4
    assert auc(scores, truth) == pytest.approx(sklearn_metrics.roc_auc_score(truth, scores), rel=1e-12)


def test_there_is_no_auc_when_a_class_is_missing() -> None:
    assert auc(np.array([0.1, 0.2]), np.array([1, 1])) is None


def test_wilson_intervals_are_those_of_radnets_table() -> None:
    """39 of 44 found: 88.6 % (76.0 to 95.0 %); recovered from Grewal et al. 2018, table 1."""
    found = rate(39, 44)
    assert (found.value, found.low, found.high) == pytest.approx((0.886, 0.760, 0.950), abs=5e-4)
    assert rate(0, 0).value is None


def test_scan_figures_are_those_of_radnets_table() -> None:
    """Grewal et al. 2018, table 1: accuracy 81.82, recall 88.64, precision 81.25, F1 84.78 of 77 scans."""
    truth = np.array([True] * 44 + [False] * 33)
    scores = np.array([0.9] * 39 + [0.1] * 5 + [0.9] * 9 + [0.1] * 24)
    figures = scan_figures(scores, truth, threshold=0.5)
    shares = [figures.accuracy.value, figures.sensitivity.value, figures.precision.value, figures.f1]
    assert [round(100 * share, 2) for share in shares if share is not None] == [81.82, 88.64, 81.25, 84.78]
    assert (figures.specificity.hits, figures.specificity.cases) == (24, 33)


def test_the_operating_point_separates_what_can_be_separated_with_the_widest_margin() -> None:
    scores, truth = np.array([0.1, 0.2, 0.7, 0.9]), np.array([False, False, True, True])
    assert operating_point(scores, truth) == pytest.approx(0.45)


def test_the_operating_point_has_the_best_youden_index() -> None:
    rng = np.random.default_rng(4)
    truth = rng.random(300) < 0.4
    scores = np.clip(rng.normal(0.3 + 0.3 * truth, 0.2), 0, 1)
    false_rate, true_rate, _ = sklearn_metrics.roc_curve(truth, scores, drop_intermediate=False)
    called = scores >= operating_point(scores, truth)
    youden = called[truth].mean() - called[~truth].mean()
    assert youden == pytest.approx((true_rate - false_rate).max())


def test_the_attention_loss_weighs_bleeding_pixels_and_sums_the_levels() -> None:
    torch.manual_seed(0)
    maps, masks = torch.randn(2, 1, 8, 8), (torch.rand(2, 1, 8, 8) < 0.2).float()
    one = functional.binary_cross_entropy_with_logits(maps, masks, pos_weight=torch.tensor(5.0))
    assert float(attention_loss([maps, maps], masks)) == pytest.approx(2 / 3 * float(one), rel=1e-6)
    assert float(attention_loss([maps], masks, overlap=1.0)) > float(attention_loss([maps], masks))


def test_a_coarse_map_is_held_against_the_averaged_mask() -> None:
    masks = torch.zeros(1, 1, 8, 8)
    masks[..., :4, :4] = 1
    right, wrong = torch.full((2, 1, 1, 2, 2), -9.0)
    right[..., 0, 0], wrong[..., 1, 1] = 9.0, 9.0
    assert float(attention_loss([right], masks)) < 0.01 < float(attention_loss([wrong], masks))


def test_the_schedules_are_the_papers() -> None:
    assert [thirds(p) for p in (0.0, 0.3, 0.34, 0.66, 0.67, 1.0)] == [1.0, 1.0, 0.1, 0.1, 0.01, 0.01]
    cosine = warmup_cosine(0.1)
    assert [cosine(p) for p in (0.0, 0.05, 0.1, 0.55, 1.0)] == pytest.approx([0.0, 0.5, 1.0, 0.5, 0.0])


@pytest.mark.parametrize("cases", [73, 110, 300])
def test_the_sensitive_point_is_the_highest_threshold_that_is_surely_sensitive_enough(cases: int) -> None:
    rng = np.random.default_rng(cases)
    truth = np.repeat([True, False], cases)
    scores = np.where(truth, rng.beta(4, 2, 2 * cases), rng.beta(2, 4, 2 * cases))
    threshold = sensitive_point(scores, truth)
    assert threshold is not None
    reached = scan_figures(scores, truth, threshold=threshold).sensitivity
    assert reached.low >= 0.95
    above = np.unique(scores[truth & (scores >= threshold)])[:2].mean()
    assert scan_figures(scores, truth, threshold=float(above)).sensitivity.low < 0.95


def test_too_few_positive_scans_give_no_sensitive_point() -> None:
    scores = np.linspace(0, 1, 144)
    assert sensitive_point(scores, scores > 0.5) is None


def test_the_interval_of_none_and_of_all_holds_the_share_itself() -> None:
    for cases in range(1, 60):
        assert rate(0, cases).low == 0
        assert rate(cases, cases).high == 1
