"""Statistics over several training seeds and tasks, against written-out loops and synthetic data with known answers."""

import math
from itertools import product

import numpy as np
import pytest
from scipy import stats

from star.common.statistics import (
    Estimate,
    Variances,
    detectable,
    enough,
    interquartile_mean,
    paired_difference,
    probability_of_improvement,
    score_variances,
    seed_means,
)


def long_form(values):
    """A table (seeds, prompts, images) as (values, clusters, seeds)."""
    seeds, prompts, images = values.shape
    clusters = np.tile(np.repeat(np.arange(prompts), images), seeds)
    return values.ravel(), clusters, np.repeat(np.arange(seeds), prompts * images)


def drawn(rng, seeds, prompts, images, *, seed=0.0, prompt=0.0, noise=0.0, seed_prompt=0.0, seed_noise=0.0):
    """Values (seeds, prompts, images) of the crossed model, from its standard deviations."""
    return (
        seed * rng.standard_normal((seeds, 1, 1))
        + prompt * rng.standard_normal((1, prompts, 1))
        + noise * rng.standard_normal((1, prompts, images))
        + seed_prompt * rng.standard_normal((seeds, prompts, 1))
        + seed_noise * rng.standard_normal((seeds, prompts, images))
    )


def paired(values, **options):
    differences, clusters, seeds = long_form(values)
    return paired_difference(differences, np.zeros(len(differences)), clusters, seeds=seeds, **options)


def test_one_seed_is_the_bootstrap_of_prompts_alone():
    values = drawn(np.random.default_rng(0), 1, 30, 4, prompt=1, noise=1)
    differences, clusters, _ = long_form(values)
    assert paired(values) == paired_difference(differences, np.zeros(120), clusters)


def test_prompts_and_seeds_add_up_in_squares():
    values = drawn(np.random.default_rng(2), 4, 50, 2, seed=0.1, prompt=0.6, noise=0.1)
    per_prompt, per_seed = values.mean(axis=(0, 2)), values.mean(axis=(1, 2))
    among_prompts, among_seeds = stats.sem(per_prompt), stats.sem(per_seed)
    assert min(among_prompts, among_seeds) > 0.4 * max(among_prompts, among_seeds)  # so that their sum is another number
    assert paired(values).stderr == pytest.approx(math.sqrt(among_prompts**2 + among_seeds**2), rel=0.03)


def test_several_seeds_against_a_loop_that_draws_prompts_and_t():
    rng = np.random.default_rng(1)
    values = drawn(rng, 3, 40, 2, seed=0.2, prompt=0.5, seed_noise=1)
    per_seed = [sum(values[s].ravel()) / 80 for s in range(3)]
    error = math.sqrt(sum((mean - sum(per_seed) / 3) ** 2 for mean in per_seed) / 2 / 3)
    draws = []
    for _ in range(20_000):
        prompts = rng.integers(40, size=40)
        draws.append(values[:, prompts].mean() + error * rng.standard_t(2))
    estimate = paired(values)
    assert estimate.value == pytest.approx(values.mean())
    low, high = estimate.interval
    width = np.subtract(*np.quantile(draws, (0.975, 0.025)))
    # t(2) has long tails: a 2.5 % quantile of 20,000 draws is known to 0.1 standard errors, a fiftieth of the width.
    assert (low, high) == pytest.approx(tuple(np.quantile(draws, (0.025, 0.975))), abs=0.05 * width)


def test_without_a_spread_of_prompts_it_is_the_t_interval_over_seeds():
    values = np.array([0.1, 0.3, 0.2, 0.5])[:, None, None] + np.zeros((4, 20, 2))
    reference = stats.ttest_1samp([0.1, 0.3, 0.2, 0.5], 0).confidence_interval(0.95)
    estimate = paired(values)
    assert estimate.interval == pytest.approx((reference.low, reference.high), rel=1e-6)
    assert estimate.stderr == pytest.approx(stats.sem([0.1, 0.3, 0.2, 0.5]))


