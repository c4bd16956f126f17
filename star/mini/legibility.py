"""How small letters may be: an OCR engine's accuracy on drawn words, by the height of their capitals.

python -m star.mini.legibility rapidocr
"""

import argparse
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from PIL import Image, ImageDraw, ImageFont

from evaluators.ocr.evaluator import ENGINES, engine
from evaluators.ocr.pool import Engine
from evaluators.ocr.reward import text_reward
from star.mini.scenes import background, to_uint8
from star.tasks.sign_words import TRAIN_WORDS

FONTS = ("DejaVuSans.ttf", "DejaVuSans-Bold.ttf", "DejaVuSansMono-Bold.ttf", "DejaVuSerif.ttf")
# Side of the image -> heights of capitals, both in pixels.
HEIGHTS = {64: (4, 5, 6, 7, 8, 10, 12), 512: (12, 16, 24, 32, 48)}
CAPITALS = 0.729  # height of DejaVu's capitals, in font sizes
WORDS = tuple(word for word in TRAIN_WORDS if len(word) == 4)


def draw(word: str, side: int, height: float, rng: np.random.Generator) -> np.ndarray:
    """A word in black or white somewhere on a busy grey ground, uint8 (side, side, 3)."""
    picture = Image.fromarray(to_uint8(background(rng))).resize((side, side), Image.Resampling.BICUBIC)
    path = Path(matplotlib.get_data_path(), "fonts", "ttf", FONTS[rng.integers(len(FONTS))])
    font = ImageFont.truetype(path, height / CAPITALS)
    left, top, right, bottom = font.getbbox(word)
    margin = 2
    x, y = rng.uniform(margin, (side - margin - (right - left), side - margin - (bottom - top)))
    ink = ("black", "white")[rng.integers(2)]
    ImageDraw.Draw(picture).text((x - left, y - top), word, font=font, fill=ink)
    return np.asarray(picture)


def table(engine: Engine, images: int = 48, seed: int = 0) -> pd.DataFrame:
    """Accuracy by image side and height of capitals, both in pixels.

    Returns:
        One row per height: side, height, exact (share of words read without error), reward (mean), images.
    """
    rows = []
    for side, heights in HEIGHTS.items():
        for height in heights:
            rewards = []
            for index in range(images):
                rng = np.random.default_rng((seed, side, height, index))
                word = WORDS[rng.integers(len(WORDS))]
                rewards.append(text_reward(word, engine.lines(draw(word, side, height, rng))))
            rows.append((side, height, np.mean(np.equal(rewards, 1)), np.mean(rewards), images))
    return pd.DataFrame(rows, columns=["side", "height", "exact", "reward", "images"])


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engine", choices=ENGINES)
    parser.add_argument("--images", type=int, default=48, help="per height")
    arguments = parser.parse_args()
    print(table(engine(arguments.engine), arguments.images).to_string(index=False, float_format="{:.3f}".format))


if __name__ == "__main__":
    main()
