"""Text embeddings: every text is encoded once, kept in main memory, and shared by all rollouts of its prompt."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from weakref import WeakMethod

import torch
from torch import Tensor, nn

from star.common.devices import sent

EMPTY = ""
"""The negative prompt of classifier-free guidance, as in Flow-GRPO: an encoded empty text."""

KEPT_TEXTS = 3000
"""Embeddings that are kept: more than the 2,048 test prompts of PickScore. One of SD3.5 takes 1.7 MB in half precision."""


Embeddings = tuple[Tensor, Tensor]
"""Embeddings (columns, width) and pooled embedding (width) of a text, or of several with a batch dimension in front."""


class TextCache:
    """Encodes each text once."""

    def __init__(
        self,
        encode: Callable[[str], Embeddings],
        encoders: Sequence[nn.Module],
        device: torch.device,
        rest: torch.device,
    ) -> None:
        """
        Args:
            encode: computes a text's embeddings, of the same shape for all texts; a method of the model that has this cache,
                called only while the encoders are on the device.
            encoders: the modules that it computes with.
            device: where texts are encoded and their embeddings are wanted.
            rest: where the encoders are while they are not needed.
        """
        # A weak reference, because the model owns this cache: a cycle would hold GPU memory until garbage collection.
        self._encode = WeakMethod(encode)
        self._encoders, self._device, self._rest = encoders, device, rest
        self._kept: dict[str, Embeddings] = {}
        self._latest: tuple[list[str], Embeddings] | None = None

    def prepare(self, texts: Sequence[str]) -> None:
        """Encode the texts that are not kept yet, in one visit of the encoders to the device."""
        distinct = list(dict.fromkeys(texts))
        if missing := [text for text in distinct if text not in self._kept]:
            with visiting(self._encoders, self._device, self._rest):
                self._kept |= {text: self._encoded(text) for text in missing}
        for text in distinct:  # so that those used least recently are dropped first
            self._kept[text] = self._kept.pop(text)
        while len(self._kept) > max(KEPT_TEXTS, len(distinct)):
            del self._kept[next(iter(self._kept))]

    def __call__(self, texts: Sequence[str]) -> Embeddings:
        """Embeddings (B, columns, width) and pooled embeddings (B, width) on the device; equal texts are copied there once.

        The latest result stays there, because all steps of a micro-batch ask for the same texts.
        """
        if self._latest is None or self._latest[0] != list(texts):
            self._latest = None
            self._latest = list(texts), self._on_device(texts)
        return self._latest[1]

    def _on_device(self, texts: Sequence[str]) -> Embeddings:
        self.prepare(texts)
        distinct = list(dict.fromkeys(texts))
        place = {text: number for number, text in enumerate(distinct)}
        kept = zip(*(self._kept[text] for text in distinct), strict=True)
        parts = torch.tensor([place[text] for text in texts]), *map(torch.stack, kept)
        rows, embeds, pooled = (sent(part, self._device) for part in parts)
        return embeds[rows], pooled[rows]

    @torch.no_grad()
    def _encoded(self, text: str) -> Embeddings:
        # One at a time: the result must not depend on which texts happen to be encoded together.
        encode = self._encode()
        assert encode is not None
        embeds, pooled = encode(text)
        return embeds.cpu(), pooled.cpu()


@contextmanager
def visiting(modules: Sequence[nn.Module], device: torch.device, rest: torch.device) -> Iterator[None]:
    """Inside, modules are on a device; afterwards they have their resting tensors back, which were kept all the while."""
    resting = [] if rest == device else [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
    kept = [tensor.data for tensor in resting]
    for tensor in resting:
        tensor.data = tensor.data.to(device, non_blocking=True)
    try:
        yield
    finally:
        for tensor, data in zip(resting, kept, strict=True):
            tensor.data = data  # nothing was changed, so nothing is copied back