@pytest.mark.parametrize(
    "parts, lowest, highest",
    [
        (dict(seed=0.3, prompt=0.1, seed_noise=0.3), 0.925, 0.975),  # new trainings decide
        (dict(prompt=1.5, noise=0.3), 0.92, 0.975),  # new prompts decide
        (dict(seed=0.1, prompt=0.5, seed_prompt=0.5, seed_noise=0.7), 0.94, 1.0),  # all together: wider than need be
    ],
)
@pytest.mark.parametrize("seeds", [3, 5])
def test_the_interval_covers_the_truth_for_new_prompts_and_new_trainings(parts, lowest, highest, seeds):
    """500 experiments: a coverage of 95 % is then known to 1 %."""
    rng = np.random.default_rng(2)
    hits = 0
    for experiment in range(500):
        low, high = paired(0.1 + drawn(rng, seeds, 40, 2, **parts), draws=500, seed=experiment).interval
        hits += low <= 0.1 <= high
    assert lowest <= hits / 500 <= highest


def test_prompts_alone_would_not_cover_new_trainings():
    rng = np.random.default_rng(3)
    hits = 0
    for _ in range(200):
        differences, clusters, _ = long_form(drawn(rng, 3, 40, 2, seed=0.3, prompt=0.1, seed_noise=0.3))
        low, high = paired_difference(differences, np.zeros(240), clusters, draws=400).interval
        hits += low <= 0 <= high
    assert hits / 200 < 0.5


def test_seed_means_are_macro_means_in_the_order_of_the_seeds():
    values = [1.0, 2, 30, 4, 5, 60]
    clusters, strata, seeds = list("abcabc"), list("xxyxxy"), [7, 7, 7, 3, 3, 3]
    assert seed_means(values, clusters, seeds, strata=strata) == [(4.5 + 60) / 2, (1.5 + 30) / 2]


def test_seeds_need_the_same_images():
    for clusters, seeds in (([1, 2, 1, 3], [0, 0, 1, 1]), ([1, 2, 1, 2, 2], [0, 0, 1, 1, 1]), ([1, 2], [0])):
        with pytest.raises(ValueError):
            seed_means(np.zeros(len(clusters)), clusters, seeds)
        with pytest.raises(ValueError):
            paired_difference(np.zeros(len(clusters)), np.ones(len(clusters)), clusters, seeds=seeds)


def naive_variances(y):
    """The components of one stratum (S, P, I) and its parts of a score's variance, written out sum by sum."""
    seeds, prompts, images = len(y), len(y[0]), len(y[0][0])

    def mean(s=None, p=None, i=None):
        cells = product(*(range(n) if k is None else [k] for k, n in ((s, seeds), (p, prompts), (i, images))))
        values = [y[a][b][c] for a, b, c in cells]
        return sum(values) / len(values)

    all_seeds, all_prompts, all_images = range(seeds), range(prompts), range(images)
    ms_seed = prompts * images * sum((mean(s) - mean()) ** 2 for s in all_seeds) / (seeds - 1)
    ms_prompt = seeds * images * sum((mean(p=p) - mean()) ** 2 for p in all_prompts) / (prompts - 1)
    ms_noise = seeds * sum((mean(p=p, i=i) - mean(p=p)) ** 2 for p in all_prompts for i in all_images)
    ms_noise /= prompts * (images - 1)
    ms_both = images * sum((mean(s, p) - mean(s) - mean(p=p) + mean()) ** 2 for s in all_seeds for p in all_prompts)
    ms_both /= (seeds - 1) * (prompts - 1)
    cells = product(all_seeds, all_prompts, all_images)
    ms_rest = sum((y[s][p][i] - mean(s, p) - mean(p=p, i=i) + mean(p=p)) ** 2 for s, p, i in cells)
    ms_rest /= (seeds - 1) * prompts * (images - 1)
    return Variances(
        seed=(ms_seed - ms_both) / (prompts * images),
        prompt=(ms_prompt - ms_both - ms_noise + ms_rest) / (seeds * images) / prompts,
        noise=(ms_noise - ms_rest) / seeds / (prompts * images),
        interaction=((ms_both - ms_rest) / images + ms_rest / images) / prompts,
    )


def close(ours, theirs, **tolerance):
    return vars(ours) == pytest.approx(vars(theirs), **tolerance)


