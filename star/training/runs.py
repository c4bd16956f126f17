"""One run from settings to result rows: train (or not, for the base), evaluate, and keep what was measured."""

import json
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
from accelerate import PartialState
from PIL import Image
from torch import Tensor

from star import config as settings
from star import models
from star.common import processes
from star.common.console import note, tell
from star.common.files import alone_in, check_room, fault, read_json, write_last, write_text, writing
from star.common.launched import check_launched, is_first
from star.common.machine import machine, versions
from star.config import Config, config_hash
from star.models.interface import BaseModel
from star.models.lora import Lora
from star.records.code import commit, is_commit
from star.records.names import ProtocolName, on_task
from star.records.results import GIVEN, ROWS, VERDICTS, Row, read_rows
from star.tasks import Task, load_task, try_evaluator
from star.training import guards
from star.training.checkpoint import load_trained
from star.training.evaluation import Evaluation, evaluate
from star.training.folder import RunFolder
from star.training.given import check_given, given
from star.training.machine import as_begun, loaded
from star.training.partial import PARTIAL, Partial
from star.training.trainer import Trainer

Measure = Callable[[Task, int, Partial | None], Evaluation]
UNTRAINED = {"updates": 0, "images_seen": 0, "seconds": 0.0}


def trained(config: Config) -> list[Row]:
    """Result rows of a method: trains it unless the run folder is done, and evaluates it unless that is done too.

    The run's own task comes first; the others that ``evaluators`` names follow, with ``evaluation.cross_images`` images
    per prompt and method names such as ``star:geneval``.
    """
    check_launched()
    with guards.limits(config):
        if is_first():
            RunFolder(Path(config.run)).check_place()
        trainer = Trainer(config)
        if trainer.folder.summary() is None:  # report what evaluations lack before hours of work, not after
            try_evaluator(config, trainer.task)
            for name in settings.other_tasks(config):
                try_evaluator(config, load_task(config, name, trainer.others.get(name)))  # not kept: its weights take memory
        main = trainer.accelerator.is_main_process
        for line in settings.cautions(config) if main else ():
            tell(line)
        with alone_in(trainer.folder.path) if main else nullcontext():
            return _measured(config, trainer, trainer.run())


def _measured(config: Config, trainer: Trainer, summary: dict) -> list[Row]:
    """Result rows of a training that is done: on its own task, then on the others."""
    weights: dict[str, Tensor] = {}
    final = trainer.folder.path / "final"

    def measure(task: Task, images: int, partial: Partial | None) -> Evaluation:
        if not weights:
            weights.update({name: value.clone() for name, value in trainer.ema.values.items()})
            cure = f"delete {final / 'summary.json'}, and the same command trains the last epochs again"
            load_trained(final / "trained.safetensors", weights, cure)
        with trainer.base.weights(weights):
            return evaluate(trainer.base, task, config, images, trainer.accelerator, partial)

    own = config.task.name
    method = settings.label(config, config.method.name)
    kept = Kept(config, summary, config.seed, measure)
    rows = kept.rows(trainer.task, method, final, config.evaluation.images, settings.identity(config, own))
    del trainer.task  # frees its judge's memory on the GPU for the others
    for name in settings.other_tasks(config):
        task = load_task(config, name, trainer.others.get(name))
        known = settings.identity(config, name)
        rows += kept.rows(task, on_task(method, own, name), final / task.name, config.evaluation.cross_images, known)
        del task  # frees its judge before the next one loads
    return rows


def base(config: Config) -> list[Row]:
    """Result rows of the untrained model under the evaluation settings of a run; kept in ``base`` beside the runs."""
    accelerator = processes.joined()  # gives each process its GPU, before an evaluator takes its place there

    def measure(task: Task, images: int, partial: Partial | None) -> Evaluation:
        model = _loaded(config, partial)
        with model.reference():
            return evaluate(model, task, config, images, accelerator, partial)

    folder, label = settings.base_folder(config), settings.label(config, "base")
    return _untrained(config, settings.base_identity(config), measure, folder, label)


def released(config: Config, lora: Lora, method: str) -> list[Row]:
    """Result rows of a LoRA that was trained elsewhere; kept in a folder of its method's name beside the runs."""
    accelerator = processes.joined()  # gives each process its GPU, before an evaluator takes its place there

    def measure(task: Task, images: int, partial: Partial | None) -> Evaluation:
        model = _loaded(replace(config, model=lora.model_config(config.model)), partial)
        with model.weights(lora.values(model)):
            return evaluate(model, task, config, images, accelerator, partial)

    folder = settings.base_folder(config).with_name(method)
    return _untrained(config, released_identity(config, lora), measure, folder, method)


def released_identity(config: Config, lora: Lora) -> dict:
    """What an evaluation of a LoRA that was trained elsewhere depends on."""
    return settings.base_identity(config) | {"lora": lora.digest}


def _loaded(config: Config, partial: Partial | None) -> BaseModel:
    """The base model, with the kernels that what was judged so far was drawn with."""
    return loaded(as_begun(config, partial.folder) if partial else config)


