"""Judging images while the model draws the next ones."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import torch

Verdicts = Callable[[], list[dict]]
"""Waits for the verdicts on some images."""


class Beside:
    """Makes verdicts while a GPU draws the next images: in a thread, and on a stream, of its own.

    On the stream of the rollouts each result that an evaluator reads would wait for all that is queued there. On a CPU nothing
    would overlap, so there is no thread, and what the evaluator gave is used as it is.
    """

    def __init__(self, device: torch.device) -> None:
        self._thread = None
        self._failed: BaseException | None = None
        if device.type == "cuda":
            # A new thread starts out on the first GPU, whichever one its process uses.
            own = torch.cuda.current_device()
            self._thread = ThreadPoolExecutor(1, initializer=torch.cuda.set_device, initargs=(own,))
            self._stream = _stream()

    def __call__(self, judge: Verdicts) -> Verdicts:
        """A function that waits for the verdicts of ``judge``, which an evaluator's ``submit`` gave, and raises its errors."""
        if self._thread is None:
            return judge
        return self._thread.submit(self._made, judge, torch.cuda.current_stream().record_event()).result

    def _made(self, judge: Verdicts, given: torch.cuda.Event) -> list[dict]:
        """The verdicts, from what was on the GPU when they were asked for, such as the evaluator's weights."""
        if self._failed is not None:  # the process is about to end, and would wait for this thread
            raise self._failed
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(given)
            try:
                return judge()
            except BaseException as error:
                self._failed = error
                raise


@cache
def _stream() -> torch.cuda.Stream:
    """The stream that this process judges on; for each one torch keeps memory of its own for good."""
    return torch.cuda.Stream()
