"""``star evaluate``: any folder of images, scored by one of the evaluators, without a diffusion model."""

from functools import partial
from pathlib import Path

import pandas as pd

from evaluators import folder
from star.common.errors import UserError

ENGINES = {"geneval": "mini", "ocr": "rapidocr", "pickscore": "pickscore"}
"""Task -> the evaluator that is taken if none is named."""


def score(
    task: str, images: str, prompts: str | None = None, engine: str | None = None, out: str | None = None
) -> pd.DataFrame:
    """Score a folder of images.

    Args:
        task: ``geneval``, ``ocr`` or ``pickscore``.
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
    if task not in ENGINES:
        raise UserError(f"task={task} has no evaluator; there are: {', '.join(ENGINES)}")
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