def _untrained(config: Config, identity: dict, measure: Measure, folder: Path, method: str) -> list[Row]:
    """Result rows of a model that this project did not train; their seed is that of the evaluation's noise."""
    models.find(config.model)  # fails before a folder is made, if there is no such model
    task = load_task(config, config.task.name)
    now, main = given(config, task, training=False), PartialState().is_main_process
    summary = UNTRAINED | {"commit": commit(), "machine": machine(PartialState().num_processes)} | now
    kept, noted = Kept(config, summary, config.evaluation.seed, measure), folder / "final" / GIVEN
    with guards.limits(config), alone_in(folder) if main else nullcontext():
        if main:
            before = read_json(noted)
            begun = f"{folder} was measured; put that back, or delete the folder"
            check_given(config, before if isinstance(before, dict) else {}, now, begun)
        other = read_rows(folder / "final" / ROWS)
        if main and other and other[0].config_hash != config_hash(identity):
            note(f"{folder} holds {method} as evaluated with other settings; this evaluation takes its place")
        rows = kept.rows(task, method, folder / "final", config.evaluation.images, identity)
        if main and before != now and any(now.values()):
            with writing(folder):
                write_text(noted, json.dumps(now) + "\n")
        return rows


@dataclass(frozen=True)
class Kept:
    """Evaluations of one model, each of which is made only once.

    Attributes:
        config: the settings.
        summary: of its training.
        seed: of its rows.
        measure: (task, images per prompt, what was judged before it was cut off) -> evaluation.
    """

    config: Config
    summary: dict
    seed: int
    measure: Measure

    def rows(self, task: Task, method: str, folder: Path, images: int, identity: dict) -> list[Row]:
        """The rows of one evaluation: those in its folder if intact and of this identity and protocol, else measured now."""
        hashed, protocol, file = config_hash(identity), _protocol(task, self.config), folder / ROWS
        rows = read_rows(file)
        known = bool(rows) and (rows[0].config_hash, rows[0].protocol) == (hashed, protocol)
        told = fault(folder, ROWS, VERDICTS)
        done = known and not told and (folder / VERDICTS).exists()
        processes.check_agreed(done, str(file))
        main, kept = PartialState().is_main_process, folder / PARTIAL
        if done:
            if main:
                shutil.rmtree(kept, ignore_errors=True)  # left by an evaluation that was killed after it had finished
            return rows
        if main:
            check_room(folder, "what is measured")
            if told and file.exists():
                tell(f"{told}; it is measured again")
        result = self.measure(task, images, self._partial(kept, hashed, protocol))
        rows = [
            Row(
                task=task.name,
                protocol=protocol,
                method=method,
                seed=self.seed,
                updates=self.summary["updates"],
                images_seen=self.summary["images_seen"],
                seconds=self.summary["seconds"],
                commit=self.summary["commit"],
                config_hash=hashed,
                machine=self.summary.get("machine", ""),
                **score._asdict(),
            )
            for score in result.scores
        ]
        _keep(folder, result, rows)
        if main:
            shutil.rmtree(kept, ignore_errors=True)
        return rows

    def _partial(self, folder: Path, hashed: str, protocol: str) -> Partial | None:
        """Where verdicts are kept until all are made; None if no commit pins the code, which may then change in between."""
        code = commit()
        # Digits depend on how many images are drawn at once, and not on how many processes draw them.
        size, where = self.config.train.micro_batch, processes.anywhere(machine())
        by = {"code": code, "libraries": versions(), "machine": where, "micro_batch": size}
        training = {name: value for name, value in self.summary.items() if name != "machine"}
        key = config_hash({"of": hashed, "protocol": protocol, "training": training, "by": by})
        return Partial(folder, key) if is_commit(code) else None


def _protocol(task: Task, config: Config) -> str:
    """``geneval-v1/mini-2/mini``, and behind it how the evaluation departs from the scale's, as in ``.../guidance=1.0``."""
    return str(ProtocolName.of(task.evaluator.protocol, config.scale, settings.evaluation_changes(config)))


def _keep(folder: Path, result: Evaluation, rows: list[Row]) -> None:
    """Per-image verdicts, sample images and the rows; the rows last, because their presence says that all is there.

    Every process writes the samples that it drew, the main one the rest.
    """
    state = PartialState()
    with writing(folder):
        if state.is_main_process:
            (folder / ROWS).unlink(missing_ok=True)
        (folder / "samples").mkdir(parents=True, exist_ok=True)
        numbers = {prompt: number for number, prompt in enumerate(sorted({row["prompt"] for row in result.rows}))}
        for prompt, image in result.samples.items():
            Image.fromarray(image).save(folder / "samples" / f"{numbers[prompt]:05d}.png")
    with processes.together():
        state.wait_for_everyone()
    if state.is_main_process:
        with writing(folder):
            pd.DataFrame(result.rows).to_csv(folder / VERDICTS, index=False)
            write_last(folder / ROWS, json.dumps([vars(row) for row in rows], indent=1) + "\n", [VERDICTS])
