"""Pictures of results: how the reward grew while training."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

# Okabe and Ito's colours, which colour-blind readers tell apart.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
WINDOW = 5


def reward_curves(runs: Mapping[str, Sequence[dict]], title: str, file: Path) -> None:
    """Training reward over images seen, as a PNG: every epoch as a dot, the mean of the last epochs as a line.

    Args:
        runs: label -> the lines of its ``metrics.jsonl``.
        title: above the picture.
        file: where to write.
    """
    figure, axis = plt.subplots(figsize=(6.4, 3.6))
    for (label, lines), color in zip(runs.items(), COLORS, strict=False):
        images = [line["images_seen"] for line in lines]
        reward = pd.Series([line["reward"] for line in lines])
        axis.plot(images, reward, ".", color=color, alpha=0.3)
        axis.plot(images, reward.rolling(WINDOW, min_periods=1).mean(), color=color, label=label)
    axis.set_xlabel("images seen")
    axis.set_ylabel(f"training reward (line: mean of {WINDOW} epochs)")
    axis.set_title(title, loc="left", fontsize=10)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False)
    figure.tight_layout()
    part = file.with_name(f".{file.name}")
    figure.savefig(part, dpi=150, format="png")
    plt.close(figure)
    part.replace(file)
