"""Scoring a model on a task's held-out prompts: deterministic sampling from noise that every method shares."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from evaluators.interface import Score, check_verdicts, summary
from star.common.console import note
from star.common.processes import gather, wait
from star.common.progress import track
from star.config import Config
from star.models.interface import BaseModel
from star.tasks import Task
from star.training.judging import Beside, Verdicts
from star.training.partial import Job, Judged, Partial
from star.training.rollout import generate, mean_distance, thumbnails


@dataclass
class Evaluation:
    """An evaluation's metrics and, image by image, what they were made of.

    Attributes:
        scores: the task's metrics, and ``diversity`` where prompts have several images.
        rows: a dict per image: ``prompt``, ``image`` (its number) and what the task's evaluator gave.
        samples: the first image of every prompt, uint8 (H, W, 3): those that this process drew and, on the main one, those
            kept from before the evaluation was cut off.
    """

    scores: list[Score]
    rows: list[dict]
    samples: dict[str, np.ndarray]


def evaluate(
    base: BaseModel, task: Task, config: Config, images: int, accelerator: Accelerator, partial: Partial | None = None
) -> Evaluation:
    """Draw ``images`` images of every test prompt and judge them; each process draws its share.

    Args:
        base: the model, with the weights that are to be judged.
        task: prompts and judge.
        config: ``evaluation`` has steps, guidance and the seed of the noise, which is keyed by (seed, prompt, image);
            ``train.micro_batch`` says how many images go through the model at once.
        images: per prompt.
        accelerator: the processes.
        partial: what the same evaluation had judged when it was cut off, and where new verdicts are kept; None to keep none.

    Raises:
        RunStopped: a velocity, a pixel, a verdict or a score is not finite, or what was judged cannot be written.
        UserError: the evaluator's scores are not as :class:`evaluators.interface.Score` says.
    """
    main, batch = accelerator.is_main_process, config.train.micro_batch
    jobs = [(number, index) for number in range(len(task.test)) for index in range(images)]
    batches = [jobs[start : start + batch] for start in range(0, len(jobs), batch)]
    known = partial.read(samples=main) if partial else {}
    left = _left(batches, known, accelerator)
    if main and len(left) < len(batches):
        note(f"evaluating on {task.name} goes on: {len(jobs) - sum(map(len, left)):,} of {len(jobs):,} images are judged")
    rounds = len(left[:: accelerator.num_processes])  # as many as the process with the most has batches
    mine = _share(left, rounds, base, accelerator)
    base.prepare([task.test[number].text for part in mine for number, _ in part], config.evaluation.guidance)
    meeting = _meeting(track(mine, f"evaluating on {task.name}") if main else mine, rounds, accelerator)
    drawn = _judged(base, task, config, meeting, partial)
    anew = {job for part in left for job in part}
    before = [one for one in known.values() if one.job not in anew]
    # Sample images are not gathered: each process saves its own.
    by_job = {one.job: one for one in [*before, *gather(accelerator, [one._replace(sample=None) for one in drawn])]}
    judged = [by_job[job] for job in jobs]
    samples = {task.test[one.job[0]].text: one.sample for one in [*before, *drawn] if one.sample is not None}
    prompts, verdicts = [task.test[one.job[0]] for one in judged], [one.verdict for one in judged]
    scores = summary(task.evaluator.protocol, task.evaluator, prompts, verdicts)
    if images > 1:
        scores.append(_diversity(torch.stack([one.thumbnail for one in judged]).unflatten(0, (-1, images))))
    rows = [{"prompt": task.test[one.job[0]].text, "image": one.job[1], **one.verdict} for one in judged]
    return Evaluation(scores, rows, samples)


def _left(batches: Sequence[list[Job]], known: Mapping[Job, Judged], accelerator: Accelerator) -> list[list[Job]]:
    """The batches for which some process lacks verdicts; drawn again whole, since an image's digits depend on its batch."""
    missing = [number for number, part in enumerate(batches) if not known.keys() >= set(part)]
    return [batches[number] for number in sorted(set(gather(accelerator, missing)))]


def _share(batches: list[list[Job]], rounds: int, base: BaseModel, accelerator: Accelerator) -> list[list[Job]]:
    """The batches that this process draws."""
    mine = batches[accelerator.process_index :: accelerator.num_processes]
    if base.sharded and len(mine) < rounds:
        # Sharded weights need equally many calls by every process: this one draws the first batch an extra time.
        mine += batches[:1]
    return mine


MEET_EVERY = 16
"""After so many batches the processes of an evaluation wait for each other: at the end a slow one would be waited for too long
for :data:`star.common.processes.PATIENCE`."""


def _meeting(mine: Iterable[list[Job]], rounds: int, accelerator: Accelerator) -> Iterator[list[Job]]:
    """This process's batches; on the way through ``rounds``, of which it may have a batch less, it meets the others."""
    batches = iter(mine)
    for turn in range(rounds):
        if turn and turn % MEET_EVERY == 0:
            wait(accelerator)
        yield from islice(batches, 1)
    yield from batches  # none is left, and the bar over them ends


def _judged(
    base: BaseModel, task: Task, config: Config, batches: Iterable[list[Job]], partial: Partial | None
) -> list[Judged]:
    """Draw and judge the batches; returns every image's verdict and thumbnail, and every prompt's first image."""
    beside, judge, how = Beside(base.device), task.evaluator, config.evaluation
    judged: list[Judged] = []
    drawn_before: list[Judged] = []  # whose verdicts are under way
    before: Verdicts = list  # there are none before the first batch
    for part in batches:
        prompts = [task.test[number] for number, _ in part]
        keys = [(how.seed, "test", prompt.text, index) for prompt, (_, index) in zip(prompts, part, strict=True)]
        texts = [prompt.text for prompt in prompts]
        # A smaller batch would have code compiled for any size, which from then on draws rollouts with other digits.
        surplus = (config.train.micro_batch - len(part)) * config.model.compile
        drawn = generate(base, texts + texts[:1] * surplus, keys + keys[:1] * surplus, how.steps, how.guidance)[: len(part)]
        # The batch before was judged while this one was drawn. Waiting for it keeps at most two batches of images in memory.
        judged += _with_verdicts(drawn_before, check_verdicts(judge.protocol, before(), len(drawn_before)))
        if partial:
            partial.keep(judged)
        before = beside(judge.submit(prompts, list(drawn.numpy())))
        # Copies, because a view keeps its whole batch alive and takes it along to other processes.
        drawn_before = [
            Judged(job, {}, row.clone(), image.copy() if job[1] == 0 else None)
            for job, row, image in zip(part, thumbnails(drawn), drawn.numpy(), strict=True)
        ]
    return judged + _with_verdicts(drawn_before, check_verdicts(judge.protocol, before(), len(drawn_before)))


def _with_verdicts(drawn: Iterable[Judged], verdicts: Iterable[dict]) -> list[Judged]:
    return [one._replace(verdict=verdict) for one, verdict in zip(drawn, verdicts, strict=True)]


def _diversity(thumbnails: Tensor) -> Score:
    """Mean distance between a prompt's thumbnails (prompts, images, pixels): near 0 for a policy that has collapsed."""
    distances = torch.stack([mean_distance(rows) for rows in thumbnails])
    stderr = distances.std().item() / len(distances) ** 0.5 if len(distances) > 1 else None
    return Score("diversity", distances.mean().item(), stderr, thumbnails.shape[0] * thumbnails.shape[1], len(distances))
