"""Prompts that quote a text: at the mini scale signs, whose test words no training sees; at the paper's, Flow-GRPO's."""

from collections.abc import Sequence

from star.tasks import Prompt, sign_words
from star.tasks.core_words import of_quote, spans_if_any
from star.tasks.prompt_files import load_prompts

EVALUATOR = "ocr"


def train(scale: str) -> list[Prompt]:
    """A sign for every training word, or the lines of Flow-GRPO's file, except those that quote no text."""
    prompts = [Prompt(text, tuple(spans_if_any("ocr", text))) for text in _texts(scale, "train", sign_words.TRAIN_WORDS)]
    return [prompt for prompt in prompts if prompt.spans]


def test(scale: str) -> list[Prompt]:
    """A sign for every test word, or the lines of Flow-GRPO's file."""
    return [Prompt(text, tuple(of_quote(text))) for text in _texts(scale, "test", sorted(sign_words.TEST_WORDS))]


def _texts(scale: str, split: str, words: Sequence[str]) -> list[str]:
    return [sign_words.prompt(word) for word in words] if scale == "mini" else load_prompts("ocr", split)
