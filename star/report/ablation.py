"""The ablation: what each arm is, and the paired differences between arms."""

import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence

from star.common.numbers import MISSING, signed
from star.method.arms import ARMS, METHODS, RATIOS, REFERENCE
from star.records.comparison import Comparison
from star.records.names import family, method_label
from star.report.blocks import ONE_SEED, Block, Gallery, Section, Table, Text, sizes
from star.report.collection import Collection
from star.report.figures import forest_svg

NO_SETTINGS = ("task=", "seed=", "run=", "method.name=", "model.name=")
"""Prefixes of the command words that do not say what a method is."""

CONTROLS = tuple(name for name, arm in ARMS.items() if arm.control)


def comparisons(found: Collection, task: str) -> list[Comparison]:
    """For every score of the task: every other method minus Flow-GRPO, then STAR minus every other trained one.

    Only methods of the same :func:`family` are compared.
    """
    methods = found.methods(task)
    pairs = [(method, REFERENCE + family(method)) for method in methods]
    pairs += [("star" + family(m), m) for m in methods if found.trained(task, m) and m != REFERENCE + family(m)]
    pairs = [(arm, reference) for arm, reference in pairs if arm != reference]
    made = (found.compare(task, *pair, *score) for score in found.paired(task).items() for pair in pairs)
    return [comparison for comparison in made if comparison]


def ablation(found: Collection, compared: Mapping[str, Sequence[Comparison]]) -> Section:
    """The chapter, from the :func:`comparisons` of each task."""
    section = Section("ablation", "Ablation: every arm minus Flow-GRPO")
    section.blocks += [_arms(found), *_named(found)]
    section.blocks.append(
        Text(
            "Paired image by image, on the same prompts and noise. With several training seeds, the 95 % interval holds for "
            "new prompts and new trainings at once: prompts are resampled, and seeds enter through Student's t. With one seed "
            "it holds for new prompts alone, and leaves 0 out far too often where another training is meant. It is not "
            "corrected for the number of arms. Arms of a variant are compared only with arms of the same variant."
        )
    )
    for task, own in compared.items():
        if own:
            section.parts.append(Section(f"ablation-{task}", task, _blocks(task, own)))
        else:
            text = f"{task}: no image-by-image comparison with Flow-GRPO is possible from these files."
            section.blocks.append(Text(text, missing=True))
    return section


def difference_row(c: Comparison, name: str) -> list[str]:
    """A row of a table: its name, the difference with its interval, and the difference of every seed."""
    seeds = ", ".join(signed(value) for value in c.per_seed)
    return [name, signed(c.delta) + _of_one_seed(c), seeds]


def _of_one_seed(c: Comparison) -> str:
    return ONE_SEED if len(c.per_seed) == 1 and c.delta.interval else ""


def _arms(found: Collection) -> Table:
    tasks = {method: [task for task in found.tasks if method in found.methods(task)] for method in METHODS}
    rows = [["base", MISSING, "not trained", "where do all start?"]]
    rows += [[arm.label, RATIOS[arm.ratio], arm.weights, arm.question] for arm in ARMS.values()]
    overlaps = _overlaps(found)
    rows = [
        [*row, _where(found, tasks[method]), overlaps.get(method, MISSING)] for row, method in zip(rows, METHODS, strict=True)
    ]
    caption = "The arms; overlap is the share of the credit that an arm's map puts where STAR's map of the same rollout does"
    return Table(caption, ["method", "ratio", "weights", "question", "here", "overlap"], rows, numbers=5)


def _where(found: Collection, tasks: Sequence[str]) -> str:
    if not tasks:
        return "not run"
    return "yes" if len(tasks) == len(found.tasks) else f"on {', '.join(tasks)}"


def _overlaps(found: Collection) -> dict[str, str]:
    """Method -> the mean over tasks, seeds and epochs of :func:`star.method.allocation.overlap`, where it was measured."""
    if found.curves is None or "overlap" not in found.curves:
        return {}
    means = found.curves.groupby("method")["overlap"].mean().dropna()
    return {str(method): f"{mean:.2f}" for method, mean in means.items()}


