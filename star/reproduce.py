"""``star reproduce``: base, Flow-GRPO and STAR on one task, the result file, the table and the diff against the paper."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from star import config as settings
from star.common.errors import UserError
from star.matrix.run import plan, run
from star.records import diff, tables
from star.report.brief import write_brief
from star.report.collection import collect

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
    if word := next((word for word in overrides if word.startswith(("task=", "method="))), None):
        raise UserError(f"{word}: star reproduce {task} is {' and '.join(METHODS)} on one task; star matrix runs all others")
    cells, options = plan(["seed=0", *overrides, f"task={task}", f"method={','.join(METHODS)}"])
    if code := run(cells, options):
        return code
    scale = cells[0].config.scale
    file = Path("results", scale, f"{task}.csv")
    reference, arm = dict.fromkeys(settings.label(cell.config, cell.method) for cell in cells if cell.seed is not None)
    gain = write_brief(collect(file.parent, Path("runs")), task, arm, reference)
    code = diff.run(file, None, as_json=False)
    console = Console()
    console.print(f"\n{tables.MINI_WARNING}" if scale == "mini" else "", markup=False, soft_wrap=True)
    console.print(f"\n{gain}", markup=False, soft_wrap=True)
    console.print(f"\nresults: {file} and {file.with_suffix('.md')}", markup=False, soft_wrap=True)
    return code
