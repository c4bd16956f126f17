"""One run from settings to result rows: train (or not, for the base), evaluate, and keep what was measured."""

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
from accelerate import Accelerator, PartialState
from PIL import Image
from torch import Tensor

from star import config as settings
from star.bench.results import Row, commit, config_hash
from star.checkpoint import load_trained
from star.config import Config
from star.evaluation import Evaluation, evaluate
from star.files import write_text
from star.pipeline import Base
from star.tasks import Task
from star.trainer import Trainer, load_task

UNTRAINED = {"updates": 0, "images_seen": 0, "seconds": 0.0}


def trained(config: Config) -> list[Row]:
    """Result rows of a method: trains it unless the run folder is done, and evaluates it unless that is done too.

    The run's own task comes first; the others that ``evaluators`` names follow, with ``evaluation.cross_images`` images
    per prompt and the method's name as ``star:geneval``.
    """
    trainer = Trainer(config)
    # Before training: what an evaluator lacks is told before hours of work, not after.
    others = [load_task(config, name) for name in settings.other_tasks(config)]
    summary = trainer.run()
    weights: dict[str, Tensor] = {}

    def measure(task: Task, images: int) -> Evaluation:
        if not weights:
            weights.update({name: value.clone() for name, value in trainer.ema.values.items()})
            load_trained(trainer.folder.path / "final" / "trained.safetensors", weights)
        with trainer.base.weights(weights):
            return _evaluate(config, images, trainer.base, task, trainer.accelerator)

    own, final = config.task.name, trainer.folder.path / "final"
    rows = _measured(config, trainer.task, config.method.name, summary, final, config.evaluation.images, measure)
    for task in others:
        label = f"{config.method.name}:{own}"
        rows += _measured(config, task, label, summary, final / task.name, config.evaluation.cross_images, measure)
    return rows


def base(config: Config) -> list[Row]:
    """Result rows of the untrained model under the evaluation settings of a run; kept in ``base`` beside the runs."""
    folder = settings.base_folder(config) / "final"
    task = load_task(config, config.task.name)

    def measure(task: Task, images: int) -> Evaluation:
        accelerator = Accelerator()
        model = Base(config.model, accelerator.device, config.seed)
        with model.reference():
            return _evaluate(config, images, model, task, accelerator)

    return _measured(config, task, "base", UNTRAINED | {"commit": commit()}, folder, config.evaluation.images, measure)


def _measured(
    config: Config,
    task: Task,
    method: str,
    summary: dict,
    folder: Path,
    images: int,
    measure: Callable[[Task, int], Evaluation],
) -> list[Row]:
    """The rows of one evaluation: those kept in its folder if they are of the same settings, or else measured now."""
    hashed = config_hash(settings.base_identity(config) if method == "base" else settings.identity(config))
    file = folder / "rows.json"
    if file.exists():
        rows = [Row(**row) for row in json.loads(file.read_text())]
        if rows[0].config_hash == hashed:
            return rows
    result = measure(task, images)
    rows = [
        Row(
            task=task.name,
            protocol=f"{task.protocol}/{config.scale}",
            method=method,
            seed=config.evaluation.seed if method == "base" else config.seed,
            updates=summary["updates"],
            images_seen=summary["images_seen"],
            seconds=summary["seconds"],
            commit=summary["commit"],
            config_hash=hashed,
            **score._asdict(),
        )
        for score in result.scores
    ]
    if PartialState().is_main_process:
        _keep(folder, result, rows)
    return rows


def _evaluate(config: Config, images: int, model: Base, task: Task, accelerator: Accelerator) -> Evaluation:
    return evaluate(model, task, config.evaluation, images, config.train.micro_batch, accelerator)


def _keep(folder: Path, result: Evaluation, rows: list[Row]) -> None:
    """Per-image verdicts, sample images and the rows; the rows last, because their presence says that all is there."""
    (folder / "samples").mkdir(parents=True, exist_ok=True)
    pd.DataFrame(result.rows).to_csv(folder / "images.csv", index=False)
    for number, (_, image) in enumerate(sorted(result.samples.items())):
        Image.fromarray(image).save(folder / "samples" / f"{number:05d}.png")
    write_text(folder / "rows.json", json.dumps([vars(row) for row in rows], indent=1) + "\n")
