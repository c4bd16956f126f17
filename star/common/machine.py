"""What a process may use of the machine."""

import os


def cores() -> int:
    """How many cores this process may use: those of its job on a cluster, not all that the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
