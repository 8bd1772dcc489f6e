"""Intervals and tests against scipy, scikit-learn and cases worked out by hand."""

import time
import warnings

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import f1_score

from eval.trust import statistics


@pytest.fixture
def right():
    """Two models on 4,183 items (MedMCQA's number), which agree on nine of ten."""
    random = np.random.default_rng(0)
    a = (random.random(4183) < 0.55).astype(float)
    return a, np.where(random.random(4183) < 0.9, a, 1 - a)


def scipy_interval(values, seed=1):
    interval = stats.bootstrap((values,), np.mean, batch=400, method="percentile", rng=np.random.default_rng(seed))
    return interval.confidence_interval


def test_interval_of_an_accuracy_is_the_bootstraps_and_nearly_the_exact_one(right):
    low, high = statistics.mean_interval(right[0])
    reference = scipy_interval(right[0])
    assert (low, high) == pytest.approx((reference.low, reference.high), abs=1e-3)
    exact = stats.binomtest(int(right[0].sum()), len(right[0])).proportion_ci()
    assert (low, high) == pytest.approx((exact.low, exact.high), abs=1.5e-3)
    assert (low, high) == statistics.mean_interval(right[0])


def test_interval_of_real_scores_is_scipys_and_independent_of_how_it_is_computed():
    scores = np.random.default_rng(3).beta(2, 5, 300)
    reference = scipy_interval(scores, seed=0)
    assert statistics.mean_interval(scores) == pytest.approx((reference.low, reference.high), abs=1e-4)
    coarse = np.round(scores, 1)  # few distinct values: counts are resampled
    reference = scipy_interval(coarse)
    assert statistics.mean_interval(coarse) == pytest.approx((reference.low, reference.high), abs=2e-3)


def test_interval_covers_the_truth_as_often_as_it_says():
    random = np.random.default_rng(5)
    covered = 0
    for trial in range(300):
        low, high = statistics.mean_interval(random.random(200) < 0.3, seed=trial)
        covered += low <= 0.3 <= high
    assert 0.91 <= covered / 300 <= 0.985


def test_all_right_is_no_certainty():
    low, high = statistics.mean_interval(np.ones(50), share=True)
    assert high == 1 and low == pytest.approx(0.025 ** (1 / 50))  # Clopper-Pearson in closed form
    low, high = statistics.mean_interval(np.zeros(50), share=True)
    assert low == 0 and high == pytest.approx(1 - 0.025 ** (1 / 50))


def test_only_shares_have_an_exact_interval():
    """ROUGE that is 0 for all items is no share of successes: nothing is known of how it would vary."""
    for value in (0.0, 1.0):
        scores = np.full(50, value)
        assert statistics.mean_interval(scores) == (value, value)
        found = statistics.mean_metric(scores)
        assert (found.value, found.low, found.high, found.items) == (value, None, None, 50)
        share = statistics.mean_metric(scores, share=True)
        assert share.high - share.low == pytest.approx(1 - 0.025 ** (1 / 50))


def test_mean_metric_scales_all_three():
    metric = statistics.mean_metric(np.array([0, 1, 1, 1]), scale=100, higher_is_better=False)
    assert metric.value == 75 and 0 <= metric.low < 75 < metric.high <= 100 and not metric.higher_is_better


def test_ratio_interval_is_a_means_where_denominators_are_equal():
    scores = np.random.default_rng(4).normal(2, 1, 200)
    low, high = statistics.ratio_interval(scores * 8, np.full(200, 8))
    assert (low, high) == pytest.approx(statistics.mean_interval(scores), abs=0.02)
    heavy = np.where(np.arange(200) == 7, 1000, 1)  # one item decides nearly alone
    low, high = statistics.ratio_interval(scores * heavy, heavy)
    assert low < scores[7] < high
    some = np.where(np.arange(200) % 2, 8, 0)  # windows without text have no bytes
    low, high = statistics.ratio_interval(scores * 4, some)
    assert low < scores.sum() / 200 < high and high - low < 1
    for wrong in (np.zeros(200), np.full(200, -1)):
        with pytest.raises(ValueError, match="none negative and not all zero"):
            statistics.ratio_interval(scores, wrong)


