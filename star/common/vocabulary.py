"""Whether a tokenizer is its model's: one without its vocabulary gives every text the same tokens, and no error."""

from typing import Any

PROBE = "a photo of a red circle"
"""Words that every English vocabulary has, if only as letters."""

ROWS_LEFT = 0.05
"""The share of an encoder's rows that may be without a token: T5's tables are padded to a round number of rows."""


def fault(tokenizer: Any, rows: int) -> str:
    """What is wrong with a tokenizer of transformers, in words; empty if it knows words and fits its encoder.

    Args:
        tokenizer: has ``unk_token_id``, and is called with a text.
        rows: of the encoder's table of embeddings.
    """
    if not (1 - ROWS_LEFT) * rows <= len(tokenizer) <= rows:
        return f"has {len(tokenizer)} tokens, but its encoder {rows}"
    tokens = tokenizer(PROBE, add_special_tokens=False)["input_ids"]
    if not tokens or tokenizer.unk_token_id in tokens or max(tokens) >= rows:
        return f"does not know the words of {PROBE!r}"
    return ""


OLD_END = 2
"""What CLIP's configurations from before transformers 4.31 say; for it transformers takes the largest token of a text."""


def fault_of_end(tokenizer: Any, end: int) -> str:
    """What is wrong with the token that ends texts, in words; empty if CLIP finds it, whose embedding is the text's.

    Args:
        tokenizer: as for :func:`fault`.
        end: the ``eos_token_id`` of the text encoder's configuration.
    """
    tokens = tokenizer(PROBE)["input_ids"]
    taken = max(tokens) if end == OLD_END else end
    return "" if tokens[-1] == taken else f"ends texts with token {tokens[-1]}, but its encoder looks for {taken}"
