import math

import numpy as np
import pytest
from scipy import stats

from star.common.statistics import (
    Estimate,
    clustered_stderr,
    detectable_among,
    jackknife,
    mean_interval,
    normal_interval,
    paired_difference,
    paired_p,
    wilson,
)


@pytest.mark.parametrize("values", [[0.5, 0.6], [0.71, 0.74, 0.69], [21.7, 23.4, 22.2, 22.9, 23.0]])
def test_mean_interval_is_scipys(values):
    estimate = mean_interval(values)
    reference = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert estimate.value == pytest.approx(np.mean(values))
    assert estimate.stderr == pytest.approx(stats.sem(values))
    assert estimate.interval == pytest.approx((reference.low, reference.high))
    assert estimate.half_width == pytest.approx((reference.high - reference.low) / 2)


def test_mean_interval_with_three_seeds_against_the_table_of_t():
    """t(0.975, 2) = 4.302653 (any table); mean 2, s = 1."""
    assert mean_interval([1, 2, 3]).half_width == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)


def test_normal_interval_is_scipys_and_there_is_none_of_an_unknown_error():
    assert normal_interval(0.3, 0.1).interval == pytest.approx(stats.norm.interval(0.95, 0.3, 0.1))
    assert normal_interval(0.3, 0.1).stderr == 0.1
    for unknown in (math.nan, math.inf):
        assert normal_interval(0.3, unknown) == Estimate(0.3, None, None)


def test_one_seed_has_no_interval_and_none_is_an_error():
    assert mean_interval([0.7]) == Estimate(0.7, None, None)
    assert mean_interval([0.7]).half_width is None
    with pytest.raises(ValueError):
        mean_interval([])


def test_stderr_with_one_image_per_prompt_is_the_iid_formula():
    values = np.random.default_rng(0).random(50)
    assert clustered_stderr(values, range(50)) == pytest.approx(stats.sem(values), rel=1e-12)


def test_stderr_of_equal_clusters_is_that_of_their_means():
    values = np.random.default_rng(1).random((30, 4)) + np.random.default_rng(2).random((30, 1))
    clusters = np.repeat([f"prompt {i}" for i in range(30)], 4)
    assert clustered_stderr(values.ravel(), clusters) == pytest.approx(stats.sem(values.mean(axis=1)), rel=1e-12)


def test_stderr_of_unequal_clusters_against_a_naive_loop():
    rng = np.random.default_rng(3)
    clusters = rng.integers(12, size=70).tolist()
    values = rng.random(70).tolist()
    mean = sum(values) / 70
    squares = 0.0
    for name in set(clusters):
        residual = sum(value - mean for value, cluster in zip(values, clusters, strict=True) if cluster == name)
        squares += residual**2
    count = len(set(clusters))
    assert clustered_stderr(values, clusters) == pytest.approx(math.sqrt(count / (count - 1) * squares) / 70, rel=1e-12)


def _correlated(rng, prompts=60):
    """Prompts of 1 to 6 images, with rates that differ by prompt and average 0.5: (values, clusters)."""
    sizes = rng.integers(1, 7, size=prompts)
    clusters = np.repeat(np.arange(prompts), sizes)
    return (rng.random(len(clusters)) < rng.beta(0.7, 0.7, prompts)[clusters]).astype(float), clusters


def test_stderr_matches_the_spread_of_repeated_experiments():
    rng = np.random.default_rng(4)
    means, errors, naive = [], [], []
    for _ in range(600):
        values, clusters = _correlated(rng)
        means.append(values.mean())
        errors.append(clustered_stderr(values, clusters))
        naive.append(stats.sem(values))
    spread = np.std(means)  # known to 1 / sqrt(2 * 600) = 3 %
    assert np.mean(errors) == pytest.approx(spread, rel=0.09)
    assert np.mean(naive) < 0.75 * spread  # what pretending that images are independent would have claimed


def test_stratified_stderr_is_that_of_the_mean_of_independent_means():
    rng = np.random.default_rng(5)
    strata = np.repeat(["counting", "colors", "position"], [40, 24, 60])
    clusters = np.arange(124) // 4
    values = rng.random(124)
    parts = [clustered_stderr(values[strata == name], clusters[strata == name]) for name in np.unique(strata)]
    expected = math.sqrt(sum(part**2 for part in parts)) / 3
    assert clustered_stderr(values, clusters, strata=strata) == pytest.approx(expected, rel=1e-12)


