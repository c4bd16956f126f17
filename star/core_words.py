"""Prompt to core words to token columns: which text tokens the relevance looks at.

Core words are the words that a task's reward depends on, as character spans of the prompt. Token columns are their
places in SD3's joint text sequence: first the columns that the two CLIP tokenizers share, then those of T5.
"""

import re
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from evaluators.ocr.reward import target_span
from star.errors import UserError

Span = tuple[int, int]

TASKS = ("geneval", "ocr", "pickscore")
COLUMNS = ("clip", "t5", "both")
NUMBER_WORDS = (
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
)
# Words that name nothing in a picture: articles, pronouns, auxiliaries, conjunctions, prepositions, and the ends of
# contractions.
STOP_WORDS = frozenset(
    """a an the this that these those i you he she it we they me him her us them my your his its our their who whom
    whose which what is are was were be been being am do does did has have had having will would can could shall should
    may might must and or but nor so if as than then because while when where why how of in on at by to from into onto
    for with without about over under between through during against upon off up down out there here not no very just
    also too s t d m re ve ll""".split()  # noqa: SIM905
)


def core_spans(task: str, prompt: str, record: dict | None = None) -> list[Span]:
    """Character spans ``[start, end)`` of a prompt's core words, in order and without overlaps.

    ``geneval``: the classes (singular or plural), colours, counts and relations of the record, wherever they stand.
    ``ocr``: the text inside the first pair of ASCII double quotes. ``pickscore``: every word but :data:`STOP_WORDS`.

    Args:
        task: one of :data:`TASKS`.
        prompt: the text that the image is made from.
        record: for ``geneval``, the record of :mod:`evaluators.geneval.prompts`.

    Raises:
        ValueError: an unknown task, or ``geneval`` without a record.
        UserError: the prompt lacks a core word, or has none.
    """
    if task == "geneval":
        if record is None:
            raise ValueError("the core words of a geneval prompt come from its record; none was given")
        return _merged([span for forms in _record_words(record) for span in _occurrences(prompt, forms)])
    if task == "ocr":
        return [target_span(prompt)]
    if task == "pickscore":
        words = [word.span() for word in re.finditer(r"[^\W_]+", prompt) if word[0].lower() not in STOP_WORDS]
        if not words:
            raise UserError(f"prompt {prompt!r} has no content word; remove it from the prompts")
        return words
    raise ValueError(f"unknown task {task!r}; the tasks are {', '.join(TASKS)}")


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

    A token belongs to a span if they share a character that is no space. Beginning, end and padding tokens and all
    that truncation drops never count. A column of the CLIP part counts if either CLIP tokenizer puts a core word there:
    both encoders' outputs share it.

    Args:
        tokenizers: the pipeline's ``tokenizer``, ``tokenizer_2`` and ``tokenizer_3``; the last may be None.
        prompts: B texts.
        spans: the core words of each, as :func:`core_spans` gives them.
        clip_length: columns of the CLIP part, 77 in SD3.
        t5_length: columns of the T5 part, the pipeline's ``max_sequence_length``.
        columns: ``clip``, ``t5`` or ``both``.

    Raises:
        ValueError: unknown columns, or as many prompts as spans are not given.
        UserError: a prompt has no column at all, or T5's are wanted and the pipeline has no T5.
    """
    if columns not in COLUMNS:
        raise ValueError(f"unknown columns {columns!r}; they are {', '.join(COLUMNS)}")
    if len(prompts) != len(spans):
        raise ValueError(f"{len(prompts)} prompts, but core words of {len(spans)}")
    first, second, t5 = tokenizers
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
    return mask


def _record_words(record: dict) -> list[list[str]]:
    """The core words of a GenEval record, each as the forms that it may take."""
    words = []
    for clause in record["include"]:
        name, count = clause["class"], clause["count"]
        words.append([name, name + "s", name + "es"])
        if count > 1:
            words.append([str(count), *NUMBER_WORDS[count : count + 1]])
        if "color" in clause:
            words.append([clause["color"]])
        if "position" in clause:
            words.append([clause["position"][0]])
    return words


def _occurrences(prompt: str, forms: list[str]) -> list[Span]:
    alternatives = "|".join(map(re.escape, forms))
    found = [match.span() for match in re.finditer(rf"(?<!\w)(?:{alternatives})(?!\w)", prompt, re.IGNORECASE)]
    if not found:
        raise UserError(f"prompt {prompt!r} does not have the core word {forms[0]!r} of its record; correct either")
    return found


def _merged(spans: list[Span]) -> list[Span]:
    merged: list[Span] = []
    for start, end in sorted(spans):
        if merged and start < merged[-1][1]:
            merged[-1] = merged[-1][0], max(end, merged[-1][1])
        else:
            merged.append((start, end))
    return merged


def _overlaps(
    tokenizer: PreTrainedTokenizerBase | None, prompts: Sequence[str], spans: Sequence[Sequence[Span]], length: int
) -> Tensor:
    """Which of a tokenizer's columns hold a part of a core word, bool (B, length)."""
    assert tokenizer is not None
    batch = tokenizer(list(prompts), padding="max_length", max_length=length, truncation=True, return_offsets_mapping=True)
    mask = torch.zeros(len(prompts), length, dtype=torch.bool)
    for row, (prompt, own) in enumerate(zip(prompts, spans, strict=True)):
        core = {at for start, end in own for at in range(start, end) if not prompt[at].isspace()}
        tokens = tokenizer.convert_ids_to_tokens(batch["input_ids"][row])
        for column, (token, (start, end)) in enumerate(zip(tokens, batch["offset_mapping"][row], strict=True)):
            # T5's bare word mark claims the first letter of the word that follows; added tokens have empty offsets.
            mask[row, column] = token != "▁" and not core.isdisjoint(range(start, end))
    return mask
