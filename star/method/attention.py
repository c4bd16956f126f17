"""Joint attention of SD3's blocks, and relevance: how much of each image position's attention goes to the core words.

In a block of SD3's transformer, image and text tokens attend to all tokens of both. With the queries of the image and
the keys of both, the relevance of a position u is

    R[u] = mean over heads of  sum over core-word columns c of  softmax_k(q_u . k / sqrt(d))[c]

with the softmax over all keys. The map is not rescaled: the raw one localises best (Seg4Diff, arXiv 2509.18096). Optionally,
each column is first scaled so that all have the same mean over positions, and a word that draws little attention counts as
much as one that draws much. Only the core words' columns of the attention matrix are computed; their softmax normaliser is
the log-sum-exp that the attention kernel returns. So relevance needs no second attention, compiles with the block, and cannot
change the output: the same kernel runs whether or not relevance is read, and whether or not gradients are needed.
"""

import math
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Literal, Self

import torch
from diffusers.models.normalization import RMSNorm
from torch import Tensor, nn

from star.common.devices import sent
from star.common.errors import UserError
from star.method.choices import COLUMNS_COUNT, SOFTMAX_OVER

Attended = tuple[Tensor, Tensor]
"""What an attention kernel returns: output (B, heads, queries, d), and log-sum-exp of logits, float32 (B, heads, queries)."""


def _cpu(query: Tensor, key: Tensor, value: Tensor) -> Attended:
    output, normaliser = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value)
    return output, normaliser


def _flash(query: Tensor, key: Tensor, value: Tensor) -> Attended:
    output, normaliser, *_ = torch.ops.aten._scaled_dot_product_flash_attention(query, key, value)
    return output, normaliser


def _efficient(query: Tensor, key: Tensor, value: Tensor) -> Attended:
    output, normaliser, *_ = torch.ops.aten._scaled_dot_product_efficient_attention(query, key, value, None, True)
    return output, normaliser[:, :, : query.shape[2]]  # the kernel pads its queries to whole tiles


def _cudnn(query: Tensor, key: Tensor, value: Tensor) -> Attended:
    output, normaliser, *_ = torch.ops.aten._scaled_dot_product_cudnn_attention(query, key, value, None, True)
    return output, normaliser.reshape(query.shape[:3])


def _math(query: Tensor, key: Tensor, value: Tensor) -> Attended:
    with torch.autocast(query.device.type, enabled=False):  # autocast would round products to half precision
        logits = query.float() @ key.float().mT / math.sqrt(query.shape[3])
        return (logits.softmax(-1) @ value.float()).to(value.dtype), logits.logsumexp(-1)


KERNELS: dict[str, Callable[[Tensor, Tensor, Tensor], Attended]] = {
    "cpu": _cpu,
    "flash": _flash,
    "efficient": _efficient,
    "cudnn": _cudnn,
    "math": _math,
}
"""Attention kernels by name, each of which returns its log-sum-exp whether or not gradients are needed.

torch's own dispatch asks for it only when they are, and cuDNN's output then differs in digits."""


OPERATORS = {
    "cpu": "_scaled_dot_product_flash_attention_for_cpu",
    "flash": "_scaled_dot_product_flash_attention",
    "efficient": "_scaled_dot_product_efficient_attention",
    "cudnn": "_scaled_dot_product_cudnn_attention",
}
"""The operators of torch that kernels call; they are private to it, and may go."""


def check_known(kernel: str) -> None:
    """Check that torch has the operator that a kernel calls.

    Raises:
        UserError: it has not.
    """
    if kernel in OPERATORS and not hasattr(torch.ops.aten, OPERATORS[kernel]):
        raise UserError(
            f"the attention kernel {kernel} does not know torch {torch.__version__}; use 2.9 to 2.14, or model.attention=math"
        )


