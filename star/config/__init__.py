"""The settings of a run: their schema, how they are composed, and what of them makes a run the run that it is."""

from star.config.checks import cautions, check, ways_to_save_memory
from star.config.compose import as_word, options, read_config
from star.config.identity import (
    base_folder,
    base_identity,
    config_hash,
    evaluation_changes,
    identity,
    label,
    other_tasks,
    run_folder,
    terms,
)
from star.config.loading import load
from star.config.schema import (
    Config,
    EvaluationConfig,
    MethodConfig,
    ModelConfig,
    RelevanceConfig,
    SamplingConfig,
    TrainConfig,
    get,
    to_dict,
    to_yaml,
)

__all__ = [
    "Config",
    "EvaluationConfig",
    "MethodConfig",
    "ModelConfig",
    "RelevanceConfig",
    "SamplingConfig",
    "TrainConfig",
    "as_word",
    "base_folder",
    "base_identity",
    "cautions",
    "check",
    "config_hash",
    "evaluation_changes",
    "get",
    "identity",
    "label",
    "load",
    "options",
    "other_tasks",
    "read_config",
    "run_folder",
    "terms",
    "to_dict",
    "to_yaml",
    "ways_to_save_memory",
]
