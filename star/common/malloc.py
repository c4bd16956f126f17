"""Memory allocation: of the C library, which decides much of the speed on a CPU, and of torch on a GPU."""

import ctypes
import os

# glibc's mallopt.h
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4


ON_A_GPU = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
"""Where torch looks for its settings; the second is the older name."""


def let_segments_grow() -> None:
    """Let torch's GPU memory grow in place, unless the environment has settings for it. Call before torch is imported.

    Rollouts, updates and the autoencoder need blocks of different sizes; without this, fragmentation wastes gigabytes.
    """
    if not any(name in os.environ for name in ON_A_GPU):
        os.environ[ON_A_GPU[0]] = "expandable_segments:True"


def keep_freed_memory() -> None:
    """Let glibc keep freed memory for the next tensor. Without glibc this does nothing.

    By default every block of some megabytes is mapped from the system and given back when it is freed, so each large
    activation causes page faults again.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return
    mallopt(M_MMAP_MAX, 0)
    mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
    mallopt(M_TOP_PAD, 2**28)
