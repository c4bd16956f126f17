"""The interface of a base model: everything that the trainer, evaluations and measurements use of one."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import torch
from torch import Tensor

from star.config import ModelConfig, RelevanceConfig
from star.method.choices import Span


class Capture(Protocol):
    """Reads relevance from a model's attention: enter it around a call of :meth:`BaseModel.velocity`, then :meth:`take`.

    :class:`star.method.attention.Relevance` is the one for joint attention.
    """

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...

    def take(self, per_block: bool = False) -> Tensor:
        """The relevance of the latest call, float32 (B, h, w), mean over blocks; or (blocks, B, h, w) if ``per_block``."""
        ...

    def of(self, rows: Sequence[int]) -> Self:
        """A capture for these rows alone, given as row indices of the mask."""
        ...


class BaseModel(Protocol):
    """A frozen text-to-image flow model with trainable parameters in it.

    Attributes:
        config: which model, and what is trained in it.
        device: where everything computes.
        trained: name -> trained parameter, float32.
        sharded: whether the frozen weights are split over processes, so that all must call :meth:`velocity` equally often.
    """

    config: ModelConfig
    device: torch.device
    trained: dict[str, torch.nn.Parameter]
    sharded: bool

    def __init__(self, config: ModelConfig, device: torch.device, seed: int) -> None:
        """
        Args:
            config: which model and what to train in it.
            device: where everything computes.
            seed: of the adapters' initial values.

        Raises:
            UserError: the model is missing or cannot be used.
        """
        ...

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image's latents."""
        ...

    @property
    def patch(self) -> int:
        """Side of an image token, in latent positions."""
        ...

    @property
    def blocks(self) -> int:
        """Number of blocks whose attention :meth:`relevance` can read."""
        ...

    def schedule(self, steps: int) -> Tensor:
        """The sigmas of a sampling schedule, float32 (steps + 1) on the CPU, from 1 down to 0."""
        ...

    def core_columns(self, prompts: Sequence[str], spans: Sequence[Sequence[Span]], columns: str) -> Tensor:
        """Which text columns hold core words, bool (B, columns).

        Args:
            prompts: B texts.
            spans: where each prompt's core words are, as character ranges.
            columns: ``clip``, ``t5`` or ``both``, see :class:`star.config.RelevanceConfig`.
        """
        ...

    def relevance(self, config: RelevanceConfig, mask: Tensor) -> Capture:
        """A capture that reads relevance from the attention while :meth:`velocity` is called inside it.

        Also called once before training, with a mask of one column, to check that the model has these blocks and heads.

        Args:
            config: blocks, heads and softmax.
            mask: the core words' columns, bool (B, columns).

        Raises:
            UserError: blocks or heads that the model does not have.
        """
        ...

    def prepare(self, prompts: Sequence[str], guidance: float) -> None:
        """Encode all texts that :meth:`velocity` will need, in one go."""
        ...

    def velocity(self, latents: Tensor, sigma: Tensor, prompts: Sequence[str], guidance: float) -> Tensor:
        """The model's velocity, float32 like ``latents``; with guidance g != 1 it is v_0 + g (v - v_0).

        Args:
            latents: (B, C, H, W).
            sigma: noise level of all samples, a scalar on the CPU.
            prompts: B texts.
            guidance: classifier-free guidance scale.
        """
        ...

    def sampling(self) -> AbstractContextManager[None]:
        """Inside, nothing is trained, so the model may compute in a faster way whose results differ only by rounding."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, C, H, W) to uint8 images (B, H, W, 3); raises ``RunStopped`` where pixels are not finite."""
        ...

    def reference(self) -> AbstractContextManager[None]:
        """Inside, the model is the untrained base."""
        ...

    def weights(self, values: Mapping[str, Tensor]) -> AbstractContextManager[None]:
        """Inside, the trained parameters have other values, e.g. an average's."""
        ...

    def export(self, folder: Path, values: Mapping[str, Tensor]) -> None:
        """Write trained adapters in a format that other software loads; ``values`` are named like :attr:`trained`."""
        ...
