"""``star reproduce``: base, Flow-GRPO and STAR on one task, the result file, the table and the diff against the paper."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from star import config as settings
from star.bench import diff, tables
from star.bench.comparison import Comparison, compare, paired_scores
from star.bench.figures import reward_curves
from star.bench.report.blocks import signed
from star.bench.report.collect import Collection, collect
from star.bench.report.learning import by_seed, curve
from star.bench.statistics import Estimate
from star.bench.tables import method_label
from star.errors import UserError
from star.files import write_text
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
    if word := next((word for word in overrides if word.startswith(("task=", "method="))), None):
        raise UserError(f"{word}: star reproduce {task} is {' and '.join(METHODS)} on one task; star matrix runs all others")
    cells, options = plan(["seed=0", *overrides, f"task={task}", f"method={','.join(METHODS)}"])
    if code := run(cells, options):
        return code
    scale = cells[0].config.scale
    file = Path("results", scale, f"{task}.csv")
    reference, arm = dict.fromkeys(settings.label(cell.config, cell.method) for cell in cells if cell.seed is not None)
    gain = write_summary(file, arm, reference)
    code = diff.run(file, None, as_json=False)
    console = Console()
    console.print(f"\n{tables.MINI_WARNING}" if scale == "mini" else "", markup=False, soft_wrap=True)
    console.print(f"\n{gain}", markup=False, soft_wrap=True)
    console.print(f"\nresults: {file} and {file.with_suffix('.md')}", markup=False, soft_wrap=True)
    return code


def write_summary(file: Path, arm: str = "star", reference: str = "flow_grpo") -> str:
    """Write the table of a task and the curves of its main comparison beside its result file, as ``.md`` and ``.png``.

    Args:
        file: ``results/<scale>/<task>.csv``, with the verdicts and curves that a matrix has put beside it.
        arm, reference: the methods that are compared, by their names in the file.

    Returns:
        a sentence on the difference, with every seed that the results hold of both.
    """
    task, found = file.stem, collect(file.parent, Path("runs"))
    table = tables.markdown([row for row in found.rows if row.task == task], found.paper)
    gain = _gain(found, task, arm, reference)
    write_text(file.with_suffix(".md"), f"{table}\n{gain}\n\n![Reward curves]({task}.png)\n")
    assert found.curves is not None, "a matrix writes them"
    runs = by_seed(found.curves, task)
    methods = (reference, arm)
    lines = {method_label(method): [curve(part, "images_seen") for part in runs[method].values()] for method in methods}
    reward_curves(lines, f"{task}, {found.scale}", file.with_suffix(".png"))
    return gain


def _gain(found: Collection, task: str, arm: str, reference: str) -> str:
    assert found.images is not None, "a matrix writes them"
    images = found.images[found.images["task"] == task]
    made = (compare(images, arm, reference, column, label) for column, label in paired_scores(task).items())
    gains = [gain for gain in made if gain]
    seeds = gains[0].seeds
    named = f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"
    known = "new prompts and trainings" if len(seeds) > 1 else "new prompts; one training seed says nothing of others"
    return (
        f"{method_label(arm)} minus {method_label(reference)}, {named}, paired by prompt and noise "
        f"(95 % interval, for {known}): {'; '.join(map(_told, gains))}."
    )


def _told(gain: Comparison) -> str:
    text = f"{gain.label} {signed(gain.delta, 4)}"
    if len(gain.seeds) == 1:
        return text
    return f"{text} (by seed {', '.join(signed(Estimate(value, None, None), 4) for value in gain.per_seed)})"
