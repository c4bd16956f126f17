"""Figures and how they are measured: seconds, memory, and what becomes of an error."""

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
"""The prefix of the value of a figure that could not be measured; the reason follows."""

PATIENCE = 8.0
"""Seconds of repeats after which a measurement is not repeated again, once it has :data:`FEWEST` repeats."""

FEWEST = 3


@dataclass(frozen=True)
class Figure:
    """One thing that was measured.

    Attributes:
        what: what was measured.
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
    """The same figure; if a number in it is infinite or NaN, which JSON cannot hold, its value as text, without interval."""
    numbers = [part for part in (figure.value, figure.low, figure.high) if isinstance(part, float)]
    return figure if all(map(math.isfinite, numbers)) else Figure(figure.what, str(figure.value), figure.unit)


def attempt(what: str, measure: Callable[[], Iterable[Figure]]) -> Iterator[Figure]:
    """The figures of one part of a step; an error becomes a figure too, so that the next part can follow.

    Args:
        what: the name of the part's figure if it fails.
        measure: yields the part's figures.

    Raises:
        RuntimeError: the device no longer responds, so that nothing can follow.
    """
    try:
        yield from measure()
        return
    except torch.OutOfMemoryError:
        told = NO_MEMORY
    except Exception as error:
        told = FAILED + reason(error)
    free()  # by now the error is gone, and with it what its traceback held
    yield Figure(what, told)


def reason(error: BaseException) -> str:
    """An error as one line of at most 300 characters."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def free() -> None:
    """Release all memory that is not in use; raises an error if the device no longer responds."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.empty_cache()


def seconds(action: Callable[[], object], device: torch.device) -> float:
    """The seconds that an action takes, measured with CUDA events on a GPU."""
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
    """The median of ``repeats`` calls after ``warm`` untimed ones; of fewer where they take longer than :data:`PATIENCE`."""
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
    """Reset :func:`peak`, which is possible on a GPU only."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak(device: torch.device) -> float:
    """The peak memory of tensors, in GiB; on a CPU that of the whole process so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / GIB
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset / GIB
    import resource  # which Windows lacks

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / GIB if sys.platform == "darwin" else most * 1024 / GIB


@contextmanager
def products(precision: str) -> Iterator[None]:
    """Inside, float32 products and convolutions run in ``float32`` or ``TF32``; other names leave them as they are."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    if precision in ("float32", "TF32"):
        torch.set_float32_matmul_precision("high" if precision == "TF32" else "highest")
        torch.backends.cudnn.allow_tf32 = precision == "TF32"
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]
