"""Text rendering as an evaluator: does the picture show the text that the prompt quotes?"""

from collections.abc import Callable, Sequence
from functools import partial
from types import MappingProxyType

import numpy as np

from evaluators.interface import Asked, Score, mean_scores
from evaluators.ocr.paddle import Paddle
from evaluators.ocr.pool import Engine, Pool, spare_cores
from evaluators.ocr.rapid import Rapid
from evaluators.ocr.reward import target_span, target_text, text_reward
from star.common.errors import UserError

# Raise the version when a change alters what an image scores.
PROTOCOL = "ocr-v1"
# The published "OCR accuracy" is the mean reward.
METRICS = {"ocr_accuracy": "reward", "ocr_exact": "exact"}
ENGINES: dict[str, Callable[[], Engine]] = {
    "rapidocr": Rapid,
    "paddleocr": Paddle,
    "paddleocr_flow_grpo_compat": partial(Paddle, flow_grpo_compat=True),
}


def engine(name: str) -> Engine:
    """The recogniser of a name.

    Raises:
        UserError: there is none of that name, or it is not installed.
    """
    if name not in ENGINES:
        raise UserError(f"no ocr engine {name!r}; there are: {', '.join(ENGINES)}")
    return ENGINES[name]()


class TextRendering:
    """Reads images in worker processes (see :class:`evaluators.interface.Evaluator`).

    Attributes:
        pool: recognises.
    """

    primary = "ocr_accuracy"
    paired = MappingProxyType({"reward": "accuracy", "exact": "exact"})

    def __init__(self, engine_name: str) -> None:
        self.pool = Pool(engine(engine_name), spare_cores())

    @property
    def protocol(self) -> str:
        """Name and version, with the engine."""
        return f"{PROTOCOL}/{self.pool.engine.name}"

    def lacks(self, prompt: Asked) -> str:
        """The quoted text, where there is none."""
        try:
            target_span(prompt.text)
        except UserError:
            return "text in double quotes"
        return ""

    def submit(self, prompts: Sequence[Asked], images: Sequence[np.ndarray]) -> Callable[[], list[dict]]:
        """Start to read; without workers, the returned function does the work.

        Returns:
            A function that waits and gives per image: reward (see :func:`~evaluators.ocr.reward.text_reward`), exact
            (whether it is 1), target and text (the recognised lines, joined by line feeds).

        Raises:
            UserError: a prompt quotes nothing.
        """
        targets = [target_text(prompt.text) for prompt in prompts]
        if len(targets) != len(images):
            raise ValueError(f"{len(targets)} prompts for {len(images)} images")
        lines = self.pool.submit(images)
        return lambda: [_verdict(target, found) for target, found in zip(targets, lines(), strict=True)]

    def summarise(self, prompts: Sequence[Asked], verdicts: Sequence[dict]) -> list[Score]:
        """Mean reward (the published accuracy) and share of exact readings."""
        return mean_scores(prompts, verdicts, METRICS)


def _verdict(target: str, lines: Sequence[str]) -> dict:
    reward = text_reward(target, lines)
    return {"stratum": "all", "reward": reward, "exact": reward == 1, "target": target, "text": "\n".join(lines)}
