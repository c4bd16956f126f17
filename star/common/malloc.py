"""Memory allocation of the C library, which decides much of the speed on a CPU."""

import ctypes

# glibc's mallopt.h
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> None:
    """Let glibc keep freed memory for the next tensor. Without glibc this does nothing.

    By default every block of some megabytes is mapped from the system and given back when it is freed, so each large
    activation costs page faults anew.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return
    mallopt(M_MMAP_MAX, 0)
    mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
    mallopt(M_TOP_PAD, 2**28)
