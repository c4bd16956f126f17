"""Intervals and standard errors that hold for a few seeds and for several images per prompt.

With few seeds only the t-interval keeps its promise: a percentile bootstrap over three seeds that claims 95 % covers
the truth about two times in three. Images of one prompt are correlated, so prompts, not images, are resampled.

A score is uncertain for three reasons that are kept apart: the training seed, the noise that the images are drawn from,
and the choice of prompts (:func:`score_variances`).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy  # whose parts it imports when they are first used: some take a second

BATCH = 500  # bootstrap draws at a time: bounds the memory to BATCH x clusters
# A bootstrap over n runs of a task finds (n - 1) / n of their variance, and has the tails of a normal distribution. From
# these numbers on, a nominal 95 % interval covers at least 88 %; below them no interval is given.
ENOUGH_RUNS = 5
ENOUGH_SCORES = 15
DRAWS = 10_000  # of a bootstrap
NORMAL_95 = 1.959963984540054
SAME = 1e-9  # differences of 0.001 between scores of 20 are exact to 4e-12 of themselves
POWER = 0.8  # the chance that an experiment is to have
QUANTILES = 4000  # of an estimated spread: power to four digits

Column = Sequence[Any] | np.ndarray


@dataclass(frozen=True)
class Estimate:
    """A number and how far it can be trusted; ``stderr`` and ``interval`` are None where there is no way to tell."""

    value: float
    stderr: float | None
    interval: tuple[float, float] | None

    @property
    def half_width(self) -> float | None:
        """Half the interval's width; None without an interval."""
        return None if self.interval is None else (self.interval[1] - self.interval[0]) / 2


def mean_interval(values: Sequence[float]) -> Estimate:
    """Mean over independent seeds with Student's 95 % t-interval; a single value has no interval.

    Raises:
        ValueError: no values.
    """
    sample = np.asarray(values, dtype=np.float64)
    if sample.size == 0:
        raise ValueError("the mean of no values")
    mean = float(sample.mean())
    if sample.size == 1:
        return Estimate(mean, None, None)
    stderr = float(sample.std(ddof=1) / np.sqrt(sample.size))
    reach = float(scipy.stats.t.ppf(0.975, sample.size - 1)) * stderr
    return Estimate(mean, stderr, (mean - reach, mean + reach))


def normal_interval(value: float, stderr: float) -> Estimate:
    """The 95 % normal interval around a value; none if the standard error is not finite."""
    if not math.isfinite(stderr):
        return Estimate(value, None, None)
    return Estimate(value, stderr, (value - NORMAL_95 * stderr, value + NORMAL_95 * stderr))


def detectable(spread: float, seeds: int, freedom: int | None = None) -> float:
    """The true difference that a two-sided t-test at 5 % over this many seeds detects with a chance of :data:`POWER`.

    That is the d at which a noncentral t with non-centrality ``d sqrt(seeds) / spread`` falls outside the two-sided
    critical values with that probability (Cohen, Statistical Power Analysis for the Behavioral Sciences, §2).

    Args:
        spread: standard deviation of the seeds' differences, >= 0.
        seeds: how many seeds are averaged over.
        freedom: degrees of freedom of the spread, >= 1; by default seeds - 1; more if it was estimated from more seeds.

    Raises:
        ValueError: no seeds, or no degrees of freedom, as with a single seed by default.
    """
    freedom = seeds - 1 if freedom is None else freedom
    if seeds < 1 or freedom < 1:
        raise ValueError(f"{seeds} seeds with {freedom} degrees of freedom find nothing")
    critical = float(scipy.stats.t.ppf(0.975, freedom))
    # scipy's noncentral t is NaN in places, so take the mean of a normal's tails over its estimated spreads instead.
    estimated = np.sqrt(scipy.stats.chi2.ppf((np.arange(QUANTILES) + 0.5) / QUANTILES, freedom) / freedom)

    def excess(shift: float) -> float:
        found = scipy.stats.norm.sf(critical * estimated - shift) + scipy.stats.norm.cdf(-critical * estimated - shift)
        return float(found.mean()) - POWER

    return float(scipy.optimize.brentq(excess, 0.0, 10 * critical)) * spread / float(np.sqrt(seeds))


def all_same(values: Sequence[float]) -> bool:
    """Whether numbers are equal but for rounding, also that of scores whose small differences they are."""
    return float(np.ptp(values)) <= SAME * float(np.abs(values).max())


def detectable_among(differences: Sequence[float]) -> float | None:
    """The :func:`detectable` difference for seeds with these differences; None for fewer than two, or if all are the same."""
    if len(differences) < 2 or all_same(differences):
        return None
    return detectable(float(np.std(differences, ddof=1)), len(differences))


