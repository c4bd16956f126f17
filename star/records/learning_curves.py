"""How fast a method learns: what it takes to reach a reward, and the reward averaged over the training."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

WINDOW = 5
"""Epochs in the running mean: a single epoch's reward rests on a few prompts, and a lucky one must not count."""

SHARES = (0.5, 1.0)
"""The rewards whose cost is reported, as shares of the way from the start to the goal."""


@dataclass(frozen=True)
class Reach:
    """What each seed's training took to reach a level, None where it never did."""

    costs: tuple[float | None, ...]

    @property
    def reached(self) -> int:
        """How many seeds got there."""
        return sum(cost is not None for cost in self.costs)

    @property
    def median(self) -> float | None:
        """The median over seeds, where "never" counts as later than any cost; None if half of them or more never got there.

        With an even number of seeds it is the later of the two in the middle, so that no number is made up.
        """
        ordered = sorted(np.inf if cost is None else cost for cost in self.costs)
        middle = ordered[len(ordered) // 2] if ordered else np.inf
        return float(middle) if np.isfinite(middle) else None


def running_mean(rewards: Sequence[float] | np.ndarray, window: int = WINDOW) -> np.ndarray:
    """(n - window + 1,) means of ``window`` epochs in a row; empty if there are fewer."""
    if len(rewards) < window:
        return np.empty(0)
    return np.convolve(np.asarray(rewards, dtype=np.float64), np.full(window, 1 / window), mode="valid")


def cost_to_reach(costs: Sequence[float], rewards: Sequence[float], level: float, window: int = WINDOW) -> float | None:
    """The cost (updates, images or seconds) at the first epoch whose running mean is at the level; None if it never is.

    Args:
        costs: (n,) total so far, at the end of each epoch.
        rewards: (n,) mean reward of each epoch.
        level: the reward to reach.
        window: number of epochs in the running mean, which ends with the epoch in question.

    Raises:
        ValueError: lengths that differ.
    """
    if len(costs) != len(rewards):
        raise ValueError(f"{len(costs)} costs for {len(rewards)} rewards")
    at_level = np.flatnonzero(running_mean(rewards, window) >= level - 1e-12)
    return float(costs[at_level[0] + window - 1]) if len(at_level) else None


def area_under_curve(costs: Sequence[float], rewards: Sequence[float], until: float | None = None) -> float:
    """The reward averaged over the cost: the area under the curve by the trapezoidal rule, over the cost's range.

    Args:
        costs: (n,) ascending, n >= 2.
        rewards: (n,).
        until: where to stop, so that runs of different length are compared over the same range; by default the end.

    Raises:
        ValueError: fewer than two points, lengths that differ, costs that do not ascend, or ``until`` outside their range.
    """
    x, y = np.asarray(costs, dtype=np.float64), np.asarray(rewards, dtype=np.float64)
    if len(x) != len(y) or len(x) < 2 or (np.diff(x) <= 0).any():
        raise ValueError("the area under a curve needs two points or more, in ascending order of cost")
    end = x[-1] if until is None else until
    if not x[0] < end <= x[-1]:
        raise ValueError(f"the curve goes from {x[0]} to {x[-1]}, not to {end}")
    inside = x < end
    x, y = np.append(x[inside], end), np.append(y[inside], np.interp(end, x, y))
    return float(np.trapezoid(y, x) / (x[-1] - x[0]))


def levels(start: float, goal: float) -> list[float]:
    """Rewards to reach: :data:`SHARES` of the way; none if the goal is not above the start."""
    return [start + share * (goal - start) for share in SHARES] if goal > start else []
