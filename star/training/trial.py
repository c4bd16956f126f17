"""Trying a base model of the user's own on one prompt, before an epoch is drawn with it."""

from typing import Any

import torch
from torch import Tensor

from star.common.errors import UserError
from star.config import Config
from star.models.interface import BaseModel
from star.tasks import Prompt

MEMBERS = {*BaseModel.__annotations__, *(name for name in vars(BaseModel) if not name.startswith("_"))}


def try_model(base: BaseModel, config: Config, prompt: Prompt) -> None:
    """Check that a model does what :class:`star.models.interface.BaseModel` says, as far as one prompt shows it.

    Args:
        base: the model.
        config: the settings of its training; ``model.kind`` names its class.
        prompt: one with core words.

    Raises:
        UserError: names the member that is missing or gives something else.
    """
    where, guidance, sigmas = f"model.kind={config.model.kind}", config.sampling.guidance, config.sampling.steps
    if missing := sorted(name for name in MEMBERS if not hasattr(base, name)):
        raise UserError(f"{where} has no {missing[0]!r}; star/models/interface.py says what a model has")
    if not isinstance(base.trained, dict) or not all(isinstance(p, torch.nn.Parameter) for p in base.trained.values()):
        raise UserError(f"{where}: `trained` must be a dict of torch.nn.Parameter, not {type(base.trained).__name__}")
    schedule = base.schedule(sigmas)
    _check(where, "schedule", schedule, (sigmas + 1,), torch.float32)
    if (schedule[0], schedule[-1]) != (1, 0) or not (schedule.diff() < 0).all():
        raise UserError(f"{where}: `schedule` must fall from 1 to 0, not go by {[round(s, 3) for s in schedule.tolist()]}")

    rows = min(2, config.train.micro_batch)
    texts, spans = [prompt.text] * rows, [prompt.spans] * rows
    columns = base.core_columns(texts, spans, config.relevance.columns)
    _check(where, "core_columns", columns, (rows, columns.shape[-1]) if isinstance(columns, Tensor) else (), torch.bool)
    base.prepare(texts, guidance)
    latents = torch.zeros(rows, *base.latent_shape, device=base.device)
    with torch.no_grad(), base.sampling(), base.relevance(config.relevance, columns) as capture:
        _check(where, "velocity", base.velocity(latents, schedule[0], texts, guidance), latents.shape, torch.float32)
    tokens = [side // base.patch for side in base.latent_shape[1:]]
    _check(where, "relevance(...).take", capture.take(), (rows, *tokens), torch.float32)
    if not base.velocity(latents, schedule[0], texts, guidance).requires_grad:
        raise UserError(f"{where}: `velocity` has no gradient with respect to `trained`, so nothing could be learnt")
    images = base.decode(latents)
    size = images.shape[1:3] if isinstance(images, Tensor) else ()
    _check(where, "decode", images, (rows, *size, 3), torch.uint8)


def _check(where: str, member: str, given: Any, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Refuse what a member gives if it is no tensor of this shape and type."""
    if not isinstance(given, Tensor):
        raise UserError(f"{where}: `{member}` must give a tensor, not {repr(given)[:100]}")
    if given.shape != shape or given.dtype != dtype:
        found = f"{tuple(given.shape)} of {given.dtype}"
        raise UserError(f"{where}: `{member}` must give {tuple(shape)} of {dtype} here, not {found}")
