"""Judging images while the model draws the next ones."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch

Verdicts = Callable[[], list[dict]]
"""Waits for the verdicts on some images."""


class Beside:
    """Makes verdicts in a thread while a GPU draws the next images.

    On a CPU nothing would overlap, so there is no thread, and what the evaluator gave is used as it is.
    """

    def __init__(self, device: torch.device) -> None:
        self._thread = None
        if device.type == "cuda":
            # A new thread starts out on the first GPU, whichever one its process uses.
            own = torch.cuda.current_device()
            self._thread = ThreadPoolExecutor(1, initializer=torch.cuda.set_device, initargs=(own,))

    def __call__(self, judge: Verdicts) -> Verdicts:
        """A function that waits for the verdicts of ``judge``, which an evaluator's ``submit`` gave, and raises its errors."""
        return self._thread.submit(judge).result if self._thread else judge