def _named(found: Collection) -> list[Table]:
    """The methods that were run with settings of their own, and the command words that give these settings."""
    given: dict[str, dict[str, list[str]]] = {}  # label -> settings -> the tasks that they were run on
    for (task, method, *_), command in found.commands.items():
        words = [word for word in shlex.split(command)[2:] if not word.startswith(NO_SETTINGS)]
        if method in METHODS:  # its name says the rest
            words = [word for word in words if word.startswith(("method.", "relevance."))]
        if words:
            tasks = given.setdefault(method_label(method), {}).setdefault(" ".join(words), [])
            tasks += [task] * (task not in tasks)
    rows = [
        [label, words + f" (on {', '.join(tasks)})" * (len(ways) > 1)]
        for label, ways in sorted(given.items())
        for words, tasks in sorted(ways.items())
    ]
    return [Table("Settings of their own", ["method", "settings"], rows, numbers=2)] if rows else []


def _blocks(task: str, own: Sequence[Comparison]) -> list[Block]:
    arms = [c for c in own if c.reference == REFERENCE + family(c.reference)]
    controls = [c for c in own if c not in arms]
    label = own[0].label
    # Untrained models lie far off and would squeeze the arms together; the table has them.
    ours = [(c.arm, c) for c in arms if c.trained_on[0] and c.label == label]
    others = [(c.reference, c) for c in controls if c.label == label]
    forests = [
        _forest(f"{title}{what}", task, label, [(m, c) for m, c in rows if (m in METHODS) == plain])
        for plain, what in ((True, ""), (False, ": settings of their own"))
        for title, rows in (("Every arm minus Flow-GRPO", ours), ("STAR minus every other arm", others))
    ]
    blocks: list[Block] = []
    if drawn := [forest for forest in forests if forest]:
        caption = f"{task}: paired differences with 95 % intervals; ticks above a line are single seeds."
        blocks.append(Gallery(caption, drawn))
    if any(c.arm == "star" for c in arms) and not any(c.reference in CONTROLS for c in controls):
        text = "No arm here has meaningless maps, so nothing shows whether STAR's result comes from its maps."
        blocks.append(Text(text, missing=True))
    if unequal := dict.fromkeys(f"{method_label(c.arm)} minus {method_label(c.reference)}" for c in own if not c.equal_terms):
        what = "Trained with different settings or on a different number of images, so more than the method differs"
        blocks.append(Text(f"{what}: {', '.join(unequal)}.", missing=True))
    blocks += _tables(task, arms, "paired differences", "minus Flow-GRPO", lambda c: c.arm)
    blocks += _tables(task, controls, "STAR minus every other arm", "STAR minus it", lambda c: c.reference)
    return blocks


def _tables(
    task: str, own: Sequence[Comparison], what: str, column: str, method: Callable[[Comparison], str]
) -> Iterable[Table]:
    """A table for each score; ``method`` says which side of a comparison names its row."""
    for label in dict.fromkeys(c.label for c in own):
        part = [c for c in own if c.label == label]
        rows = [difference_row(c, method_label(method(c))) for c in part]
        yield Table(f"{task}, {label}: {what}, {sizes(part)}", ["method", f"{column} [95 %]", "every seed"], rows)


def _forest(title: str, task: str, label: str, rows: Sequence[tuple[str, Comparison]]) -> tuple[str, str] | None:
    """Title and drawing; None if there is nothing to draw."""
    if not rows:
        return None
    told = "; ".join(f"{method_label(method)} {signed(c.delta)}{_of_one_seed(c)}" for method, c in rows)
    alt = f"{task}, {label}: {title}, 95 % intervals: {told}."
    drawn = [(method_label(method) + " (one seed)" * bool(_of_one_seed(c)), c.delta, c.per_seed) for method, c in rows]
    return title, forest_svg(drawn, f"difference in {label}", alt)