def paired_p(differences: Sequence[float]) -> float | None:
    """P-value of the two-sided t-test that independent differences have mean 0; None for fewer than two, or all the same."""
    if len(differences) < 2 or all_same(differences):
        return None
    return float(scipy.stats.ttest_1samp(differences, 0.0).pvalue)


def holm(p: Sequence[float]) -> list[float]:
    """P-values of several tests, corrected so that the chance of any false alarm stays below the level of the tests.

    Holm's step-down procedure (Scandinavian Journal of Statistics 6, 1979): the k-th smallest of n is multiplied by n - k, k
    from 0 on, and none may come out below a smaller one's.
    """
    values = np.asarray(p, dtype=np.float64)
    order = np.argsort(values, kind="stable")
    raised = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1)).clip(max=1.0)
    corrected = np.empty_like(values)
    corrected[order] = raised
    return [float(value) for value in corrected]


def jackknife(statistic: Callable[[np.ndarray], np.ndarray], count: int) -> tuple[np.ndarray, np.ndarray]:
    """A statistic of ``count`` independent units, and its standard error by leaving out one unit at a time::

        stderr^2 = (n - 1) / n * sum_k (statistic without k - mean of those)^2

    (Efron and Tibshirani, An Introduction to the Bootstrap, §11). For a mean it is s / sqrt(n).

    Args:
        statistic: indices of units, integers (m,) -> its values, of any shape.
        count: of the units.

    Returns:
        Its values, and their standard errors; NaN where values without a unit are not finite, and for a single unit.

    Raises:
        ValueError: no units.
    """
    if count < 1:
        raise ValueError("the jackknife of no units")
    units = np.arange(count)
    value = np.asarray(statistic(units), dtype=np.float64)
    if count == 1:
        return value, np.full_like(value, np.nan)
    without = np.stack([np.asarray(statistic(np.delete(units, k)), dtype=np.float64) for k in units])
    stderr: np.ndarray = np.sqrt((count - 1) * without.var(axis=0))
    return value, stderr


def clustered_stderr(values: Column, clusters: Column, *, strata: Column | None = None) -> float | None:
    """Standard error of a mean of values that are correlated within a cluster (the images of a prompt).

    Linearised ratio estimator for clusters of unequal size (Cochran, Sampling Techniques, §9.4 to 9.5)::

        var = G / (G - 1) * sum_g (sum of g's residuals)^2 / n^2

    With one value per cluster it is the usual s / sqrt(n).

    Args:
        values: (n,) per image.
        clusters: (n,) prompt of each image, anything hashable.
        strata: (n,) group of each image, e.g. its GenEval tag. If given, the mean is that of the strata's means
            (macro); a cluster belongs to one stratum.

    Returns:
        The standard error, or None if a stratum has a single cluster.

    Raises:
        ValueError: no values, or lengths that differ.
    """
    variances = []
    for total, size in _strata(values, clusters, strata):
        count = len(size)
        if count < 2:
            return None
        residual = total - size * (total.sum() / size.sum())
        variances.append(count / (count - 1) * (residual**2).sum() / size.sum() ** 2)
    return float(np.sqrt(np.sum(variances)) / len(variances))


def paired_difference(
    a: Column,
    b: Column,
    clusters: Column,
    *,
    strata: Column | None = None,
    seeds: Column | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> Estimate:
    """Mean of a - b over images drawn from the same prompts and noise, with a bootstrap that resamples prompts.

    With several training seeds the interval holds for new prompts and new seeds at once. Prompts are resampled, each with
    the images of all seeds. Few seeds cannot be resampled, so their part is Student's t over the seeds' differences; the
    interval is that of the sum of the two. Where a seed moves single prompts rather than the score, that counts twice
    (once among prompts, once among seeds), which errs on the safe side. A bootstrap has a normal's tails however few the
    prompts are, so its deviations are widened as Student's t is against the normal, with Satterthwaite's degrees of freedom
    (Biometrics Bulletin 2, 1946): by 0.6 % with 200 prompts, by half with 5.

    Args:
        a, b: (n,) per image, in the same order.
        clusters, strata: as in :func:`clustered_stderr`; prompts are resampled within their stratum.
        seeds: (n,) training seed of each pair; every seed has the same images. With one seed, or None, the interval says
            nothing about other trainings.
        draws: bootstrap draws.
        seed: of the draws.

    Returns:
        The difference, its standard error and its 95 % interval; no error and no interval if a stratum has a single
        cluster.

    Raises:
        ValueError: no values, lengths that differ, or seeds that do not have the same images.
    """
    if len(a) != len(b):
        raise ValueError(f"pairs need equal lengths, got {len(a)} and {len(b)}")
    difference = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)
    groups = _strata(difference, clusters, strata)
    per_seed = [] if seeds is None else seed_means(difference, clusters, seeds, strata=strata)
    value = _macro(groups)
    if any(len(size) < 2 for _, size in groups):
        return Estimate(value, None, None)
    rng = np.random.default_rng(seed)
    parts = np.array([_resampled_means(total, size, draws, rng) for total, size in groups])
    means = parts.mean(axis=0)
    among_prompts = float(means.std(ddof=1))
    among_seeds = float(scipy.stats.sem(per_seed)) if len(per_seed) > 1 else 0.0
    freedom = _satterthwaite(parts.var(axis=1, ddof=1), np.array([len(size) - 1 for _, size in groups]))
    wide = means.mean() + (means - means.mean()) * scipy.stats.t.ppf(0.975, freedom) / NORMAL_95
    low, high = (_quantile(wide, among_seeds, len(per_seed) - 1, share) for share in (0.025, 0.975))
    return Estimate(value, float(np.hypot(among_prompts, among_seeds)), (low, high))


