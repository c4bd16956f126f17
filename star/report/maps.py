"""STAR's weights on an image that a model draws: the only part of a report that computes with a model."""

from pathlib import Path

import numpy as np
import torch

from star.common.errors import UserError, one_line
from star.common.noise import normal
from star.common.processes import joined
from star.config import Config
from star.models import load
from star.models.interface import BaseModel
from star.tasks import Prompt
from star.training.checkpoint import load_trained
from star.training.credit import star_weights
from star.training.rollout import capture_for, denoise

IDLE = 0.5
"""The share of a GPU's memory that must be free for it to count as idle; not 1, since earlier pictures keep some memory."""


@torch.no_grad()
def maps_of(config: Config, prompt: Prompt, weights: Path) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Images (H, W, 3) and STAR's weights (steps, h, w), each before and after training.

    Raises:
        UserError: the GPU is in use or has too little memory, or the weights are not there.
    """
    try:
        return _before_and_after(config, prompt, weights)
    except torch.OutOfMemoryError as error:
        raise UserError(one_line(error)) from None


def _before_and_after(config: Config, prompt: Prompt, weights: Path) -> tuple[list[np.ndarray], list[np.ndarray]]:
    device = joined().device
    _check_idle(device)
    base = load(config.model, device, config.seed)
    trained = {name: value.clone() for name, value in base.trained.items()}
    load_trained(weights, trained)
    images, found = [], []
    for context in (base.reference(), base.weights(trained)):
        with context:
            image, relevance = denoised(base, config, prompt)
        images.append(image)
        found.append(drawn_weights(config, relevance))
    return images, found


def drawn_weights(config: Config, relevance: torch.Tensor) -> np.ndarray:
    """STAR's weights (steps, h, w) of one image's relevance (steps, 1, h, w), made as in a run."""
    found: np.ndarray = star_weights(config.method, relevance)[:, 0].cpu().numpy()
    return found


def _check_idle(device: torch.device) -> None:
    """Check that the GPU is idle, since pictures could take memory that a training on it needs.

    Raises:
        UserError: it is in use.
    """
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        if free < IDLE * total:
            raise UserError(f"the GPU is in use ({1 - free / total:.0%} of its memory); make the report again when it is idle")


def denoised(base: BaseModel, config: Config, prompt: Prompt) -> tuple[np.ndarray, torch.Tensor]:
    """One image by the deterministic flow, and the relevance of its steps, (steps, 1, h, w)."""
    capture = capture_for(base, [prompt], config.relevance)
    x = normal(base.latent_shape, config.evaluation.seed, "test", prompt.text, 0)[None].to(base.device)
    maps = []
    for step in denoise(base, x, [prompt.text], config.sampling.guidance, ["ode"] * config.sampling.steps, capture=capture):
        assert step.relevance is not None
        maps.append(step.relevance)
        x = step.following
    return base.decode(x)[0].cpu().numpy(), torch.stack(maps)