def default_kernel(device: str, dtype: torch.dtype) -> str:
    """The default kernel for a type of device (``cpu``, ``cuda``, ...) and a precision."""
    if device == "cuda":
        return "efficient" if dtype == torch.float32 else "flash"
    return "cpu" if device == "cpu" else "math"


def may_have(device: str, kernel: str, dtype: str) -> bool:
    """Whether a kernel supports a type of device (``cpu``, ``cuda``, or ``meta``, which computes nothing) and a precision."""
    if kernel in ("math", "cpu"):
        return kernel == "math" or device == "cpu"
    return device in ("cuda", "meta") and (kernel == "efficient" or dtype != "float32")


class JointAttention:
    """The attention of one SD3 block as a diffusers processor, whose kernel also gives relevance its normaliser.

    Attributes:
        kernel: one of :data:`KERNELS`, or None for :func:`default_kernel`.
        watch: called in a forward pass with (image queries, text keys, normaliser of the image queries); None for no call.
        seen: what :attr:`watch` returned in the latest pass.
    """

    def __init__(self, kernel: str | None = None) -> None:
        self.kernel = kernel
        self.watch: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None
        self.seen: Tensor | None = None

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """
        Args:
            attn: the block's ``Attention`` module.
            hidden_states: of the image tokens, (B, tokens, width).
            encoder_hidden_states: of the text tokens, (B, columns, width); None where the image attends only to itself.
            attention_mask: unused, as in SD3.

        Returns:
            The image's hidden states; with text tokens, a pair of the image's and the text's.
        """
        query = _heads(attn, hidden_states, attn.to_q, attn.norm_q)
        key = _heads(attn, hidden_states, attn.to_k, attn.norm_k)
        value = _heads(attn, hidden_states, attn.to_v, None)
        image, text_key = hidden_states.shape[1], None
        if encoder_hidden_states is not None:
            text_query = _heads(attn, encoder_hidden_states, attn.add_q_proj, attn.norm_added_q)
            text_key = _heads(attn, encoder_hidden_states, attn.add_k_proj, attn.norm_added_k)
            text_value = _heads(attn, encoder_hidden_states, attn.add_v_proj, None)
            query, key, value = (torch.cat(parts, 2) for parts in ((query, text_query), (key, text_key), (value, text_value)))
        attend = KERNELS[self.kernel or default_kernel(query.device.type, query.dtype)]
        output, normaliser = attend(query, key, value)
        if self.watch is not None and text_key is not None:
            self.seen = self.watch(query[:, :, :image], text_key, normaliser[:, :, :image])
        output = output.transpose(1, 2).flatten(2)
        if encoder_hidden_states is None:
            return _projected(attn, output)
        of_image, of_text = output[:, :image], output[:, image:]
        if output.dtype != torch.float32:
            # A slice that is not contiguous is multiplied image by image, unless the weight needs a gradient. What autocast
            # makes of an adapter's may say so in updates alone, and then ratios would leave 1.
            of_image, of_text = of_image.contiguous(), of_text.contiguous()
        return _projected(attn, of_image), of_text if attn.context_pre_only else attn.to_add_out(of_text)


def _heads(attn: Any, tokens: Tensor, projection: nn.Module, norm: nn.Module | None) -> Tensor:
    """Queries, keys or values (B, heads, tokens, d), in the precision that attention computes in."""
    split = projection(tokens).unflatten(-1, (attn.heads, -1))
    normed = (split if norm is None else normalised(split, norm)).transpose(1, 2)
    device = normed.device.type
    return normed.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else normed


def normalised(split: Tensor, norm: Any) -> Tensor:
    """Queries or keys (B, tokens, heads, d) after their norm, which on a GPU is one kernel.

    diffusers' norm is seven, and keeps for the backward pass three times as much as the kernel does.
    """
    weight = norm.weight if isinstance(norm, RMSNorm) and norm.bias is None else None
    if split.is_cuda and weight is not None and weight.dtype == split.dtype:
        with torch.autocast("cuda", enabled=False):  # which computes norms in float32, in copies
            return nn.functional.rms_norm(split, norm.dim, weight, norm.eps)
    normed: Tensor = norm(split)
    return normed


