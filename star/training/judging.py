"""Judging beside the model."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch

Verdicts = Callable[[], list[dict]]
"""Waits for the verdicts on some images."""


class Beside:
    """Lets verdicts be made in a thread while a GPU draws the next images.

    On a CPU there is nothing beside which to judge, and verdicts are made when they are waited for, as evaluators give them.
    """

    def __init__(self, device: torch.device) -> None:
        self._thread = None
        if device.type == "cuda":
            # A thread begins with the first GPU as its own, whichever that of its process is.
            own = torch.cuda.current_device()
            self._thread = ThreadPoolExecutor(1, initializer=torch.cuda.set_device, initargs=(own,))

    def __call__(self, judge: Verdicts) -> Verdicts:
        """A function that waits for the verdicts of what :meth:`evaluators.interface.Evaluator.submit` gave, and raises its
        errors."""
        return self._thread.submit(judge).result if self._thread else judge
