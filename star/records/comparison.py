"""Two methods on the same prompts and noise, image by image."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import norm

from star.common.statistics import Estimate, Variances, detectable_among, paired_difference, score_variances, seed_means
from star.records.names import has_map

IMAGE = ["stratum", "prompt", "image"]

FOUR_OF_FIVE = float(norm.ppf(0.8))
"""If a true difference exceeds half the width of its interval by this many standard errors, the interval leaves out 0 in four
of five cases."""


@dataclass(frozen=True)
class Comparison:
    """Arm minus reference on one score.

    Attributes:
        arm, reference: methods.
        label: of the score.
        delta: mean over the shared images, with the interval of :func:`star.common.statistics.paired_difference`.
        seeds: the training seeds that both have.
        per_seed: the difference of each.
        prompts, images: of one seed.
        trained_on: how many images the training of each has drawn; 0 if it was not trained.
        same_terms: whether their trainings differ in nothing but the method, as far as is known.
    """

    arm: str
    reference: str
    label: str
    delta: Estimate
    seeds: tuple[int, ...]
    per_seed: tuple[float, ...]
    prompts: int
    images: int
    trained_on: tuple[int, int]
    same_terms: bool = True

    @property
    def detectable(self) -> float | None:
        """The true difference that four of five such measurements find, on other prompts too; None if no spread is known."""
        among_seeds = detectable_among(self.per_seed)
        if among_seeds is None:
            return None
        return max(among_seeds, (self.delta.half_width or 0) + FOUR_OF_FIVE * (self.delta.stderr or 0))

    @property
    def equal_terms(self) -> bool:
        """Whether both were trained equally long and on the same terms, or one was not trained at all."""
        return 0 in self.trained_on or (self.trained_on[0] == self.trained_on[1] and self.same_terms)


def compare(images: pd.DataFrame, arm: str, reference: str, column: str, label: str) -> Comparison | None:
    """Compare two methods on one score; None if they share no images.

    Runs with the same training seed and evaluation protocol are paired image by image; an untrained model, which has no
    training seed, is paired with every run. If seeds were trained or evaluated in several ways, only those of the most common
    way count, and only images that all these seeds have.

    Args:
        images: verdicts of one task: ``method``, ``seed``, ``protocol``, ``trained_on``, ``terms`` (of the training; empty
            if not known), ``stratum``, ``prompt``, ``image`` and the score's column.
        arm, reference: methods.
        column, label: of the score.
    """
    if column not in images:
        return None
    known = _known(images[images["method"].isin([arm, reference])], column)
    ours, theirs = (known[known["method"] == method] for method in (arm, reference))
    keys = [*IMAGE, "protocol", "seed"]
    if not ours["trained_on"].any():
        ours, keys = ours.drop(columns="seed"), keys[:-1]
    elif not theirs["trained_on"].any():
        theirs, keys = theirs.drop(columns="seed"), keys[:-1]
    # In a fixed order, because the bootstrap's draws depend on it.
    pairs = ours.merge(theirs, on=keys, suffixes=("_arm", "_reference")).sort_values([*IMAGE, "seed"])
    if pairs.empty:
        return None
    pairs = _most_seeds(_alike(part) for _, part in pairs.groupby("protocol"))
    seeds = np.sort(pairs["seed"].unique())
    pairs = pairs[pairs.groupby(IMAGE)["seed"].transform("nunique") == len(seeds)]
    if pairs.empty:
        return None
    terms = set(zip(pairs["terms_arm"], pairs["terms_reference"], strict=True))
    a, b = (pairs[f"{column}_{side}"].to_numpy(float) for side in ("arm", "reference"))
    clusters, strata, of_seed = (pairs[name].to_numpy() for name in ("prompt", "stratum", "seed"))
    return Comparison(
        arm,
        reference,
        label,
        paired_difference(a, b, clusters, strata=strata, seeds=of_seed),
        tuple(int(seed) for seed in seeds),
        tuple(seed_means(a - b, clusters, of_seed, strata=strata)),
        pairs["prompt"].nunique(),
        len(pairs) // len(seeds),
        (int(pairs["trained_on_arm"].min()), int(pairs["trained_on_reference"].min())),
        all(alike(arm, one, reference, other) for one, other in terms),
    )


def alike(method: str, terms: str, other: str, others: str) -> bool:
    """Whether trainings of two methods differ in nothing but the method, as far as is known.

    Args:
        method, other: their names.
        terms, others: their :func:`star.config.identity.terms`; empty if unknown.
    """
    if not terms or not others:
        return True
    if has_map(method) and has_map(other):
        return terms == others
    return terms.partition("/")[0] == others.partition("/")[0]


class Trained(NamedTuple):
    """One training and what it reached on one measure.

    Attributes:
        method: which arm.
        value: of the measure.
        length: how long it was trained: epochs or images.
        terms: see :func:`alike`.
        judged: on how many images of how many prompts the value was measured; zeros if it is of the training itself.
    """

    method: str
    value: float
    length: int
    terms: str
    judged: tuple[int, int] = (0, 0)

    def like(self, other: "Trained") -> bool:
        """Whether both were trained alike, as far as is known, and judged on as many images."""
        same = (self.length, self.judged) == (other.length, other.judged)
        return same and alike(self.method, self.terms, other.method, other.terms)


def variances(images: pd.DataFrame, method: str, column: str) -> Variances | None:
    """Where the variance of a run's score comes from, or None without verdicts of the method.

    Of several protocols, the one with the most seeds counts. Only images that all seeds have are used, and in each stratum the
    same number per prompt: as many as every prompt has.
    """
    if column not in images:
        return None
    known = _known(images[images["method"] == method], column)
    if known.empty:
        return None
    known = _most_seeds(part for _, part in known.groupby("protocol"))
    known = known[known.groupby(IMAGE)["seed"].transform("nunique") == known["seed"].nunique()]
    strata = [table for _, part in known.groupby("stratum") if (table := _table(part, column)).size]
    return score_variances(strata) if strata else None


def _alike(pairs: pd.DataFrame) -> pd.DataFrame:
    """From the pairs of one protocol, those of the largest set of seeds that were trained alike, as far as is known."""
    sides = ("_arm", "_reference")
    ways = pairs.drop_duplicates("seed").set_index("seed")
    same = {
        seed: np.logical_and.reduce([ways[f"trained_on{side}"] == way[f"trained_on{side}"] for side in sides])
        & np.logical_and.reduce([ways[f"terms{side}"].isin([way[f"terms{side}"], ""]) for side in sides])
        for seed, way in ways.sort_index().iterrows()
    }
    most = max(same.values(), key=np.count_nonzero)
    return pairs[pairs["seed"].isin(ways.index[most])]


def _known(images: pd.DataFrame, column: str) -> pd.DataFrame:
    """Images that have the score; a prompt that a benchmark lists twice has the same images twice and counts once."""
    return images.dropna(subset=[column]).drop_duplicates(["method", "seed", "protocol", *IMAGE])


def _most_seeds(parts: Iterable[pd.DataFrame]) -> pd.DataFrame:
    """The part with the most seeds; the first one if several have as many."""
    return max(parts, key=lambda part: part["seed"].nunique())


def _table(part: pd.DataFrame, column: str) -> np.ndarray:
    """One stratum as (seeds, prompts, images)."""
    part = part.sort_values(["seed", "prompt", "image"])
    shared = part.groupby(["seed", "prompt"]).size().min()
    part = part.groupby(["seed", "prompt"]).head(shared)
    return part[column].to_numpy(float).reshape(part["seed"].nunique(), part["prompt"].nunique(), -1)
