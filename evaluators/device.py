"""Where evaluators compute."""

import torch


def own_device() -> str:
    """The GPU of this process, by its number, else the CPU.

    The number matters: of ``cuda`` alone every thread thinks its own, which in a new one is the first GPU.
    """
    return f"cuda:{torch.cuda.current_device()}" if torch.cuda.is_available() else "cpu"
