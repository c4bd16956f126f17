"""Copies that do not wait for a GPU."""

import torch
from torch import Tensor


def sent(values: Tensor, device: torch.device) -> Tensor:
    """Values of the CPU on a device. From pinned memory a copy waits for nothing: what comes next is prepared meanwhile."""
    return (
        values.pin_memory().to(device, non_blocking=True)
        if device.type == "cuda" and not values.is_cuda
        else values.to(device)
    )
