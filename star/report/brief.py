"""A task on one screen, beside its result file: the table, STAR minus Flow-GRPO in a sentence, and their curves."""

from star.common.files import write_text
from star.common.numbers import named_seeds, signed
from star.method.arms import REFERENCE
from star.records import tables
from star.records.comparison import Comparison
from star.records.names import method_label
from star.report.collection import Collection, families
from star.report.figures import reward_curves
from star.report.learning import arm_color, by_seed, curve


def write_brief(found: Collection, task: str) -> None:
    """Write ``<task>.md`` and ``<task>.png`` into the results folder, with STAR minus Flow-GRPO in each family of methods.

    Args:
        found: what the report is made from.
        task: one of its tasks.
    """
    file = found.folder / f"{task}.csv"
    parts = [tables.markdown([row for row in found.rows if row.task == task], found.paper)]
    pairs = [(f"star{variant}", f"{REFERENCE}{variant}") for variant in families(found.methods(task))]
    parts += [f"{gain}\n" for pair in pairs if (gain := _gain(found, task, *pair))]
    runs = {} if found.curves is None else by_seed(found.curves, task)
    drawn = [method for arm, reference in pairs for method in (reference, arm) if method in runs]
    if drawn:
        lines = {method_label(m): [curve(part, "images_seen") for part in runs[m].values()] for m in drawn}
        reward_curves(lines, [arm_color(m) for m in drawn], f"{task}, {found.scale}", file.with_suffix(".png"))
        parts.append(f"![Reward curves]({task}.png)\n")
    write_text(file.with_suffix(".md"), "\n".join(parts))


def _gain(found: Collection, task: str, arm: str, reference: str) -> str:
    """The difference in a sentence, with every seed that the results hold of both; empty if they cannot be compared."""
    made = (found.compare(task, arm, reference, *score) for score in found.paired(task).items())
    gains = [gain for gain in made if gain]
    if not gains:
        return ""
    seeds = gains[0].seeds
    known = "new prompts and trainings" if len(seeds) > 1 else "new prompts; one training seed says nothing about others"
    return (
        f"{method_label(arm)} minus {method_label(reference)}, {named_seeds(seeds)}, paired by prompt and noise "
        f"(95 % interval, for {known}): {'; '.join(map(_told, gains))}."
        + " They were not trained alike, so more than the method differs."
        * (not gains[0].equal_terms)
    )


def _told(gain: Comparison) -> str:
    text = f"{gain.label} {signed(gain.delta, 4)}"
    if len(gain.seeds) == 1:
        return text
    return f"{text} (by seed {', '.join(signed(value, 4) for value in gain.per_seed)})"
