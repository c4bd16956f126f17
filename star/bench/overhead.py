"""What STAR's maps cost: epochs of two methods, alternating in one process, and the ratio of their times."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from star.bench.words import refuse_runs
from star.common.progress import bar
from star.common.statistics import Estimate, mean_interval
from star.config import load
from star.tasks import load_task
from star.training import guards
from star.training.machine import loaded
from star.training.trainer import Trainer

METHODS = ("dense_uniform", "star")
ROUNDS = 5


def measure(overrides: Sequence[str]) -> list[tuple[str, Estimate]]:
    """Time STAR's epochs against those of ``dense_uniform``, whose weights are 1.

    The first epoch of each is not counted. Methods alternate, so that a change of the machine's speed affects both; both
    draw the same noise.

    Args:
        overrides: settings.

    Returns:
        (what, mean over epochs with Student's interval): seconds per epoch of each method, and their ratio in each round.

    Raises:
        UserError: a setting that cannot be used.
        RunStopped: the GPU's memory is not enough.
    """
    config = load(overrides, own_folder=False)
    refuse_runs(overrides, f"what is timed is {' and '.join(METHODS)}, in a folder that goes away")
    with guards.limits(config), tempfile.TemporaryDirectory() as folder:
        own = {method: load([*overrides, f"method={method}", f"run={Path(folder) / method}"]) for method in METHODS}
        # Both train one model, in turn: its weights do not matter to its pace, and two may not fit a GPU.
        base, task = loaded(own["star"]), load_task(config, config.task.name)
        trainers = {method: Trainer(settings, task, base) for method, settings in own.items()}
        seconds: dict[str, list[float]] = {method: [] for method in METHODS}
        with bar("epochs in turn", (ROUNDS + 1) * len(METHODS)) as display:
            for epoch in range(ROUNDS + 1):
                order = METHODS if epoch % 2 else METHODS[::-1]
                for method in order:
                    figures = trainers[method].epoch(epoch)
                    if epoch:
                        seconds[method].append(figures["sampling_seconds"] + figures["update_seconds"])
                    display.advance()
    ratios = [star / uniform for uniform, star in zip(*seconds.values(), strict=True)]
    results = [(f"{method}, seconds", mean_interval(values)) for method, values in seconds.items()]
    return [*results, ("ratio star / dense_uniform", mean_interval(ratios))]