def test_variances_of_one_stratum_against_sums_written_out():
    values = drawn(np.random.default_rng(4), 3, 5, 4, seed=1, prompt=2, noise=1, seed_prompt=0.5, seed_noise=1)
    assert close(score_variances([values]), naive_variances(values.tolist()), rel=1e-9)


def test_variances_of_a_macro_score_are_those_of_a_mean_of_independent_means_but_for_the_seeds():
    rng = np.random.default_rng(5)
    strata = [drawn(rng, 4, size, 3, seed=1, prompt=2, noise=1, seed_noise=1) for size in (6, 12)]
    parts = [naive_variances(values.tolist()) for values in strata]
    ours = score_variances(strata)
    for name in ("prompt", "noise", "interaction"):
        assert getattr(ours, name) == pytest.approx(sum(getattr(part, name) for part in parts) / 4, rel=1e-9)
    scores = [(strata[0][s].mean() + strata[1][s].mean()) / 2 for s in range(4)]
    assert ours.seed + ours.interaction == pytest.approx(np.var(scores, ddof=1))


def test_variances_are_unbiased():
    """Mean of 400 experiments against the truth, each known to a fifteenth of itself or better."""
    rng = np.random.default_rng(6)
    parts = dict(seed=0.3, prompt=2.0, noise=1.5, seed_prompt=1.0, seed_noise=1.2)
    found = [list(vars(score_variances([drawn(rng, 5, 20, 4, **parts)])).values()) for _ in range(400)]
    truth = [0.3**2, 2.0**2 / 20, 1.5**2 / 80, 1.0**2 / 20 + 1.2**2 / 80]
    errors = np.std(found, axis=0) / 20
    assert np.abs(np.mean(found, axis=0) - truth) == pytest.approx(0, abs=4 * errors.max())
    assert (np.abs(np.mean(found, axis=0) - truth) < 4 * errors).all()
    assert (errors < np.array(truth) / 15).all()


def test_what_the_data_cannot_tell_is_not_told():
    rng = np.random.default_rng(7)
    one_seed = score_variances([drawn(rng, 1, 8, 3, prompt=1, noise=1)])
    assert one_seed.seed is None and one_seed.interaction is None
    assert None not in (one_seed.prompt, one_seed.noise)
    assert score_variances([drawn(rng, 3, 8, 1, prompt=1)]).noise is None
    assert score_variances([drawn(rng, 3, 1, 4, noise=1)]).prompt is None
    for bad in ([], [np.zeros((2, 3))], [np.zeros((2, 0, 3))], [np.zeros((2, 3, 1)), np.zeros((3, 3, 1))]):
        with pytest.raises(ValueError):
            score_variances(bad)


def test_interquartile_mean_of_small_lists():
    assert interquartile_mean([[1, 2, 3, 4], [100, 6, 7, -50]]).value == pytest.approx((2 + 3 + 4 + 6) / 4)
    assert interquartile_mean([[1, 5, 9]]) == Estimate(5, None, None)  # a quarter of three is none


def test_interquartile_mean_against_a_loop():
    rng = np.random.default_rng(8)
    scores = [rng.normal(task, 1, 5) for task in range(3)]
    draws = []
    for _ in range(4000):
        pooled = sorted(value for runs in scores for value in rng.choice(runs, 5))
        draws.append(sum(pooled[3:12]) / 9)
    estimate = interquartile_mean(scores)
    assert estimate.value == pytest.approx(sum(sorted(np.concatenate(scores))[3:12]) / 9)
    assert estimate.stderr == pytest.approx(np.std(draws), rel=0.06)
    assert estimate.interval == pytest.approx(tuple(np.quantile(draws, (0.025, 0.975))), abs=0.2 * np.std(draws))


def test_how_many_runs_are_enough():
    assert enough([range(5)] * 3) and enough([range(15)]) and enough([range(5), range(10)])
    assert not enough([range(4), range(11)]) and not enough([range(5)] * 2) and not enough([])
    assert interquartile_mean([np.arange(4.0)] * 6).interval is None


