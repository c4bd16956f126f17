"""The command ``star bench gradient``: every arm's policy gradient at fixed weights, from the same rollouts, without training.

Each epoch is drawn, judged and allocated by the trainer itself. Only the update differs: instead of making a step, it keeps
each arm's gradient at each trained step. :mod:`star.bench.signal` makes figures of them.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from star import config as settings
from star.bench import OWN
from star.bench.signal import Figure, cosines, inner_products, pairs_used, told
from star.bench.table import Shown, made_by, prepared, raw_table, refuse_less, whole, write
from star.bench.words import COMMON, arm_words, file_name, identity, parse_arms, refuse_runs, weights_file, weights_label
from star.common.errors import RunStopped, UserError
from star.common.files import alone_in, free_bytes, replacing
from star.common.launched import check_alone
from star.common.numbers import MISSING, with_error
from star.common.progress import bar
from star.common.words import own_words
from star.config import Config, config_hash
from star.config.schema import MethodConfig
from star.method.allocation import upsample
from star.method.arms import REFERENCE
from star.models.interface import BaseModel
from star.records.folder import GRADIENT, MACHINE, NEEDED
from star.tasks import Task, load_task
from star.training import guards
from star.training.checkpoint import load_trained
from star.training.credit import check_evaluator, check_maps
from star.training.machine import as_begun
from star.training.rollout import MicroBatch
from star.training.trainer import Trainer

ARMS_OF_INTEREST = ("flow_grpo", "spatial", "star", "star_shifted", "star_shuffled", "oracle", "oracle_twins", "background")
EPOCHS, MOST_EPOCHS = 12, 1000

COLUMNS = NEEDED[GRADIENT]
COSINES = ["task", "weights", "config_hash", "arm", "other", "epoch", "other_epoch", "cosine"]
"""The columns of the table beside it, with the cosines of whole gradients that its figures are made of."""


@dataclass(frozen=True)
class Asked:
    """The words of the command.

    Attributes:
        arms: whose gradients: each is a name in the table of arms or the path of a function that makes maps, followed by
            settings of its own, if any: ``star@mix=1@normalise=step``.
        epochs: how many.
        weights: the file of the weights; None for the model's initial ones.
        out: the table's file; None for the default one of the scale.
        overrides: settings for all arms.
    """

    arms: tuple[str, ...]
    epochs: int
    weights: Path | None
    out: Path | None
    overrides: tuple[str, ...]


class Gradients(Trainer):
    """A trainer that makes no step: it keeps the gradients of several arms on the same rollouts and advantages.

    Attributes:
        methods: the arms that are allocated and differentiated; the configured arm decides only how rollouts are drawn.
        steps: the trained steps of the latest epoch.
        gradients: arm -> name of a trained parameter -> its gradient at each of these steps, float32 (steps, ...).
    """

    def __init__(
        self, config: Config, methods: Mapping[str, MethodConfig], task: Task | None = None, base: BaseModel | None = None
    ) -> None:
        """
        Args:
            config, task, base: as for a trainer.
            methods: arm -> its settings.

        Raises:
            UserError: what the trainer refuses, of any arm.
        """
        super().__init__(config, task, base)
        self.methods = dict(methods)
        check_maps([replace(config, method=method) for method in self.methods.values()], self.task, self.base)
        self.steps: list[int] = []
        self.gradients: dict[str, dict[str, Tensor]] = {}
        self._weights: dict[str, dict[int, Tensor | None]] = {}
        self._shares: dict[str, list[float]] = {}
        # Scales losses to about a micro-batch's own mean: half precision would lose more of a small share of the epoch's.
        train = config.train
        share = 2.0 ** math.floor(math.log2(train.micro_batches))
        self._scale = share * self.scaler.get_scale() if self.scaler.is_enabled() else 1.0

    def allocate(self, batches: Sequence[MicroBatch], groups: Sequence[int], epoch: int) -> None:
        """Compute the weights of every arm in turn, by the trainer's own allocation."""
        common = self.config
        self._weights, self._shares = {}, {}
        for arm, method in self.methods.items():
            self.config = replace(common, method=method)
            super().allocate(batches, groups, epoch)
            self._weights[arm] = {batch.number: batch.weights for batch in batches}
            self._shares[arm] = self._step_shares(batches[0].trajectory.steps)
            for batch in batches:
                batch.weights = None
        self.config = common

    def update(self, batches: Sequence[MicroBatch], count: int, epoch: int, tick: Callable[[], None] = lambda: None) -> dict:
        """Keep every arm's gradient over the whole epoch in :attr:`gradients`; no weight changes.

        Args:
            batches: the epoch's micro-batches.
            count: how many there are.
            epoch: its number.
            tick: called after every trained step of every micro-batch.
        """
        self.steps = steps = batches[0].trajectory.steps
        kept = {
            arm: {name: p.new_zeros(len(steps), *p.shape) for name, p in self.base.trained.items()} for arm in self.methods
        }
        for batch in batches:
            for row in range(len(steps)):
                if batch.advantages.any():
                    self._add(batch, row, len(steps) * count * len(batch.advantages), epoch, kept)
                tick()
        self.gradients = kept
        return {}

    def _add(self, batch: MicroBatch, row: int, terms: int, epoch: int, kept: dict[str, dict[str, Tensor]]) -> None:
        """Add the gradients of one trained step of a micro-batch.

        A function of its own, so that the step's graph is freed when it returns: a GPU has no room for two.
        """
        for arm, loss in self._losses(batch, row, terms).items():
            for name, part in zip(self.base.trained, self._gradient(loss, epoch), strict=True):
                kept[arm][name][row] += part

    def _losses(self, batch: MicroBatch, row: int, terms: int) -> dict[str, Tensor]:
        """Every arm's part, at ratio 1, of the epoch's policy loss, a mean over ``terms`` samples and steps; one forward."""
        moved = self.moved(batch, row)
        losses = {}
        for arm, method in self.methods.items():
            allocated = self._weights[arm][batch.number]
            weights = None if allocated is None else upsample(allocated[row], self.base.patch)
            _, loss = self.policy(batch, row, moved, method, weights, by_itself=True)
            losses[arm] = loss.sum() * self._shares[arm][row] / terms
        return losses

    def _gradient(self, loss: Tensor, epoch: int) -> list[Tensor]:
        """The gradient of each trained parameter; in float16 the loss is scaled, and the scale halved until none overflows."""
        parameters = list(self.base.trained.values())
        while True:
            found = torch.autograd.grad(loss * self._scale, parameters, retain_graph=True, materialize_grads=True)
            parts = [part / self._scale for part in found]
            norm = torch.stack([part.norm() for part in parts]).norm().item()
            if norm < float("inf"):
                return parts
            guards.check_gradient(norm, self._scale, epoch + 1)
            self._scale /= 2


