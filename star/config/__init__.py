"""The settings of a run: their schema, how they are composed, and what of them makes a run the run that it is."""

from star.config.checks import cautions, ways_to_save_memory
from star.config.compose import as_word, no_option, options, read_config
from star.config.identity import (
    base_folder,
    base_identity,
    config_hash,
    evaluation_changes,
    identity,
    label,
    other_tasks,
    terms,
)
from star.config.loading import load
from star.config.schema import (
    Config,
    ModelConfig,
    RelevanceConfig,
    SamplingConfig,
    flat,
    get,
    to_yaml,
)

__all__ = [
    "Config",
    "ModelConfig",
    "RelevanceConfig",
    "SamplingConfig",
    "as_word",
    "base_folder",
    "base_identity",
    "cautions",
    "config_hash",
    "evaluation_changes",
    "flat",
    "get",
    "identity",
    "label",
    "load",
    "no_option",
    "options",
    "other_tasks",
    "read_config",
    "terms",
    "to_yaml",
    "ways_to_save_memory",
]
