"""The process that computes the steps, one after another, on request."""

import gc
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

CONTEXT = multiprocessing.get_context("spawn")  # CUDA does not work in a forked process

START_SECONDS = 180.0
"""Seconds after which a process that has not finished its imports is given up."""

END_SECONDS = 3.0
"""Seconds that a process may take to end by itself once its pipe is closed."""

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
        theirs.close()  # so that the pipe ends when the process does
        started = self._receive(START_SECONDS)
        if "facts" not in started:
            self.close()
            raise RunStopped(f"the process that measures did not start: {started['reason']}")
        self.facts: dict[str, Any] = started["facts"]

    def measure(self, step: Step, limit: float) -> Iterator[Message]:
        """A step's messages, as they come; the last one has its state, whatever happens to the process.

        Args:
            step: to measure.
            limit: seconds after which the process is killed.
        """
        until = time.monotonic() + limit
        with suppress(OSError):  # the process may have died; receiving from it will say so
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
        """End the process: an idle one ends by itself, one that computes is killed after :data:`END_SECONDS`."""
        self._pipe.close()
        self._process.join(END_SECONDS)
        self._process.kill()
        self._process.join()

    def _receive(self, seconds: float) -> Message:
        """The next message; if none comes, the process is killed, and the message returned says why."""
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
    """Answer requests for steps until the pipe is closed or the device is lost."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent process ends this one
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with suppress(EOFError, BrokenPipeError):
        try:
            from star.bench.gpu.bench import Bench

            gc.freeze()  # memory is freed often: that need not look at all that was imported
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
    """Whether memory can be freed; if not, this process has lost the device, but a new one may get it back."""
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
    """What a figure depends on besides the code."""
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