def seed_means(values: Column, clusters: Column, seeds: Column, *, strata: Column | None = None) -> list[float]:
    """Each seed's mean, in ascending order of seeds; with strata, that of the strata's means as in :func:`clustered_stderr`.

    Raises:
        ValueError: lengths that differ, or seeds that do not have the same number of values in each cluster.
    """
    if len(seeds) != len(values):
        raise ValueError(f"need a seed for each of {len(values)} values, got {len(seeds)}")
    values, clusters, seeds = np.asarray(values), np.asarray(clusters), np.asarray(seeds)
    strata = np.zeros(len(values)) if strata is None else np.asarray(strata)
    parts = [seeds == name for name in np.unique(seeds)]
    first = np.sort(clusters[parts[0]])
    if any(not np.array_equal(np.sort(clusters[part]), first) for part in parts):
        raise ValueError("the seeds do not have the same images")
    return [_macro(_strata(values[part], clusters[part], strata[part])) for part in parts]


@dataclass(frozen=True)
class Variances:
    """The variance of one run's score by where it comes from; see :func:`score_variances`.

    Attributes:
        seed: training again; needs several seeds.
        prompt: other prompts of the same kinds; needs several prompts in each stratum.
        noise: other noise for the same prompts; needs several images per prompt. Without them it is part of ``prompt``.
        interaction: what training again changes prompt by prompt and image by image; needs several seeds. Without them
            it is part of ``prompt`` and ``noise``.

    A part that the data cannot tell is None. Estimates are unbiased, so one of a part near 0 can be negative.
    """

    seed: float | None
    prompt: float | None
    noise: float | None
    interaction: float | None


def score_variances(strata: Sequence[np.ndarray]) -> Variances:
    """Split the variance of a run's score, the mean over strata of their images' means.

    The model for a stratum is that of seeds crossed with images within prompts, all of them random, since each seed is
    judged on the same prompts and noise::

        y[s, p, i] = mean + seed[s] + prompt[p] + noise[p, i] + (seed x prompt)[s, p] + (seed x noise)[s, p, i]

    with the components from the mean squares (analysis of variance; Searle, Casella and McCulloch, Variance Components,
    §4). A stratum of P prompts with I images adds to the variance of its mean: ``prompt / P``, ``noise / (P I)`` and the
    interactions ``(seed x prompt) / P + (seed x noise) / (P I)``.

    Args:
        strata: for each stratum (seeds, prompts, images), the same seeds in all.

    Raises:
        ValueError: no stratum, an empty one, or one that is not three-dimensional or has other seeds.
    """
    tables = [np.asarray(values, dtype=np.float64) for values in strata]
    if not tables or any(t.ndim != 3 or t.size == 0 or len(t) != len(tables[0]) for t in tables):
        raise ValueError(f"strata are (seeds, prompts, images) of the same seeds, got {[t.shape for t in tables]}")
    runs = len(tables[0])
    parts = np.array([_components(table) for table in tables])
    prompts, images = (np.array([table.shape[axis] for table in tables]) for axis in (1, 2))
    prompt, noise, seed_prompt, seed_noise = parts.T / (prompts * len(tables) ** 2)
    interaction = float((seed_prompt + seed_noise / images).sum())
    scores = np.mean([table.mean((1, 2)) for table in tables], axis=0)
    return Variances(
        seed=float(scores.var(ddof=1)) - interaction if runs > 1 else None,
        prompt=float(prompt.sum()) if prompts.min() > 1 else None,
        noise=float((noise / images).sum()) if images.min() > 1 else None,
        interaction=interaction if runs > 1 and prompts.min() > 1 else None,
    )


