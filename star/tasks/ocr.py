"""Prompts that quote a text: at the mini scale signs whose test words no training has seen, at the paper's Flow-GRPO's."""

from collections.abc import Sequence

from star.tasks import Prompt, sign_words
from star.tasks.core_words import core_spans
from star.tasks.prompt_files import load_prompts

EVALUATOR = "ocr"


def train(scale: str) -> list[Prompt]:
    """A sign for every training word, or the lines of Flow-GRPO's file."""
    return _prompts(scale, "train", sign_words.TRAIN_WORDS)


def test(scale: str) -> list[Prompt]:
    """A sign for every test word, or the lines of Flow-GRPO's file."""
    return _prompts(scale, "test", sorted(sign_words.TEST_WORDS))


def _prompts(scale: str, split: str, words: Sequence[str]) -> list[Prompt]:
    texts = map(sign_words.prompt, words) if scale == "mini" else load_prompts("ocr", split)
    return [Prompt(text, tuple(core_spans("ocr", text))) for text in texts]
