"""What an evaluation had judged when it was cut off, so that the same one can go on from there."""

import json
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from star.common.files import replacing, visible, writing

PARTIAL = "partial"
"""The folder of partial results, within that of the final ones."""

KEEP_SECONDS = 300.0
"""How much work an interruption may cost; most evaluations of the small model take less time."""

Job = tuple[int, int]
"""The number of a prompt, and that of its image."""


class Judged(NamedTuple):
    """One image's verdict, its thumbnail and, if it is to be kept, the image itself, uint8 (H, W, 3)."""

    job: Job
    verdict: dict
    thumbnail: Tensor
    sample: np.ndarray | None = None


class Partial:
    """Files of judged images in a folder, which every process of an evaluation writes from time to time.

    A user-defined evaluator's verdicts are not kept, but made again, if JSON cannot hold them as they are.
    """

    def __init__(self, folder: Path, key: str) -> None:
        """
        Args:
            folder: of the files; need not exist.
            key: a hash of all that images and verdicts depend on; files with another key are ignored.
        """
        self.folder, self.key = folder, key
        self._written, self._at = 0, time.monotonic()

    def read(self, samples: bool) -> dict[Job, Judged]:
        """The judged images in the folder's files; a file that cannot be read is skipped.

        Args:
            samples: whether to load the images themselves too, a gigabyte or more at the paper's scale.
        """
        found: dict[Job, Judged] = {}
        for file in visible(self.folder.glob("*.safetensors")):
            try:
                found |= {one.job: one for one in self._read(file, samples)}
            except (OSError, SafetensorError, ValueError, LookupError):
                continue
        return found

    def keep(self, judged: Sequence[Judged]) -> None:
        """Write what was judged since the last write, if that was at least :data:`KEEP_SECONDS` ago.

        Args:
            judged: all that this process has judged so far.

        Raises:
            RunStopped: it cannot be written.
        """
        if time.monotonic() - self._at < KEEP_SECONDS:
            return
        new, self._written, self._at = judged[self._written :], len(judged), time.monotonic()
        verdicts = [one.verdict for one in new]
        try:
            told = json.dumps(verdicts)
        except TypeError:
            return
        if not new or json.loads(told) != verdicts:
            return
        samples = {one.job[0]: torch.from_numpy(one.sample) for one in new if one.sample is not None}
        tensors = {
            "jobs": torch.tensor([one.job for one in new]),
            "thumbnails": torch.stack([one.thumbnail for one in new]),
            **{f"sample.{number}": image.contiguous() for number, image in samples.items()},
        }
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            with replacing(self.folder / f"{uuid.uuid4().hex}.safetensors") as part:
                save_file(tensors, part, {"key": self.key, "verdicts": told})

    def _read(self, file: Path, samples: bool) -> list[Judged]:
        with safe_open(file, "pt") as opened:
            about: Mapping[str, str] = opened.metadata() or {}
            if about.get("key") != self.key:
                return []
            jobs, thumbnails = opened.get_tensor("jobs").tolist(), opened.get_tensor("thumbnails")
            names = [name for name in opened.keys() if name.startswith("sample.")]  # noqa: SIM118 (it is no mapping)
            images = {name: opened.get_tensor(name).numpy() for name in names if samples}
        verdicts = json.loads(about["verdicts"])
        return [
            Judged((number, index), verdict, thumbnail, images.get(f"sample.{number}") if index == 0 else None)
            for (number, index), verdict, thumbnail in zip(jobs, verdicts, thumbnails, strict=True)
        ]
