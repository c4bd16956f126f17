"""Copies that do not wait for a GPU."""

import torch
from torch import Tensor


def sent(values: Tensor, device: torch.device) -> Tensor:
    """Values of the CPU on a device. From pinned memory a copy waits for nothing: what comes next is prepared meanwhile."""
    if device.type != "cuda" or values.is_cuda:
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)
