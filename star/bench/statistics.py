"""Intervals and standard errors that hold for a few seeds and for several images per prompt.

With few seeds only the t-interval keeps its promise: a percentile bootstrap over three seeds that claims 95 % covers
the truth about two times in three. Images of one prompt are correlated, so prompts, not images, are resampled.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

BATCH = 500  # bootstrap draws at a time: bounds the memory to BATCH x clusters

Column = Sequence[Any] | np.ndarray


@dataclass(frozen=True)
class Estimate:
    """A number and how far it can be trusted; ``stderr`` and ``interval`` are None where there is no way to tell."""

    value: float
    stderr: float | None
    interval: tuple[float, float] | None

    @property
    def half_width(self) -> float | None:
        return None if self.interval is None else (self.interval[1] - self.interval[0]) / 2


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> Estimate:
    """Mean over independent seeds with Student's t-interval; a single value has no interval.

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
    reach = float(stats.t.ppf((1 + confidence) / 2, sample.size - 1)) * stderr
    return Estimate(mean, stderr, (mean - reach, mean + reach))


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
    draws: int = 10_000,
    seed: int = 0,
) -> Estimate:
    """Mean of a - b over images drawn from the same prompts and noise, with a bootstrap that resamples prompts.

    Args:
        a, b: (n,) per image, in the same order.
        clusters, strata: as in :func:`clustered_stderr`; prompts are resampled within their stratum.
        draws: bootstrap draws.
        seed: of the draws.

    Returns:
        The difference, the bootstrap's standard error and its 95 % percentile interval; no error and no interval if a
        stratum has a single cluster.

    Raises:
        ValueError: no values, or lengths that differ.
    """
    if len(a) != len(b):
        raise ValueError(f"pairs need equal lengths, got {len(a)} and {len(b)}")
    groups = _strata(np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64), clusters, strata)
    value = float(np.mean([total.sum() / size.sum() for total, size in groups]))
    if any(len(size) < 2 for _, size in groups):
        return Estimate(value, None, None)
    rng = np.random.default_rng(seed)
    means = np.mean([_resampled_means(total, size, draws, rng) for total, size in groups], axis=0)
    low, high = np.quantile(means, (0.025, 0.975))
    return Estimate(value, float(means.std(ddof=1)), (float(low), float(high)))


def wilson(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval for a rate; unlike the normal interval it has a width at 0 and at 1.

    Raises:
        ValueError: not 0 <= successes <= trials, or no trials.
    """
    if not 0 <= successes <= trials or trials == 0:
        raise ValueError(f"{successes} successes of {trials} trials")
    z2 = float(stats.norm.ppf((1 + confidence) / 2)) ** 2
    rate = successes / trials
    centre = (rate + z2 / (2 * trials)) / (1 + z2 / trials)
    reach = np.sqrt(z2 * (rate * (1 - rate) / trials + z2 / (4 * trials**2))) / (1 + z2 / trials)
    return max(0.0, float(centre - reach)), min(1.0, float(centre + reach))


def _strata(values: Column, clusters: Column, strata: Column | None) -> list[tuple[np.ndarray, np.ndarray]]:
    """Per stratum: (sums of its clusters' values, the clusters' sizes)."""
    strata = [0] * len(values) if strata is None else strata
    if not len(values) == len(clusters) == len(strata) or len(values) == 0:
        raise ValueError(f"need equal lengths above 0, got {len(values)}, {len(clusters)} and {len(strata)}")
    sums: dict = {}
    for value, cluster, stratum in zip(values, clusters, strata, strict=True):
        entry = sums.setdefault(stratum, {}).setdefault(cluster, [0.0, 0])
        entry[0] += float(value)
        entry[1] += 1
    tables = [np.array(list(group.values()), dtype=np.float64) for group in sums.values()]
    return [(table[:, 0], table[:, 1]) for table in tables]


def _resampled_means(total: np.ndarray, size: np.ndarray, draws: int, rng: np.random.Generator) -> np.ndarray:
    """(draws,) means of a stratum whose clusters are drawn with replacement."""
    means = []
    for start in range(0, draws, BATCH):
        picked = rng.integers(len(size), size=(min(BATCH, draws - start), len(size)))
        means.append(total[picked].sum(axis=1) / size[picked].sum(axis=1))
    return np.concatenate(means)
