"""The rows of a result file as one estimate per method: the mean over seeds, with the interval it deserves."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import groupby

from star.common.statistics import Estimate, mean_interval, normal_interval, wilson
from star.records.results import Row, is_rate


@dataclass(frozen=True)
class Summary:
    """What a file says about one metric of one method.

    Attributes:
        task, metric, protocol, method: as in :class:`star.records.results.Row`.
        estimate: mean over seeds. Several seeds: 95 % t-interval over seeds. One seed, or several that agree by chance: the
            mean of the rows' standard errors over prompts, and the normal interval from it. A rate of exactly 0 or 1:
            Wilson's interval over the prompts, since there the other two have no width.
        values: every seed's value, in the order of the seeds.
        spread: standard deviation of the score over prompts, from the rows' standard errors; None if they have none.
        images, prompts, updates, images_seen: of one seed's evaluation and training; the smallest over the seeds.
    """

    task: str
    metric: str
    protocol: str
    method: str
    estimate: Estimate
    values: tuple[float, ...]
    spread: float | None
    images: int
    prompts: int
    updates: int
    images_seen: int

    @property
    def seeds(self) -> int:
        """How many seeds it is a mean over."""
        return len(self.values)

    @property
    def shown(self) -> Estimate:
        """The estimate as displayed: a rate's interval is clipped to [0, 1]. Verdicts use the whole interval."""
        if self.estimate.interval is None or not is_rate(self.metric):
            return self.estimate
        low, high = self.estimate.interval
        return replace(self.estimate, interval=(max(low, 0.0), min(high, 1.0)))


def summarise(rows: Iterable[Row]) -> list[Summary]:
    """One summary per (task, metric, protocol, method), sorted by those."""
    ordered = sorted(rows, key=lambda row: row.key)
    return [_summary(list(group)) for _, group in groupby(ordered, key=lambda row: row.key[:-1])]


def _summary(rows: list[Row]) -> Summary:
    first = rows[0]
    values = tuple(row.value for row in rows)
    return Summary(
        *first.key[:-1],
        estimate=_estimate(rows),
        values=values,
        spread=_spread(rows),
        images=min(row.images for row in rows),
        prompts=min(row.prompts for row in rows),
        updates=min(row.updates for row in rows),
        images_seen=min(row.images_seen for row in rows),
    )


def _spread(rows: list[Row]) -> float | None:
    found = [row.stderr * row.prompts**0.5 for row in rows if row.stderr is not None and row.prompts]
    return sum(found) / len(found) if found else None


def _estimate(rows: list[Row]) -> Estimate:
    over_seeds = mean_interval([row.value for row in rows])
    if len({row.value for row in rows}) > 1:
        return over_seeds
    value, own = rows[0].value, [row.stderr for row in rows if row.stderr is not None]
    if value in (0.0, 1.0) and (len(rows) > 1 or own == [0.0]):
        prompts = min(row.prompts for row in rows)
        return Estimate(value, 0.0, wilson(round(value * prompts), prompts)) if prompts else over_seeds
    if len(own) < len(rows):
        return over_seeds
    # Seeds share prompts and noise: their standard errors do not shrink with their number.
    stderr = sum(own) / len(own)
    return normal_interval(value, stderr)
