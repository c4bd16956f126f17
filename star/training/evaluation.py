"""Scoring a model on a task's held-out prompts: deterministic sampling from noise that every method shares."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from evaluators.interface import check_verdicts
from star.common.processes import gather
from star.common.progress import track
from star.config import EvaluationConfig
from star.models.interface import BaseModel
from star.tasks import Score, Task
from star.training.judging import Beside, Verdicts
from star.training.rollout import generate, mean_distance, thumbnails


@dataclass
class Evaluation:
    """An evaluation's metrics and, image by image, what they were made of.

    Attributes:
        scores: the task's metrics, and ``diversity`` where prompts have several images.
        rows: a dict per image: ``prompt``, ``image`` (its number) and what the task's ``judge`` gave.
        samples: the first image of every prompt, uint8 (H, W, 3); only those that this process drew.
    """

    scores: list[Score]
    rows: list[dict]
    samples: dict[str, np.ndarray]


Job = tuple[int, int]
"""The number of a prompt, and that of its image."""


class Judged(NamedTuple):
    """An image that was drawn and judged, and how it looks in small."""

    job: Job
    verdict: dict
    thumbnail: Tensor


def evaluate(
    base: BaseModel, task: Task, config: EvaluationConfig, images: int, batch: int, accelerator: Accelerator
) -> Evaluation:
    """Draw ``images`` images of every test prompt and judge them; each process draws its share.

    Args:
        base: the model, with the weights that are to be judged.
        task: prompts and judge.
        config: steps, guidance and the seed of the noise, which is keyed by (seed, prompt, image).
        images: per prompt.
        batch: images that go through the model at once.
        accelerator: the processes.

    Raises:
        RunStopped: a velocity, a pixel or a verdict is not finite.
    """
    jobs = [(number, index) for number in range(len(task.test)) for index in range(images)]
    mine = _share([jobs[start : start + batch] for start in range(0, len(jobs), batch)], base, accelerator)
    base.prepare([task.test[number].text for part in mine for number, _ in part], config.guidance)
    drawn, samples = _judged(
        base, task, config, track(mine, f"evaluating on {task.name}") if accelerator.is_main_process else mine
    )
    by_job = {one.job: one for one in gather(accelerator, drawn)}
    judged = [by_job[job] for job in jobs]
    scores = task.summarise([task.test[one.job[0]] for one in judged], [one.verdict for one in judged])
    if images > 1:
        scores.append(_diversity(torch.stack([one.thumbnail for one in judged]).unflatten(0, (-1, images))))
    rows = [{"prompt": task.test[number].text, "image": index, **verdict} for (number, index), verdict, _ in judged]
    return Evaluation(scores, rows, samples)


def _share(batches: list[list[Job]], base: BaseModel, accelerator: Accelerator) -> list[list[Job]]:
    """The batches that this process draws."""
    mine = batches[accelerator.process_index :: accelerator.num_processes]
    if base.sharded and len(mine) < len(batches[:: accelerator.num_processes]):
        # Sharded weights want equally many calls of every process: this one draws the first batch once more.
        mine += batches[:1]
    return mine


def _judged(
    base: BaseModel, task: Task, config: EvaluationConfig, batches: Iterable[list[Job]]
) -> tuple[list[Judged], dict[str, np.ndarray]]:
    """What became of every image, and the first image of every prompt."""
    beside = Beside(base.device)
    small: list[Tensor] = []
    jobs: list[Job] = []
    verdicts: list[dict] = []
    before: Verdicts = list  # there are none before the first batch
    samples: dict[str, np.ndarray] = {}
    for part in batches:
        prompts = [task.test[number] for number, _ in part]
        keys = [(config.seed, "test", prompt.text, index) for prompt, (_, index) in zip(prompts, part, strict=True)]
        drawn = generate(base, [prompt.text for prompt in prompts], keys, config.steps, config.guidance)
        jobs += part
        # Copies, here and below, because a view keeps all of its batch, also where it is sent to other processes.
        small += [row.clone() for row in thumbnails(drawn)]
        # While these are judged the next are drawn; then they are waited for, so that no more images than that are kept.
        verdicts += check_verdicts(task.protocol, before())
        before = beside(task.submit(prompts, list(drawn.numpy())))
        samples |= {
            p.text: image.copy() for p, (_, index), image in zip(prompts, part, drawn.numpy(), strict=True) if index == 0
        }
    verdicts += check_verdicts(task.protocol, before())
    return [Judged(*one) for one in zip(jobs, verdicts, small, strict=True)], samples


def _diversity(thumbnails: Tensor) -> Score:
    """How different the images (prompts, images, pixels) of a prompt are: a policy that collapsed has none."""
    distances = torch.stack([mean_distance(rows) for rows in thumbnails])
    stderr = distances.std().item() / len(distances) ** 0.5 if len(distances) > 1 else None
    return Score("diversity", distances.mean().item(), stderr, thumbnails.shape[0] * thumbnails.shape[1], len(distances))