def test_a_single_cluster_says_nothing_about_the_error():
    assert clustered_stderr([0, 1, 1], ["a", "a", "a"]) is None
    assert paired_difference([1, 1], [0, 1], ["a", "a"]) == Estimate(0.5, None, None)


def test_lengths_must_agree():
    with pytest.raises(ValueError):
        clustered_stderr([1, 2], [1])
    with pytest.raises(ValueError):
        clustered_stderr([], [])
    with pytest.raises(ValueError):
        paired_difference([1, 2], [1], [1, 2])
    with pytest.raises(ValueError):
        paired_difference([1, 2], [1, 2], [1, 2], strata=[1])


def test_paired_difference_against_scipys_bootstrap():
    """One image per prompt, where resampling prompts is the ordinary bootstrap of the differences."""
    rng = np.random.default_rng(6)
    b = rng.random(80)
    a = b + rng.normal(0.1, 0.2, 80)
    estimate = paired_difference(a, b, range(80), draws=20_000)
    reference = stats.bootstrap((a - b,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(7))
    assert estimate.value == pytest.approx((a - b).mean())
    assert estimate.stderr == pytest.approx(reference.standard_error, rel=0.03)
    # A 2.5 % quantile of 20,000 draws is known to 0.019 standard errors: four deviations of the difference of two such.
    assert estimate.interval == pytest.approx(tuple(reference.confidence_interval), abs=0.11 * reference.standard_error)


def test_paired_difference_resamples_whole_prompts():
    """Against a bootstrap written out image by image, for unequal clusters."""
    rng = np.random.default_rng(8)
    a, clusters = _correlated(rng, prompts=25)
    b = (rng.random(len(a)) < 0.4).astype(float)
    members = [np.flatnonzero(clusters == name) for name in range(25)]
    draws = []
    for _ in range(4000):
        picked = np.concatenate([members[i] for i in rng.integers(25, size=25)])
        draws.append((a[picked] - b[picked]).mean())
    estimate = paired_difference(a, b, clusters)
    assert estimate.stderr == pytest.approx(np.std(draws), rel=0.05)
    # as above, with 4,000 and 10,000 draws: 0.05 standard errors a deviation; wider as Student's t of 25 prompts is
    wide = np.mean(draws) + (np.array(draws) - np.mean(draws)) * stats.t.ppf(0.975, 24) / stats.norm.ppf(0.975)
    assert estimate.interval == pytest.approx(tuple(np.quantile(wide, (0.025, 0.975))), abs=0.2 * np.std(draws))


def test_stratified_difference_is_the_difference_of_macro_means():
    rng = np.random.default_rng(9)
    strata = np.repeat(["counting", "colors"], [40, 120])
    clusters = np.arange(160) // 4
    a, b = rng.random(160), rng.random(160)
    estimate = paired_difference(a, b, clusters, strata=strata)
    assert estimate.value == pytest.approx(np.mean([(a - b)[strata == name].mean() for name in np.unique(strata)]))
    linear = clustered_stderr(a - b, clusters, strata=strata)
    assert estimate.stderr == pytest.approx(linear, rel=0.08)


@pytest.mark.parametrize("count", [2, 4, 8])
def test_of_few_prompts_the_error_is_that_of_the_mean(count):
    """Drawing with replacement from n varies by (n - 1) / n of what the mean of n does, a half of it for two."""
    values = np.random.default_rng(count).random(count)
    estimate = paired_difference(values, np.zeros(count), np.arange(count))
    assert estimate.stderr == pytest.approx(stats.sem(values), rel=0.03)


def test_paired_difference_depends_on_its_seed_only():
    rng = np.random.default_rng(10)
    a, b = rng.random(40), rng.random(40)
    first = paired_difference(a, b, range(40), draws=700)
    assert first == paired_difference(a, b, range(40), draws=700)
    assert first != paired_difference(a, b, range(40), draws=700, seed=1)
    assert paired_difference(b, a, range(40), draws=700).value == pytest.approx(-first.value)


def test_paired_interval_covers_the_truth():
    """Shared prompt difficulty, 60 prompts, true difference 0.1: 95 % coverage up to the noise of 300 experiments."""
    rng = np.random.default_rng(11)
    hits = 0
    for _ in range(300):
        _, clusters = _correlated(rng)
        difficulty = rng.normal(0, 1, 60)[clusters]
        a = difficulty + rng.normal(0.1, 0.5, 60)[clusters] + rng.normal(0, 0.3, len(clusters))
        b = difficulty + rng.normal(0, 0.3, len(clusters))
        low, high = paired_difference(a, b, clusters, draws=600).interval
        hits += low <= 0.1 <= high
    assert 0.90 <= hits / 300 <= 0.98


@pytest.mark.parametrize(("sizes", "least"), [((3,), 0.9), ((5,), 0.9), ((2, 2, 2), 0.9), ((4, 30), 0.9)])
def test_the_interval_of_few_prompts_covers_the_truth_too(sizes, least):
    """A bootstrap alone covers it in 84 % of cases with 3 prompts, and in 86 % with 5."""
    rng = np.random.default_rng(12)
    strata, prompts = np.repeat(np.arange(len(sizes)), sizes), np.arange(sum(sizes))
    hits = 0
    for _ in range(300):
        low, high = paired_difference(
            rng.normal(0.1, 1, len(prompts)), prompts * 0.0, prompts, strata=strata, draws=600
        ).interval
        hits += low <= 0.1 <= high
    assert hits / 300 >= least


@pytest.mark.parametrize("successes, trials", [(0, 80), (80, 80), (1, 4), (527, 553), (3, 7)])
def test_wilson_solves_its_own_equation(successes, trials):
    """Wilson (1927): the ends are the rates p at which the observed one is z standard errors sqrt(p (1 - p) / n) away."""
    z = stats.norm.ppf(0.975)
    for end in wilson(successes, trials):
        gap, error = abs(successes / trials - end), math.sqrt(end * (1 - end) / trials)
        assert 0 <= end <= 1 and gap == pytest.approx(z * error, abs=1e-9)


def test_wilson_needs_a_rate():
    for successes, trials in ((0, 0), (-1, 4), (5, 4)):
        with pytest.raises(ValueError):
            wilson(successes, trials)


def test_the_jackknife_of_a_mean_is_its_standard_error():
    values = np.random.default_rng(0).random((9, 2, 3))
    value, stderr = jackknife(lambda kept: values[kept].mean(0), 9)
    np.testing.assert_allclose(value, values.mean(0))
    np.testing.assert_allclose(stderr, stats.sem(values))


def test_the_jackknife_leaves_one_out_after_the_other():
    x, y = np.random.default_rng(1).random((2, 12))
    value, stderr = jackknife(lambda kept: np.array(x[kept].sum() / y[kept].sum()), 12)
    without = [sum(x[i] for i in range(12) if i != k) / sum(y[i] for i in range(12) if i != k) for k in range(12)]
    mean = sum(without) / 12
    assert value == pytest.approx(sum(x) / sum(y))
    assert stderr == pytest.approx(math.sqrt(11 / 12 * sum((one - mean) ** 2 for one in without)))


def test_the_jackknife_of_too_few_units_has_no_error():
    value, stderr = jackknife(lambda kept: kept.mean(keepdims=True) + 4.0, 1)
    assert value == [4] and np.isnan(stderr).all()
    with np.errstate(invalid="ignore"):
        value, stderr = jackknife(lambda kept: np.array([kept.std() if len(kept) > 2 else np.nan, len(kept)]), 3)
    assert value[1] == 3 and np.isnan(stderr[0]) and stderr[1] == 0
    with pytest.raises(ValueError, match="no units"):
        jackknife(lambda kept: kept, 0)


@pytest.mark.parametrize("apart", [(0.3 - 0.2, 0.4 - 0.3, 0.1), (20.302 - 20.301, 15.303 - 15.302, 7.308 - 7.307)])
def test_differences_that_are_equal_but_for_rounding_are_no_finding(apart):
    assert len(set(apart)) > 1 and paired_p(apart) is None and detectable_among(apart) is None
    assert paired_p([0.001, 0.001, 0.001001]) is not None  # of six digits
