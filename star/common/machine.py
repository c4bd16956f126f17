"""What a process may use of the machine, and what is installed there."""

import os
from functools import cache
from importlib.metadata import PackageNotFoundError, version

PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "peft")
"""Those that digits may depend on."""


def cores() -> int:
    """How many cores this process may use: those of its job on a cluster, not all that the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def versions() -> str:
    """``torch 2.13.0, diffusers 0.38.0, ...``: which :data:`PACKAGES` are installed."""
    found = []
    for name in PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)
