"""Recognition in worker processes, beside whatever the main process does meanwhile."""

import multiprocessing
import os
import signal
import sys
import threading
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Protocol, runtime_checkable

import numpy as np

from star.common.errors import RunStopped, UserError

Lines = list[str]

FAILURES_IN_A_ROW = 10
MOST_WORKERS = 8
BLANK = np.full((64, 64, 3), 255, np.uint8)


class Engine(Protocol):
    """A text recogniser.

    It is pickled into worker processes, so its constructor must be cheap and leave the loading of models to
    :meth:`lines`.

    Attributes:
        name: engine and version, part of the protocol.
    """

    name: str

    def lines(self, image: np.ndarray) -> Sequence[str]:
        """Recognised lines in reading order, empty if there are none. ``image`` is uint8 (H, W, 3) in RGB."""
        ...


@runtime_checkable
class Finder(Protocol):
    """An engine that also says where text is."""

    def outlines(self, image: np.ndarray) -> Sequence[np.ndarray]:
        """The outline of each line, (corners, 2): x to the right, y down, in pixels. ``image`` is uint8 (H, W, 3) in RGB."""
        ...


def spare_cores() -> int:
    """How many workers suit this process: the cores that it may use, shared with the run's other processes on this machine,
    less the one that it needs itself; at least 1 and at most :data:`MOST_WORKERS`."""
    together, share = (os.environ.get(name, "") for name in ("LOCAL_WORLD_SIZE", "OMP_NUM_THREADS"))
    processes = max(1, int(together)) if together.isdecimal() else 1
    # Launchers of several processes set one thread for each, whatever there is; of one it is what somebody wants.
    cores = int(share) if share.isdecimal() and processes == 1 else os.cpu_count() or 1
    return min(max(cores // processes - 1, 1), MOST_WORKERS)


class Pool:
    """Recognises batches of images in worker processes of one thread each, which the first batch starts.

    A worker that dies is replaced, and the images it left undone are tried once more. An image on which the engine fails has
    no lines, as in the published reward, and a caution says so. An engine that fails again and again is broken, and so is
    one that cannot read a blank image before it has read any other: it lacks its models, say.

    Attributes:
        engine: what recognises.
    """

    def __init__(self, engine: Engine, workers: int = 1) -> None:
        """
        Args:
            engine: what recognises.
            workers: processes; 0 recognises in this one.
        """
        self.engine = engine
        self._workers = workers
        self._executor: ProcessPoolExecutor | None = None
        self._failed = 0  # images in a row
        self._works = False  # it has read an image

    def submit(self, images: Sequence[np.ndarray]) -> Callable[[], list[Lines]]:
        """Start to recognise images.

        Args:
            images: uint8 (H, W, 3) in RGB.

        Returns:
            A function that waits and gives the lines of every image. Without workers, it is what does the work. It
            raises :class:`~star.common.errors.UserError` where the engine does (it lacks its models, say) and
            :class:`~star.common.errors.RunStopped`, with the number of the image, where the engine is broken or twice kills
            its worker.
        """
        jobs = [self._job(image) for image in images]
        return lambda: [self._result(*item) for item in enumerate(zip(images, jobs, strict=True))]

    def close(self) -> None:
        """End the workers; the next batch starts new ones."""
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True)
            self._executor = None

    def _job(self, image: np.ndarray) -> Callable[[], Lines]:
        if not self._workers:
            return lambda: list(self.engine.lines(image))
        try:
            return self._start(image).result
        except BrokenProcessPool:
            self.close()
            return self._start(image).result

    def _start(self, image: np.ndarray) -> Future[Lines]:
        if self._executor is None:
            # Spawned: a fork of a process with the threads of torch and accelerate may hang.
            context = multiprocessing.get_context("spawn")
            self._executor = ProcessPoolExecutor(self._workers, context, _prepare, (self.engine,))
            # An executor that is forgotten ends beside Python, and they trip over each other: wait for it.
            weakref.finalize(self, self._executor.shutdown, cancel_futures=True)
        return self._executor.submit(_lines, image)

    def _result(self, index: int, work: tuple[np.ndarray, Callable[[], Lines]]) -> Lines:
        image, job = work
        for attempt in (job, lambda: self._job(image)()):
            try:
                lines = attempt()
            except BrokenProcessPool:
                continue
            except UserError:
                raise
            except Exception as error:
                lines = self._without_lines(index, error)
            else:
                self._failed, self._works = 0, True
            return lines
        raise RunStopped(
            f"{self.engine.name} twice ended its worker process on image {index} of its batch: it crashed, or the "
            "system killed it, e.g. for want of memory"
        )

    def _without_lines(self, index: int, error: Exception) -> Lines:
        self._failed += 1
        what = f"{self.engine.name} failed on image {index} of its batch: {type(error).__name__}: {error}"
        if self._failed >= FAILURES_IN_A_ROW:
            raise RunStopped(f"{what}; so it did on at least {FAILURES_IN_A_ROW - 1} images before") from error
        if not self._works:
            try:
                self._job(BLANK)()
            except Exception:
                raise RunStopped(f"{what}; nor can it read a blank image") from error
        print(f"star: caution: {what}; the image counts as one without text", file=sys.stderr)
        return []


_engine: Engine


def _prepare(engine: Engine) -> None:
    """Set a worker up, before any library that reads the numbers of threads is loaded."""
    global _engine
    _engine = engine
    os.environ.update(OMP_NUM_THREADS="1", OPENCV_FOR_THREADS_NUM="1")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the main process, which then ends its workers
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Nobody else ends a worker whose parent was killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _lines(image: np.ndarray) -> Lines:
    return list(_engine.lines(image))
