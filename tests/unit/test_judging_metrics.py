"""The papers' figures agree with scikit-learn, torchmetrics, statsmodels, and with what the papers print."""

import math
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as peers

from training.judging.intervals import bootstrap, delong, delong_difference, mcnemar, paired_difference
from training.judging.multilabel import multilabel
from training.judging.points import reliability_table, sensitivity_at
from training.metrics import auc


def drawn(seed: int, cases: int = 80) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = rng.random((cases, 6)) < [0.4, 0.2, 0.1, 0.2, 0.2, 0.05]
    truth[:, 0] = truth[:, 1:].any(1)
    return truth ^ (rng.random((cases, 6)) < 0.15), truth


@pytest.mark.parametrize("seed", range(5))
def test_figures_of_several_labels_are_scikit_learns(seed: int) -> None:
    called, truth = drawn(seed)
    found = multilabel(called, truth, any_first=True)
    assert found.strict_accuracy == pytest.approx(peers.accuracy_score(truth, called))
    assert found.hamming_loss == pytest.approx(peers.hamming_loss(truth, called))
    assert found.hamming_score == pytest.approx(peers.jaccard_score(truth, called, average="samples", zero_division=1))
    options = {"average": "macro", "zero_division": np.nan}
    assert found.precision == pytest.approx(peers.precision_score(truth, called, **options))
    assert found.recall == pytest.approx(peers.recall_score(truth, called, **options))
    assert found.f1 == pytest.approx(peers.f1_score(truth, called, **options))
    assert found.specificity == pytest.approx(peers.recall_score(~truth, ~called, **options))
    bleeding = truth[:, 0]
    right = [peers.accuracy_score(truth[bleeding, i], called[bleeding, i]) for i in range(1, 6)]
    assert found.accuracy_multi == pytest.approx(np.mean(right))
    assert found.accuracy_multi_of_none == pytest.approx(1 - truth[bleeding, 1:].mean())


def test_macro_figures_are_torchmetrics_where_every_label_has_its_cases() -> None:
    torch = pytest.importorskip("torch")
    peer = pytest.importorskip("torchmetrics.functional.classification")
    called, truth = drawn(9, cases=400)
    a, b = torch.from_numpy(called.astype(float)), torch.from_numpy(truth.astype(int))
    found = multilabel(called, truth, any_first=True)
    assert found.specificity == pytest.approx(float(peer.multilabel_specificity(a, b, num_labels=6)), rel=1e-5)
    assert found.f1 == pytest.approx(float(peer.multilabel_f1_score(a, b, num_labels=6)), rel=1e-5)
    assert found.strict_accuracy == pytest.approx(float(peer.multilabel_exact_match(a, b, num_labels=6)), rel=1e-5)


def test_answering_negative_for_every_scan_gives_the_figures_of_the_collapsed_3d_network() -> None:
    """Vultur 2021, table of the whole-scan network: strict accuracy and Hamming score .6007, 811 of 1350 scans clean.

    Its precision, recall and F1 of .1447 are means over batches of one scan, which are not counted here.
    """
    truth = np.zeros((1350, 6), bool)
    truth[811:, :2] = True
    found = multilabel(np.zeros_like(truth), truth, any_first=True)
    assert found.strict_accuracy == found.hamming_score == pytest.approx(0.6007, abs=5e-5)
    assert (found.precision, found.recall, found.f1, found.specificity) == (None, 0.0, 0.0, 1.0)


def test_calling_no_subtype_is_right_for_most_subtypes_of_the_rsna_slices_that_bleed() -> None:
    """Of 107,933 bleeding slices with 1.374 subtypes each: what the 91.8 % of Khandelwal & Ganguli stand beside."""
    truth = np.zeros((107_933, 6), bool)
    truth[:, 0] = True
    for column, count in enumerate((36_118, 26_205, 35_675, 47_166, 3_145), start=1):
        truth[:count, column] = True
    found = multilabel(np.zeros_like(truth), truth, any_first=True)
    assert found.accuracy_multi_of_none == found.accuracy_multi == pytest.approx(0.7252, abs=5e-5)


def test_no_case_gives_no_figure() -> None:
    none = np.zeros((0, 6), bool)
    found = multilabel(none, none, any_first=True).to_json()
    assert found.pop("cases") == 0
    assert set(found.values()) == {None}


def scored(seed: int, cases: int, apart: float, decimals: int = 8) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = np.arange(cases) % 3 == 0
    return rng.normal(apart * truth).round(decimals), truth


@pytest.mark.parametrize("decimals", [0, 8])
def test_delongs_variance_is_that_of_the_sums_over_all_pairs(decimals: int) -> None:
    """Written out as in the paper: structural components over every pair of a positive and a negative case."""
    scores, truth = scored(1, 90, 1.0, decimals)
    positive, negative = scores[truth][:, None], scores[~truth][None]
    psi = (positive > negative) + 0.5 * (positive == negative)
    variance = psi.mean(1).var(ddof=1) / len(positive) + psi.mean(0).var(ddof=1) / negative.size
    found = delong(scores, truth)
    assert found is not None
    assert found.value == pytest.approx(peers.roc_auc_score(truth, scores))
    logit = math.log(found.value / (1 - found.value))
    half = 1.959964 * math.sqrt(variance) / (found.value * (1 - found.value))
    assert math.log(found.high / (1 - found.high)) == pytest.approx(logit + half, rel=1e-5)
    assert math.log(found.low / (1 - found.low)) == pytest.approx(logit - half, rel=1e-5)


