"""The process that computes: one step after another, as it is asked for."""

import multiprocessing
import platform
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from multiprocessing.connection import Connection
from typing import Any

import torch

from star.bench.gpu.figures import finite, forget_peak, free, reason
from star.bench.gpu.steps import Step
from star.common.errors import RunStopped
from star.common.machine import PACKAGES, installed
from star.common.plugins import import_path

CONTEXT = multiprocessing.get_context("spawn")  # a CUDA device is not to be had in a forked process

START_SECONDS = 180.0
"""After which a process that has not imported everything is given up."""

END_SECONDS = 3.0
"""How long a process may take to end that nobody asks any more."""

Message = dict[str, Any]
"""``figure`` as it was measured, or at the end ``state`` (``done`` or ``failed``) and ``reason``."""


class Worker:
    """A process that computes steps.

    Attributes:
        facts: of the machine: device, driver, versions.
    """

    def __init__(self, overrides: Sequence[str]) -> None:
        """
        Args:
            overrides: settings of all runs.

        Raises:
            RunStopped: it did not start.
        """
        self._pipe, theirs = CONTEXT.Pipe()
        self._process = CONTEXT.Process(target=_serve, args=(theirs, tuple(overrides)), daemon=True)
        self._process.start()
        theirs.close()  # so that its end is seen
        started = self._receive(START_SECONDS)
        if "facts" not in started:
            self.close()
            raise RunStopped(f"the process that measures did not start: {started['reason']}")
        self.facts: dict[str, Any] = started["facts"]

    def measure(self, step: Step, limit: float) -> Iterator[Message]:
        """What a step gives, as it comes; the last message has its state, whatever happens to the process.

        Args:
            step: to measure.
            limit: seconds after which the process is killed.
        """
        until = time.monotonic() + limit
        with suppress(OSError):  # of one that has just died, which is told when it is asked for what it found
            self._pipe.send(step)
        while True:
            message = self._receive(until - time.monotonic())
            if message.pop("lost", False):
                self.close()
            yield message
            if "state" in message:
                return

    @property
    def alive(self) -> bool:
        """Whether it can take another step."""
        return self._process.is_alive()

    def close(self) -> None:
        """End the process: by itself where it waits to be asked, at once where it computes."""
        self._pipe.close()
        self._process.join(END_SECONDS)
        self._process.kill()
        self._process.join()

    def _receive(self, seconds: float) -> Message:
        """The next message; where none comes the process is killed, and the message says why."""
        try:
            if self._pipe.poll(max(0.0, seconds)):
                return self._pipe.recv()
            told = "stopped, because it took too long"
        except (EOFError, OSError):
            self._process.join(10)
            told = f"its process died with exit code {self._process.exitcode}"
        self._process.kill()
        self._process.join()
        return {"state": "failed", "reason": told}


def _serve(pipe: Connection, overrides: tuple[str, ...]) -> None:
    """Answer requests for steps until nobody asks any more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who asked ends this process
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with suppress(EOFError, BrokenPipeError):
        try:
            from star.bench.gpu.bench import Bench

            bench = Bench(torch.device("cuda" if torch.cuda.is_available() else "cpu"), overrides)
            pipe.send({"facts": _facts(bench.device)})
        except Exception as error:
            pipe.send({"state": "failed", "reason": reason(error)})
            return
        lost = False
        while not lost:
            for message in measured(pipe.recv(), bench):
                lost = "state" in message and not _frees()
                pipe.send(message | {"lost": lost})


def _frees() -> bool:
    """Whether memory can be freed; if not, the device is lost to this process, and another one may have it."""
    try:
        free()
    except RuntimeError:
        return False
    return True


def measured(step: Step, bench: Any) -> Iterator[Message]:
    """The figures of a step as they come, and at the end its state."""
    try:
        forget_peak(bench.device)
        for figure in import_path(step.measure, step.name)(bench):
            yield {"figure": asdict(finite(figure))}
    except Exception as error:
        end = {"state": "failed", "reason": reason(error)}
    else:
        end = {"state": "done", "reason": ""}
    yield end


def _facts(device: torch.device) -> dict[str, Any]:
    """What a figure depends on beside the code."""
    found: dict[str, Any] = {
        "device": f"CPU, {torch.get_num_threads()} threads",
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        **{name: installed(name) or "unknown" for name in PACKAGES},
        "torch": torch.__version__,  # with the CUDA that it was built for
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {
            "device": properties.name,
            "GiB": round(properties.total_memory / 2**30, 1),
            "driver": _driver(),
            "CUDA": torch.version.cuda,
            "cuDNN": torch.backends.cudnn.version(),
        }
    return found


def _driver() -> str:
    words = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        told = subprocess.run(words, capture_output=True, text=True, check=True, timeout=20).stdout.split()
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return told[0] if told else "unknown"