def enough(scores: Sequence[Column]) -> bool:
    """Whether there are enough runs for a bootstrap over runs within tasks: see :data:`ENOUGH_RUNS`, :data:`ENOUGH_SCORES`."""
    sizes = [len(runs) for runs in scores]
    return bool(sizes) and min(sizes) >= ENOUGH_RUNS and sum(sizes) >= ENOUGH_SCORES


def interquartile_mean(
    scores: Sequence[Column], units: Sequence[Column] | None = None, *, draws: int = DRAWS, seed: int = 0
) -> Estimate:
    """Mean of the middle half of all runs of all tasks, with the stratified bootstrap over the runs of each task.

    The aggregate of Agarwal et al., "Deep Reinforcement Learning at the Edge of the Statistical Precipice",
    arXiv 2108.13264. A quarter of the scores, rounded down, is cut at either end.

    Args:
        scores: for each task its runs' scores, on a scale that tasks share.
        units: for each task the runs of another method, by whose mean the scores are divided; they are resampled, too. Without
            them the scores are not divided.
        draws, seed: of the bootstrap.

    Returns:
        The mean; standard error and 95 % percentile interval only if there are :func:`enough` runs of both.

    Raises:
        ValueError: no task, a task without runs, or lists of different tasks.
    """
    tasks = _tasks(scores)
    divisors = [np.ones(1)] * len(tasks) if units is None else _tasks(units)
    value = float(scipy.stats.trim_mean(np.concatenate([a / b.mean() for a, b in zip(tasks, divisors, strict=True)]), 0.25))
    if not enough(tasks) or (units is not None and not enough(divisors)):
        return Estimate(value, None, None)
    rng = np.random.default_rng(seed)
    drawn = [_resampled(runs, draws, rng) for runs in tasks]
    means = [_resampled(runs, draws, rng).mean(1, keepdims=True) for runs in divisors]
    together = np.concatenate([a / b for a, b in zip(drawn, means, strict=True)], axis=1)
    return _percentiles(value, scipy.stats.trim_mean(together, 0.25, axis=1))


def probability_of_improvement(a: Sequence[Column], b: Sequence[Column]) -> Estimate:
    """Chance that a run of ``a`` scores above a run of ``b`` on the same task, mean over tasks; a tie counts half.

    The mean of Mann and Whitney's U / (n m), as in Agarwal et al., arXiv 2108.13264.

    Args:
        a, b: for each task the runs' scores, the tasks in the same order.

    Returns:
        The probability; standard error and 95 % percentile interval only if both have :func:`enough` runs, by a stratified
        bootstrap that resamples the runs of each task and method.

    Raises:
        ValueError: no task, a task without runs, or lists of different tasks.
    """
    ours, theirs = _tasks(a), _tasks(b)
    if len(ours) != len(theirs):
        raise ValueError(f"{len(ours)} and {len(theirs)} tasks")
    value = float(np.mean([_wins(x[None], y[None])[0] for x, y in zip(ours, theirs, strict=True)]))
    if not (enough(ours) and enough(theirs)):
        return Estimate(value, None, None)
    rng = np.random.default_rng(0)
    pairs = [(_resampled(x, DRAWS, rng), _resampled(y, DRAWS, rng)) for x, y in zip(ours, theirs, strict=True)]
    return _percentiles(value, np.mean([_wins(x, y) for x, y in pairs], axis=0))


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """Wilson's 95 % score interval for a rate; unlike the normal interval it has a width at 0 and at 1.

    Raises:
        ValueError: not 0 <= successes <= trials, or no trials.
    """
    if not 0 <= successes <= trials or trials == 0:
        raise ValueError(f"{successes} successes of {trials} trials")
    interval = scipy.stats.binomtest(successes, trials).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


def _strata(values: Column, clusters: Column, strata: Column | None) -> list[tuple[np.ndarray, np.ndarray]]:
    """Per stratum: (sums of its clusters' values, the clusters' sizes)."""
    strata = [0] * len(values) if strata is None else strata
    if not len(values) == len(clusters) == len(strata) or len(values) == 0:
        raise ValueError(f"need equal lengths above 0, got {len(values)}, {len(clusters)} and {len(strata)}")
    sums: dict[Any, dict[Any, list[float]]] = {}
    for value, cluster, stratum in zip(values, clusters, strata, strict=True):
        entry = sums.setdefault(stratum, {}).setdefault(cluster, [0.0, 0])
        entry[0] += float(value)
        entry[1] += 1
    tables = [np.array(list(group.values()), dtype=np.float64) for group in sums.values()]
    return [(table[:, 0], table[:, 1]) for table in tables]