def run(words: Sequence[str]) -> Shown:
    """Measure what is missing, write the table and return what to print.

    Args:
        words: ``epochs=12``, ``arms=A,B``, ``weights=RUN_FOLDER_OR_FILE``, ``out=FILE`` and settings.

    Raises:
        UserError: a word that cannot be used, or an arm that needs places or slopes that the evaluator lacks; or there are
            several processes.
        RunStopped: the GPU runs out of memory, a gradient is not finite, or all are 0.
    """
    check_alone("star bench gradient")
    asked = parse(words)
    config = settings.load([*asked.overrides, f"method={COMMON}"])
    methods = {arm: settings.load([*asked.overrides, *arm_words(arm)]).method for arm in asked.arms}
    task = load_task(config, config.task.name)
    for method in methods.values():
        check_evaluator(method.arm, task)
    hashed = config_hash(identity(config, task, asked.weights))
    out, folder = prepared("gradient", config, hashed, asked.out, COLUMNS)
    refuse_less(out, COLUMNS, "gradient", hashed, "epochs", asked.epochs, asked.arms)
    raw = raw_table(out, "cosines", COSINES, "gradient")
    with alone_in(folder), guards.limits(config):
        measure(replace(config, run=str(folder)), methods, asked, task, folder)
    files = {arm: [_file(folder, epoch, arm) for epoch in range(asked.epochs)] for arm in asked.arms}
    products = inner_products(list(files.values()), asked.arms.index(REFERENCE))
    if "all" not in products:
        raise RunStopped("no epoch has a gradient: in every group all rewards are equal, so there is nothing to compare")
    found = told(products, asked.arms)
    train = config.train
    images = asked.epochs * train.rollouts
    weights = weights_label(asked.weights)
    by = {arm: [_made_by(file) for file in own] for arm, own in files.items()}
    rows = []
    for figure in found:
        code, computed = made_by([one for arm in figure.arm.split(" - ") for one in by[arm]])
        rows.append((config.task.name, weights, *figure, asked.epochs, images, code, hashed, computed))
    table = pd.DataFrame(rows, columns=[*COLUMNS, MACHINE])
    keys = ["task", "weights", "config_hash", "arm"]
    write(table, out, "gradient", keys)
    machines = {arm: made_by(own)[1] for arm, own in by.items()}
    pairs = [
        (config.task.name, weights, hashed, arm, *pair, machines[arm])
        for arm, *pair in pairs_used(cosines(products["all"]), asked.arms)
    ]
    write(pd.DataFrame(pairs, columns=[*COSINES, MACHINE]), raw, "gradient", keys)
    title = f"{config.task.name}, weights: {weights}; {asked.epochs} epochs, {images:,} images"
    return shown(title, found, f"all figures: {out}; their cosines: {raw}; gradients: {folder}")


