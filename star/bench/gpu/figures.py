"""What a measurement gives, and how it is made: seconds, memory, and what becomes of an error."""

import gc
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import psutil
import torch

from star.common.statistics import mean_interval

GIB = 2**30
NO_MEMORY = "out of memory"
FAILED = "failed: "
"""How the value of a figure begins that could not be measured; the reason follows."""

PATIENCE = 8.0
"""Seconds after which a measurement is not repeated further, however few repeats that leaves beyond :data:`FEWEST`."""

FEWEST = 3


@dataclass(frozen=True)
class Figure:
    """One thing that was measured.

    Attributes:
        what: it is.
        value: a number, or words.
        unit: of the number; may be empty.
        low, high: its 95 % interval, where there is one.
    """

    what: str
    value: float | str
    unit: str = ""
    low: float | None = None
    high: float | None = None


def finite(figure: Figure) -> Figure:
    """The same, with words instead of a number that is infinite or none, for which JSON has no form."""
    numbers = [part for part in (figure.value, figure.low, figure.high) if isinstance(part, float)]
    return figure if all(map(math.isfinite, numbers)) else Figure(figure.what, str(figure.value), figure.unit)


def attempt(what: str, measure: Callable[[], Iterable[Figure]]) -> Iterator[Figure]:
    """The figures of one part of a step; what goes wrong in it is a figure too, and the next part follows.

    Args:
        what: the part is called where it fails.
        measure: gives its figures.

    Raises:
        RuntimeError: the device does not answer any more, so that nothing can follow.
    """
    try:
        yield from measure()
        return
    except torch.OutOfMemoryError:
        told = NO_MEMORY
    except Exception as error:
        told = FAILED + reason(error)
    free()  # when the error is gone, and with it what its traceback held
    yield Figure(what, told)


def reason(error: BaseException) -> str:
    """An error as one line of at most 300 characters."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def free() -> None:
    """Give back all memory that nobody holds; raises an error if the device does not answer any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.empty_cache()


def seconds(action: Callable[[], object], device: torch.device) -> float:
    """What an action takes, by the GPU's own events where there is one."""
    if device.type != "cuda":
        started = time.perf_counter()
        action()
        return time.perf_counter() - started
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize(device)
    begin.record()
    action()
    end.record()
    torch.cuda.synchronize(device)
    return begin.elapsed_time(end) / 1000


def median_seconds(action: Callable[[], object], device: torch.device, warm: int, repeats: int) -> float:
    """The median of some repeats, after some that do not count; of fewer where they take longer than :data:`PATIENCE`."""
    for _ in range(warm):
        action()
    taken: list[float] = []
    while len(taken) < repeats and (len(taken) < FEWEST or sum(taken) < PATIENCE):
        taken.append(seconds(action, device))
    return statistics.median(taken)


def mean_of(what: str, values: Sequence[float], unit: str = "") -> Figure:
    """The mean of independent values, with Student's interval."""
    estimate = mean_interval(values)
    return Figure(what, estimate.value, unit, *(estimate.interval or ()))


def forget_peak(device: torch.device) -> None:
    """Let :func:`peak` begin anew, where it can."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak(device: torch.device) -> float:
    """The most memory that tensors took, in GiB; on a CPU that of the whole process so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / GIB
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset / GIB
    import resource  # which Windows has not

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / GIB if sys.platform == "darwin" else most * 1024 / GIB


@contextmanager
def products(precision: str) -> Iterator[None]:
    """Inside, float32 products and convolutions are ``float32`` or ``TF32``; other names leave them as they are."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    if precision in ("float32", "TF32"):
        torch.set_float32_matmul_precision("high" if precision == "TF32" else "highest")
        torch.backends.cudnn.allow_tf32 = precision == "TF32"
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]
