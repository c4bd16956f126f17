"""The command ``star bench influence``: redraw the noise of one token at one trained step, and keep everything else.

Where does the final image change, and by how much does the reward? STAR assumes that a place matters as much as its noise
affects the verdict, and takes attention as a proxy. Here that effect is measured, without gradients and for any evaluator.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from evaluators.interface import judged, places_of
from star import config as settings
from star.bench import OWN
from star.bench.table import Shown, made_by, prepared, raw_table, refuse_less, whole, write
from star.bench.words import identity, refuse_runs, weights_file, weights_label
from star.common.errors import UserError
from star.common.files import alone_in, replacing
from star.common.launched import check_alone
from star.common.machine import machine
from star.common.noise import generator, normal
from star.common.numbers import MISSING, with_error
from star.common.progress import bar
from star.common.statistics import jackknife
from star.common.words import own_words
from star.config import Config, config_hash
from star.models.interface import BaseModel
from star.records.code import commit
from star.records.folder import MACHINE
from star.records.influence import COLUMNS, LABELS
from star.tasks import Task, load_task
from star.training import guards
from star.training.checkpoint import load_trained
from star.training.machine import as_begun, loaded
from star.training.rollout import Sample, plan, sample, step_noise, trained_steps

PROMPTS, TOKENS = 48, 16

EPOCH = 0
"""The epoch whose prompts, noise and window the rollouts have."""

QUARTILES = 4


class Figure(NamedTuple):
    """One number.

    Attributes:
        part: ``all`` trained steps, or ``step 0`` and so on: the step whose noise was redrawn.
        metric: a key of the result of :func:`statistics`.
        value: of the metric.
        stderr: by the jackknife over prompts; NaN where there are too few.
    """

    part: str
    metric: str
    value: float
    stderr: float


OF_A_DRAW = ["step", "row", "column", "relevance", "quartile", "place", "reward", "image", "own", "near"]
DRAWS = ["task", "weights", "config_hash", "prompt", *OF_A_DRAW]
"""The columns of the table beside it, a row for each draw, see :func:`influences`; prompts are numbered."""


class Change(NamedTuple):
    """One token's noise at one step, which is redrawn: the step, and the token's row and column in the token grid."""

    step: int
    row: int
    column: int


@dataclass(frozen=True)
class Asked:
    """The words of the command.

    Attributes:
        prompts: how many, with one rollout each.
        tokens: how many per rollout and trained step.
        weights: the file of the weights; None for the model's initial ones.
        out: the table's file; None for the default one of the scale.
        overrides: settings.
    """

    prompts: int
    tokens: int
    weights: Path | None
    out: Path | None
    overrides: tuple[str, ...]


def run(words: Sequence[str]) -> Shown:
    """Measure what is missing, write the table and return what to print.

    Args:
        words: ``prompts=48``, ``tokens=16``, ``weights=RUN_FOLDER_OR_FILE``, ``out=FILE`` and settings.

    Raises:
        UserError: a word that cannot be used, or fewer prompts or tokens than are asked for; or there are several processes.
    """
    check_alone("star bench influence")
    asked = parse(words)
    config = settings.load([*asked.overrides, "method=star"])
    task = load_task(config, config.task.name)
    if asked.prompts > len(task.train):
        raise UserError(f"prompts={asked.prompts}, but task={task.name} has only {len(task.train)} for training")
    hashed = config_hash(identity(config, task, asked.weights) | {"tokens": asked.tokens})
    out, folder = prepared("influence", config, hashed, asked.out, COLUMNS)
    refuse_less(out, COLUMNS, "influence", hashed, "prompts", asked.prompts)
    raw = raw_table(out, "draws", DRAWS, "influence")
    with alone_in(folder), guards.limits(config):
        files = measure(config, asked, task, folder)
    parts = [pd.read_csv(file, dtype={"commit": str}).assign(prompt=number) for number, file in enumerate(files)]
    draws = pd.concat(parts, ignore_index=True)
    found = figures(draws)
    weights = weights_label(asked.weights)
    by = draws.reindex(columns=["commit", MACHINE]).fillna("").drop_duplicates()  # older versions did not record them
    code, computed = made_by(by.itertuples(index=False, name=None))
    facts = (len(files), len(draws), code, hashed, computed)
    table = pd.DataFrame([(config.task.name, weights, *figure, *facts) for figure in found], columns=[*COLUMNS, MACHINE])
    write(table, out, "influence")
    draws = draws.assign(task=config.task.name, weights=weights, config_hash=hashed, **{MACHINE: computed})
    write(draws[[*DRAWS, MACHINE]], raw, "influence")
    title = f"{config.task.name}, weights: {weights}; {len(files)} prompts, {len(draws):,} images"
    return shown(title, found, f"all figures: {out}; every draw: {raw}")


def parse(words: Sequence[str]) -> Asked:
    """The words of the command.

    Raises:
        UserError: one that cannot be used.
    """
    own, overrides = own_words(words, OWN["influence"])
    refuse_runs(overrides, "nothing is trained here, so there is no method, and draws are kept in runs/influence")
    counts = {name: own.get(name, str(default)) for name, default in (("prompts", PROMPTS), ("tokens", TOKENS))}
    for name, value in counts.items():
        if not value.isdecimal() or int(value) < 1:
            raise UserError(f"{name}={value} must be a number from 1 on")
    return Asked(
        prompts=int(counts["prompts"]),
        tokens=int(counts["tokens"]),
        weights=weights_file(own["weights"]) if "weights" in own else None,
        out=Path(own["out"]) if "out" in own else None,
        overrides=overrides,
    )


def measure(config: Config, asked: Asked, task: Task, folder: Path) -> list[Path]:
    """Make the missing files, prompt by prompt, and return all of them: each holds the draws of one rollout.

    Raises:
        UserError: an image has fewer tokens than are asked for.
    """
    samples = plan(len(task.train), asked.prompts, 1, config.seed, EPOCH)
    files = [folder / f"rollout-{number:04d}.csv" for number in range(len(samples))]
    steps = trained_steps(config.sampling, config.seed, EPOCH)
    check = partial(_check, draws=len(steps) * asked.tokens)
    missing = [(s, file) for s, file in zip(samples, files, strict=True) if not whole(file, check)]
    if not missing:
        return files
    base = loaded(as_begun(config, folder))
    if asked.weights:
        load_trained(asked.weights, base.trained)
    begun = commit()
    with bar(f"influence, {config.task.name}", len(missing) * len(steps) * asked.tokens) as display:
        for drawn, file in missing:
            base.prepare([task.train[drawn.prompt].text], config.sampling.guidance)
            changes = drawn_changes(base, drawn, steps, asked.tokens, config.seed)
            rows = pd.DataFrame(influences(base, task, config, drawn, steps, changes, display.advance))
            rows = rows.assign(**{"commit": begun, MACHINE: machine()})
            with replacing(file) as part:
                rows.to_csv(part, index=False)
    return files


def _check(file: Path, draws: int) -> None:
    """Read a rollout's draws, for :func:`star.bench.table.whole`."""
    found = pd.read_csv(file)[OF_A_DRAW].astype(float)
    if len(found) != draws or not file.read_bytes().endswith(b"\n"):
        raise ValueError("it is cut off")


