"""How much reward the first updates of trainings gain, by arm, from the rows of ``star bench first_updates``."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from star.common.statistics import Estimate, detectable_among, jackknife, mean_interval, paired_p
from star.method.arms import ARMS, REFERENCE
from star.records.folder import FIRST_UPDATES, NEEDED

COLUMNS = NEEDED[FIRST_UPDATES]
"""``epoch`` counts from 1, ``updates`` is how many were made before it, and ``reward`` is the epoch's mean reward."""

UNTRAINED = "untrained"
"""In place of an arm's name, in rows of trainings that make no update."""

SECOND = 2
"""The first epoch is drawn before the first update, so that all arms have the same rewards in it."""


@dataclass(frozen=True)
class Gain:
    """What an arm gained.

    Attributes:
        arm: its name.
        seeds: how many the arm, Flow-GRPO and the untrained model have in common.
        epochs: the last one that the figures rest on.
        gain: mean over seeds of the reward minus the untrained model's, with Student's 95 % t-interval.
        difference: gain minus Flow-GRPO's, seed by seed; None for Flow-GRPO itself.
        per_seed: the difference of each seed; empty likewise.
        p: of the difference (:func:`star.common.statistics.paired_p`); None where there is none.
        detectable: the true difference that this many seeds would find in four of five cases; None likewise.
        ratio: gain divided by Flow-GRPO's on the same seeds and epochs, both summed over seeds; NaN unless that is above 0.
        stderr: of the ratio, by the jackknife over seeds; NaN with one seed.
    """

    arm: str
    seeds: int
    epochs: int
    gain: Estimate
    difference: Estimate | None
    per_seed: tuple[float, ...]
    p: float | None
    detectable: float | None
    ratio: float
    stderr: float


def gains_by_seed(rows: pd.DataFrame, arms: Sequence[str], since: int = SECOND) -> tuple[pd.DataFrame, int]:
    """Each arm's reward minus the untrained model's on the same prompts and noise, mean over epochs.

    Args:
        rows: of one task and one configuration, with the columns ``arm``, ``seed``, ``epoch`` and ``reward``.
        arms: the arms wanted; the rows of others do not affect them.
        since: the first epoch that counts.

    Returns:
        a table with a row per seed and a column per arm, and the last epoch that counts: the one most common among the
        seeds, of those that all arms have. Seeds with fewer are left out.
    """
    later = rows[(rows["epoch"] >= since) & rows["arm"].isin([*arms, UNTRAINED])]
    rewards = later.pivot_table(index=["seed", "epoch"], columns="arm", values="reward")
    rewards = rewards.reindex(columns=[*arms, UNTRAINED]).dropna()
    rewards, count = _complete(rewards)
    above = rewards.sub(rewards[UNTRAINED], axis=0)[list(arms)]
    means: pd.DataFrame = above.groupby("seed").head(count).groupby("seed").mean()
    return means, since + count - 1


def _complete(rewards: pd.DataFrame) -> tuple[pd.DataFrame, int]:
    """Of rewards by seed and epoch, those of seeds that have no fewer epochs than most have, and how many that are."""
    epochs = rewards.groupby("seed").size()
    count = int(epochs.mode().max()) if len(epochs) else 0
    return rewards[rewards.index.get_level_values("seed").isin(epochs.index[epochs >= count])], count


def gains(rows: pd.DataFrame, since: int = SECOND) -> list[Gain]:
    """What each arm gained, and how that compares with Flow-GRPO's gain, on all seeds that both have.

    Args:
        rows, since: as for :func:`gains_by_seed`.

    Returns:
        the arms in the order of :data:`star.method.arms.ARMS`, without those that have no seed with Flow-GRPO.
    """
    return [one for arm in _trained(rows) if (one := gain(rows, arm, since=since))]


def against_each(rows: pd.DataFrame, arm: str) -> dict[str, Gain]:
    """An arm's gain beside that of every other trained arm, which stands in Flow-GRPO's place: other arm -> gain.

    Flow-GRPO is not among them: :func:`gains` compares with it.

    Args:
        rows: as for :func:`gains_by_seed`.
        arm: the one that is compared.
    """
    others = [other for other in _trained(rows) if other not in (REFERENCE, arm)]
    return {other: one for other in others if (one := gain(rows, arm, other))}


def gain(rows: pd.DataFrame, arm: str, reference: str = REFERENCE, since: int = SECOND) -> Gain | None:
    """An arm's gain beside a reference's; None if they have no seed in common.

    Args:
        rows, since: as for :func:`gains_by_seed`.
        arm, reference: two arms; one that was not trained has no seed.
    """
    by_seed, epochs = gains_by_seed(rows, list(dict.fromkeys([arm, reference])), since)
    return _gain(arm, by_seed[arm].to_numpy(), by_seed[reference].to_numpy(), epochs) if len(by_seed) else None


def _trained(rows: pd.DataFrame) -> list[str]:
    """The arms of the rows, in the order of the table of arms: rows of arms that were added later stand behind all others."""
    order = list(ARMS)
    names = [str(arm) for arm in rows["arm"].unique() if arm != UNTRAINED]
    return sorted(names, key=lambda arm: order.index(arm) if arm in order else len(order))


def last_third(rows: pd.DataFrame) -> int:
    """The first epoch of the last third: 21 of 30."""
    last = int(rows["epoch"].max())
    return last - last // 3 + 1


def leads(rows: pd.DataFrame) -> pd.DataFrame:
    """Each arm's reward minus Flow-GRPO's, mean over the seeds that have all arms: a row per epoch, a column per other arm.

    Seeds with fewer epochs than the most common number are left out, as in :func:`gains_by_seed`, else the mean would jump.

    Args:
        rows: as for :func:`gains_by_seed`.
    """
    rewards = rows[rows["arm"] != UNTRAINED].pivot_table(index=["seed", "epoch"], columns="arm", values="reward", sort=False)
    if REFERENCE not in rewards:
        return pd.DataFrame()
    whole, _ = _complete(rewards.dropna())
    means: pd.DataFrame = whole.sub(whole[REFERENCE], axis=0).drop(columns=REFERENCE).groupby("epoch").mean()
    return means


def _gain(arm: str, own: np.ndarray, reference: np.ndarray, epochs: int) -> Gain:
    ratio = stderr = np.array(math.nan)
    if reference.sum() > 0:  # a quotient of two losses would read as a gain
        with np.errstate(invalid="ignore", divide="ignore"):
            ratio, stderr = jackknife(lambda kept: own[kept].sum() / reference[kept].sum(), len(own))
    apart = own - reference
    told = arm != REFERENCE
    return Gain(
        arm=arm,
        seeds=len(own),
        epochs=epochs,
        gain=mean_interval(list(own)),
        difference=mean_interval(list(apart)) if told else None,
        per_seed=tuple(apart.tolist()) if told else (),
        p=paired_p(list(apart)) if told else None,
        detectable=detectable_among(list(apart)) if told else None,
        ratio=float(ratio),
        stderr=float(stderr),
    )
