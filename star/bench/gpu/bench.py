"""What all steps need: the device, the sizes that suit it, and models with random weights on it."""

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import CLIPTextModelWithProjection, T5Config, T5EncoderModel

from star import config as settings
from star.bench.gpu.sizes import SHRUNKEN, TRUE, Sizes
from star.bench.reddest import Reddest
from star.bench.speed import fill_adapters
from star.common.noise import normal
from star.config import Config
from star.models.sd3 import SD3
from star.models.shapes import clip_config, random_pipeline
from star.tasks import Prompt, Task

SEED = 0
CORE_WORDS = {
    "a photo of a circle": ["circle"],
    "a photo of a red square and a blue star": ["square", "star"],
    "a sign that says HELLO": ["HELLO"],
    "a photo of three rings": ["rings"],
}
PROMPTS = tuple(
    Prompt(text, tuple((text.index(word), text.index(word) + len(word)) for word in words))
    for text, words in CORE_WORDS.items()
)

Model = TypeVar("Model", bound=torch.nn.Module)


@dataclass(frozen=True)
class Bench:
    """The device and the sizes of all measurements.

    Attributes:
        device: where everything computes.
        overrides: settings of the command, which take precedence over those of the sizes.
    """

    device: torch.device
    overrides: tuple[str, ...] = ()

    @property
    def sizes(self) -> Sizes:
        """The published sizes on a GPU, toy sizes on a CPU."""
        return TRUE if self.device.type == "cuda" else SHRUNKEN

    def config(self, *words: str) -> Config:
        """The settings of a step, whose own words take precedence."""
        return settings.load([*self.sizes.words, *self.overrides, *words])

    @contextmanager
    def run(self, *words: str) -> Iterator[Config]:
        """The settings of a training, with a run folder that exists only inside the context."""
        with tempfile.TemporaryDirectory() as folder:
            yield self.config(*words, f"run={folder}")

    def pipeline(self, dtype: str) -> Any:
        """A pipeline with random weights on the device, the same every time."""
        torch.manual_seed(SEED)
        precision = getattr(torch, dtype)
        pipeline = random_pipeline(self.sizes.transformer, precision, self.sizes.autoencoder, self.device)
        for encoder in (pipeline.text_encoder, pipeline.text_encoder_2, pipeline.text_encoder_3):
            encoder.to(precision)  # like all parts of a pipeline that is loaded
        return pipeline

    def base(self, config: Config, pipeline: Any = None) -> SD3:
        """The base model, with adapters that are not 0, as otherwise they would have no effect."""
        base = SD3(config.model, self.device, SEED, pipeline or self.pipeline(config.model.dtype))
        fill_adapters(base, SEED)
        return base

    def task(self) -> Task:
        """Some prompts, judged by how red their images are."""
        return Task("bench", Reddest(), lambda: list(PROMPTS), lambda: list(PROMPTS))

    def latents(self, base: SD3, rows: int) -> Tensor:
        """Noise for ``rows`` images, (rows, C, H, W) float32."""
        return normal((rows, *base.latent_shape), SEED, "latents").to(self.device)


def prompts(rows: int) -> list[Prompt]:
    """A prompt for each image."""
    return [PROMPTS[row % len(PROMPTS)] for row in range(rows)]


def built(kind: Callable[..., Model], config: Any, device: torch.device, dtype: torch.dtype = torch.float32) -> Model:
    """A ``transformers`` model with random weights, made on the device in its precision: even in half, T5-XXL is 10 GB."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            return kind(config).requires_grad_(False).eval()
    finally:
        torch.set_default_dtype(before)


def put_true_encoders(pipeline: Any, sizes: Sizes, device: torch.device, dtype: torch.dtype) -> None:
    """Replace the thin text encoders of a pipeline with encoders of the given sizes, with random weights."""

    def clip(shape: Mapping[str, Any]) -> torch.nn.Module:
        return built(CLIPTextModelWithProjection, clip_config(pipeline.tokenizer, shape), device, dtype)

    pipeline.register_modules(
        text_encoder=clip(sizes.clip_l),
        text_encoder_2=clip(sizes.clip_g),
        text_encoder_3=built(T5EncoderModel, T5Config(**sizes.t5, dropout_rate=0.0), device, dtype),
    )
