"""What the method needs of a base model: all that the trainer, evaluations and measurements ask of one."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import torch
from torch import Tensor

from star.config import ModelConfig, RelevanceConfig
from star.method.tokens import Span


class Capture(Protocol):
    """Reads relevance from a model's attention: entered around a call of :meth:`BaseModel.velocity`, asked after it.

    :class:`star.method.attention.Relevance` is one for joint attention.
    """

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...

    def take(self, per_block: bool = False) -> Tensor:
        """The relevance of the latest call, float32 (B, h, w), mean over blocks; or (blocks, B, h, w) if ``per_block``."""
        ...

    def of(self, rows: Sequence[int]) -> Self:
        """What reads the relevance of these rows alone, by their places in the mask."""
        ...


class BaseModel(Protocol):
    """A frozen text-to-image flow model with trainable parameters in it.

    Attributes:
        config: which model, and what is trained in it.
        device: where everything computes.
        trained: name -> trained parameter, float32.
        sharded: whether processes hold the frozen weights together, so that all must call :meth:`velocity` equally often.
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
            UserError: the model is missing or is not what it should be.
        """
        ...

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image's latents."""
        ...

    @property
    def patch(self) -> int:
        """Latent positions per image token and axis."""
        ...

    @property
    def blocks(self) -> int:
        """How many blocks have attention that :meth:`relevance` can look at."""
        ...

    def schedule(self, steps: int) -> Tensor:
        """The noise levels of an image, float32 (steps + 1) in main memory, from 1 down to 0."""
        ...

    def core_columns(self, prompts: Sequence[str], spans: Sequence[Sequence[Span]], columns: str) -> Tensor:
        """Which text columns hold core words, bool (B, columns).

        Args:
            prompts: B texts.
            spans: the characters of each one's core words.
            columns: ``clip``, ``t5`` or ``both``, see :class:`star.config.RelevanceConfig`.
        """
        ...

    def relevance(self, config: RelevanceConfig, mask: Tensor) -> Capture:
        """What reads relevance from the attention while :meth:`velocity` is called inside it.

        It is also asked once before a training, with a mask of one column, whether the model has the blocks and heads.

        Args:
            config: blocks, heads and softmax.
            mask: the core words' columns, bool (B, columns).

        Raises:
            UserError: blocks or heads that the model does not have.
        """
        ...

    def prepare(self, prompts: Sequence[str], guidance: float) -> None:
        """Encode all that :meth:`velocity` will need, at once."""
        ...

    def velocity(self, latents: Tensor, sigma: Tensor, prompts: Sequence[str], guidance: float) -> Tensor:
        """The model's velocity, float32 like ``latents``; with guidance g != 1 it is v_0 + g (v - v_0).

        Args:
            latents: (B, C, H, W).
            sigma: noise level of all samples, a scalar in main memory.
            prompts: B texts.
            guidance: classifier-free guidance scale.
        """
        ...

    def sampling(self) -> AbstractContextManager[None]:
        """Inside, nothing is trained, and the model may make use of it, where that changes no more than rounding does."""
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
        """Write trained adapters in the form that others load; ``values`` are named like :attr:`trained`."""
        ...