def test_with_just_enough_runs_the_bootstrap_covers_what_is_promised():
    """Normal scores around 0 on three tasks, 5 runs each: 1,000 experiments know a coverage of 90 % to 0.9 %."""
    rng = np.random.default_rng(9)
    hits = 0
    for experiment in range(1000):
        low, high = interquartile_mean(rng.standard_normal((3, 5)), draws=500, seed=experiment).interval
        hits += low <= 0 <= high
    assert 0.88 <= hits / 1000 <= 0.96


def test_a_unit_that_is_a_mean_of_runs_is_as_uncertain_as_they_are():
    """An arm that equals the unit's, on three tasks with six runs of each: its interval holds 1 as often as promised."""
    rng = np.random.default_rng(11)
    hits = exact = 0
    for experiment in range(600):
        ours, theirs = (1 + 0.1 * rng.standard_normal((3, 6)) for _ in range(2))
        divided = [a / b.mean() for a, b in zip(ours, theirs, strict=True)]
        for_both, for_ours = (interquartile_mean(*of, draws=500, seed=experiment) for of in ((ours, theirs), (divided,)))
        assert for_both.value == for_ours.value
        hits += for_both.interval[0] <= 1 <= for_both.interval[1]
        exact += for_ours.interval[0] <= 1 <= for_ours.interval[1]
    assert 0.90 <= hits / 600 <= 0.97 and exact / 600 < 0.87
    assert interquartile_mean(ours, theirs[:, :4]).interval is None


def test_probability_of_improvement_is_mann_whitneys_u():
    rng = np.random.default_rng(10)
    a, b = [rng.integers(0, 6, 5) for _ in range(3)], [rng.integers(0, 6, 7) for _ in range(3)]
    expected = np.mean([stats.mannwhitneyu(x, y).statistic / 35 for x, y in zip(a, b, strict=True)])
    estimate = probability_of_improvement(a, b)
    assert estimate.value == pytest.approx(expected)
    assert probability_of_improvement(b, a).value == pytest.approx(1 - expected)
    draws = []
    for _ in range(1500):
        wins = []
        for x, y in zip(a, b, strict=True):
            ours, theirs = rng.choice(x, 5), rng.choice(y, 7)
            wins.append(np.mean([(p > q) + (p == q) / 2 for p in ours for q in theirs]))
        draws.append(np.mean(wins))
    assert estimate.stderr == pytest.approx(np.std(draws), rel=0.1)
    assert estimate.interval == pytest.approx(tuple(np.quantile(draws, (0.025, 0.975))), abs=0.3 * np.std(draws))


def test_probability_of_improvement_with_few_runs_has_no_interval():
    assert probability_of_improvement([[2, 3]], [[1, 0]]) == Estimate(1.0, None, None)
    for a, b in (([], []), ([[1]], [[]]), ([[1]], [[1], [2]])):
        with pytest.raises(ValueError):
            probability_of_improvement(a, b)


@pytest.mark.parametrize("seeds, power", [(2, 0.8), (3, 0.8), (8, 0.8), (8, 0.5), (25, 0.9)])
def test_the_detectable_effect_has_its_power(monkeypatch, seeds, power):
    monkeypatch.setattr("star.common.statistics.POWER", power)
    effect = detectable(0.3, seeds)
    critical = stats.t.ppf(0.975, seeds - 1)
    assert stats.nct.sf(critical, seeds - 1, effect * math.sqrt(seeds) / 0.3) == pytest.approx(power, abs=1e-3)


def test_the_detectable_effect_in_drawn_experiments():
    values = np.random.default_rng(4).normal(detectable(1.0, 5), 1.0, (40_000, 5))
    found = stats.ttest_1samp(values, 0.0, axis=1).pvalue < 0.05
    assert found.mean() == pytest.approx(0.8, abs=0.01)


def test_a_spread_known_from_more_seeds_helps_and_nobody_knows_that_of_one():
    assert detectable(1.0, 1, 7) == pytest.approx(detectable(1.0, 4, 7) * 2)
    assert detectable(1.0, 3, 7) < detectable(1.0, 3) and detectable(0.0, 3) == 0
    for seeds, freedom in ((1, None), (0, 3), (1, 0)):
        with pytest.raises(ValueError, match="find nothing"):
            detectable(1.0, seeds, freedom)
