"""Where and when the advantage of a rollout counts: the weights of an epoch's micro-batches."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from evaluators.interface import places_of, slopes_of
from star.common.devices import sent
from star.common.errors import UserError
from star.config import Config
from star.config.schema import MethodConfig
from star.method.allocation import allocate, overlap, try_map
from star.method.arms import map_maker, needs
from star.models.interface import BaseModel
from star.tasks import Task
from star.training.machine import check_deterministic
from star.training.rollout import MicroBatch


def weigh(
    batches: Sequence[MicroBatch],
    groups: Sequence[int],
    epoch: int,
    config: Config,
    task: Task,
    gather: Callable[[list], list],
) -> None:
    """Give a process's micro-batches their weights, where they are not 1 everywhere.

    Maps stay on their process, unless a rollout's map is made from others': then the whole epoch is allocated at once.

    Args:
        batches: this process's, already sampled.
        groups: the group of each sample of the epoch.
        epoch: its number, from 0.
        config: the settings.
        task: has the evaluator whose places or slopes some maps are made from.
        gather: returns the items of all processes.
    """
    method = config.method
    maker = map_maker(method.arm)
    if maker is None:
        return
    collect = gather if needs(maker, "whole_epoch") else list
    own = [(b.number, b.trajectory.relevance.cpu()) for b in batches if b.trajectory.relevance is not None]
    maps = dict(sorted(collect(own)))
    known = {
        what: dict(collect([(batch.number, make(task, batch)) for batch in batches]))
        for what, make in (("places", _places), ("images", _images), ("slopes", _slopes))
        if needs(maker, what)
    }
    if not maps:
        return  # no micro-batch for this process
    size = config.train.micro_batch
    positions = [number * size + place for number in maps for place in range(size)]
    weights = allocate(
        torch.cat(list(maps.values()), dim=1),
        method.arm,
        cap=method.cap,
        mix=method.mix,
        exponent=method.exponent,
        normalise=method.normalise,
        prompts=[groups[position] for position in positions],
        keys=[epoch * len(groups) + position for position in positions],
        seed=config.seed,
        **{what: torch.cat([parts[number] for number in maps]) for what, parts in known.items()},
    )
    parts = dict(zip(maps, weights.split(size, dim=1), strict=True))
    for batch in batches:
        # A part is strided: pinned as it is, it would take the memory of all.
        batch.weights = sent(parts[batch.number].contiguous(), batch.trajectory.latents.device)


def _places(task: Task, batch: MicroBatch) -> Tensor:
    """The share of each image token's area where the task's own verdict comes from, (B, h, w)."""
    trajectory = batch.trajectory
    places = places_of(task.evaluator)
    assert places is not None and trajectory.relevance is not None
    masks = places([task.train[s.prompt] for s in trajectory.samples], list(trajectory.images.numpy()))
    height, width = trajectory.relevance.shape[2:]
    return adaptive_avg_pool2d(torch.from_numpy(np.stack(masks)).float(), (height, width))


def _images(task: Task, batch: MicroBatch) -> Tensor:
    """The final images, uint8 (B, H, W, 3)."""
    return batch.trajectory.images


def _slopes(task: Task, batch: MicroBatch) -> Tensor:
    """The gradient of the task's own reward with respect to the final images' pixels, up to a factor > 0, (B, H, W, 3)."""
    trajectory = batch.trajectory
    slopes = slopes_of(task.evaluator)
    assert slopes is not None
    prompts = [task.train[s.prompt] for s in trajectory.samples]
    return torch.from_numpy(np.stack(slopes(prompts, list(trajectory.images.numpy()))))


def overlaps(method: MethodConfig, batch: MicroBatch) -> list[float]:
    """The batch's mean overlap of the arm's map with STAR's (:func:`star.method.allocation.overlap`); no item if uniform."""
    relevance = batch.trajectory.relevance
    if batch.weights is None or relevance is None or method.mix == 0:
        return []
    # The uniform part is common to all arms and would hide how they differ.
    star = star_weights(replace(method, mix=1.0), relevance.cpu())
    return [overlap((batch.weights.cpu() - (1 - method.mix)) / method.mix, star).mean().item()]


def star_weights(method: MethodConfig, relevance: Tensor) -> Tensor:
    """STAR's weights (steps, B, h, w) for the relevance of B rollouts, with the method's options but whatever its arm."""
    return allocate(relevance, "star", cap=method.cap, mix=method.mix, exponent=method.exponent, normalise=method.normalise)


def check_evaluator(arm: str, task: Task) -> None:
    """Refuse an arm whose maps need places or slopes if the task's evaluator does not provide them.

    Args:
        arm: a value of ``method.arm``.
        task: has the evaluator.

    Raises:
        UserError: it does not.
    """
    maker = map_maker(arm)
    for what, method, words in (
        ("places", places_of, "where in an image the verdict comes from"),
        ("slopes", slopes_of, "how the reward rises with an image's pixels"),
    ):
        if maker and needs(maker, what) and method(task.evaluator) is None:
            raise UserError(
                f"method.arm={arm} needs to know {words}, which {task.evaluator.protocol} does not tell; use another method, "
                f"or an evaluator with {what} (evaluators/interface.py)"
            )


def check_maps(arms: Iterable[Config], task: Task, base: BaseModel) -> None:
    """Refuse, before an epoch is drawn, arms whose maps cannot be made.

    Args:
        arms: the settings of each, which differ in the method alone.
        task: whose prompts are drawn.
        base: the model.

    Raises:
        UserError: a map that fails on a trial, one that has no deterministic version or not enough other prompts, or prompts
            whose core words the text encoders never see.
    """
    prompts, tokens = task.train, [side // base.patch for side in base.latent_shape[1:]]
    mapped = [config for config in arms if map_maker(config.method.arm)]
    for config in mapped:
        check_map(config, task, base.device, tokens)
    if mapped:
        base.core_columns([p.text for p in prompts], [p.spans for p in prompts], mapped[0].relevance.columns)


def check_map(config: Config, task: Task, device: torch.device, tokens: Sequence[int] = (4, 4)) -> None:
    """Refuse an arm whose map cannot be made.

    Args:
        config: its settings.
        task: whose prompts are drawn.
        device: of the training.
        tokens: (h, w) of the map that is tried; by default a small one, for where no model is loaded.

    Raises:
        UserError: the map fails on a trial, has no deterministic version or not enough other prompts.
    """
    arm, train = config.method.arm, config.train
    if map_maker(arm) is None:
        return
    texts = len({prompt.text for prompt in task.train})
    check_deterministic(config, device)
    if arm == "star_shuffled" and train.groups < 4 and texts < len(task.train):
        raise UserError(
            f"train.groups={train.groups}: some training texts are listed more than once, and could be more than half of an "
            "epoch, so that star_shuffled has no map of another prompt for each image; it takes 4 groups or more"
        )
    try_map(arm, config.sampling.trained, min(train.groups, texts), train.group_size, tokens, config.model.resolution)
