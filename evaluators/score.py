"""``star evaluate``: any folder of images, scored by one of the evaluators, without a diffusion model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from evaluators import folder, registry
from evaluators.interface import Evaluator
from star.common.errors import UserError
from star.common.plugins import is_path

ENGINES = {"geneval": "mini", "ocr": "rapidocr", "pickscore": "pickscore"}
"""Task -> the evaluator that is taken if none is named."""


def score(
    task: str, images: str, prompts: str | None = None, engine: str | None = None, out: str | None = None
) -> pd.DataFrame:
    """Score a folder of images.

    Args:
        task: ``geneval``, ``ocr`` or ``pickscore``, or the path of an evaluator of one's own.
        images: a folder, for ``geneval`` in its layout.
        prompts: a file, see :func:`evaluators.folder.score_folder`; not for ``geneval``, whose folders hold them.
        engine: name of the evaluator, see :data:`ENGINES`.
        out: where the scores of the images go, a CSV file; by default ``<images>/<task>.csv``.

    Returns:
        One row per metric: metric, protocol, value, stderr, images, prompts.

    Raises:
        UserError: anything that cannot be used.
        RunStopped: an evaluator crashed.
    """
    if is_path(task):
        return _score_by(registry.create(task), task, images, prompts, out)
    if task not in ENGINES:
        known = ", ".join(ENGINES)
        raise UserError(f"task={task} has no evaluator; there are: {known}, and your own as my_package.my_module:MyEvaluator")
    engine = engine or ENGINES[task]
    file = Path(out or Path(images, f"{task}.csv"))
    if task == "geneval":
        if prompts:
            raise UserError("task=geneval takes no prompts=: its folders hold them (00000/metadata.jsonl)")
        from evaluators.geneval import evaluate

        detector = evaluate.detector(engine)
        return evaluate.summarise(folder.keep(evaluate.judge_folder(images, detector), evaluate.protocol(detector), file))
    if not prompts:
        raise UserError(f"task={task} needs prompts=FILE: a text file with the prompt of every image, a line each")
    if task == "ocr":
        from evaluators.ocr import evaluate as ocr
        from evaluators.ocr.pool import Pool

        recogniser = ocr.engine(engine)
        judge, protocol, metrics = partial(ocr.judge, pool=Pool(recogniser)), ocr.protocol(recogniser), ocr.METRICS
    else:
        from evaluators.pickscore import score as pickscore

        scorer = pickscore.engine(engine)
        judge, protocol, metrics = partial(pickscore.judge, scorer=scorer), pickscore.protocol(scorer), pickscore.METRICS
    return folder.summarise(folder.score_folder(images, prompts, judge, protocol, file), metrics)


@dataclass(frozen=True)
class Text:
    """A prompt of which nothing is known but its text."""

    text: str
    target: Mapping[str, Any] = field(default_factory=dict)


def _score_by(evaluator: Evaluator, name: str, images: str, prompts: str | None, out: str | None) -> pd.DataFrame:
    """Score a folder by an evaluator of one's own, whose rows go to ``<images>/<class>.csv`` by default."""
    if not prompts:
        raise UserError(f"task={name} needs prompts=FILE: a text file with the prompt of every image, a line each")

    def judge(texts: Sequence[str], pictures: Sequence[np.ndarray]) -> list[dict]:
        asked = [Text(text) for text in texts]
        for prompt in asked:
            if lack := evaluator.lacks(prompt):
                raise UserError(f"the prompt {prompt.text!r} has no {lack}, which {name} needs")
        return evaluator.submit(asked, pictures)()

    file = Path(out or Path(images, f"{name.rpartition(':')[2].lower()}.csv"))
    rows = folder.score_folder(images, prompts, judge, evaluator.protocol, file)
    scores = evaluator.summarise([Text(text) for text in rows["prompt"]], rows.to_dict("records"))
    return pd.DataFrame(scores).assign(protocol=evaluator.protocol)[
        ["metric", "protocol", "value", "stderr", "images", "prompts"]
    ]
