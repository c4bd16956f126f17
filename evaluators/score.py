"""``star evaluate``: any folder of images, scored by one of the evaluators, without a diffusion model."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from evaluators import folder, registry
from evaluators.geneval.detector import Detector
from evaluators.interface import Evaluator, Text, judged, summary
from star.common.errors import UserError
from star.common.plugins import is_path

ENGINES = {"geneval": None, "ocr": "rapidocr", "pickscore": "pickscore"}
"""Task -> the engine that is taken if none is named; GenEval's depends on what the folder asks for."""

COLUMNS = ["metric", "protocol", "value", "stderr", "images", "prompts"]


def score(
    task: str, images: str, prompts: str | None = None, engine: str | None = None, out: str | None = None
) -> pd.DataFrame:
    """Score a folder of images.

    Args:
        task: ``geneval``, ``ocr`` or ``pickscore``, or the path of an evaluator of one's own.
        images: a folder, for ``geneval`` in its layout.
        prompts: a file, see :func:`evaluators.folder.score_folder`; not for ``geneval``, whose folders hold them.
        engine: which engine the evaluator uses; by default that of :data:`ENGINES`.
        out: where the scores of the images go, a CSV file; by default ``<images>/<task>.csv``.

    Returns:
        One row per metric: metric, protocol, value, stderr, images, prompts.

    Raises:
        UserError: an argument or a file cannot be used.
        RunStopped: an evaluator crashed.
        Interrupted: somebody ended it.
    """
    if task not in ENGINES and not is_path(task):
        known = ", ".join(ENGINES)
        raise UserError(f"task={task} has no evaluator; there are: {known}, and your own as my_package.my_module:MyEvaluator")
    engine = engine or ENGINES.get(task)
    file = rows_file(task, images, out)
    if task == "geneval":
        if prompts:
            raise UserError("task=geneval takes no prompts=: its folders hold them (00000/metadata.jsonl)")
        from evaluators.geneval import evaluate

        detector = evaluate.detector(engine) if engine else _detector_for(Path(images))
        protocol = evaluate.protocol(detector)
        scores = evaluate.summarise(folder.keep(evaluate.judge_folder(images, detector), protocol, file))
    else:
        if not prompts:
            raise UserError(f"task={task} needs prompts=FILE: a text file with the prompt of every image, a line each")
        evaluator = registry.create(task, engine)
        protocol = evaluator.protocol
        rows = folder.score_folder(
            images,
            prompts,
            partial(_judged, evaluator, task),
            protocol,
            file,
            lacks=lambda text: evaluator.lacks(Text(text)),
            tried=is_path(engine or task),
        )
        scores = summary(f"task={task}", evaluator, [Text(text) for text in rows["prompt"]], rows.to_dict("records"))
    return pd.DataFrame(scores).assign(protocol=protocol)[COLUMNS].astype({"stderr": float})


def rows_file(task: str, images: str, out: str | None = None) -> Path:
    """Where :func:`score` puts the scores of the images; arguments as there."""
    return Path(out or Path(images, f"{task.rpartition(':')[2].lower()}.csv"))


def _detector_for(images: Path) -> Detector:
    """The detector that knows what the records of a folder ask for."""
    from evaluators.geneval import evaluate

    engine = evaluate.engine_for(record for _, record in evaluate.read_records(images))
    try:
        return evaluate.detector(engine)
    except UserError as error:
        raise UserError(f"{images} asks for objects of GenEval's own, which need engine={engine}: {error}") from None


def _judged(evaluator: Evaluator, task: str, texts: Sequence[str], images: Sequence[np.ndarray]) -> list[dict]:
    """The verdicts on images whose prompts are known by their texts alone."""
    return judged(f"task={task}", evaluator, [Text(text) for text in texts], images)