def test_macro_f1_is_scikit_learns():
    random = np.random.default_rng(6)
    true = random.integers(0, 3, 500)
    given = np.where(random.random(500) < 0.6, true, random.integers(0, 4, 500))  # 3: unparsed
    confusion = np.zeros((3, 4), int)
    np.add.at(confusion, (true, given), 1)
    expected = f1_score(true, given, labels=[0, 1, 2], average="macro")
    assert statistics.macro_f1(confusion) == pytest.approx(expected, abs=1e-12)
    resampled = []
    for _ in range(300):
        rows = random.integers(0, 500, 500)
        resampled.append(f1_score(true[rows], given[rows], labels=[0, 1, 2], average="macro"))
    low, high = statistics.macro_f1_interval(confusion)
    assert (low, high) == pytest.approx(np.percentile(resampled, [2.5, 97.5]), abs=0.012)


def test_macro_f1_of_known_matrices():
    # PubMedQA's test half: 276 yes, 169 no, 55 maybe; all answered yes gives F1 of 2*276/(500+276) for yes alone
    majority = np.array([[276, 0, 0, 0], [169, 0, 0, 0], [55, 0, 0, 0]])
    assert statistics.macro_f1(majority) == pytest.approx(2 * 276 / 776 / 3)
    assert statistics.macro_f1(np.diag([276, 169, 55])) == 1
    assert statistics.macro_f1(np.array([[0, 0, 5], [0, 0, 5]])) == 0  # nothing parsed
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert statistics.macro_f1(np.array([[3, 1, 0], [0, 4, 0], [0, 0, 0]])) == pytest.approx((6 / 7 + 8 / 9) / 2)
    with pytest.raises(ValueError, match="confusion matrix"):
        statistics.macro_f1(np.zeros((3, 2), int))


def test_paired_bootstrap_knows_that_the_items_are_the_same(right):
    a, b = right
    difference, low, high = statistics.paired_bootstrap(a, b)
    reference = scipy_interval(a - b)
    assert difference == pytest.approx((a - b).mean())
    assert (low, high) == pytest.approx((reference.low, reference.high), abs=1e-3)
    unpaired = np.array(statistics.mean_interval(a)) - np.mean(b)
    assert high - low < 0.7 * (unpaired[1] - unpaired[0])
    assert statistics.paired_bootstrap(a, a) == (0, 0, 0)
    with pytest.raises(ValueError, match="not of the same items"):
        statistics.paired_bootstrap(a, b[1:])


def test_mcnemar_is_the_binomial_test_of_the_discordant_items(right):
    a, b = right
    only_a, only_b = int(((a == 1) & (b == 0)).sum()), int(((a == 0) & (b == 1)).sum())
    assert statistics.mcnemar(a, b) == stats.binomtest(only_a, only_a + only_b, 0.5).pvalue
    # by hand: one against nine of ten discordant items, 2 * (1 + 10) / 2^10
    assert statistics.mcnemar(np.array([1] + [0] * 9 + [1] * 5), np.array([0] + [1] * 9 + [1] * 5)) == pytest.approx(
        22 / 1024
    )
    assert statistics.mcnemar(a, a) == 1
    with pytest.raises(ValueError, match="0 and 1"):
        statistics.mcnemar(a * 0.5, b)


def test_sign_flips_agree_with_students_test_and_are_exact_for_a_few():
    random = np.random.default_rng(8)
    a = random.normal(0, 1, 400)
    b = a + random.normal(0.1, 1, 400)
    assert statistics.sign_flip_test(a, b) == pytest.approx(stats.ttest_rel(a, b).pvalue, abs=0.015)
    assert statistics.sign_flip_test(np.arange(1.0, 6), np.zeros(5)) == pytest.approx(2 / 2**5)
    assert statistics.sign_flip_test(a, a) == 1


def test_holm_by_hand():
    assert statistics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert statistics.holm([0.6, 0.9]) == [1.0, 1.0]
    assert statistics.holm([]) == []


def test_a_medmcqa_sized_interval_takes_no_time(right):
    begun = time.process_time()
    for seed in range(20):
        statistics.mean_interval(right[0], seed)
    assert time.process_time() - begun < 2
    with pytest.raises(ValueError, match="one or more finite"):
        statistics.mean_interval(np.array([]))