def test_delongs_interval_holds_the_true_area_in_nineteen_of_twenty_draws() -> None:
    apart = 1.0
    area = NormalDist().cdf(apart / math.sqrt(2))
    found = [delong(*scored(seed, 120, apart)) for seed in range(600)]
    inside = sum(one is not None and one.low <= area <= one.high for one in found)
    assert stats.binomtest(inside, 600, 0.95).pvalue > 0.001


def test_delong_and_bootstrap_agree_where_every_patient_has_one_scan() -> None:
    scores, truth = scored(2, 300, 1.2)
    by_ranks = delong(scores, truth)
    by_draws = bootstrap(scores, truth, patients=[str(n) for n in range(300)], times=800)
    assert by_ranks is not None
    assert by_draws is not None
    assert (by_draws.low, by_draws.high) == pytest.approx((by_ranks.low, by_ranks.high), abs=0.012)


def test_drawing_patients_is_wider_than_drawing_their_copied_scans() -> None:
    scores, truth = scored(3, 60, 1.0)
    copied, bearing = np.repeat(scores, 5), np.repeat(truth, 5)
    owners = [str(n) for n in np.repeat(np.arange(60), 5)]
    together = bootstrap(copied, bearing, patients=owners, times=600)
    apart = bootstrap(copied, bearing, patients=[str(n) for n in range(300)], times=600)
    assert together is not None
    assert apart is not None
    assert together.high - together.low > 1.7 * (apart.high - apart.low)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 3))
def test_a_bootstrap_that_counts_cases_finds_the_area_of_copied_cases(seed: int, decimals: int) -> None:
    scores, truth = scored(seed, 24, 0.5, decimals)
    found = bootstrap(scores, truth, patients=["one"] * 24, times=3)  # whoever is drawn, it is the same patient
    assert found is not None
    assert found.value == found.low == found.high == auc(scores, truth)


def test_the_difference_of_two_areas_has_the_p_of_repeated_draws() -> None:
    """Under no difference, p is below 0.05 in one draw of twenty; a better model is told from a worse one."""
    p = []
    for seed in range(400):
        rng = np.random.default_rng(seed)
        truth = np.arange(100) % 2 == 0
        shared = rng.normal(size=100) + truth
        found = delong_difference(shared + rng.normal(size=100), shared + rng.normal(size=100), truth)
        assert found is not None
        p.append(found.p)
    assert stats.binomtest(sum(value < 0.05 for value in p), 400, 0.05).pvalue > 0.001
    scores, truth = scored(5, 200, 2.0)
    noise = np.random.default_rng(6).normal(size=200)
    better = delong_difference(scores + 3 * noise, scores, truth)
    assert better is not None
    assert better.value > 0
    assert better.low > 0
    assert better.p < 0.01


def test_one_class_has_no_area() -> None:
    scores = np.arange(5.0)
    assert delong(scores, np.ones(5)) is None
    assert bootstrap(scores, np.zeros(5), patients=list("abcde")) is None


@pytest.mark.parametrize(("only_first", "only_second"), [(0, 0), (3, 9), (12, 2), (1, 1)])
def test_mcnemars_test_is_statsmodels(only_first: int, only_second: int) -> None:
    peer = pytest.importorskip("statsmodels.stats.contingency_tables")
    first = np.array([True] * 20 + [True] * only_first + [False] * only_second + [False] * 4)
    second = np.array([True] * 20 + [False] * only_first + [True] * only_second + [False] * 4)
    found = mcnemar(first, second)
    assert (found.only_first, found.only_second) == (only_first, only_second)
    assert found.p == pytest.approx(peer.mcnemar([[20, only_first], [only_second, 4]], exact=True).pvalue)


def test_the_gain_of_the_recurrent_layer_in_radnets_table_is_inside_the_noise() -> None:
    """Grewal et al. 2018, table 1: DenseNet-A finds 40 of 44 with 11 false alarms, RADnet 39 with 9.

    However the errors overlap, two scans more of 77 tell nothing: here as favourably as the counts allow.
    """
    before, after = np.ones(77, bool), np.ones(77, bool)
    before[[0, 1, 2, 3, *range(44, 55)]] = False
    after[[0, 1, 2, 3, 4, *range(44, 53)]] = False
    assert (before.mean(), after.mean()) == pytest.approx((0.8052, 0.8182), abs=5e-5)
    found = paired_difference(before, after)
    assert found is not None
    assert found.value == pytest.approx(1 / 77)
    assert found.low < 0 < found.high
    assert found.p > 0.9


def test_models_that_agree_throughout_still_have_an_interval_that_few_cases_leave_wide() -> None:
    found = paired_difference(np.ones(10, bool), np.ones(10, bool))
    assert found is not None
    assert found.value == 0
    assert found.low < -0.1
    assert paired_difference(np.ones(0, bool), np.ones(0, bool)) is None


def test_the_sensitivity_at_a_specificity_is_the_best_point_of_scikit_learns_curve() -> None:
    scores, truth = scored(7, 150, 1.0, 1)
    rising, hits, _ = peers.roc_curve(truth, scores, drop_intermediate=False)
    for specificity in (0.0, 0.5, 0.8, 0.95, 1.0):
        expected = hits[1 - rising >= specificity - 1e-9].max()
        assert sensitivity_at(scores, truth, specificity=specificity).value == pytest.approx(expected)
    assert sensitivity_at(scores[truth], truth[truth], specificity=0.9).value is None


def test_the_reliability_table_counts_every_case_once_in_order() -> None:
    values, truth = np.linspace(0, 1, 37), np.arange(37) % 2 == 0
    table = reliability_table(values, truth, bins=5)
    assert sum(row.share.cases for row in table) == 37
    assert [row.mean for row in table] == sorted(row.mean for row in table)
    assert sum(row.share.hits for row in table) == truth.sum()
    assert reliability_table(values[:0], truth[:0]) == ()
