"""A task that needs no detector: the redder the picture, the better."""

from collections.abc import Sequence

import numpy as np

from evaluators.interface import Score
from star.tasks import Prompt


class RedTask:
    """Prompts and evaluator in one."""

    name = "red"
    protocol = "red-v1"
    primary = "red"
    paired = {"reward": "red"}

    def __init__(self, rewards=None) -> None:
        """``rewards``: overrides the reward by a function of the images."""
        words = ("circle", "square", "star", "heart", "ring", "cross")
        prompts = [Prompt(f"a photo of a {word}", ((13, 13 + len(word)),)) for word in words]
        self.train, self.test = prompts[:4], prompts[4:]
        self._rewards = rewards
        self.evaluator = self

    def lacks(self, prompt) -> str:
        return ""

    def submit(self, prompts: Sequence[Prompt], images: Sequence[np.ndarray]):
        return lambda: self.judge(prompts, images)

    def judge(self, prompts: Sequence[Prompt], images: Sequence[np.ndarray]) -> list[dict]:
        if self._rewards is not None:
            return [{"reward": reward} for reward in self._rewards(images)]
        return [{"reward": float(i[..., 0].mean() - i[..., 2].mean()) / 255 + 1} for i in images]

    def summarise(self, prompts: Sequence[Prompt], verdicts: Sequence[dict]) -> list[Score]:
        rewards = [verdict["reward"] for verdict in verdicts]
        return [Score("red", float(np.mean(rewards)), None, len(rewards), len(set(p.text for p in prompts)))]
