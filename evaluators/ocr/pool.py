"""Recognition in worker processes, while the main process does something else."""

import math
import multiprocessing
import os
import signal
import threading
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from typing import Any, Protocol, runtime_checkable

import numpy as np

from star.common import machine
from star.common.children import end_with_parent
from star.common.console import tell
from star.common.errors import RunStopped, UserError, one_line
from star.common.launched import asked

FAILURES_IN_A_ROW = 10
SHARE_VARIABLE = "STAR_OCR_FAILURES"
FAILED_SHARE, FEW, LATEST = 0.05, 100, 1_000
"""The largest share of the latest :data:`LATEST` images that an engine may fail on, checked from :data:`FEW` images on; the
environment may set another. With more failures, too much of the reward would be false zeros, even if days went well before."""

LONGEST = 100_000
"""Most characters in all lines of an image; comparing more with the target takes minutes."""

SECONDS_VARIABLE = "STAR_OCR_SECONDS"
SECONDS = 300.0
"""Time limit for one image, unless the environment sets another: long enough for the first one to download models."""

MOST_WORKERS = 8
RENEWED = 5_000
"""Images per worker after which all workers are replaced: some engines' memory grows with every image, as is reported for
PaddleOCR on CPUs (PaddlePaddle/PaddleOCR#15856)."""

BLANK = np.full((64, 64, 3), 255, np.uint8)


class Engine(Protocol):
    """A text recogniser.

    It is pickled into worker processes whenever these are started or replaced, so its constructor must be cheap and leave the
    loading of models to :meth:`lines`, which is called on a pool's own object in its workers alone.

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


def lines(engine: Engine, image: np.ndarray) -> list[str]:
    """An engine's lines, which must be text, and no more of it than a picture can hold."""
    found = engine.lines(image)
    for line in found:
        if not isinstance(line, str):
            raise TypeError(f"it gives {type(line).__name__} {line!r:.40} for a line of text")
    if (length := sum(map(len, found))) > LONGEST:
        raise ValueError(f"it reads {length:,} letters")
    return list(found)


def outlines(engine: Finder, image: np.ndarray) -> list[np.ndarray]:
    """The outlines of an image's lines."""
    return list(engine.outlines(image))


Find = Callable[[Any, np.ndarray], list]
"""What workers do with an engine and an image: :func:`lines` or :func:`outlines`."""


