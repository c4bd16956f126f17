"""Tiny, random parts of an SD3 pipeline, built offline, and settings of runs on one that take a second."""

import string
from collections.abc import Sequence

import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel, StableDiffusion3Pipeline
from transformers import CLIPTokenizer, T5Tokenizer

from star.mini.build import untrained_pipeline

CLIP_SPECIALS = ["<|startoftext|>", "<|endoftext|>"]
T5_SPECIALS = ["<pad>", "</s>", "<unk>"]
FAST = """train.epochs=3 train.groups=4 train.group_size=4 train.micro_batch=8 train.checkpoint_every=1 sampling.steps=4
sampling.window=2 sampling.window_range=[0,3] evaluation.steps=2 evaluation.images=1 evaluation.cross_images=0
relevance.blocks=[0,1] model.parameters=lora model.lora_rank=4 model.lora_alpha=8 model.kernels=torch
sampling.guidance=1 evaluation.guidance=1"""


def small_pipeline() -> StableDiffusion3Pipeline:
    """An untrained pipeline of the mini base's kind, but smaller (weights from torch's global generator)."""
    pipeline = untrained_pipeline(width=32, blocks=3)
    # It works where the pixels are: as wide as the mini base's it would take a third of all epochs.
    narrow = {"block_out_channels": (8, 8, 8), "norm_num_groups": 4, "scaling_factor": 0.8, "shift_factor": 0.1}
    pipeline.vae = AutoencoderKL.from_config(pipeline.vae.config | narrow).eval()
    return pipeline


def tiny_transformer(seed: int = 0, *, qk_norm: str | None = "rms_norm", peaked: float = 1.0, **config):
    """A random SD3Transformer2DModel of 2 layers, 2 heads of 16, on latents (16, 8, 8) and text of width 32.

    Args:
        seed: of its weights.
        qk_norm: as in SD3.5 (``rms_norm``) or SD3 (None).
        peaked: factor on the query and key weights; above 1 attention is far from uniform, as in a trained model.
        config: what differs from the default configuration.
    """
    defaults = dict(
        sample_size=8,
        patch_size=2,
        in_channels=16,
        out_channels=16,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        caption_projection_dim=32,
        pooled_projection_dim=64,
        pos_embed_max_size=16,
        dual_attention_layers=(0,) if qk_norm else (),
        qk_norm=qk_norm,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = SD3Transformer2DModel(**(defaults | config)).eval()
        with torch.no_grad():
            for name, weights in model.named_parameters():
                part = name.split(".")[-2]
                if part in ("norm_q", "norm_k", "norm_added_q", "norm_added_k"):
                    weights.mul_(peaked * (1 + 0.5 * torch.randn_like(weights)))
                elif not qk_norm and part in ("to_q", "to_k", "add_q_proj", "add_k_proj"):
                    weights.mul_(peaked)
    return model


def clip_tokenizer(
    words: Sequence[str] = ("photo", "cat", "dog"), length: int = 24, pad: str = CLIP_SPECIALS[1]
) -> CLIPTokenizer:
    """A CLIP tokenizer with one token for each of the given lower-case words, and characters for all else in ASCII."""
    characters = [character for character in string.printable[:94] if not character.isupper()]
    merges, merged = [], []
    for word in words:
        parts = [*word[:-1], word[-1] + "</w>"]
        while len(parts) > 1:
            merges.append((parts[0], parts[1]))
            parts = [parts[0] + parts[1], *parts[2:]]
            merged.append(parts[0])
    tokens = [*CLIP_SPECIALS, *characters, *(character + "</w>" for character in characters), *merged]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocabulary, merges=[*dict.fromkeys(merges)], pad_token=pad, model_max_length=length)


def t5_tokenizer(pieces: Sequence[str] = ("▁photo", "▁cat", "▁dog"), length: int = 24) -> T5Tokenizer:
    """A T5 tokenizer with the given pieces (▁ begins a word), and characters for all else in ASCII."""
    characters = ["▁", *string.printable[:94]]
    scores = [*((piece, 0.0) for piece in T5_SPECIALS)]
    scores += [(piece, -1.0) for piece in pieces] + [(piece, -10.0) for piece in characters]
    return T5Tokenizer(vocab=scores, extra_ids=0, model_max_length=length)
