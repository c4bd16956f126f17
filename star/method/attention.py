"""Relevance: how much of each image position's joint attention goes to the prompt's core words.

In a block of SD3's transformer, image and text tokens attend to all tokens of both. With the queries of the image and
the keys of both, the relevance of a position u is

    R[u] = mean over heads of  sum over core-word columns c of  softmax_k(q_u . k / sqrt(d))[c]

with the softmax over all keys, and no rescaling of the map: the raw one localises best (Seg4Diff, arXiv 2509.18096).
Only the core words' share of the attention matrix is computed; the normaliser comes from a fused attention kernel,
which has it anyway. Queries and keys are read by hooks, so the model's own attention, its kernel and its output stay as
they are.
"""

import math
from collections.abc import Sequence
from functools import partial
from types import TracebackType
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.backends.cuda import SDPAParams, can_use_efficient_attention
from torch.utils.hooks import RemovableHandle

from star.common.errors import UserError

SOFTMAX_OVER = ("joint", "text")
PARTS = ("image_query", "image_key", "text_key")


class Relevance:
    """Captures the relevance of every forward pass of an SD3 transformer while it is entered.

        with Relevance(transformer, blocks=[9], mask=token_columns(...)) as relevance:
            for step in steps:
                transformer(latents, ...)
                maps.append(relevance.take())

    Under classifier-free guidance the batch is [unconditional; conditional]: of a batch larger than the mask the last
    rows, as many as the mask has, are used. Nothing captured carries a gradient. It may be entered again, and maps may
    be taken after it is left.
    """

    def __init__(
        self,
        transformer: nn.Module,
        blocks: Sequence[int],
        mask: Tensor,
        *,
        heads: Sequence[int] | Literal["mean"] = "mean",
        softmax_over: str = "joint",
        grid: tuple[int, int] | None = None,
    ) -> None:
        """
        Args:
            transformer: an ``SD3Transformer2DModel``, plain or wrapped by peft or for distributed training.
            blocks: indices of the transformer blocks to look at, from 0.
            mask: the core words' columns of the text sequence, bool (B, text tokens), at least one for each row.
            heads: the heads to average over, by index; ``mean`` takes all.
            softmax_over: ``joint``, all image and text keys, or ``text``, the text keys alone.
            grid: (h, w) of the image tokens; None if the image is square.

        Raises:
            ValueError: an unknown softmax, or a mask of a wrong shape or with an empty row.
            UserError: no block is chosen, or a block or head that the transformer does not have.
        """
        if softmax_over not in SOFTMAX_OVER:
            raise ValueError(f"unknown softmax_over {softmax_over!r}; it is one of {', '.join(SOFTMAX_OVER)}")
        if mask.dim() != 2 or not mask.any(1).all():
            raise ValueError("the mask is (B, text tokens) and every row has a core word's column")
        modules: Any = getattr(transformer, "module", transformer).transformer_blocks
        self._attentions = {index: modules[index].attn for index in _checked("block", blocks, len(modules))}
        self._heads = None if heads == "mean" else _checked("head", list(heads), modules[0].attn.heads)
        self._columns, self._valid = _gatherable(mask)
        self._text_tokens = mask.shape[1]
        self._softmax_over = softmax_over
        self._grid = grid
        self._parts: dict[int, dict[str, Tensor]] = {}
        self._maps: dict[int, Tensor] = {}
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> Self:
        for index, attention in self._attentions.items():
            # Queries and keys enter the attention as these modules put them out: (batch, heads, tokens, d) from the
            # norms, (batch, tokens, heads d) from the projections of a model without query and key norm.
            if attention.norm_q is None:
                sources = (attention.to_q, attention.to_k, attention.add_k_proj)
            else:
                sources = (attention.norm_q, attention.norm_k, attention.norm_added_k)
            for part, source in zip(PARTS, sources, strict=True):
                self._handles.append(source.register_forward_hook(partial(self._collect, index, attention.heads, part)))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._parts.clear()

    def take(self, per_block: bool = False) -> Tensor:
        """The relevance of the latest forward pass, float32 (B, h, w), mean over blocks; each pass gives one.

        Args:
            per_block: give (blocks, B, h, w), in the order in which the blocks were named.

        Raises:
            RuntimeError: since the last take, no forward pass went through all chosen blocks.
            ValueError: the image tokens do not fill the grid, or there is no grid and they form no square.
        """
        missing = [index for index in self._attentions if index not in self._maps]
        if missing:
            raise RuntimeError(f"no forward pass went through blocks {missing} since the last take")
        maps = torch.stack([self._maps[index] for index in self._attentions])
        self._maps.clear()
        side = math.isqrt(maps.shape[-1])
        height, width = self._grid or (side, side)
        if height * width != maps.shape[-1]:
            raise ValueError(f"{maps.shape[-1]} image tokens are no grid of {height} x {width}; give the grid")
        maps = maps.unflatten(-1, (height, width))
        taken: Tensor = maps if per_block else maps.mean(0)
        return taken

    @torch.no_grad()
    def _collect(self, index: int, heads: int, part: str, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        if output.dim() == 3:
            output = output.unflatten(-1, (heads, -1)).transpose(1, 2)
        parts = self._parts.setdefault(index, {})
        parts[part] = output
        if len(parts) == len(PARTS):
            del self._parts[index]
            self._maps[index] = self._relevance(**parts)

    def _relevance(self, image_query: Tensor, image_key: Tensor, text_key: Tensor) -> Tensor:
        """(B, image tokens) of one block, from all rows and heads of its queries and keys."""
        query, image_key, text_key = (self._chosen(part) for part in (image_query, image_key, text_key))
        if text_key.shape[2] != self._text_tokens:
            raise ValueError(f"the mask has {self._text_tokens} columns, the text {text_key.shape[2]} tokens")
        columns, valid = self._columns.to(query.device), self._valid.to(query.device)
        with torch.autocast(query.device.type, enabled=False):
            keys = torch.cat([image_key, text_key], dim=2) if self._softmax_over == "joint" else text_key
            normaliser = log_sum_exp(query, keys)
            core = text_key.gather(2, columns[:, None, :, None].expand(-1, text_key.shape[1], -1, text_key.shape[3]))
            logits = query.float() @ core.float().mT / math.sqrt(query.shape[3])
            shares = (logits - normaliser[..., None]).exp() * valid[:, None, None, :]
            return shares.sum(-1).mean(1)

    def _chosen(self, part: Tensor) -> Tensor:
        """The rows of the mask and the chosen heads, in the precision that the attention itself computes in."""
        rows = len(self._valid)
        if len(part) not in (rows, 2 * rows):
            raise ValueError(f"the mask has {rows} rows; the transformer's batch must have as many or twice, not {len(part)}")
        part = part[-rows:] if self._heads is None else part[-rows:, self._heads]
        device = part.device.type
        return part.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else part


def log_sum_exp(query: Tensor, key: Tensor) -> Tensor:
    """``logsumexp_k(q . k / sqrt(d))`` in float32, (B, heads, queries), from (B, heads, tokens, d).

    Fused attention kernels compute it on their way, without ever holding the matrix; their output is thrown away.
    Where there is none, the matrix is formed head by head.
    """
    if query.device.type == "cpu":
        query, key = query.float(), key.float()
        normaliser: Tensor = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, key)[1]
        return normaliser
    if query.is_cuda and can_use_efficient_attention(SDPAParams(query, key, key, None, 0.0, False, False)):
        kernel = torch.ops.aten._scaled_dot_product_efficient_attention
        # The kernel pads its queries to whole tiles.
        normaliser = kernel(query, key, key, None, True)[1][:, :, : query.shape[2]]
        return normaliser
    return explicit_log_sum_exp(query, key)


def explicit_log_sum_exp(query: Tensor, key: Tensor) -> Tensor:
    """The same without a fused kernel, one head at a time to bound the memory."""
    scale = 1 / math.sqrt(query.shape[3])
    heads = zip(query.float().unbind(1), key.float().unbind(1), strict=True)
    return torch.stack([(q @ k.mT * scale).logsumexp(-1) for q, k in heads], dim=1)


def _checked(what: str, indices: Sequence[int], count: int) -> list[int]:
    bad = [index for index in indices if not 0 <= index < count]
    if bad or not indices:
        wrong = f"{what} {bad[0]} does not exist" if bad else f"no {what} is chosen"
        raise UserError(f"{wrong}: choose {what}s from 0 to {count - 1} for this transformer's relevance")
    return list(dict.fromkeys(indices))


def _gatherable(mask: Tensor) -> tuple[Tensor, Tensor]:
    """The columns of each row, padded to the longest: indices (B, K) and which of them are meant, bool (B, K)."""
    columns = (~mask).int().argsort(dim=1, stable=True)[:, : int(mask.sum(1).max())]
    return columns, mask.gather(1, columns)
