"""What the mini base is pretrained on: an endless, indexed stream of captioned scenes and signs."""

import numpy as np

from evaluators.geneval import prompts
from star.mini import scenes, signs
from star.tasks import sign_words

SIGN_SHARE = 0.18
# Objects and letters stand out more or less, as in photographs: the base learns to draw haze, and RL can unlearn it.
HAZE, SIGN_HAZE = 0.6, 0.95
# Counting and two coloured objects are what small models learn last, so they are drawn more often.
TAG_SHARES = dict(zip(prompts.TAGS, (0.08, 0.22, 0.16, 0.08, 0.26, 0.2), strict=True))


def example(seed: int, index: int) -> tuple[np.ndarray, str]:
    """Picture ``index`` of the world ``seed``: uint8 (64, 64, 3) and its caption. The same pair gives the same picture."""
    rng = np.random.default_rng((seed, index))
    if rng.random() < SIGN_SHARE:
        word = signs.draw_word(rng)
        return signs.draw_sign(word, rng, haze=SIGN_HAZE), sign_words.prompt(word)
    tag = rng.choice(prompts.TAGS, p=list(TAG_SHARES.values()))
    record = prompts.draw(tag, prompts.MINI, rng)
    return scenes.draw_scene(record, rng, HAZE)[0], record["prompt"]
