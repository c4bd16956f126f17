"""The command ``star bench first_updates``: the first epochs of training, arm against arm, for many seeds.

``star bench gradient`` estimates what a small step along an arm's gradient would gain. Here the steps are made: every arm
starts from the same weights and draws the same prompts with the same noise. While the weights have hardly moved, all arms draw
nearly the same images, so their rewards differ by little but the effect of the arm. A few epochs therefore say more than whole
trainings, which rounding alone drives apart. The untrained model draws the same too, and gains are measured over its reward.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import pandas as pd
import torch

from star import config as settings
from star.bench import OWN
from star.bench.table import Shown, older_rows, prepared, whole, write
from star.bench.words import COMMON, arm_words, file_name, identity, parse_arms, refuse_runs
from star.common.console import tell
from star.common.errors import UserError
from star.common.files import MOST_AMOUNT, alone_in, changing, is_amount, read_json, write_text
from star.common.launched import check_alone
from star.common.numbers import MISSING, signed, with_error
from star.common.progress import Bar, bar
from star.common.words import own_words, seeds_of
from star.config import Config, config_hash
from star.method.arms import REFERENCE
from star.records.first_updates import COLUMNS, UNTRAINED, Gain, gains
from star.records.folder import MACHINE
from star.tasks import Task, load_task
from star.training import guards
from star.training.credit import check_evaluator, check_maps
from star.training.machine import as_begun, loaded
from star.training.rollout import MicroBatch
from star.training.trainer import Trainer

ARMS_OF_INTEREST = (REFERENCE, "star", "star_shuffled", "oracle_twins", "background")
EPOCHS, SEEDS = 6, "0..7"


@dataclass(frozen=True)
class Asked:
    """The words of the command.

    Attributes:
        arms: those to train, named as for ``star bench gradient``.
        epochs: of each training.
        seeds: of the trainings.
        out: the table's file; None for the default one of the scale.
        overrides: settings for all arms.
    """

    arms: tuple[str, ...]
    epochs: int
    seeds: tuple[int, ...]
    out: Path | None
    overrides: tuple[str, ...]


class Untrained(Trainer):
    """A trainer that learns nothing: its images are the baseline that gains are measured over."""

    def update(self, batches: Sequence[MicroBatch], count: int, epoch: int, tick: Callable[[], None] = lambda: None) -> dict:
        """Makes no step; see :meth:`Trainer.update`."""
        return {}


def run(words: Sequence[str]) -> Shown:
    """Train what is missing, write the rewards of all epochs and return what to print.

    Args:
        words: ``epochs=6``, ``arms=A,B``, ``seed=0..7``, ``out=FILE`` and settings.

    Raises:
        UserError: a word that cannot be used, or an arm that needs places or slopes that the evaluator lacks; or there are
            several processes.
        RunStopped: a training stopped.
    """
    check_alone("star bench first_updates")
    asked = parse(words)
    config = settings.load([*asked.overrides, f"method={COMMON}", f"seed={max(asked.seeds)}"])  # any may be too large
    if asked.epochs > config.train.epochs:
        raise UserError(f"epochs={asked.epochs} are more than the {config.train.epochs} of a training (train.epochs)")
    arms = {arm: settings.load([*asked.overrides, *arm_words(arm)]) for arm in asked.arms}
    task = load_task(config, config.task.name)
    for one in arms.values():
        check_evaluator(one.method.arm, task)
    hashed = config_hash(_identity(config, task))
    out, folder = prepared("first_updates", config, hashed, asked.out, COLUMNS)
    _refuse_less(out, hashed, asked)
    with guards.limits(config):
        measure(arms, asked, task, folder)
    table = rows(asked, config, folder, hashed)
    write(table.assign(reward=table["reward"].map(repr)), out, "first_updates", ["task", "arm", "seed", "config_hash"])
    title = f"{config.task.name}: reward gained over the untrained model, after the first epoch"
    return shown(title, gains(table), f"all rewards: {out}; trainings: {folder}")


def parse(words: Sequence[str]) -> Asked:
    """The words of the command.

    Raises:
        UserError: one that cannot be used.
    """
    own, overrides = own_words(words, OWN["first_updates"])
    refuse_runs(overrides, "arms=A,B says which arms are trained, and what they gain is kept in runs/first_updates")
    epochs = own.get("epochs", str(EPOCHS))
    if not epochs.isdecimal() or int(epochs) < 2:
        raise UserError(f"epochs={epochs} must be a number from 2 on: the first is drawn before the first update")
    return Asked(
        arms=parse_arms(own["arms"]) if "arms" in own else ARMS_OF_INTEREST,
        epochs=int(epochs),
        seeds=tuple(seeds_of(f"seed={own.get('seed', SEEDS)}")),
        out=Path(own["out"]) if "out" in own else None,
        overrides=overrides,
    )


def _refuse_less(out: Path, hashed: str, asked: Asked) -> None:
    """Refuse, before the work, to replace a training's rewards by those of fewer epochs."""
    older = older_rows(out, COLUMNS, "first_updates")
    older = older[older["config_hash"] == hashed]
    for seed, arm in product(asked.seeds, (UNTRAINED, *asked.arms)):
        most = older.loc[(older["arm"] == arm) & (older["seed"] == str(seed)), "epoch"].astype(int).max()
        if most > asked.epochs:  # nan, of no row, is not
            raise UserError(
                f"epochs={asked.epochs}: {out} has {most} of {arm}, seed {seed}, with these settings; say epochs={most}, or "
                "name another table with out=..."
            )


