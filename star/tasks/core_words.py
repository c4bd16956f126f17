"""Core words: the words of a prompt that a task's reward depends on, as spans ``[start, end)`` in order, without overlaps."""

import re

from evaluators.ocr.reward import target_span
from star.common.errors import UserError
from star.method.choices import Span

NUMBER_WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
# Words that name nothing in a picture: articles, pronouns, auxiliaries, conjunctions, prepositions, and the ends of
# contractions.
STOP_WORDS = frozenset(
    """a an the this that these those i you he she it we they me him her us them my your his its our their who whom
    whose which what is are was were be been being am do does did has have had having will would can could shall should
    may might must and or but nor so if as than then because while when where why how of in on at by to from into onto
    for with without about over under between through during against upon off up down out there here not no very just
    also too s t d m re ve ll""".split()  # noqa: SIM905
)
MEDIUM = frozenset({"photo", "photos", "photograph", "picture", "image"})
"""Words that name the picture and not what it shows: every position attends to them."""


def of_record(prompt: str, record: dict) -> list[Span]:
    """The classes (singular or plural), colours, counts and relations of a GenEval record, wherever they stand in its prompt.

    Raises:
        UserError: the prompt lacks one of them.
    """
    return _merged([span for forms in _record_words(record) for span in _occurrences(prompt, forms)])


def of_quote(prompt: str) -> list[Span]:
    """The text inside the first pair of ASCII double quotes.

    Raises:
        UserError: there is none.
    """
    return [target_span(prompt)]


def content_words(prompt: str) -> list[Span]:
    """Every word but :data:`STOP_WORDS` and :data:`MEDIUM`; the latter count only where a prompt has nothing else.

    Raises:
        UserError: there is none.
    """
    words = [word for word in re.finditer(r"[^\W_]+", prompt) if word[0].lower() not in STOP_WORDS]
    if not words:
        raise UserError(f"prompt {prompt!r} has no content word; remove it from the prompts")
    shown = [word for word in words if word[0].lower() not in MEDIUM]
    return [word.span() for word in shown or words]


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


RULES = {"ocr": of_quote, "pickscore": content_words}


def spans_if_any(task: str, prompt: str) -> list[Span]:
    """The core words of a prompt by a task's rule in :data:`RULES`; empty if it has none, as some published prompts."""
    try:
        return RULES[task](prompt)
    except UserError:
        return []