def drawn_changes(base: BaseModel, drawn: Sample, steps: Sequence[int], tokens: int, seed: int) -> list[Change]:
    """As many random tokens of each step as ``tokens`` says, without repeats.

    Raises:
        UserError: an image has fewer.
    """
    height, width = (side // base.patch for side in base.latent_shape[1:])
    if tokens > height * width:
        raise UserError(f"tokens={tokens}, but an image has only {height * width}")
    chosen = {
        step: torch.randperm(height * width, generator=generator(seed, "influence tokens", drawn.prompt, step))[:tokens]
        for step in steps
    }
    return [Change(step, *divmod(token, width)) for step in steps for token in chosen[step].tolist()]


def influences(
    base: BaseModel,
    task: Task,
    config: Config,
    drawn: Sample,
    steps: Sequence[int],
    changes: Sequence[Change],
    tick: Callable[[int], None] = lambda done: None,
) -> Iterator[dict]:
    """What each change does to a rollout, one row per change.

    Every micro-batch begins with the unchanged rollout, so that nothing but the noise tells two images apart. A row has the
    token's ``step``, ``row`` and ``column``; its ``relevance``, relative to the mean of the step's map, and ``quartile``, 0 to
    3, in that map; ``place``, the share of the token's area where the verdict on the unchanged image comes from (NaN if the
    evaluator cannot tell); ``reward``, the change of the reward; ``image``, the summed squared change of all pixels, which are
    in [0, 1]; and ``own`` and ``near``, the parts of that sum in the token and in the 3 x 3 tokens around it.

    Args:
        base: the model.
        task: has the training prompts and the evaluator.
        config: of the rollouts.
        drawn: the rollout.
        steps: the trained steps.
        changes: of its noise.
        tick: called after each micro-batch with the number of its changes.

    Raises:
        RunStopped: a velocity, a pixel or a verdict is not finite.
        UserError: the evaluator does not judge as it must.
    """
    prompt, places = task.train[drawn.prompt], places_of(task.evaluator)
    size = max(1, config.train.micro_batch - 1)
    for some in (changes[start : start + size] for start in range(0, len(changes), size)):
        rollouts = [drawn] * (1 + len(some))
        noise = redrawn(base, drawn, some, config.seed)
        trajectory = sample(base, rollouts, task.train, config, steps, EPOCH, config.relevance, noise)
        images = trajectory.images
        verdicts = judged(f"the evaluator of {task.name}", task.evaluator, [prompt] * len(rollouts), list(images.numpy()))
        rewards = [verdict["reward"] for verdict in verdicts]
        assert trajectory.relevance is not None
        maps = trajectory.relevance[:, 0].cpu()
        height, width = maps.shape[1:]
        mask = places([prompt], [images[0].numpy()])[0] if places else np.full(images.shape[1:3], np.nan)
        covered = adaptive_avg_pool2d(torch.from_numpy(mask).float()[None], (height, width))[0]
        pixels = (images[1:].float() / 255 - images[:1].float() / 255).square().sum(-1)
        # Sums over each token's pixels.
        moved = adaptive_avg_pool2d(pixels, (height, width)) * (pixels[0].numel() / (height * width))
        for change, reward, where in zip(some, rewards[1:], moved, strict=True):
            own, values = (change.row, change.column), maps[steps.index(change.step)]
            below = (values < values[own]).sum().item()
            yield {
                **change._asdict(),
                "relevance": (values[own] / values.mean()).item(),
                "quartile": QUARTILES * below // values.numel(),
                "place": covered[own].item(),
                "reward": reward - rewards[0],
                "image": where.sum().item(),
                "own": where[own].item(),
                "near": where[max(0, own[0] - 1) : own[0] + 2, max(0, own[1] - 1) : own[1] + 2].sum().item(),
            }
        tick(len(some))


def redrawn(base: BaseModel, drawn: Sample, changes: Sequence[Change], seed: int) -> Callable[[], Tensor]:
    """A function that draws, step after step, a rollout's noise and a copy for each change, (1 + changes, C, H, W).

    New noise is keyed by (seed, prompt, step, token), and so is not that of any rollout.
    """
    draw, steps, patch = step_noise(base, [drawn], seed, EPOCH), count(), base.patch

    def noise() -> Tensor:
        now = next(steps)
        rows = draw().repeat(1 + len(changes), 1, 1, 1)
        for place, change in enumerate(changes, 1):
            if change.step == now:
                _, row, column = change
                area = rows[place, :, row * patch : (row + 1) * patch, column * patch : (column + 1) * patch]
                area.copy_(normal(tuple(area.shape), seed, "influence", drawn.prompt, *change))
        return rows

    return noise


def figures(draws: pd.DataFrame) -> list[Figure]:
    """All figures, for all steps together and for each, from rows of :func:`influences` with a ``prompt`` column."""
    groups = [part for _, part in draws.groupby("prompt")]

    def statistic(kept: np.ndarray) -> np.ndarray:
        chosen = pd.concat([groups[k] for k in kept])
        return np.array([list(statistics(part).values()) for part in _by_step(chosen, steps)])

    steps = sorted(set(draws["step"]))
    names = list(statistics(draws))
    values, errors = jackknife(statistic, len(groups))
    labels = ["all", *(f"step {step}" for step in steps)]
    return [
        Figure(label, name, value, error)
        for label, row, stderr in zip(labels, values.tolist(), errors.tolist(), strict=True)
        for name, value, error in zip(names, row, stderr, strict=True)
        if np.isfinite(value)
    ]


def _by_step(draws: pd.DataFrame, steps: Sequence[int]) -> list[pd.DataFrame]:
    return [draws, *(draws[draws["step"] == step] for step in steps)]


def statistics(draws: pd.DataFrame) -> dict[str, float]:
    """The figures of some draws; NaN where they are undefined.

    With d the change of the reward:

    * ``reward_change``: root of the mean of d^2.
    * ``with_objects``: share of prompts some of whose tokens, but not all, have more than half their area in the places of
      the verdict. Of these prompts alone, since the others say nothing of objects but would add their d^2 to one side:
      ``on_objects``, the share of such tokens; ``carried``, their share of the sum of d^2; ``on_over_off``, their mean d^2
      over that of the other tokens, within prompts: both are averaged with the weight k (n - k) / n of a prompt with k of n
      such tokens, so that it does not matter in which prompts rewards move most.
    * ``quartile_1`` to ``quartile_4``: mean d^2 of the tokens in each quarter of their map's relevance, the lowest first, over
      that of all tokens.
    * ``correlation``: of the relative relevance with d^2 (Pearson's).
    * ``in_token`` and ``in_3x3``: share of the squared change of all images that lies in the token and in the 3 x 3 around it.
    """
    squared = draws["reward"].to_numpy() ** 2
    mean, image = _mean(squared), draws["image"].sum()
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            "reward_change": np.sqrt(mean),
            **_objects(draws["prompt"].to_numpy(), draws["place"].to_numpy(), squared),
            **{
                f"quartile_{place + 1}": np.divide(_mean(squared[(draws["quartile"] == place).to_numpy()]), mean)
                for place in range(QUARTILES)
            },
            "correlation": np.corrcoef(draws["relevance"], squared)[0, 1] if len(draws) > 1 else np.nan,
            "in_token": np.divide(draws["own"].sum(), image),
            "in_3x3": np.divide(draws["near"].sum(), image),
        }


