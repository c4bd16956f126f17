"""The rows of a result file as one estimate per method: the mean over seeds, with the interval it deserves."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import groupby

from evaluators.interface import is_rate
from star.common.numbers import named_seeds
from star.common.statistics import Estimate, mean_interval, normal_interval, wilson
from star.records.names import method_label
from star.records.results import Row


@dataclass(frozen=True)
class Summary:
    """What a file says about one metric of one method.

    Attributes:
        task, metric, protocol, method: as in :class:`star.records.results.Row`.
        estimate: mean over the seeds that were trained and evaluated equally long; of several such sets, over the largest.
            Several seeds: 95 % t-interval over seeds. One seed, or several that agree by chance: the mean of the rows'
            standard errors over prompts, and the normal interval from it. A rate of exactly 0 or 1: Wilson's interval over
            the prompts, since there the other two have no width.
        values: the value of each of these seeds, in their order.
        spread: standard deviation of the score over prompts, from the rows' standard errors; None if they have none.
        images, prompts, updates, images_seen: of one seed's evaluation and training. An evaluator of one's own may average
            over other images in each; then the fewest.
        pooled, left_out: the seeds that it is a mean over, and the others.
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
    pooled: tuple[int, ...] = ()
    left_out: tuple[int, ...] = ()

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
    sizes: dict[Run, tuple[int, int]] = {}
    for row in ordered:
        images, prompts = sizes.get(_run(row), (0, 0))
        sizes[_run(row)] = max(images, row.images), max(prompts, row.prompts)
    return [_summary(list(group), sizes) for _, group in groupby(ordered, key=lambda row: row.key[:-1])]


def unlike(summaries: Iterable[Summary]) -> list[str]:
    """Sentences on seeds that are in no mean, because they were trained or evaluated shorter or longer than others."""
    found = [
        f"{s.task}, {method_label(s.method)}: {named_seeds(s.left_out)} had other numbers of updates, of images in training "
        f"or of images or prompts in the evaluation than {named_seeds(s.pooled)}; the means are of the latter alone."
        for s in summaries
        if s.left_out
    ]
    return list(dict.fromkeys(found))


Run = tuple[str, str, str, int]


def _run(row: Row) -> Run:
    return row.task, row.protocol, row.method, row.seed


def _summary(every: list[Row], sizes: Mapping[Run, tuple[int, int]]) -> Summary:
    """The summary of one metric; ``sizes`` are the images and prompts of whole evaluations."""
    ways: dict[tuple[int, ...], list[Row]] = {}
    for row in every:
        ways.setdefault((row.updates, row.images_seen, *sizes[_run(row)]), []).append(row)
    rows = max(ways.values(), key=len)
    first = rows[0]
    values = tuple(row.value for row in rows)
    return Summary(
        *first.key[:-1],
        estimate=_estimate(rows),
        values=values,
        spread=_spread(rows),
        images=min(row.images for row in rows),
        prompts=min(row.prompts for row in rows),
        updates=first.updates,
        images_seen=first.images_seen,
        pooled=tuple(row.seed for row in rows),
        left_out=tuple(row.seed for row in every if row not in rows),
    )


def _spread(rows: list[Row]) -> float | None:
    found = [row.stderr * row.prompts**0.5 for row in rows if row.stderr is not None and row.prompts]
    return sum(found) / len(found) if found else None


def _estimate(rows: list[Row]) -> Estimate:
    over_seeds = mean_interval([row.value for row in rows])
    if len({row.value for row in rows}) > 1:
        return over_seeds
    value, own = rows[0].value, [row.stderr for row in rows if row.stderr is not None]
    # Of a metric that need be no rate the errors tell: 0 and 1 may be values like others.
    perfect = own == [0.0] * len(rows) or (len(rows) > 1 and is_rate(rows[0].metric))
    if value in (0.0, 1.0) and perfect:
        prompts = min(row.prompts for row in rows)
        return Estimate(value, 0.0, wilson(round(value * prompts), prompts)) if prompts else over_seeds
    if len(own) < len(rows):  # seeds that agree by chance show no spread
        return Estimate(value, None, None)
    # Seeds share prompts and noise: their standard errors do not shrink with their number.
    stderr = sum(own) / len(own)
    return normal_interval(value, stderr)
