"""CLIP's and T5's tokenizers for the words of the mini world: real classes, built instead of downloaded."""

from string import ascii_lowercase, ascii_uppercase, punctuation

from transformers import CLIPTokenizer, T5Tokenizer

from evaluators.geneval.prompts import COUNT_WORDS, MINI, plural

TEXT_LENGTH = 16
"""Columns per tokenizer. T5's is a call argument of the pipeline: pass ``max_sequence_length=16``."""

KNOWN_WORDS = tuple(
    dict.fromkeys(
        [*["a", "an", "photo", "of", "and", "left", "right", "above", "below", "sign", "that", "says"]]
        + [*MINI.names, *map(plural, MINI.names), *MINI.colors, *COUNT_WORDS.values()]
    )
)


def clip_tokenizer(length: int = TEXT_LENGTH) -> CLIPTokenizer:
    """CLIP's byte-pair tokenizer with merges for the world's words; any other word is split into letters or word endings.

    Args:
        length: columns that a text is padded to.
    """
    pairs = [pair for word in KNOWN_WORDS for pair in _merges(word)]
    characters = ascii_lowercase + "0123456789" + punctuation
    tokens = ["<|startoftext|>", "<|endoftext|>", *characters, *(c + "</w>" for c in characters)]
    tokens += [left + right for left, right in pairs]
    vocab = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocab, merges=list(dict.fromkeys(pairs)), model_max_length=length)


def t5_tokenizer() -> T5Tokenizer:
    """T5's unigram tokenizer: the world's words are whole pieces, capitals (signs) are single letters."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [("▁" + word, -1.0) for word in KNOWN_WORDS]
    pieces += [('▁"', -3.0)] + [(c, -6.0) for c in ascii_uppercase + ascii_lowercase + "0123456789" + punctuation]
    return T5Tokenizer(vocab=pieces, extra_ids=0)


def _merges(word: str) -> list[tuple[str, str]]:
    """Merges that build a word from its end, so that they touch few other words: "ri" + "ng" would touch many."""
    pairs, tail = [], word[-1] + "</w>"
    for letter in reversed(word[:-1]):
        pairs.append((letter, tail))
        tail = letter + tail
    return pairs
