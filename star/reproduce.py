"""``star reproduce``: base, Flow-GRPO and STAR on one task, and one screen that sums up the results."""

from collections.abc import Sequence
from pathlib import Path

from star import config as settings
from star.common.console import console
from star.common.errors import UserError
from star.matrix.run import plan, run
from star.records import diff
from star.records.folder import own_results
from star.report import write_report
from star.report.collection import collect
from star.report.ending import ending, show

METHODS = ("flow_grpo", "star")


def reproduce(task: str, overrides: Sequence[str]) -> int:
    """Run the task's main comparison as a small matrix; what is already done is not repeated.

    Args:
        task: ``geneval``, ...
        overrides: as for ``star matrix``, e.g. ``scale=paper``, ``seed=0..2`` or ``launcher.gpus_per_node=8``.

    Returns:
        the exit code of the diff, or 1 if a run failed.

    Raises:
        UserError: several tasks, or a setting, the model or an evaluator that is not usable; nothing has been written then.
    """
    task = task.removeprefix("task=")
    if word := next((word for word in overrides if word.startswith(("task=", "method="))), None):
        raise UserError(f"{word}: star reproduce {task} is {' and '.join(METHODS)} on one task; star matrix runs all others")
    cells, options = plan(["seed=0", *overrides, f"task={task}", f"method={','.join(METHODS)}"])
    tasks = list(dict.fromkeys(cell.task for cell in cells))
    if len(tasks) > 1:
        raise UserError(f"task={task}: star reproduce runs one task; star matrix task={task} runs {' and '.join(tasks)}")
    task = tasks[0]  # one's own prompts may have another name
    if code := run(cells, options):
        return code
    folder = own_results(cells[0].config.scale)
    reference, arm = dict.fromkeys(settings.label(cell.config, cell.method) for cell in cells if cell.seed is not None)
    found = collect(folder, Path("runs"))
    page, _ = write_report(found)
    show(ending(found, task, arm, reference))
    file = folder / f"{task}.csv"
    rows = sum(row.task == task for row in found.rows)
    pictures = [picture for name in ("samples", "maps") if (picture := folder / "figures" / f"{name}-{task}.png").exists()]
    for what, where in {
        "report": str(page),
        "pictures": ", ".join(map(str, pictures)),
        "tables": f"{file.with_suffix('.md')} in short, {file} with all {rows} numbers",
    }.items():
        if where:
            console().print(f"{what + ':':10}{where}", soft_wrap=True)
    return diff.exit_code(diff.diff(file))
