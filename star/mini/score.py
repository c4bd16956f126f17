"""How good the mini base is: its GenEval score, and how well its signs can be read, with plain diffusers code."""

from collections.abc import Sequence

import numpy as np
import torch
from diffusers import StableDiffusion3Pipeline

from evaluators.geneval.evaluate import verdicts
from evaluators.geneval.mini import MiniDetector
from evaluators.geneval.prompts import MINI, TAGS, generate
from evaluators.ocr.rapid import Rapid
from evaluators.ocr.reward import text_reward
from star.models.tokenizers import TEXT_LENGTH
from star.tasks import sign_words

BATCH = 49
SIGNS = 64


def score(pipeline: StableDiffusion3Pipeline, steps: int = 16) -> dict[str, float]:
    """Scores of one image for every mini GenEval test prompt and for each of 64 test words.

    Returns:
        ``geneval`` (macro mean over tags of official correctness), each tag's mean, and ``ocr`` (mean reward).
    """
    records = generate(MINI)
    images = draw(pipeline, [record["prompt"] for record in records], steps)
    correct = [verdict.correct for verdict in verdicts(records, images, MiniDetector())]
    tags = {
        tag: float(np.mean([good for good, record in zip(correct, records, strict=True) if record["tag"] == tag]))
        for tag in TAGS
    }
    words = sorted(sign_words.TEST_WORDS)[:SIGNS]
    engine = Rapid()
    drawn = draw(pipeline, [sign_words.prompt(word) for word in words], steps)
    read = [text_reward(word, engine.lines(image)) for word, image in zip(words, drawn, strict=True)]
    return {"geneval": float(np.mean(list(tags.values()))), **tags, "ocr": float(np.mean(read))}


def draw(pipeline: StableDiffusion3Pipeline, prompts: Sequence[str], steps: int) -> list[np.ndarray]:
    """Images of prompts, uint8 (64, 64, 3); image ``i`` starts from the noise of seed ``i``."""
    pipeline.set_progress_bar_config(disable=True)
    images: list[np.ndarray] = []
    for start in range(0, len(prompts), BATCH):
        batch = list(prompts[start : start + BATCH])
        drawn = pipeline(
            batch,
            num_inference_steps=steps,
            guidance_scale=1.0,
            max_sequence_length=TEXT_LENGTH,
            generator=[torch.Generator().manual_seed(start + i) for i in range(len(batch))],
            output_type="np",
        ).images
        images += list((drawn * 255).round().astype(np.uint8))
    return images
