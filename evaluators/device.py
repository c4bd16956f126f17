"""Where evaluators compute. Their models go there with the first images: before that the GPU's memory is for drawing these."""

import torch


def own_device() -> str:
    """The GPU of this process, by its number, else the CPU.

    The number matters: of ``cuda`` alone every thread thinks its own, which in a new one is the first GPU.
    """
    return f"cuda:{torch.cuda.current_device()}" if torch.cuda.is_available() else "cpu"
