"""Recognisers that need no models; in a module of their own, because worker processes import them."""

import os
import signal
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from star.common.errors import UserError

CRASH, FAIL, LACK, LEAVE, WAIT, PROCESS, THREADS, SLOW, NUMBERS, BYTES, NOTHING, ENDLESS = range(200, 212)
BLANK = 255
ODD = {NUMBERS: [float("nan")], BYTES: [b"x"], NOTHING: None, ENDLESS: ["x" * 1_000_000] * 2}


@dataclass
class FakeEngine:
    """Reads an image's first byte, as a number. Some numbers make it misbehave.

    CRASH: the process ends, with each of the first ``crashes`` such images. FAIL: an ordinary exception. LACK: models are
    missing. LEAVE: killed as for want of memory. WAIT: until the file ``folder/go`` appears. PROCESS: reads the
    process's number. THREADS: reads the number of threads that libraries are told to use. SLOW: takes 0.4 seconds. NUMBERS,
    BYTES, NOTHING, ENDLESS: gives what is no text of a picture. A blank image is taken for ``blank``.
    """

    folder: Path
    crashes: int = 99
    blank: int | None = None
    name: str = "fake-1"

    def lines(self, image):
        number = int(image.flat[0])
        number = self.blank if number == BLANK and self.blank is not None else number
        if number == CRASH and len(list(self.folder.glob("crash*"))) < self.crashes:
            (self.folder / f"crash{time.monotonic_ns()}").touch()
            os._exit(3)
        if number == FAIL:
            raise RuntimeError("the net is broken")
        if number == LACK:
            raise UserError("no models; get them")
        if number == LEAVE:
            os.kill(os.getpid(), signal.SIGKILL)
        while number == WAIT and not (self.folder / "go").exists():
            time.sleep(0.01)
        if number == SLOW:
            time.sleep(0.4)
        if number in ODD:
            return ODD[number]
        if number == PROCESS:
            return [str(os.getpid())]
        if number == THREADS:
            return [os.environ["OMP_NUM_THREADS"], os.environ["OPENCV_FOR_THREADS_NUM"]]
        return [] if number == 0 else [str(number), "x"]


class LoadingEngine(FakeEngine):
    """Also finds the one line of an image, with a model that no process can hand to another."""

    @cached_property
    def model(self):
        return lambda image: [np.array([(0, 0), (3, 0), (3, 3)])]

    def outlines(self, image):
        return self.model(image)