def _objects(prompts: np.ndarray, places: np.ndarray, squared: np.ndarray) -> dict[str, float]:
    """The figures of :func:`statistics` on objects; NaN where places are not known."""
    if np.isnan(places).any():
        return dict.fromkeys(("with_objects", "on_objects", "carried", "on_over_off"), np.nan)
    numbers = np.unique(prompts, return_inverse=True)[1]

    def sums(values: np.ndarray) -> np.ndarray:
        """Of each prompt's tokens on and off objects, (2, prompts)."""
        return np.stack([np.bincount(numbers, values * there, numbers.max() + 1) for there in (places > 0.5, places <= 0.5)])

    counts, changes = sums(np.ones(len(squared))), sums(squared)
    both = counts.min(0) > 0
    counts, changes = counts[:, both], changes[:, both]
    means = (changes / counts) @ (counts.prod(0) / counts.sum(0))
    return {
        "with_objects": _mean(both),
        "on_objects": np.divide(counts[0].sum(), counts.sum()),
        "carried": np.divide(changes[0].sum(), changes.sum()),
        "on_over_off": np.divide(*means),
    }


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else np.nan


def shown(title: str, found: Sequence[Figure], below: str) -> Shown:
    """The figures as a table: a row per metric; a column for all steps together, then one for each."""
    cells = {(f.metric, f.part): _cell(f) for f in found}
    parts = list(dict.fromkeys(f.part for f in found))
    rows = [(label, *(cells.get((name, part), MISSING) for part in parts)) for name, label in LABELS.items()]
    return Shown(f"{title}; ± by the jackknife over prompts", ("", *parts), rows, below)


def _cell(figure: Figure) -> str:
    return with_error(figure.value, figure.stderr, between="±")
