"""Text rendering: what recognised lines of an image are worth, for batches in memory and for folders.

For a folder, ``judge`` goes into :func:`evaluators.folder.score_folder`, and :data:`METRICS` into its ``summarise``.
"""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from evaluators.ocr.paddle import Paddle
from evaluators.ocr.pool import Engine, Pool
from evaluators.ocr.rapid import Rapid
from evaluators.ocr.reward import target_text, text_reward
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


def protocol(engine: Engine) -> str:
    """Name and version of the evaluation, with its engine."""
    return f"{PROTOCOL}/{engine.name}"


def judge(prompts: Sequence[str], images: Sequence[np.ndarray], pool: Pool) -> list[dict]:
    """The verdict on every image; arguments, result and errors are those of :func:`submit`."""
    return submit(prompts, images, pool)()


def submit(prompts: Sequence[str], images: Sequence[np.ndarray], pool: Pool) -> Callable[[], list[dict]]:
    """Start to judge images; without workers, the returned function does the work.

    Args:
        prompts: what image ``i`` was made from; its first text in double quotes is what should be there.
        images: uint8 (H, W, 3) in RGB, as many.
        pool: recognises.

    Returns:
        A function that waits and gives per image: reward (see :func:`~evaluators.ocr.reward.text_reward`), exact
        (whether it is 1), target and text (the recognised lines, joined by line feeds).

    Raises:
        UserError: a prompt quotes nothing.
    """
    targets = [target_text(prompt) for prompt in prompts]
    if len(targets) != len(images):
        raise ValueError(f"{len(targets)} prompts for {len(images)} images")
    lines = pool.submit(images)
    return lambda: [_verdict(target, found) for target, found in zip(targets, lines(), strict=True)]


def _verdict(target: str, lines: Sequence[str]) -> dict:
    reward = text_reward(target, lines)
    return {"reward": reward, "exact": reward == 1, "target": target, "text": "\n".join(lines)}