def measure(arms: Mapping[str, Config], asked: Asked, task: Task, folder: Path) -> None:
    """Make the missing files: ``seed0/ARM.json`` has the mean reward of each epoch of one training.

    Args:
        arms: arm -> its settings, whose seed is ignored.
        asked: how long, and for which seeds.
        task: what is rewarded.
        folder: of the files.
    """
    each = {UNTRAINED: arms[REFERENCE], **arms}
    missing = {
        seed: left
        for seed in asked.seeds
        if (left := [arm for arm in each if len(_made(_file(folder, seed, arm))["rewards"]) < asked.epochs])
    }
    count = asked.epochs * sum(map(len, missing.values()))
    if not count:
        return
    with bar(f"first updates, {task.name}", count) as display:
        for seed, left in missing.items():
            with alone_in(_file(folder, seed, UNTRAINED).parent):  # other processes may work on other seeds
                own = {arm: replace(each[arm], seed=seed, run=str(folder)) for arm in left}
                _train(own, asked.epochs, task, folder, display)


def _train(arms: Mapping[str, Config], epochs: int, task: Task, folder: Path, display: Bar) -> None:
    """The trainings of one seed, in one model; a function, so that its memory is free before the next seed's is loaded."""
    with changing(folder / "kernels.txt"):  # all seeds share it, and may be begun side by side
        begun = as_begun(next(iter(arms.values())), folder)
    base = loaded(begun)
    check_maps(arms.values(), task, base)  # not when an arm's turn comes, after the others' epochs
    initial = {name: value.detach().clone() for name, value in base.trained.items()}
    for arm, asked in arms.items():
        config = replace(asked, model=begun.model)
        display.update(f"first updates, {task.name}, seed {config.seed}, {arm}")
        with torch.no_grad():
            for name, value in base.trained.items():
                value.copy_(initial[name])
        trainer = (Untrained if arm == UNTRAINED else Trainer)(config, task, base)
        each = 0 if arm == UNTRAINED else config.train.updates_per_epoch
        rewards, updates, made = [], [], 0
        for epoch in range(epochs):
            figures = trainer.epoch(epoch)
            rewards.append(figures["reward"])
            updates.append(made)
            made += each - round(each * figures.get("skipped_updates", 0.0))
            display.advance()
        if skipped := (epochs - 1) * each - updates[-1]:
            tell(
                f"seed {config.seed}, {arm}: updates skipped because float16 overflowed: {skipped}; arms that have not all "
                "skipped as many are compared after unequal numbers of updates"
            )
        known = {"rewards": rewards, "updates": updates, "commit": trainer.commit, MACHINE: trainer.machine}
        write_text(_file(folder, config.seed, arm), json.dumps(known))


def rows(asked: Asked, config: Config, folder: Path, hashed: str) -> pd.DataFrame:
    """The rewards of the epochs that are asked for, though a training may be longer: :data:`COLUMNS` and the machine."""
    train, found = config.train, []
    for seed in asked.seeds:
        for arm in (UNTRAINED, *asked.arms):
            done = _made(_file(folder, seed, arm))
            each = 0 if arm == UNTRAINED else train.updates_per_epoch
            planned = [epoch * each for epoch in range(asked.epochs)]  # older files do not say how many were made
            made = zip(done["rewards"][: asked.epochs], done.get("updates", planned), strict=False)
            for epoch, (reward, updates) in enumerate(made, 1):
                facts = (updates, train.lr, reward, done["commit"], hashed, done.get(MACHINE, ""))
                found.append((config.task.name, arm, seed, epoch, *facts))
    return pd.DataFrame(found, columns=[*COLUMNS, MACHINE])


def shown(title: str, found: Sequence[Gain], below: str) -> Shown:
    """The gains as a table."""
    lines: list[tuple[str, ...]] = [
        (
            one.arm,
            f"{one.seeds} x {one.epochs}",
            signed(one.gain, 4),
            MISSING if one.difference is None else signed(one.difference, 4),
            MISSING if one.p is None else f"{one.p:.2g}",
            _ratio(one),
        )
        for one in found
    ]
    columns = ("arm", "seeds x\nepochs", "gain [95 %]", "minus Flow-GRPO [95 %]", "p", "gain over\nFlow-GRPO's")
    return Shown(title, columns, lines, below)


def _ratio(gain: Gain) -> str:
    return "1" if gain.difference is None else with_error(gain.ratio, gain.stderr, 2, "±")


def _identity(config: Config, task: Task) -> dict:
    """What rewards depend on, except arm and seed."""
    return {key: value for key, value in identity(config, task, None).items() if key != "seed"}


def _made(file: Path) -> dict:
    """A recorded training: its ``rewards``, and the ``commit`` of the code; no rewards if there is none."""
    return read_json(file) if whole(file, _check) else {"rewards": []}


def _check(file: Path) -> None:
    """Look at a recorded training, for :func:`star.bench.table.whole`."""
    found = read_json(file)
    if not isinstance(found, dict) or not isinstance(found.get("rewards"), list) or not isinstance(found.get("commit"), str):
        raise ValueError("no rewards and commit in it")
    if not all(is_amount(reward, -MOST_AMOUNT) for reward in found["rewards"]):
        raise ValueError("a reward is no number")
    updates = found.get("updates", [0] * len(found["rewards"]))
    if not isinstance(updates, list) or [type(one) for one in updates] != [int] * len(found["rewards"]):
        raise ValueError("a number of updates is missing")


def _file(folder: Path, seed: int, arm: str) -> Path:
    return folder / f"seed{seed}" / f"{file_name(arm)}.json"
