"""Flow-GRPO's text-rendering reward: how close are the recognised lines to the text that the prompt quotes?"""

from collections.abc import Sequence

from star.common.errors import UserError, short


def target_span(prompt: str) -> tuple[int, int]:
    """Where the text between a prompt's first two ASCII double quotes is, as character offsets ``[start, end)``.

    Raises:
        UserError: the prompt quotes nothing, or nothing but spaces.
    """
    start = prompt.find('"') + 1
    end = prompt.find('"', start)
    if not start or end < 0 or not _normalise(prompt[start:end]):
        raise UserError(f'prompt {short(prompt)!r} has no text in double quotes ("); the ocr task needs it')
    return start, end


def target_text(prompt: str) -> str:
    """The text that an image of this prompt should show; see :func:`target_span`."""
    start, end = target_span(prompt)
    return prompt[start:end]


def text_reward(target: str, lines: Sequence[str]) -> float:
    """``1 - d / len(target)`` in [0, 1], with both sides in lower case and without spaces (Flow-GRPO, ``ocr.py``).

    All lines are joined. d is 0 if the target is a substring of them, else the Levenshtein distance of the two whole
    strings, at most the target's length.

    Args:
        target: the text that should be there.
        lines: recognised lines, in reading order; none if nothing was recognised.

    Raises:
        ValueError: the target has no characters but spaces.
    """
    wanted, found = _normalise(target), _normalise("".join(lines))
    if not wanted:
        raise ValueError("the target text is empty")
    if wanted in found:
        return 1.0
    # Here, since all tasks read prompts by this module, also on a machine for measurements that has few libraries.
    from rapidfuzz.distance.Levenshtein import distance as levenshtein

    return 1 - min(levenshtein(found, wanted), len(wanted)) / len(wanted)


def _normalise(text: str) -> str:
    """In lower case and without ASCII spaces; other white space stays, as in the published reward."""
    return text.replace(" ", "").lower()
