"""The mini world's signs: a short word in capitals on a board, in fonts that ship with matplotlib.

Test words are never seen before the test: neither the base's pretraining nor reinforcement learning draws them.
"""

from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from evaluators.geneval.shapes import RGB
from star.mini.scenes import background, to_uint8
from star.tasks.sign_words import TEST_WORDS, TRAIN_WORDS

FONTS = ("DejaVuSansMono-Bold.ttf", "DejaVuSansMono.ttf")
# Pixels: the left edge of the first letter's column, the columns' pitch, the letters' size, the rows' baselines.
LEFT, PITCH, FONT_SIZE = 5, 11, 18
ROWS = (27, 39, 51)
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
LENGTHS = (3, 4, 5)


REAL = 0.4
"""The share of signs with a word of the dictionary."""


def draw_word(rng: np.random.Generator) -> str:
    """A training word (with probability :data:`REAL`) or a random string of letters; never a test word."""
    if rng.random() < REAL:
        return TRAIN_WORDS[rng.integers(len(TRAIN_WORDS))]
    while True:
        word = "".join(rng.choice(list(LETTERS), size=rng.choice(LENGTHS)))
        if word not in TEST_WORDS:
            return word


def draw_sign(word: str, rng: np.random.Generator, haze: float = 0.0) -> np.ndarray:
    """A board with a word of 3 to 5 letters on a busy ground, uint8 (SIZE, SIZE, 3).

    Letters stand in fixed columns and one of three rows: a model of this size does not learn to spell in free layout.

    Args:
        haze: the opacity of the letters is drawn from 1 - haze to 1, one value for the whole word.
    """
    ground = Image.fromarray(to_uint8(background(rng)))
    path = Path(matplotlib.get_data_path(), "fonts", "ttf", FONTS[rng.integers(len(FONTS))])
    face = ImageFont.truetype(path, FONT_SIZE)
    baseline = ROWS[rng.integers(len(ROWS))]
    board = np.array(list(RGB.values())[rng.integers(len(RGB))]) + rng.uniform(-9, 9, 3)
    ink = 18 if board @ (0.299, 0.587, 0.114) > 125 else 246
    opacity = 1 - haze * rng.random() if haze else 1.0
    letters = tuple(to_uint8(board + opacity * (ink - board)).tolist())
    pen = ImageDraw.Draw(ground)
    right = LEFT + PITCH * len(word) + 3
    pen.rectangle((LEFT - 4, baseline - 17, right, baseline + 4), fill=tuple(to_uint8(board).tolist()))
    for column, letter in enumerate(word):
        pen.text((LEFT + PITCH * (column + 0.5), baseline), letter, font=face, fill=letters, anchor="ms")
    return np.asarray(ground)