def spare_cores() -> int:
    """How many workers suit this process: its share of the cores that the run may use on this machine, less the one that it
    needs itself; at least 1 and at most :data:`MOST_WORKERS`."""
    together, share = (os.environ.get(name, "") for name in ("LOCAL_WORLD_SIZE", "OMP_NUM_THREADS"))
    processes = max(1, int(together)) if together.isdecimal() else 1
    # Launchers set OMP_NUM_THREADS=1 whatever the machine has; what else is there is the user's choice, or the matrix's.
    by_launcher = processes > 1 or (share == "1" and asked() != "")
    cores = int(share) if share.isdecimal() and not by_launcher else machine.cores()
    return min(max(cores // processes - 1, 1), MOST_WORKERS)


def patience() -> float:
    """Seconds for one image: :data:`SECONDS_VARIABLE`, or :data:`SECONDS`.

    Raises:
        UserError: the variable is no number above 0.
    """
    seconds = _told(SECONDS_VARIABLE, SECONDS)
    if not 0 < seconds < math.inf:
        raise UserError(f"{SECONDS_VARIABLE}={os.environ[SECONDS_VARIABLE]} must be a number of seconds above 0")
    return seconds


def tolerance() -> float:
    """The share of images that an engine may fail on: :data:`SHARE_VARIABLE`, or :data:`FAILED_SHARE`.

    Raises:
        UserError: the variable is no number in [0, 1].
    """
    share = _told(SHARE_VARIABLE, FAILED_SHARE)
    if not 0 <= share <= 1:
        raise UserError(f"{SHARE_VARIABLE}={os.environ[SHARE_VARIABLE]} must be a share in [0, 1]")
    return share


def _told(variable: str, usual: float) -> float:
    """The environment's value, or else the usual one; NaN where the environment's is not a number."""
    try:
        return float(os.environ.get(variable, usual))
    except ValueError:
        return math.nan


class Hung(Exception):
    """Workers have finished no image for too long."""


class ReaderStopped(RunStopped):
    """Reading stopped at an image.

    Attributes:
        image: its number in the batch that was submitted.
    """

    def __init__(self, message: str, image: int) -> None:
        super().__init__(message)
        self.image = image


class Pool:
    """Recognises batches of images in worker processes of one thread each, which the first batch starts.

    Workers that die or hang are replaced, and the images they left undone are tried again. All are also replaced, between
    batches, after :data:`RENEWED` images per worker. An image on which the engine fails has no lines, as in the published
    reward, and a caution is printed. An engine that fails many times in a row, or on too many of its latest images, is broken,
    and so is one that cannot read a blank image when it has read none before: it lacks its models, say.

    Attributes:
        engine: what recognises.
        seconds: workers count as hung if they finish no image for so long, which includes the time to load models.
        failed_share: the largest share of its latest images that the engine may fail on, checked from :data:`FEW` images on.
    """

    def __init__(self, engine: Engine, workers: int = 1, seconds: float = SECONDS, failed_share: float = FAILED_SHARE) -> None:
        """
        Args:
            engine: what recognises.
            workers: processes; 0 recognises in this one, without a time limit.
            seconds: time limit for one image.
            failed_share: in [0, 1].
        """
        self.engine, self.seconds, self.failed_share = engine, seconds, failed_share
        self._workers = workers
        self._lock = threading.RLock()  # guards the executor: one thread submits while another waits and may replace it
        self._executor: ProcessPoolExecutor | None = None
        self._given = self._finished = 0  # images that workers were given, and those that they are done with
        self._renewed_at = 0  # the workers are replaced at this many images given
        self._latest: deque[bool] = deque(maxlen=LATEST)  # for each image, whether the engine failed on it
        self._in_a_row = 0  # failures since an image was last read
        self._reads = False  # whether the engine has read any image

    def submit(self, images: Sequence[np.ndarray], find: Find = lines) -> Callable[[], list[list]]:
        """Start to recognise images.

        Args:
            images: uint8 (H, W, 3) in RGB.
            find: what is asked of the engine: :func:`lines` or :func:`outlines`.

        Returns:
            A function that waits and gives the lines, or their outlines, of every image. Without workers, it does the work
            itself. It raises :class:`~star.common.errors.UserError` if the engine does (it lacks its models, say). It raises
            :class:`~star.common.errors.RunStopped`, whose message names the image, if the engine is broken, or if an image
            twice kills its worker or makes it hang.
        """
        with self._lock:
            if self._given >= self._renewed_at and self._given == self._finished:
                self.close()
            jobs = [self._job(image, find) for image in images]
        return lambda: [self._result(find, *item) for item in enumerate(zip(images, jobs, strict=True))]

    def close(self) -> None:
        """End the workers; the next batch starts new ones."""
        with self._lock:
            executor, self._executor = self._executor, None
            if executor is not None:
                executor.shutdown(cancel_futures=True)

    def _job(self, image: np.ndarray, find: Find) -> Callable[[], list]:
        if not self._workers:
            return partial(find, self.engine, image)
        with self._lock:
            try:
                return partial(self._wait, self._start(image, find))
            except BrokenProcessPool:
                self.close()
                return partial(self._wait, self._start(image, find))

    def _start(self, image: np.ndarray, find: Find) -> Future[list]:
        if self._executor is None:
            # Spawned: a fork of a process with the threads of torch and accelerate may hang.
            context = multiprocessing.get_context("spawn")
            self._executor = ProcessPoolExecutor(self._workers, context, _prepare, (self.engine,))
            # An executor that nobody shuts down ends while Python exits, and the two collide: wait for it.
            weakref.finalize(self, self._executor.shutdown, cancel_futures=True)
            self._renewed_at = self._given + RENEWED * self._workers
        job = self._executor.submit(_found, find, image)
        self._given += 1
        job.add_done_callback(self._count)
        return job

    def _count(self, job: Future[list]) -> None:
        self._finished += 1

    def _wait(self, job: Future[list]) -> list:
        """What was found on an image. It may queue behind others, so it hangs only if none is finished for ``seconds``."""
        finished = -1
        while not job.done():
            if finished == self._finished:
                self._kill()
                raise Hung
            finished = self._finished
            wait([job], self.seconds)
        return job.result()

    def _kill(self) -> None:
        """Kill the workers at once; the jobs that they were given fail."""
        with self._lock:
            executor, self._executor = self._executor, None
            if executor is not None:
                for worker in dict(executor._processes or {}).values():  # there is no public way before Python 3.14
                    worker.kill()
                executor.shutdown()

    def _result(self, find: Find, index: int, work: tuple[np.ndarray, Callable[[], list]]) -> list:
        image, job = work
        attempt, blamed = job, 0
        while True:
            try:
                found = attempt()
            except BrokenProcessPool:
                blamed += attempt is not job  # that one ran beside others, one of which may have ended the worker
                what = "twice ended its worker process"
                why = "it crashed, or the system killed it, e.g. for want of memory"
                if not self._reads:  # a worker imports the main script, which must not start reading there
                    why += ', or the script that is run has no `if __name__ == "__main__":`'
            except Hung:
                blamed += 1
                what = f"twice gave no answer for {self.seconds:g} seconds"
                why = f"it hangs, or needs longer, see {SECONDS_VARIABLE}"
            except UserError:
                raise
            except Exception as error:
                return self._without_lines(index, error)
            else:
                self._in_a_row, self._reads = 0, True
                self._latest.append(False)
                return found
            if blamed == 2:
                raise ReaderStopped(f"{self.engine.name} {what} on image {index} of its batch: {why}", index)
            attempt = self._job(image, find)  # by itself; where no worker can be started, that is no failure on the image

    def _without_lines(self, index: int, error: Exception) -> list:
        self._in_a_row += 1
        self._latest.append(True)
        what = f"{self.engine.name} failed on image {index} of its batch: {type(error).__name__}: {one_line(error)}"
        if self._in_a_row >= FAILURES_IN_A_ROW:
            raise RunStopped(f"{what}; so it did on at least {FAILURES_IN_A_ROW - 1} images before") from error
        images, failed = len(self._latest), sum(self._latest)
        if images >= FEW and failed > self.failed_share * images:
            raise RunStopped(f"{what}; so it did on {failed} of the latest {images} images, which would count as without text")
        if not self._reads:
            try:
                self._job(BLANK, lines)()
            except Exception:
                raise RunStopped(f"{what}; nor can it read a blank image") from error
        tell(f"{what}; the image counts as one without text")
        return []


_engine: Engine


def _prepare(engine: Engine) -> None:
    """Set a worker up before the engine's libraries are loaded, which read the thread counts then."""
    global _engine
    _engine = engine
    os.environ.update(OMP_NUM_THREADS="1", OPENCV_FOR_THREADS_NUM="1")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the main process, which then ends its workers
    end_with_parent()


def _found(find: Find, image: np.ndarray) -> list:
    return find(_engine, image)
