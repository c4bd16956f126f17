"""Folders of images in GenEval's layout, written and judged."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from evaluators.geneval import evaluate
from evaluators.geneval.detector import Detector
from evaluators.geneval.prompts import Record


def serialised(records: Iterable[Record]) -> str:
    """Records as the official JSON-lines text."""
    return "".join(json.dumps(record) + "\n" for record in records)


def save_folder(folder: Path, records: Sequence[Record], images: Iterable[Sequence[np.ndarray]]) -> None:
    """Per record its samples, uint8 (H, W, 3) in RGB; the order of the records gives their numbers."""
    for index, (record, samples) in enumerate(zip(records, images, strict=True)):
        path = folder / f"{index:05d}"
        (path / "samples").mkdir(parents=True)
        for number, image in enumerate(samples):
            Image.fromarray(image).save(path / "samples" / f"{number:05d}.png")
        (path / "metadata.jsonl").write_text(serialised([record]))


def evaluate_folder(folder: Path, detector: Detector) -> pd.DataFrame:
    """A row for each image, as ``star evaluate`` writes them."""
    return pd.DataFrame(evaluate.judge_folder(folder, detector)).assign(protocol=evaluate.protocol(detector))
