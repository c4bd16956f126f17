"""A run: the epochs of a training in a folder, with checkpoints, a log and, at the end, the weights that are judged.

Checkpoints hold all that is not keyed, so a run that was killed and resumed ends with the same weights as one that was not.
"""

import os
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import get_available_trackers

from evaluators.interface import Score
from star import config as settings
from star import models
from star.common import processes
from star.common.console import note, tell
from star.common.errors import UserError
from star.common.machine import machine, versions
from star.common.progress import bar
from star.config import Config, config_hash
from star.method.arms import map_maker
from star.models.interface import BaseModel
from star.records.code import commit
from star.tasks import Task, load_rewards, load_task
from star.training import guards
from star.training.checkpoint import EVALUATED_BY, TrainingFolder, digest
from star.training.credit import check_evaluator
from star.training.evaluation import evaluate
from star.training.given import check_given, given, origin, prompts_digest, prompts_may_change
from star.training.learner import Learner
from star.training.machine import check_deterministic, compute_deterministically, decisions, settled


class Trainer(Learner):
    """A training run of one configuration, in one run folder.

    Attributes:
        folder: the run's.
        decisions: a line for each thing that the settings left to the machine.
        commit: of the code; ``A..B..C`` if the run was begun with A and went on with B and C, repeats left out.
        machine: what trains; ``A; B; C`` likewise.
    """

    def __init__(self, config: Config, task: Task | None = None, base: BaseModel | None = None) -> None:
        """
        Args:
            config: a checked configuration.
            task: what is rewarded; by default the configured one.
            base: the model; by default the configured one.

        Raises:
            UserError: the model, the evaluator or the run folder is not usable.
        """
        _check_tracker(config)
        accelerator = processes.joined(log_with=config.tracker, project_dir=config.run)
        self.folder = TrainingFolder(Path(config.run))
        self.commit = commit()  # read now: the checkout may have moved on when the run ends
        self.machine = machine(accelerator.num_processes)
        asked, config = config, settled(config, self.folder, accelerator)
        self.decisions = decisions(asked, config)
        # Maps that nothing makes and images that cannot be judged are reported before a model is loaded.
        map_maker(config.method.arm)
        check_deterministic(config, accelerator.device)
        if config.train.deterministic:
            compute_deterministically()
        task = task or load_task(config, config.task.name)
        check_evaluator(config.method.arm, task)
        _check_prompts(config, task, accelerator)
        others = load_rewards(config, task)
        super().__init__(config, accelerator, task, others, base or models.load(config.model, accelerator.device, config.seed))

    @property
    def state(self) -> dict:
        """What a checkpoint holds besides the trained weights."""
        return {"optimizer": self.optimizer, "ema": self.ema, "scaler": self.scaler}

    def run(self) -> dict:
        """Train to the last epoch, from the newest checkpoint if there is one.

        Returns:
            the summary of the finished run: epoch, updates, images_seen, seconds, first, bad_epochs, run (its identity),
            commit, versions, machine, and digests of what was given.

        Raises:
            UserError: the folder belongs to a run with other settings.
            RunStopped: the run is not on-policy where it must be, diverged or collapsed.
        """
        main = self.accelerator.is_main_process
        if main:
            self.folder.open(settings.to_yaml(self.config), self._identity)
        processes.wait(self.accelerator)
        # Looked for in a listing, because a shared file system may remember for a while that a file was not there.
        known = self.folder.path.is_dir() and "config.yaml" in os.listdir(self.folder.path)
        processes.check_agreed(known, f"{self.folder.path}/config.yaml")
        done = self.folder.summary()
        processes.check_agreed(done is None, f"{self.folder.path}/final/summary.json")
        if done:
            if main:
                self._check_begun(done, "final")
                note(f"{self.folder.path} is trained to the end; what was not measured yet is")
            # What was not measured yet is measured by the code as it is now.
            return done | {"commit": _continued(done.get("commit", self.commit), self.commit, "..")}
        for line in self.decisions if main else ():
            note(line)
        progress = self._restore()
        if main:
            self._announce(progress["epoch"])
        if self.config.tracker:
            self.accelerator.init_trackers("star", config={"config": settings.to_yaml(self.config)})
        progress = self._train(progress)
        summary = progress | self._known
        if main:
            self.folder.finish(self.ema.values, summary, self._export)
        # Not end_training: that also ends the process group, which evaluations still need.
        for tracker in self.accelerator.trackers:
            tracker.finish()
        # Clocks differ, so the first process's summary counts; and none goes on before the weights are there.
        return self._gather([summary])[0]

    def _train(self, progress: dict) -> dict:
        """Train the epochs that are left, with a checkpoint now and then; returns the final progress."""
        train = self.config.train
        label = f"{self.config.task.name} {self.config.method.name} seed {self.config.seed}"
        left = (train.epochs - progress["epoch"]) * 2 * sum(self._turns())
        with bar(label, left) if self.accelerator.is_main_process else nullcontext() as display:
            tick = display.advance if display else lambda: None
            saved = time.monotonic()
            for epoch in range(progress["epoch"], train.epochs):
                metrics = self.epoch(epoch, tick)
                guards.check_weights({"the weight": self.base.trained, "the average of": self.ema.values}, epoch + 1)
                progress = self._advance(progress, metrics)
                self._report(epoch, metrics | progress)
                if display:
                    display.update(f"{label}, epoch {epoch + 1} of {train.epochs} done, reward {metrics['reward']:.3f}")
                late = time.monotonic() - saved > 60 * train.checkpoint_minutes
                if ((epoch + 1) % train.checkpoint_every == 0 or late) and epoch + 1 < train.epochs:
                    self._save(progress)
                    saved = time.monotonic()
        return progress

    def _announce(self, done: int) -> None:
        """Say what is trained and where, and after how many epochs it goes on."""
        config, train = self.config, self.config.train
        images = train.epochs * train.rollouts
        what = f"{config.method.name} on {config.task.name}, seed {config.seed}: {train.epochs} epochs, {images:,} images"
        ranks = self.accelerator.num_processes
        where = f"in {self.folder.path}" + (f", by {ranks} processes" if ranks > 1 else "")
        note(f"{what}, {where}" + (f"; goes on after epoch {done}" if done else ""))
        idle = 1 - train.micro_batches / (ranks * sum(self._turns()))
        if idle:
            note(
                f"{train.micro_batches} micro-batches in {train.updates_per_epoch} updates are no equal shares for "
                f"{ranks} processes, which idle for {idle:.0%} of the time; train.micro_batch and train.groups decide how "
                "many there are"
            )

    def evaluate(self, images: int) -> list[Score]:
        """Score the average of the weights on the test prompts; see :func:`star.training.evaluation.evaluate`."""
        with self.base.weights(self.ema.values):
            return evaluate(self.base, self.task, self.config, images, self.accelerator).scores

    def _advance(self, progress: dict, metrics: dict) -> dict:
        """Progress after one more epoch; stops a run that has collapsed."""
        first = progress.get("first") or {"reward": metrics["reward"], "diversity": metrics["diversity"]}
        before = progress.get("bad_epochs", 0)
        sound = self.folder.newest_before(progress["epoch"] - before)
        bad = guards.bad_epochs(first, metrics, before, self.config.train.collapse_epochs, sound)
        return {
            "epoch": progress["epoch"] + 1,
            "updates": progress.get("updates", 0) + self.config.train.updates_per_epoch,
            "images_seen": progress.get("images_seen", 0) + metrics["images"],
            "seconds": progress.get("seconds", 0.0) + metrics["sampling_seconds"] + metrics["update_seconds"],
            "first": first,
            "bad_epochs": bad,
        }

    def _report(self, epoch: int, line: dict) -> None:
        how = self.config.evaluation
        if how.every and (epoch + 1) % how.every == 0:
            scores = {s.metric: s.value for s in self.evaluate(how.every_images)}
            of, judge = [how.steps, how.guidance, how.seed, how.every_images], self.task.evaluator
            by = config_hash({"of": of, "protocol": judge.protocol})
            line |= {f"eval/{metric}": value for metric, value in scores.items()} | {EVALUATED_BY: by}
            if self._export and self.accelerator.is_main_process:
                self.folder.keep_best(epoch + 1, judge.primary, scores[judge.primary], by, self._export)
        if self.accelerator.is_main_process:
            self.folder.log(line)
        if self.config.tracker:
            self.accelerator.log({k: v for k, v in line.items() if isinstance(v, int | float)}, step=epoch + 1)

    def _save(self, progress: dict) -> None:
        if self.accelerator.is_main_process:
            epoch = progress["epoch"]
            self.folder.save(epoch, self.base.trained, self.state, progress | self._known, self._export)
            # While a run may be collapsing, its last sound checkpoint outlives newer ones.
            self.folder.prune(self.config.train.keep, epoch - progress["bad_epochs"] if progress["bad_epochs"] else None)

    @property
    def _export(self) -> Callable[[Path], None] | None:
        """A function that writes the adapters the run is judged by, their average, into a folder; None if there are none."""
        return partial(self.base.export, values=self.ema.values) if self.config.model.parameters == "lora" else None

    def _restore(self) -> dict:
        """Load the newest checkpoint that is whole, and drop what was logged after it."""
        main = self.accelerator.is_main_process
        progress = self.folder.restore(self.base.trained, self.state, tell if main else lambda line: None)
        if main:
            self._check_begun(progress, f"checkpoints/epoch-{progress['epoch']:06d}")
        if self.accelerator.num_processes > 1:  # each process loaded what it could read
            place = (progress["epoch"], digest(self.base.trained))
            processes.check_agreed(place, f"{self.folder.path}/checkpoints")
        self.commit = _continued(progress.pop("commit", self.commit), self.commit, "..")
        now = versions()
        if (before := progress.pop("versions", now)) != now and main:
            tell(f"it was trained with {before} so far, and goes on with {now}: digits may differ")
        before = progress.pop("machine", self.machine)
        if before.split("; ")[-1] != self.machine and main:
            tell(f"it was trained by {before} so far, and goes on by {self.machine}: digits may differ")
        self.machine = _continued(before, self.machine, "; ")
        processes.wait(self.accelerator)  # until all have read
        if main:
            self.folder.drop_after(progress["epoch"])
        return progress

    @property
    def _known(self) -> dict[str, str]:
        """Which run this is, and what the digits of its results depend on besides the settings."""
        return {"run": self._identity, "commit": self.commit, "versions": versions(), "machine": self.machine} | self._given

    @cached_property
    def _identity(self) -> str:
        return config_hash(settings.identity(self.config))

    def _check_begun(self, known: Mapping[str, Any], part: str) -> None:
        """Refuse another run's weights, and another base model or other prompts than those that the run was begun with.

        Args:
            known: its progress or summary; what an older version did not record is not checked.
            part: the folder of it within the run's.
        """
        if (other := known.get("run", self._identity)) != self._identity:
            raise UserError(
                f"{self.folder.path / part} is of a run with other settings (the first line of its config.yaml ends with "
                f"{other}); take it away, and put this run's own back if there is one"
            )
        begun = f"{self.folder.path} was begun; put that back, or name another folder with run=..."
        check_given(self.config, known, self._given, begun)

    @cached_property
    def _given(self) -> dict[str, str]:
        return given(self.config, self.task)


def _continued(before: str, now: str, joint: str) -> str:
    """What a run was made with so far, and what it goes on with, unless that is the last of these."""
    return before if before.split(joint)[-1] == now else f"{before}{joint}{now}"


def _check_tracker(config: Config) -> None:
    if config.tracker and config.tracker not in (installed := [str(name) for name in get_available_trackers()]):
        known = ", ".join(installed) or "none"
        raise UserError(f"tracker={config.tracker} is not installed, or not known to accelerate; installed: {known}")


def _check_prompts(config: Config, task: Task, accelerator: Accelerator) -> None:
    """Refuse prompts that differ between processes: a prompt's number would not stand for the same text."""
    if prompts_may_change(config) and len(set(processes.gather(accelerator, [prompts_digest(task)]))) > 1:
        cure = "draw them from a seed, and order what is a set" if config.task.prompts else "use one folder, or the same file"
        raise UserError(f"{origin(config)} other prompts on each process: {cure}")
