"""What a process may use of the machine, what computes there, and what is installed."""

import os
import platform
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "peft")
"""Packages that the digits of results may depend on."""


CORES_VARIABLE = "STAR_CORES"
"""The variable with the number of cores of a run beside others; launchers overwrite the ones that libraries read."""


def cores() -> int:
    """How many cores this run may use: those of its cluster job, not all of the machine's, or its share of them."""
    own = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    told = os.environ.get(CORES_VARIABLE, "")
    return min(own, max(1, int(told))) if told.isdecimal() else own


def on_gpu() -> bool:
    """Whether this process computes on a GPU: if torch finds one, and ``ACCELERATE_USE_CPU`` does not forbid it."""
    import torch  # takes seconds, and processes that only read images do not need it
    from accelerate.utils import parse_flag_from_env

    return torch.cuda.is_available() and not parse_flag_from_env("ACCELERATE_USE_CPU")


def torch_for_gpu() -> str:
    """What to install so that torch can use a GPU of this machine, for a message; or why the one that is there cannot."""
    import torch

    if torch.version.cuda and not torch.cuda.is_available():
        return (
            f"torch {torch.__version__} is for CUDA {torch.version.cuda}, but finds no GPU: nvidia-smi says whether one is "
            "there and which CUDA its driver knows; builds of torch for an older one are at download.pytorch.org/whl"
        )
    return "pip install -r torch-gpu.txt (with tox: STAR_TORCH=torch-gpu.txt tox ...)"


def machine(processes: int = 1) -> str:
    """What computes here, as far as digits depend on it: ``AMD EPYC, AVX2, 1 thread`` or ``8 x NVIDIA H100 80GB HBM3``.

    Args:
        processes: how many compute together, on equal devices.
    """
    import torch

    if on_gpu():
        one = torch.cuda.get_device_name()
    else:
        threads = torch.get_num_threads()
        one = f"{_processor()}, {torch.backends.cpu.get_cpu_capability()}, {threads} thread{'s' * (threads > 1)}"
    return one if processes == 1 else f"{processes} x {one}"


def _processor() -> str:
    """The name of the processor, or of its architecture if it has none."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (value.strip() for key, _, value in (line.partition(":") for line in lines) if key.strip() == "model name")
    return next(named, "") or platform.processor() or platform.machine()


@cache
def versions() -> str:
    """``torch 2.13.0, diffusers 0.38.0, ...``: which :data:`PACKAGES` are installed."""
    return ", ".join(f"{name} {found}" for name in PACKAGES if (found := installed(name)))


def installed(package: str) -> str | None:
    """The version of a package that is installed; None if it is not."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
