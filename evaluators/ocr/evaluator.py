"""Text rendering as an evaluator: does the picture show the text that the prompt quotes?"""

from collections.abc import Callable, Sequence
from functools import partial
from types import MappingProxyType

import numpy as np
from PIL import Image, ImageDraw

from evaluators.interface import Asked, Places, Score, mean_scores
from evaluators.ocr.paddle import Paddle
from evaluators.ocr.pool import Engine, Finder, Pool, outlines, patience, spare_cores, tolerance
from evaluators.ocr.rapid import Rapid
from evaluators.ocr.reward import target_text, text_reward
from star.common.console import tell
from star.common.errors import UserError, short

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
    """The recogniser for an engine's name.

    Raises:
        UserError: there is none of that name, or it is not installed.
    """
    if name not in ENGINES:
        raise UserError(f"no ocr engine {name!r}; there are: {', '.join(ENGINES)}")
    return ENGINES[name]()


class TextRendering:
    """Reads images in worker processes (see :class:`evaluators.interface.Evaluator`).

    Attributes:
        pool: the workers that read.
        places: where the lines of text are, bool (H, W) for each image, whatever they say (see
            :func:`evaluators.interface.places_of`); None if the engine cannot tell where text is.
    """

    primary = "ocr_accuracy"
    paired = MappingProxyType({"reward": "accuracy", "exact": "exact"})

    def __init__(self, engine_name: str) -> None:
        self.pool = Pool(engine(engine_name), spare_cores(), patience(), tolerance())
        self._cautioned = False
        # No method of its own: an evaluator that holds itself would keep its workers after it is forgotten.
        self.places: Places | None = partial(_places, self.pool) if isinstance(self.pool.engine, Finder) else None

    @property
    def protocol(self) -> str:
        """Name and version, with the engine."""
        return f"{PROTOCOL}/{self.pool.engine.name}"

    def lacks(self, prompt: Asked) -> str:
        """Text in double quotes, if the prompt has none. A caution is printed of the first with an odd number of them."""
        try:
            target = target_text(prompt.text)
        except UserError:
            return "text in double quotes"
        if prompt.text.count('"') % 2 and not self._cautioned:
            self._cautioned = True
            tell(
                f"the prompt {short(prompt.text)!r} has an odd number of double quotes; {short(target)!r} is taken as its text"
            )
        return ""

    def submit(self, prompts: Sequence[Asked], images: Sequence[np.ndarray]) -> Callable[[], list[dict]]:
        """Start to read.

        Returns:
            A function that waits and gives per image: reward (see :func:`~evaluators.ocr.reward.text_reward`), exact
            (whether it is 1: the text holds the target), target and text (the recognised lines, joined by line feeds).

        Raises:
            UserError: a prompt quotes nothing.
        """
        targets = [target_text(prompt.text) for prompt in prompts]
        if len(targets) != len(images):
            raise ValueError(f"{len(targets)} prompts for {len(images)} images")
        lines = self.pool.submit(images)
        return lambda: [_verdict(target, found) for target, found in zip(targets, lines(), strict=True)]

    def summarise(self, prompts: Sequence[Asked], verdicts: Sequence[dict]) -> list[Score]:
        """Mean reward (the published accuracy) and share of images whose text holds the target, maybe among other text."""
        return mean_scores(prompts, verdicts, METRICS)


def _places(pool: Pool, prompts: Sequence[Asked], images: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Where the lines of images are, bool (H, W) each; an image on which the engine fails has none."""
    found = pool.submit(images, outlines)()
    return [_inside(lines, image.shape) for lines, image in zip(found, images, strict=True)]


def _inside(polygons: Sequence[np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    """The part of an image of a shape (H, W, ...) that polygons (corners, 2) of x and y cover, bool (H, W)."""
    canvas = Image.new("1", (shape[1], shape[0]))
    draw = ImageDraw.Draw(canvas)
    for outline in polygons:
        draw.polygon([(float(x), float(y)) for x, y in outline], fill=1)
    return np.array(canvas)


def _verdict(target: str, lines: Sequence[str]) -> dict:
    reward = text_reward(target, lines)
    return {"stratum": "all", "reward": reward, "exact": reward == 1, "target": target, "text": "\n".join(lines)}
