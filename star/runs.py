"""One run from settings to result rows: train (or not, for the base), evaluate, and keep what was measured."""

import json
from pathlib import Path

import pandas as pd
from accelerate import Accelerator
from PIL import Image

from star.bench.results import Row, commit, config_hash
from star.checkpoint import RunFolder, load_trained, write_text
from star.config import Config
from star.evaluation import Evaluation, evaluate
from star.pipeline import Base
from star.tasks import Task
from star.trainer import Trainer, load_task

UNTRAINED = {"epoch": 0, "updates": 0, "images_seen": 0, "seconds": 0.0}


def trained(config: Config) -> list[Row]:
    """Result rows of a method: trains it unless the run folder is done, and evaluates it unless that is done too."""
    folder = RunFolder(Path(config.run))
    trainer = Trainer(config)
    summary = trainer.run()
    if (rows := _kept(folder, summary)) is None:
        weights = {name: value.clone() for name, value in trainer.ema.values.items()}
        load_trained(folder.path / "final" / "trained.safetensors", weights)
        with trainer.base.weights({name: value.to(trainer.base.device) for name, value in weights.items()}):
            rows = _evaluated(config, trainer.base, trainer.task, trainer.accelerator, config.method.name, summary)
    return rows


def base(config: Config) -> list[Row]:
    """Result rows of the untrained model under the evaluation settings of a run; kept in ``base`` beside the runs."""
    identity = {"model": config.model.path, "resolution": config.model.resolution, "dtype": config.model.dtype}
    hashed = config_hash(identity | {"evaluation": vars(config.evaluation), "task": config.task.name})
    summary = UNTRAINED | {"commit": commit(), "config_hash": hashed}
    folder = RunFolder(Path("runs", config.scale, config.task.name, "base"))
    (folder.path / "final").mkdir(parents=True, exist_ok=True)
    if (rows := _kept(folder, summary)) is None:
        accelerator = Accelerator()
        model = Base(config.model, accelerator.device, config.seed)
        with model.reference():
            rows = _evaluated(config, model, load_task(config), accelerator, "base", summary, folder)
    return rows


def _evaluated(
    config: Config,
    model: Base,
    task: Task,
    accelerator: Accelerator,
    method: str,
    summary: dict,
    folder: RunFolder | None = None,
) -> list[Row]:
    folder = folder or RunFolder(Path(config.run))
    result = evaluate(model, task, config.evaluation, config.evaluation.images, config.train.micro_batch, accelerator)
    rows = [
        Row(
            task=config.task.name,
            metric=score.metric,
            protocol=f"{task.protocol}/{config.scale}",
            method=method,
            seed=config.evaluation.seed if method == "base" else config.seed,
            value=score.value,
            stderr=score.stderr,
            images=score.images,
            prompts=score.prompts,
            updates=summary["updates"],
            images_seen=summary["images_seen"],
            seconds=summary["seconds"],
            commit=summary["commit"],
            config_hash=summary["config_hash"],
        )
        for score in result.scores
    ]
    if accelerator.is_main_process:
        _keep(folder, result, rows)
    return rows


def _keep(folder: RunFolder, result: Evaluation, rows: list[Row]) -> None:
    """Per-image verdicts, sample images and the rows; the rows last, because their presence says that all is there."""
    final = folder.path / "final"
    pd.DataFrame(result.rows).to_csv(final / "images.csv", index=False)
    (final / "samples").mkdir(exist_ok=True)
    for number, (_, image) in enumerate(sorted(result.samples.items())):
        Image.fromarray(image).save(final / "samples" / f"{number:05d}.png")
    write_text(final / "rows.json", json.dumps([vars(row) for row in rows], indent=1) + "\n")


def _kept(folder: RunFolder, summary: dict) -> list[Row] | None:
    """The rows of an evaluation that was done, if it was one of the same settings."""
    file = folder.path / "final" / "rows.json"
    if not file.exists():
        return None
    rows = [Row(**row) for row in json.loads(file.read_text())]
    return rows if rows and rows[0].config_hash == summary["config_hash"] else None


def images(folder: Path) -> pd.DataFrame:
    """The per-image verdicts of a finished run."""
    return pd.read_csv(folder / "final" / "images.csv")
