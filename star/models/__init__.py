"""Base models, and what is trained in them.

The class that loads a model is the one that ``model.kind`` names, or else the entry in :data:`MODELS` for the pipeline class
in its ``model_index.json``. To add one, implement :class:`star.models.interface.BaseModel` and name the class in either place.
"""

from typing import TYPE_CHECKING

import torch

from star.common.errors import UserError
from star.common.plugins import call_own, import_path
from star.config import ModelConfig
from star.models.sources import pipeline_class, source

if TYPE_CHECKING:
    from star.models.interface import BaseModel

MODELS = {"StableDiffusion3Pipeline": "star.models.sd3:SD3"}
"""Class of a diffusers pipeline -> import path of the base model class that wraps it."""


def find(config: ModelConfig) -> "type[BaseModel]":
    """The class of the configured base model.

    Raises:
        UserError: the model is not available, or its class is unknown. This is raised before any weights are loaded.
    """
    if config.kind:
        return import_path(config.kind, f"model.kind={config.kind}")
    kind = pipeline_class(config)
    if kind not in MODELS:
        raise UserError(
            f"model.path={source(config)} is a {kind or 'folder without a pipeline'}; there are: {', '.join(MODELS)}, and "
            "your own with model.kind=my_module:MyModel (docs/extending.md)"
        )
    return import_path(MODELS[kind], f"model.path={source(config)}")


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
