"""A base model of one's own, as docs/extending.md tells it: the smallest thing that follows star/models/interface.py.

Its flow pulls latents towards a picture of one colour, which is what is trained; its "attention" looks at the upper half.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from star.config import ModelConfig, RelevanceConfig
from star.method.sampling import sigmas
from star.method.tokens import Span


class UpperHalf:
    """Relevance that lies in the upper half of every picture."""

    def __init__(self, batch: int) -> None:
        self.batch = batch

    def __enter__(self) -> "UpperHalf":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def of(self, rows: Sequence[int]) -> "UpperHalf":
        return UpperHalf(len(rows))

    def take(self, per_block: bool = False) -> Tensor:
        maps = torch.full((self.batch, 4, 4), 0.1)
        maps[:, :2] = 0.9
        return maps[None] if per_block else maps


class Toy:
    """Latents (3, 8, 8) are the pixels of a picture, at an eighth of its size; image tokens cover 2 x 2 of them."""

    latent_shape, patch, blocks, sharded = (3, 8, 8), 2, 1, False

    def __init__(self, config: ModelConfig, device: torch.device, seed: int) -> None:
        self.config, self.device = config, device
        start = torch.randn(3, generator=torch.Generator().manual_seed(seed)) / 10
        self.trained = {"colour": torch.nn.Parameter(start.to(device))}
        self._start = self.trained["colour"].detach().clone()

    def schedule(self, steps: int) -> Tensor:
        return sigmas(steps, 1.0)

    def core_columns(self, prompts: Sequence[str], spans: Sequence[Sequence[Span]], columns: str) -> Tensor:
        return torch.ones(len(prompts), 1, dtype=torch.bool)

    def relevance(self, config: RelevanceConfig, mask: Tensor) -> UpperHalf:
        return UpperHalf(len(mask))

    def prepare(self, prompts: Sequence[str], guidance: float) -> None:
        pass

    def velocity(self, latents: Tensor, sigma: Tensor, prompts: Sequence[str], guidance: float) -> Tensor:
        picture = self.trained["colour"].tanh()[:, None, None].expand_as(latents)
        return (latents - picture) / sigma.clamp(min=0.1)

    def sampling(self):
        return nullcontext()

    def decode(self, latents: Tensor) -> Tensor:
        pixels = (latents.clamp(-1, 1) + 1) * 127.5
        return pixels.repeat_interleave(8, -2).repeat_interleave(8, -1).round().to(torch.uint8).permute(0, 2, 3, 1)

    @contextmanager
    def weights(self, values: Mapping[str, Tensor]) -> Iterator[None]:
        own = self.trained["colour"].data
        self.trained["colour"].data = values["colour"]
        try:
            yield
        finally:
            self.trained["colour"].data = own

    def reference(self):
        return self.weights({"colour": self._start})

    def export(self, folder: Path, values: Mapping[str, Tensor]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(dict(values), folder / "colour.safetensors")
