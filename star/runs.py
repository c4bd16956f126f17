"""One run from settings to result rows: train (or not, for the base), evaluate, and keep what was measured."""

import json
from pathlib import Path

import pandas as pd
from accelerate import Accelerator
from PIL import Image

from star import config as settings
from star.bench.results import Row, commit, config_hash
from star.checkpoint import RunFolder, load_trained, write_text
from star.config import Config
from star.evaluation import Evaluation, evaluate
from star.pipeline import Base
from star.tasks import Task
from star.trainer import Trainer, load_task

UNTRAINED = {"updates": 0, "images_seen": 0, "seconds": 0.0}


def trained(config: Config) -> list[Row]:
    """Result rows of a method: trains it unless the run folder is done, and evaluates it unless that is done too."""
    trainer = Trainer(config)
    summary = trainer.run()
    hashed = config_hash(settings.identity(config))
    folder = trainer.folder
    if (rows := _kept(folder, hashed)) is None:
        weights = {name: value.clone() for name, value in trainer.ema.values.items()}
        load_trained(folder.path / "final" / "trained.safetensors", weights)
        with trainer.base.weights(weights):
            result = _evaluate(config, trainer.base, trainer.task, trainer.accelerator)
        rows = _rows(config, trainer.task, result, config.method.name, summary, hashed)
        if trainer.accelerator.is_main_process:
            _keep(folder, result, rows)
    return rows


def base(config: Config) -> list[Row]:
    """Result rows of the untrained model under the evaluation settings of a run; kept in ``base`` beside the runs."""
    known = settings.to_dict(config)
    hashed = config_hash({name: known[name] for name in ("task", "scale", "model", "evaluation", "evaluators")})
    folder = RunFolder(Path("runs", config.scale, config.task.name, "base"))
    if (rows := _kept(folder, hashed)) is None:
        accelerator = Accelerator()
        model = Base(config.model, accelerator.device, config.seed)
        task = load_task(config)
        with model.reference():
            result = _evaluate(config, model, task, accelerator)
        rows = _rows(config, task, result, "base", UNTRAINED | {"commit": commit()}, hashed)
        if accelerator.is_main_process:
            _keep(folder, result, rows)
    return rows


def _evaluate(config: Config, model: Base, task: Task, accelerator: Accelerator) -> Evaluation:
    return evaluate(model, task, config.evaluation, config.evaluation.images, config.train.micro_batch, accelerator)


def _rows(config: Config, task: Task, result: Evaluation, method: str, summary: dict, hashed: str) -> list[Row]:
    return [
        Row(
            task=config.task.name,
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


def _keep(folder: RunFolder, result: Evaluation, rows: list[Row]) -> None:
    """Per-image verdicts, sample images and the rows; the rows last, because their presence says that all is there."""
    final = folder.path / "final"
    final.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(result.rows).to_csv(final / "images.csv", index=False)
    (final / "samples").mkdir(exist_ok=True)
    for number, (_, image) in enumerate(sorted(result.samples.items())):
        Image.fromarray(image).save(final / "samples" / f"{number:05d}.png")
    write_text(final / "rows.json", json.dumps([vars(row) for row in rows], indent=1) + "\n")


def _kept(folder: RunFolder, hashed: str) -> list[Row] | None:
    """The rows of an evaluation that was done, if it was one of the same settings."""
    file = folder.path / "final" / "rows.json"
    if not file.exists():
        return None
    rows = [Row(**row) for row in json.loads(file.read_text())]
    return rows if rows[0].config_hash == hashed else None


def images(folder: Path) -> pd.DataFrame:
    """The per-image verdicts of a finished run."""
    return pd.read_csv(folder / "final" / "images.csv")
