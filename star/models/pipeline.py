"""Loads a Stable Diffusion 3 pipeline from a folder: complete and exactly as its files state it, or not at all."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import inf
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import AutoencoderKL, SD3Transformer2DModel, StableDiffusion3Pipeline
from transformers import CLIPTextModelWithProjection, T5EncoderModel

from star.common import vocabulary, weights
from star.common.files import read_json
from star.config.schema import Rule
from star.models.sources import index_of, reason

WHOLE = Rule(lambda value: type(value) is int and value > 0, "must be a whole number above 0")
WHOLE_ALL = Rule(lambda value: type(value) is list and all(map(WHOLE.allows, value)), "must be whole numbers above 0")
ABOVE_0 = Rule(lambda value: type(value) in (int, float) and 0 < value < inf, "must be a number above 0")
NUMBER_OR_NULL = Rule(
    lambda value: value is None or (type(value) in (int, float) and abs(value) < inf), "must be a number or null"
)
WORD = Rule(lambda value: type(value) is str, "must be a word")

CLIP = {"num_attention_heads": WHOLE, "hidden_act": WORD, "layer_norm_eps": ABOVE_0}
T5 = {"num_heads": WHOLE, "feed_forward_proj": WORD, "layer_norm_epsilon": ABOVE_0}

STATED: Mapping[str, Mapping[str, Rule]] = {
    "transformer/config.json": {
        "sample_size": WHOLE,
        "patch_size": WHOLE,
        "in_channels": WHOLE,
        "num_layers": WHOLE,
        "attention_head_dim": WHOLE,
        "num_attention_heads": WHOLE,
        "joint_attention_dim": WHOLE,
        "caption_projection_dim": WHOLE,
        "pooled_projection_dim": WHOLE,
        "pos_embed_max_size": WHOLE,
    },
    "vae/config.json": {
        "block_out_channels": WHOLE_ALL,
        "latent_channels": WHOLE,
        "scaling_factor": ABOVE_0,
        "shift_factor": NUMBER_OR_NULL,
        "norm_num_groups": WHOLE,
        "act_fn": WORD,
    },
    "text_encoder/config.json": CLIP,
    "text_encoder_2/config.json": CLIP,
    "text_encoder_3/config.json": T5,
    "scheduler/scheduler_config.json": {"num_train_timesteps": WHOLE, "shift": ABOVE_0},
}
"""What a pipeline's files must state, and the allowed values; libraries would silently fill in defaults of their own. Not what
shows in the names of weights, such as ``qk_norm``: older files lack it, and :mod:`star.common.weights` sees if it is wrong."""

MODULES: Mapping[str, Any] = {
    "transformer": SD3Transformer2DModel,
    "vae": AutoencoderKL,
    "text_encoder": CLIPTextModelWithProjection,
    "text_encoder_2": CLIPTextModelWithProjection,
    "text_encoder_3": T5EncoderModel,
}
"""Part of a pipeline that has weights -> its class."""


def stated(folder: Path) -> Path:
    """The given folder of a pipeline, after a check that its files state all of :data:`STATED`.

    Raises:
        ValueError: a file is missing or damaged, or lacks a value or has one that is not allowed.
    """
    for name, rules in STATED.items():
        known = read_json(folder / name)
        if not isinstance(known, dict):
            raise ValueError(f"{name} is missing or damaged")
        if lacking := [key for key in rules if key not in known]:
            raise ValueError(f"{name} does not say {', '.join(lacking)}")
        for key, rule in rules.items():
            if not rule.allows(known[key]):
                raise ValueError(f"{name}: {key} {rule.text}, not {known[key]!r}")
    return folder


def load_pipeline(folder: Path, dtype: torch.dtype | None = None, **options: Any) -> StableDiffusion3Pipeline:
    """The pipeline of a folder.

    Args:
        folder: in diffusers' layout.
        dtype: of all weights but the autoencoder's, which are then float32: bfloat16 would lose bits for good. By default
            diffusers loads float32, and transformers what each ``config.json`` says.
        options: for ``from_pretrained`` of every part; with ``device_map="meta"`` the weights' numbers are not read.

    Raises:
        ValueError: a file is missing, damaged or of another model, or its weights are not those that its settings ask for.
    """
    index = index_of(stated(folder))
    for name, kind in MODULES.items():
        if not isinstance(said := index.get(name), list) or said[-1:] != [kind.__name__]:
            raise ValueError(f"model_index.json says {said!r} for {name}, not {kind.__name__}")
    modules = {}
    for name, kind in MODULES.items():
        precision = {} if dtype is None else {"dtype": torch.float32 if name == "vae" else dtype}
        modules[name] = _module(folder, name, kind, options | precision)
    with loading("tokenizers and scheduler"):
        pipeline = StableDiffusion3Pipeline.from_pretrained(folder, **modules)
    for number in ("", "_2", "_3"):
        tokenizer, encoder = getattr(pipeline, f"tokenizer{number}"), modules[f"text_encoder{number}"]
        wrong = "is missing" if tokenizer is None else vocabulary.fault(tokenizer, encoder.config.vocab_size)
        if MODULES[f"text_encoder{number}"] is CLIPTextModelWithProjection:
            wrong = wrong or vocabulary.fault_of_end(tokenizer, encoder.config.eos_token_id)
        if wrong:
            raise ValueError(f"tokenizer{number} {wrong}")
    return pipeline


def _module(folder: Path, name: str, kind: Any, options: Mapping[str, Any]) -> Any:
    """A part of a pipeline, with all weights that its folder holds and no others."""
    with loading(name):
        module, report = kind.from_pretrained(
            folder, subfolder=name, output_loading_info=True, ignore_mismatched_sizes=True, **options
        )
    if wrong := weights.fault(module, report):
        raise ValueError(f"{name} {wrong}")
    return module


@contextmanager
def loading(what: str) -> Iterator[None]:
    """Inside, a library loads something; whatever error damaged files cause becomes a ValueError with a name in front."""
    libraries = diffusers.utils.logging, transformers.utils.logging
    levels = [library.get_verbosity() for library in libraries]
    for library in libraries:
        library.disable_progress_bar()
        library.set_verbosity(logging.CRITICAL)  # what they would say is in the error, or of no consequence
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # tokenizers raise a plain Exception
        raise ValueError(f"{what}: {reason(error)}") from error
    finally:
        for library, level in zip(libraries, levels, strict=True):
            library.set_verbosity(level)