def _resampled_means(total: np.ndarray, size: np.ndarray, draws: int, rng: np.random.Generator) -> np.ndarray:
    """(draws,) means of a stratum whose clusters are drawn with replacement.

    Resampling n clusters finds only (n - 1) / n of their mean's variance, so deviations are scaled up accordingly.
    """
    means = []
    for start in range(0, draws, BATCH):
        picked = rng.integers(len(size), size=(min(BATCH, draws - start), len(size)))
        means.append(total[picked].sum(axis=1) / size[picked].sum(axis=1))
    mean = total.sum() / size.sum()
    drawn: np.ndarray = mean + (np.concatenate(means) - mean) * np.sqrt(len(size) / (len(size) - 1))
    return drawn


def _satterthwaite(variances: np.ndarray, freedoms: np.ndarray) -> float:
    """Degrees of freedom of a sum of independent estimates of variance, each with its own."""
    if not variances.any():
        return float(freedoms.sum())
    return float(variances.sum() ** 2 / (variances**2 / freedoms).sum())


def _macro(groups: Sequence[tuple[np.ndarray, np.ndarray]]) -> float:
    """Mean over strata of their means, from what :func:`_strata` gives."""
    return float(np.mean([total.sum() / size.sum() for total, size in groups]))


def _quantile(draws: np.ndarray, scale: float, freedom: int, share: float) -> float:
    """A quantile of the sum of a draw and an independent Student's t times ``scale``."""
    if scale <= 1e-12 * np.abs(draws).max():  # seeds that differ by rounding, or not at all
        return float(np.quantile(draws, share))
    reach = scale * float(scipy.stats.t.ppf(share, freedom))

    def excess(x: float) -> float:
        return float(scipy.special.stdtr(freedom, (x - draws) / scale).mean()) - share

    return float(scipy.optimize.brentq(excess, draws.min() + reach - scale, draws.max() + reach + scale))


def _components(values: np.ndarray) -> tuple[float, float, float, float]:
    """Components (prompt, noise, seed x prompt, seed x noise) of one stratum (seeds, prompts, images).

    An interaction with a factor that has one level is 0 here: its variance is then part of the other's.
    """
    seeds, prompts, images = values.shape
    by_prompt, by_image, by_both = values.mean((0, 2)), values.mean(0), values.mean(2)
    crossed = by_both - by_both.mean(1, keepdims=True) - by_prompt + values.mean()
    rest = values - by_both[:, :, None] - by_image + by_prompt[:, None]
    prompt = seeds * images * _mean_square(by_prompt - values.mean(), prompts - 1)
    noise = seeds * _mean_square(by_image - by_prompt[:, None], prompts * (images - 1))
    seed_prompt = images * _mean_square(crossed, (seeds - 1) * (prompts - 1))
    seed_noise = _mean_square(rest, (seeds - 1) * prompts * (images - 1))
    return (
        (prompt - noise - seed_prompt + seed_noise) / (seeds * images),
        (noise - seed_noise) / seeds,
        (seed_prompt - seed_noise) / images,
        seed_noise,
    )


def _mean_square(deviations: np.ndarray, freedom: int) -> float:
    return float((deviations**2).sum() / freedom) if freedom else 0.0


def _tasks(scores: Sequence[Column]) -> list[np.ndarray]:
    tasks = [np.asarray(runs, dtype=np.float64) for runs in scores]
    if not tasks or any(runs.ndim != 1 or runs.size == 0 for runs in tasks):
        raise ValueError("need at least one task and a run of each")
    return tasks


def _resampled(runs: np.ndarray, draws: int, rng: np.random.Generator) -> np.ndarray:
    """(draws, runs) drawn with replacement."""
    return runs[rng.integers(len(runs), size=(draws, len(runs)))]


def _wins(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(draws,) share of pairs in which a run of ``a`` (draws, n) is above one of ``b`` (draws, m)."""
    ours, theirs = a[:, :, None], b[:, None, :]
    shares: np.ndarray = ((ours > theirs) + 0.5 * (ours == theirs)).mean((1, 2))
    return shares


def _percentiles(value: float, draws: np.ndarray) -> Estimate:
    low, high = np.quantile(draws, (0.025, 0.975))
    return Estimate(value, float(draws.std(ddof=1)), (float(low), float(high)))
