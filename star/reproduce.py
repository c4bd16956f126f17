"""``star reproduce``: base, Flow-GRPO and STAR on one task, the result file, the table and the diff against the paper."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from rich.console import Console

from star import tasks
from star.bench import diff, results, tables
from star.bench.figures import reward_curves
from star.bench.statistics import Estimate, paired_difference
from star.bench.tables import method_label
from star.files import read_jsonl, write_text
from star.matrix.cells import Cell
from star.matrix.run import plan, run

METHODS = ("flow_grpo", "star")


def reproduce(task: str, overrides: Sequence[str]) -> int:
    """Run the task's main comparison as a small matrix; what is already done is not done again.

    Args:
        task: ``geneval``, ...
        overrides: as for ``star matrix``, e.g. ``scale=paper``, ``seed=0..2`` or ``launcher.gpus_per_node=8``.

    Returns:
        the exit code of the diff, or 1 if a run failed.

    Raises:
        UserError: a setting, the model or an evaluator is not usable; nothing was written then.
    """
    cells, options = plan(["seed=0", *overrides, f"task={task}", f"method={','.join(METHODS)}"])
    if code := run(cells, options):
        return code
    arms = [cell for cell in cells if cell.seed is not None]
    scale = arms[0].config.scale
    file = Path("results", scale, f"{task}.csv")
    table = tables.markdown(results.read(file), results.read_paper(diff.find_paper()))
    pairs = zip(*[[cell for cell in arms if cell.method == method] for method in METHODS], strict=True)
    differences = "\n\n".join(_difference(star, flow_grpo) for flow_grpo, star in pairs)
    write_text(file.with_suffix(".md"), f"{table}\n{differences}\n\n![Reward curves]({task}.png)\n")
    curves = {f"{method_label(cell.method)}, seed {cell.seed}": read_jsonl(cell.folder / "metrics.jsonl") for cell in arms}
    reward_curves(curves, f"{task}, {scale}", file.with_suffix(".png"))
    code = diff.run(file, None, as_json=False)
    console = Console()
    console.print(f"\n{tables.MINI_WARNING}" if scale == "mini" else "", markup=False, soft_wrap=True)
    console.print(f"\n{differences}", markup=False, soft_wrap=True)
    console.print(f"\nresults: {file} and {file.with_suffix('.md')}", markup=False, soft_wrap=True)
    return code


def _difference(star: Cell, flow_grpo: Cell) -> str:
    """One sentence on STAR against Flow-GRPO, from the same prompts and noise."""
    ours, theirs = (_verdicts(cell) for cell in (star, flow_grpo))
    gains = []
    for column, label in tasks.find(star.task).paired.items():
        one, other = (frame[column].to_numpy(float) for frame in (ours, theirs))
        gain = paired_difference(one, other, ours["prompt"].to_numpy(), strata=ours["stratum"].to_numpy())
        gains.append(f"{label} {_signed(gain)}")
    return (
        f"STAR minus Flow-GRPO, seed {star.seed}, same prompts and noise, paired bootstrap by prompt "
        f"(95 % interval; the variance between training seeds is not in it): {'; '.join(gains)}."
    )


def _verdicts(cell: Cell) -> pd.DataFrame:
    return pd.read_csv(cell.folder / "final" / "images.csv").sort_values(["prompt", "image"])


def _signed(delta: Estimate) -> str:
    assert delta.interval is not None
    low, high = delta.interval
    return f"{delta.value:+.4f} [{low:+.4f}, {high:+.4f}]"
