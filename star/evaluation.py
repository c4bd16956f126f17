"""Scoring a model on a task's held-out prompts: deterministic sampling from noise that every method shares."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from accelerate import Accelerator
from accelerate.utils import gather_object

from star.config import EvaluationConfig
from star.pipeline import Base
from star.progress import track
from star.rollout import generate
from star.tasks import Prompt, Score, Task


@dataclass
class Evaluation:
    """An evaluation's metrics and, image by image, what they were made of.

    Attributes:
        scores: all metrics.
        rows: a dict per image: ``prompt``, ``image`` (its number) and what the task's ``judge`` gave.
        samples: the first image of every prompt, uint8 (H, W, 3); only those that this process drew.
    """

    scores: list[Score]
    rows: list[dict]
    samples: dict[str, np.ndarray]


def evaluate(
    base: Base, task: Task, config: EvaluationConfig, images: int, batch: int, accelerator: Accelerator
) -> Evaluation:
    """Draw ``images`` images of every test prompt and judge them; each process draws its share.

    Args:
        base: the model, with the weights that are to be judged.
        task: prompts and judge.
        config: steps, guidance and the seed of the noise, which is keyed by (seed, prompt, image).
        images: per prompt.
        batch: images that go through the model at once.
        accelerator: the processes.
    """
    jobs = [(number, index) for number in range(len(task.test)) for index in range(images)]
    batches = [jobs[start : start + batch] for start in range(0, len(jobs), batch)]
    mine = batches[accelerator.process_index :: accelerator.num_processes]
    judged: list[tuple[tuple[int, int], dict]] = []
    samples: dict[str, np.ndarray] = {}
    for part in track(mine, "evaluating") if accelerator.is_main_process else mine:
        prompts = [task.test[number] for number, _ in part]
        keys = [(config.seed, "test", prompt.text, index) for prompt, (_, index) in zip(prompts, part, strict=True)]
        drawn = generate(base, [prompt.text for prompt in prompts], keys, config.steps, config.guidance).numpy()
        judged += zip(part, task.judge(prompts, list(drawn)), strict=True)
        samples |= {p.text: image for p, (_, index), image in zip(prompts, part, drawn, strict=True) if index == 0}
    if accelerator.num_processes > 1:
        judged = gather_object(judged)
    judged.sort(key=lambda item: item[0])
    prompts = [task.test[number] for (number, _), _ in judged]
    verdicts = [verdict for _, verdict in judged]
    return Evaluation(task.summarise(prompts, verdicts), _rows(prompts, judged), samples)


def _rows(prompts: Sequence[Prompt], judged: Sequence[tuple[tuple[int, int], dict]]) -> list[dict]:
    return [
        {"prompt": prompt.text, "image": index, **verdict}
        for prompt, ((_, index), verdict) in zip(prompts, judged, strict=True)
    ]
