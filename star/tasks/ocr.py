"""Prompts that quote a text: at the mini scale signs whose test words no training has seen, at the paper's Flow-GRPO's."""

from evaluators.ocr.reward import target_span
from star.common.errors import UserError
from star.tasks import Prompt, sign_words
from star.tasks.core_words import core_spans
from star.tasks.prompt_files import load_prompts

EVALUATOR = "ocr"


def train(scale: str) -> list[Prompt]:
    """A sign for every training word, or the lines of Flow-GRPO's file, without those that quote no text."""
    if scale == "mini":
        return [_prompt(sign_words.prompt(word)) for word in sign_words.TRAIN_WORDS]
    return [_prompt(text) for text in load_prompts("ocr", "train") if _quotes(text)]


def test(scale: str) -> list[Prompt]:
    """A sign for every test word, or the lines of Flow-GRPO's file."""
    if scale == "mini":
        return [_prompt(sign_words.prompt(word)) for word in sorted(sign_words.TEST_WORDS)]
    return [_prompt(text) for text in load_prompts("ocr", "test")]


def _prompt(text: str) -> Prompt:
    return Prompt(text, tuple(core_spans("ocr", text)))


def _quotes(text: str) -> bool:
    """Whether a text quotes another, which an image of it could show."""
    try:
        target_span(text)
    except UserError:
        return False
    return True
