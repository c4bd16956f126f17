"""STAR in a loop of one's own, as docs/extending.md tells it: diffusers' pipeline, peft's adapters, and :mod:`star.method`.

``python own_loop.py`` trains the embedded model for ten small epochs, some minutes, and prints the mean reward of each.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from diffusers import StableDiffusion3Pipeline
from peft import LoraConfig
from torch import Tensor

from evaluators.interface import Text
from evaluators.registry import create
from star.common.shipped import MINI_BASE
from star.method.allocation import allocate, upsample
from star.method.attention import Relevance
from star.method.objective import advantages, log_prob_map, policy_loss
from star.method.sampling import TRAIN_TIMESTEPS, sigmas, transition
from star.method.tokens import Span, token_columns

STEPS, TRAINED, NOISE_LEVEL = 8, (0, 1, 2), 0.8
BLOCKS, TEXT_LENGTH = [5], 16  # SD3.5 Medium has 24 blocks, and T5 reads 128 tokens
GROUP, RATE, CLIP_RANGE, CAP, MIX = 16, 2e-3, 1e-3, 5.0, 0.5
LAYERS = ["to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"]


class Rollouts(NamedTuple):
    """B images and how they were drawn, at T trained steps.

    Attributes:
        latents: before each trained step and after the last, (T + 1, B, C, H, W).
        log_probs: of these steps, (T, B, H, W).
        relevance: (T, B, h, w).
        images: uint8 (B, side, side, 3).
    """

    latents: Tensor
    log_probs: Tensor
    relevance: Tensor
    images: np.ndarray


class Prompts(NamedTuple):
    """What the model knows of B texts: embeddings of every token and pooled, and which columns hold core words, bool."""

    embeds: Tensor
    pooled: Tensor
    core: Tensor


def velocity(pipe: StableDiffusion3Pipeline, x: Tensor, sigma: Tensor, prompts: Prompts) -> Tensor:
    """The model's velocity, (B, C, H, W); without guidance."""
    times = torch.full((len(x),), TRAIN_TIMESTEPS * sigma.item())
    return pipe.transformer(x, prompts.embeds, prompts.pooled, times, return_dict=False)[0]


@torch.no_grad()
def encoded(pipe: StableDiffusion3Pipeline, texts: Sequence[str], spans: Sequence[Sequence[Span]]) -> Prompts:
    """Encode texts, once for all epochs; spans are their core words."""
    tokenizers = (pipe.tokenizer, pipe.tokenizer_2, pipe.tokenizer_3)
    lengths = {"clip_length": pipe.tokenizer_max_length, "t5_length": TEXT_LENGTH}
    embeds, _, pooled, _ = pipe.encode_prompt(
        list(texts), None, None, do_classifier_free_guidance=False, max_sequence_length=TEXT_LENGTH
    )
    return Prompts(embeds, pooled, token_columns(tokenizers, texts, spans, **lengths))


@torch.no_grad()
def rollout(pipe: StableDiffusion3Pipeline, prompts: Prompts, x: Tensor, noise: Callable[[], Tensor]) -> Rollouts:
    """Draw an image for each prompt, from latents x (B, C, H, W); the trained steps are stochastic, the others Euler's."""
    relevance, levels = Relevance(pipe.transformer, BLOCKS, prompts.core), sigmas(STEPS, pipe.scheduler.config.shift)
    latents, log_probs, maps = [x], [], []
    for step in range(STEPS):
        with relevance:
            v = velocity(pipe, x, levels[step], prompts)
        moved = transition(x, v, levels, step, "sde" if step in TRAINED else "ode", NOISE_LEVEL)
        x = moved.mean + moved.std * noise()
        if step in TRAINED:
            latents.append(x)
            log_probs.append(log_prob_map(x, moved.mean, moved.std, "sde", "image_weighted"))
            maps.append(relevance.take())
    images = pipe.vae.decode(x / pipe.vae.config.scaling_factor + (pipe.vae.config.shift_factor or 0)).sample
    pixels = ((images / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
    return Rollouts(torch.stack(latents), torch.stack(log_probs), torch.stack(maps), pixels.numpy())


def backward(pipe: StableDiffusion3Pipeline, prompts: Prompts, drawn: Rollouts, gains: Tensor) -> None:
    """Add STAR's gradient: Flow-GRPO's advantages, (B,), weighted by relevance inside the ratio."""
    weights = upsample(allocate(drawn.relevance, "star", cap=CAP, mix=MIX), pipe.transformer.config.patch_size)
    levels = sigmas(STEPS, pipe.scheduler.config.shift)
    for row, step in enumerate(TRAINED):
        x, following = drawn.latents[row : row + 2]
        moved = transition(x, velocity(pipe, x, levels[step], prompts), levels, step, "sde", NOISE_LEVEL)
        now = log_prob_map(following, moved.mean, moved.std, "sde", "image_weighted")
        loss = policy_loss(now, drawn.log_probs[row], gains, weights[row], CLIP_RANGE, reduction="image_weighted").loss
        (loss.mean() / len(TRAINED)).backward()


def adapted(pipe: StableDiffusion3Pipeline, seed: int) -> list[torch.nn.Parameter]:
    """Give the transformer LoRA adapters, and return what is trained: these alone."""
    torch.manual_seed(seed)
    for part in (pipe.transformer, pipe.vae, pipe.text_encoder, pipe.text_encoder_2, pipe.text_encoder_3):
        part.requires_grad_(False)
    targets = [f"attn.{name}" for name in LAYERS]
    pipe.transformer.add_adapter(LoraConfig(r=16, lora_alpha=32, init_lora_weights="gaussian", target_modules=targets))
    return [parameter for parameter in pipe.transformer.parameters() if parameter.requires_grad]


def train(folder: Path, words: Sequence[str], epochs: int) -> None:
    """Train the pipeline of a folder on prompts of some words, rewarded by the small CLIP that ships."""
    pipe = StableDiffusion3Pipeline.from_pretrained(folder, dtype=torch.float32)
    optimizer, judge = torch.optim.AdamW(adapted(pipe, seed=0), RATE), create("pickscore", "mini")
    texts = [f"a photo of {word}" for word in words for _ in range(GROUP)]
    prompts = encoded(pipe, texts, [[(len("a photo of "), len(text))] for text in texts])
    shape = (len(texts), pipe.transformer.config.in_channels, *[pipe.transformer.config.sample_size] * 2)
    for epoch in range(epochs):
        drawn = rollout(pipe, prompts, torch.randn(shape), lambda: torch.randn(shape))
        rewards = [verdict["reward"] for verdict in judge.submit([Text(text) for text in texts], drawn.images)()]
        print(f"epoch {epoch + 1}: reward {np.mean(rewards):.4f}")
        backward(pipe, prompts, drawn, advantages(rewards, [texts.index(text) for text in texts]))
        optimizer.step()
        optimizer.zero_grad()


if __name__ == "__main__":
    train(MINI_BASE.folder, ["two red circles", "a blue ring", "a green star above a yellow square"], epochs=10)
