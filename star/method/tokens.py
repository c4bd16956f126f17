"""Core words to token columns: which text tokens the relevance looks at.

Token columns are places in SD3's joint text sequence: first the columns that the two CLIP tokenizers share, then those of
T5.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from star.common.errors import UserError
from star.method.choices import COLUMNS, Span


def token_columns(
    tokenizers: Sequence[PreTrainedTokenizerBase | None],
    prompts: Sequence[str],
    spans: Sequence[Sequence[Span]],
    *,
    clip_length: int,
    t5_length: int,
    columns: str = "both",
) -> Tensor:
    """The columns of the core words in the joint text sequence, bool (B, clip_length + t5_length).

    A token belongs to a span if they share a non-space character. Start, end and padding tokens never count, nor does
    what truncation drops. A column of the CLIP part counts if either CLIP tokenizer puts a core word there, since both
    encoders' outputs share it.

    Args:
        tokenizers: the pipeline's ``tokenizer``, ``tokenizer_2`` and ``tokenizer_3``; the last may be None.
        prompts: B texts.
        spans: the core words of each, as :mod:`star.tasks.core_words` gives them.
        clip_length: columns of the CLIP part, 77 in SD3.
        t5_length: columns of the T5 part, the pipeline's ``max_sequence_length``.
        columns: ``clip``, ``t5`` or ``both``.

    Raises:
        ValueError: unknown columns, or different numbers of prompts and spans.
        UserError: a prompt has no column at all, or T5's are wanted and the pipeline has no T5.
    """
    if columns not in COLUMNS:
        raise ValueError(f"unknown columns {columns!r}; they are {', '.join(COLUMNS)}")
    if len(prompts) != len(spans):
        raise ValueError(f"{len(prompts)} prompts, but core words of {len(spans)}")
    first, second, t5 = tokenizers
    # A micro-batch holds groups of one prompt, and training prompts repeat: each is looked at once.
    given = [(prompt, tuple((start, end) for start, end in own)) for prompt, own in zip(prompts, spans, strict=True)]
    place = {one: number for number, one in enumerate(dict.fromkeys(given))}
    prompts, spans = [prompt for prompt, _ in place], [own for _, own in place]
    mask = torch.zeros(len(prompts), clip_length + t5_length, dtype=torch.bool)
    if columns != "t5":
        for tokenizer in (first, second):
            mask[:, :clip_length] |= _overlaps(tokenizer, prompts, spans, clip_length)
    if columns != "clip":
        if t5 is None:
            raise UserError(f"columns={columns} needs T5, which this pipeline does not have; set columns=clip")
        mask[:, clip_length:] = _overlaps(t5, prompts, spans, t5_length)
    for prompt, own, row in zip(prompts, spans, mask, strict=True):
        if not row.any():
            words = ", ".join(repr(prompt[start:end]) for start, end in own) or "none"
            raise UserError(
                f"prompt {prompt!r}: no token of its core words ({words}) is among the columns (columns={columns}, "
                f"{clip_length} of CLIP, {t5_length} of T5); shorten the prompt or raise the lengths"
            )
    return mask[[place[one] for one in given]]


def _overlaps(
    tokenizer: PreTrainedTokenizerBase | None, prompts: Sequence[str], spans: Sequence[Sequence[Span]], length: int
) -> Tensor:
    """Which of a tokenizer's columns hold a part of a core word, bool (B, length)."""
    assert tokenizer is not None
    # Not padded: a training's prompts are looked at all at once, and padding would be most of what is made for them.
    batch = tokenizer(list(prompts), max_length=length, truncation=True, return_offsets_mapping=True)
    found = []
    for row, (prompt, own, places) in enumerate(zip(prompts, spans, batch["offset_mapping"], strict=True)):
        before = length - len(places) if tokenizer.padding_side == "left" else 0
        for column, (first, last) in enumerate(places):  # empty for added tokens
            shared = any(
                first < end and start < last and prompt[max(first, start) : min(last, end)].strip() for start, end in own
            )
            # T5's bare word mark has the offsets of the first letter of the next word.
            if shared and tokenizer.convert_ids_to_tokens(batch["input_ids"][row][column]) != "▁":
                found.append((row, before + column))
    mask = torch.zeros(len(prompts), length, dtype=torch.bool)
    if found:
        mask[tuple(torch.tensor(found).T)] = True
    return mask
