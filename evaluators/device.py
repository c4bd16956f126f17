"""Where evaluators compute. The models of transformers move there with the first images that they judge."""

import torch

from star.common.machine import on_gpu


def own_device() -> str:
    """The GPU of this process, by its index, or else the CPU.

    The index matters: ``cuda`` alone means the current device of the calling thread, which is the first GPU in a new one.
    """
    return f"cuda:{torch.cuda.current_device()}" if on_gpu() else "cpu"
