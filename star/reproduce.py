"""``star reproduce``: base, Flow-GRPO and STAR on one task, the result file, the table and the diff against the paper."""

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from rich.console import Console

from star import config as settings
from star import runs, tasks
from star.bench import diff, results, tables
from star.bench.figures import reward_curves
from star.bench.statistics import Estimate, paired_difference
from star.bench.tables import method_label
from star.checkpoint import RunFolder, write_text
from star.config import Config
from star.pipeline import check_present
from star.trainer import load_task

METHODS = ("flow_grpo", "star")


def reproduce(task: str, overrides: Sequence[str]) -> int:
    """Run the task's main comparison; what is already done is not done again.

    Args:
        task: ``geneval``, ...
        overrides: settings for all runs, e.g. ``scale=paper`` or ``seed=1``.

    Returns:
        the exit code of the diff.

    Raises:
        UserError: a setting, the model or an evaluator is not usable; nothing was written then.
    """
    configs = {method: settings.load([*overrides, f"task={task}", f"method={method}"]) for method in METHODS}
    first = configs[METHODS[0]]
    folder = Path("results") / first.scale
    file = folder / f"{task}.csv"
    # What is missing is told before hours of training, not after.
    check_present(first.model)
    for name in first.evaluators:
        load_task(first, name)
    results.upsert(file, runs.base(first))
    for config in configs.values():
        for name, part in groupby(runs.trained(config), key=lambda row: row.task):
            results.upsert(folder / f"{name}.csv", list(part))
    rows = results.read(file)
    table = tables.markdown(rows, results.read_paper(diff.find_paper()))
    difference = _difference(configs)
    write_text(folder / f"{task}.md", f"{table}\n{difference}\n\n![Reward curves]({task}.png)\n")
    curves = {method_label(method): RunFolder(Path(config.run)).metrics() for method, config in configs.items()}
    reward_curves(curves, f"{task}, {first.scale}, seed {first.seed}", folder / f"{task}.png")
    code = diff.run(file, None, as_json=False)
    console = Console()
    console.print(f"\n{tables.MINI_WARNING}" if first.scale == "mini" else "", markup=False, soft_wrap=True)
    console.print(f"\n{difference}", markup=False, soft_wrap=True)
    console.print(f"\nresults: {file} and {file.with_suffix('.md')}", markup=False, soft_wrap=True)
    return code


def _difference(configs: dict[str, Config]) -> str:
    """One sentence on STAR against Flow-GRPO, from the same prompts and noise."""
    frames = [runs.images(Path(configs[method].run)) for method in ("star", "flow_grpo")]
    star, flow_grpo = (frame.sort_values(["prompt", "image"]) for frame in frames)
    gains = []
    for column, label in tasks.find(configs["star"].task.name).paired.items():
        ours, theirs = (frame[column].to_numpy(float) for frame in (star, flow_grpo))
        gain = paired_difference(ours, theirs, star["prompt"].to_numpy(), strata=star["stratum"].to_numpy())
        gains.append(f"{label} {_signed(gain)}")
    return (
        f"STAR minus Flow-GRPO, seed {configs['star'].seed}, same prompts and noise, paired bootstrap by prompt "
        f"(95 % interval; the variance between training seeds is not in it): {'; '.join(gains)}."
    )


def _signed(delta: Estimate) -> str:
    assert delta.interval is not None
    low, high = delta.interval
    return f"{delta.value:+.4f} [{low:+.4f}, {high:+.4f}]"
