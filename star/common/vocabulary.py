"""Whether a tokenizer has its vocabulary: one without it gives every text the same tokens, and no error."""

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
