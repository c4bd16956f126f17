"""Base models, and what is trained in them.

The class that loads a model is the one that ``model.kind`` names, as a setting or in the YAML of a model that is built in;
without it the model is of SD3's kind. To add one, implement :class:`star.models.interface.BaseModel`.
"""

from typing import TYPE_CHECKING

import torch

from star.common.errors import UserError
from star.common.plugins import call_own, import_path
from star.config import ModelConfig
from star.models.sources import pipeline_class, source

if TYPE_CHECKING:
    from star.models.interface import BaseModel

PIPELINE = "StableDiffusion3Pipeline"
"""The class in ``model_index.json`` of the pipelines that need no ``model.kind``."""


def find(config: ModelConfig) -> "type[BaseModel]":
    """The class of the configured base model.

    Raises:
        UserError: the model is not available, or its class is unknown. This is raised before any weights are loaded.
    """
    if config.kind:
        return import_path(config.kind, f"model.kind={config.kind}")
    if (kind := pipeline_class(config)) != PIPELINE:
        raise UserError(
            f"model.path={source(config)} is a {kind or 'folder without a pipeline'}; there are: {PIPELINE}, and "
            "your own with model.kind=my_module:MyModel (docs/extending.md)"
        )
    from star.models.sd3 import SD3  # diffusers is slow to import

    return SD3


def load(config: ModelConfig, device: torch.device, seed: int) -> "BaseModel":
    """The configured base model, ready to sample and to train.

    Args:
        config: which model and what to train in it.
        device: where everything computes.
        seed: of the adapters' initial values.

    Raises:
        UserError: the model is missing or cannot be used.
    """
    made = find(config)
    if config.kind:
        wanted = "a class that is instantiated with (config, device, seed)"
        return call_own(f"model.kind={config.kind}", wanted, made, config, device, seed)
    return made(config, device, seed)