def _projected(attn: Any, tokens: Tensor) -> Tensor:
    """Tokens after the output projection and its dropout."""
    linear, dropout = attn.to_out
    projected: Tensor = dropout(linear(tokens))
    return projected


def install(transformer: nn.Module, kernel: str | None = None) -> None:
    """Make all blocks of an ``SD3Transformer2DModel`` use :class:`JointAttention`.

    Args:
        transformer: plain or wrapped by peft or for distributed training.
        kernel: one of :data:`KERNELS`, or None for :func:`default_kernel`.
    """
    for block in _blocks(transformer):
        block.attn.processor = JointAttention(kernel)
        if getattr(block, "attn2", None) is not None:
            block.attn2.processor = JointAttention(kernel)


def _blocks(transformer: nn.Module) -> Any:
    return getattr(transformer, "module", transformer).transformer_blocks


class Relevance:
    """A context manager that captures the relevance of every forward pass of an SD3 transformer.

        with Relevance(transformer, blocks=[9], mask=token_columns(...)) as relevance:
            for step in steps:
                transformer(latents, ...)
                maps.append(relevance.take())

    Under classifier-free guidance the batch is [unconditional; conditional]: of a batch twice as large as the mask, the
    second half is used. Captured maps carry no gradient. The context may be entered again, and maps may be taken after it
    has exited.
    """

    def __init__(
        self,
        transformer: nn.Module,
        blocks: Sequence[int],
        mask: Tensor,
        *,
        heads: Sequence[int] | Literal["mean"] = "mean",
        softmax_over: str = "joint",
        columns_count: str = "as_attended",
    ) -> None:
        """
        Args:
            transformer: an ``SD3Transformer2DModel``, plain or wrapped by peft or for distributed training.
            blocks: indices of the transformer blocks to look at, from 0.
            mask: the core words' columns of the text sequence, bool (B, text tokens), at least one for each row.
            heads: the heads to average over, by index; ``mean`` takes all.
            softmax_over: ``joint``, all image and text keys, or ``text``, the text keys alone.
            columns_count: ``as_attended``, or ``equally``: each scaled to the same mean over positions; the map's mean stays.

        Raises:
            ValueError: an unknown softmax or count, or a mask of a wrong shape or with an empty row.
            UserError: no block is chosen, or a block or head that the transformer does not have.
        """
        if softmax_over not in SOFTMAX_OVER:
            raise ValueError(f"unknown softmax_over {softmax_over!r}; it is one of {', '.join(SOFTMAX_OVER)}")
        if columns_count not in COLUMNS_COUNT:
            raise ValueError(f"unknown columns_count {columns_count!r}; it is one of {', '.join(COLUMNS_COUNT)}")
        if mask.dim() != 2 or not mask.any(1).all():
            raise ValueError("the mask is (B, text tokens) and every row has a core word's column")
        blocks_there = _blocks(transformer)
        chosen = _checked("block", blocks, len(blocks_there))
        if not all(isinstance(blocks_there[index].attn.processor, JointAttention) for index in chosen):
            install(transformer)
        self._transformer, self._blocks = transformer, chosen
        self._processors = [blocks_there[index].attn.processor for index in chosen]
        self._heads = None if heads == "mean" else _checked("head", list(heads), blocks_there[0].attn.heads)
        self._mask = mask
        device = next(transformer.parameters()).device
        self._columns, self._valid = (sent(part, device) for part in _gatherable(mask))
        # On the device already: indexing by a list would copy it there in each pass, and wait.
        self._heads_there = None if self._heads is None else sent(torch.tensor(self._heads), device)
        self._softmax_over, self._columns_count = softmax_over, columns_count

    def of(self, rows: Sequence[int]) -> Self:
        """A :class:`Relevance` like this one for some rows of the mask."""
        return type(self)(
            self._transformer,
            self._blocks,
            self._mask[list(rows)],
            heads=self._heads or "mean",
            softmax_over=self._softmax_over,
            columns_count=self._columns_count,
        )

    def __enter__(self) -> Self:
        for processor in self._processors:
            processor.watch, processor.seen = self._relevance, None
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for processor in self._processors:
            processor.watch = None

    def take(self, per_block: bool = False) -> Tensor:
        """The relevance of the latest forward pass, float32 (B, h, w), mean over blocks; it can be taken only once.

        Args:
            per_block: return (blocks, B, h, w), in the order in which the blocks were given.

        Raises:
            RuntimeError: since the last take, no forward pass went through all chosen blocks.
            ValueError: the image tokens form no square.
        """
        seen = [processor.seen for processor in self._processors]
        for processor in self._processors:
            processor.seen = None
        missing = [index for index, one in zip(self._blocks, seen, strict=True) if one is None]
        if missing:
            raise RuntimeError(f"no forward pass went through blocks {missing} since the last take")
        maps = torch.stack([one for one in seen if one is not None])
        side = math.isqrt(maps.shape[-1])
        if side * side != maps.shape[-1]:
            raise ValueError(f"{maps.shape[-1]} image tokens form no square")
        maps = maps.unflatten(-1, (side, side))
        taken: Tensor = maps if per_block else maps.mean(0)
        return taken

    @torch.no_grad()
    def _relevance(self, query: Tensor, text_key: Tensor, normaliser: Tensor) -> Tensor:
        """One block's relevance (B, image tokens), from all rows and heads of the image's queries and the text's keys."""
        query, text_key, normaliser = (self._chosen(part) for part in (query, text_key, normaliser))
        if text_key.shape[2] != self._mask.shape[1]:
            raise ValueError(f"the mask has {self._mask.shape[1]} columns, the text {text_key.shape[2]} tokens")
        with torch.autocast(query.device.type, enabled=False):
            if self._softmax_over == "text":
                normaliser = log_sum_exp(query, text_key)
            chosen = self._columns[:, None, :, None].expand(-1, text_key.shape[1], -1, text_key.shape[3])
            logits = query.float() @ text_key.gather(2, chosen).float().mT / math.sqrt(query.shape[3])
            shares = (logits - normaliser[..., None]).exp() * self._valid[:, None, None, :]
            return shares.sum(-1).mean(1) if self._columns_count == "as_attended" else self._equally(shares.mean(1))

    def _equally(self, shares: Tensor) -> Tensor:
        """The sum over columns of (B, image tokens, K), each first scaled to the columns' common mean over tokens."""
        means = shares.mean(1, keepdim=True)
        common = means.sum(2, keepdim=True) / self._valid.sum(1)[:, None, None]
        return torch.where(means > 0, shares * common / means, 0).sum(2)

    def _chosen(self, part: Tensor) -> Tensor:
        """The part of a batch that belongs to the rows of the mask and to the chosen heads."""
        rows = len(self._valid)
        if len(part) not in (rows, 2 * rows):
            raise ValueError(f"the mask has {rows} rows; the transformer's batch must have as many or twice, not {len(part)}")
        return part[-rows:] if self._heads_there is None else part[-rows:].index_select(1, self._heads_there)


def log_sum_exp(query: Tensor, key: Tensor) -> Tensor:
    """``logsumexp_k(q . k / sqrt(d))`` in float32, (B, heads, queries), from (B, heads, tokens, d); a head at a time."""
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
    """Each row's columns, padded to the longest row: indices (B, K), and which of them are not padding, bool (B, K)."""
    columns = (~mask).int().argsort(dim=1, stable=True)[:, : int(mask.sum(1).max())]
    return columns, mask.gather(1, columns)
