"""What Flow-GRPO's reward server does to images before it judges them, and how its evaluation averages.

From yifan123/reward-server 92ac29f and flow_grpo: its client sends every image as JPEG, its server hands RGB arrays to a
detector that expects BGR, and its evaluation runs on a data set that accelerate pads with images from the start of the set
until all processes have equally many batches.
"""

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

NAME = "flow_grpo_compat"
QUALITY = 75
# Flow-GRPO's settings for GenEval: images per batch and process, and processes; then the number of images, four per prompt.
BATCH, PROCESSES = 14, 32
IMAGES = 2212


def jpeg(image: np.ndarray) -> np.ndarray:
    """An image, uint8 (H, W, 3) in RGB, after a round trip through Pillow's JPEG of quality 75."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=QUALITY)
    return np.asarray(Image.open(buffer))


def padded_mean(values: Sequence[float] | np.ndarray, batch: int = BATCH, processes: int = PROCESSES) -> float:
    """The mean over images of a set that is padded from its start: 2,212 images become 2,240, the first 28 twice.

    Flow-GRPO's test set is shuffled, so there the 28 are of all kinds of prompts, and this is the micro average to
    about 0.001. In GenEval's own order they are of its first seven prompts, all ``single_object``. These are the easiest, so
    the mean is up to 0.0125 (1 - m) too high, where m is the micro average. With fewer images more of them would count twice,
    all of the easy kinds, so it is reported for the full set only.

    Args:
        values: (n,) in the order of the set.
        batch: images per batch and process.
        processes: of the evaluation; 4, 8, 16 and 32 give the same for GenEval's 2,212 images.
    """
    numbers = np.asarray(values, dtype=np.float64)
    batches = -(-len(numbers) // batch)
    filled = -(-batches // processes) * processes * batch
    return float(np.resize(numbers, filled).mean())