def parse(words: Sequence[str]) -> Asked:
    """The words of the command.

    Raises:
        UserError: one that cannot be used.
    """
    own, overrides = own_words(words, OWN["gradient"])
    refuse_runs(overrides, "arms=A,B says which arms are measured, and gradients are kept in runs/gradient")
    epochs = own.get("epochs", str(EPOCHS))
    if not epochs.isdecimal() or not 2 <= int(epochs) <= MOST_EPOCHS:
        raise UserError(
            f"epochs={epochs} must be a number from 2 to {MOST_EPOCHS:,}: gradients of different epochs are compared"
        )
    return Asked(
        arms=parse_arms(own["arms"]) if "arms" in own else ARMS_OF_INTEREST,
        epochs=int(epochs),
        weights=weights_file(own["weights"]) if "weights" in own else None,
        out=Path(own["out"]) if "out" in own else None,
        overrides=overrides,
    )


def measure(config: Config, methods: Mapping[str, MethodConfig], asked: Asked, task: Task, folder: Path) -> None:
    """Make the missing files, epoch by epoch: ``epoch-0000/ARM.safetensors``."""
    missing = {
        epoch: left
        for epoch in range(asked.epochs)
        if (left := [arm for arm in asked.arms if not whole(_file(folder, epoch, arm), _check)])
    }
    if not missing:
        return
    trainer = Gradients(as_begun(config, folder), methods, task)
    if asked.weights:
        load_trained(asked.weights, trainer.base.trained)
    _check_disk(trainer, sum(map(len, missing.values())), folder, initial=not asked.weights)
    train = config.train
    ticks = train.micro_batches * (1 + config.sampling.trained)
    with bar(f"gradients, {config.task.name}", ticks * len(missing)) as display:
        for epoch, arms in missing.items():
            trainer.methods = {arm: methods[arm] for arm in arms}
            figures = trainer.epoch(epoch, display.advance)
            _save(trainer, folder, epoch, figures)
            display.update(f"gradients, {config.task.name}  reward {figures['reward']:.3f}")


def _check_disk(trainer: Gradients, files: int, folder: Path, initial: bool) -> None:
    """Refuse to begin what would fill the disk; LoRA's A has no gradient, and none is written, while its B is 0."""
    learnt = sum(p.numel() for name, p in trainer.base.trained.items() if not (initial and "lora_A" in name))
    wanted, have = files * trainer.config.sampling.trained * learnt * torch.float32.itemsize, free_bytes(folder)
    if wanted > have:
        raise UserError(
            f"{files:,} gradients take {wanted / 2**30:,.1f} GiB in {folder}, where {have / 2**30:,.1f} are free; make room, "
            "or measure fewer epochs= or arms="
        )


def _save(trainer: Gradients, folder: Path, epoch: int, figures: dict) -> None:
    """Write a file for each arm, without gradients that are 0, such as those of LoRA's A while B is 0."""
    metadata = {"steps": ",".join(map(str, trainer.steps)), "reward": str(figures["reward"])}
    metadata |= {"commit": trainer.commit, MACHINE: trainer.machine}
    for arm, gradient in trainer.gradients.items():
        file = _file(folder, epoch, arm)
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as part:
            save_file({name: value.cpu() for name, value in gradient.items() if value.any()}, part, metadata)


def shown(title: str, found: Sequence[Figure], below: str) -> Shown:
    """The figures of whole gradients as a table: arms, then differences."""
    metrics = ("self_cosine", "ratio", "effective_images", "adam_ratio")
    by_place = {(f.arm, f.metric): f for f in found if f.part == "all"}
    rows = [
        (arm, *(_cell(by_place.get((arm, metric))) for metric in metrics)) for arm in dict.fromkeys(a for a, _ in by_place)
    ]
    columns = ("arm", "self-cosine", "ratio", "effective\nimages", "ratio by\nAdam's metric")
    known = any(math.isfinite(figure.stderr) for figure in by_place.values())
    error = "± by the jackknife over epochs" if known else f"no error of so few epochs, {EPOCHS} are usual"
    return Shown(f"{title}; {error}", columns, rows, below)


def _cell(figure: Figure | None) -> str:
    if figure is None:
        return MISSING
    digits = 3 if figure.metric == "self_cosine" else 2
    return with_error(figure.value, figure.stderr, digits, "±")


def _made_by(file: Path) -> tuple[str, str]:
    """The commit and the machine that computed a file; empty where an older version did not say."""
    with safe_open(file, "pt") as opened:
        about = opened.metadata()
    return about.get("commit", ""), about.get(MACHINE, "")


def _check(file: Path) -> None:
    """Read what a file says of its gradients, for :func:`star.bench.table.whole`; one that is cut off cannot be opened."""
    with safe_open(file, "pt") as opened:
        [int(step) for step in (opened.metadata() or {})["steps"].split(",")]


def _file(folder: Path, epoch: int, arm: str) -> Path:
    return folder / f"epoch-{epoch:04d}" / f"{file_name(arm)}.safetensors"
