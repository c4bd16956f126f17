"""Copies that do not wait for a GPU."""

import torch
from torch import Tensor


def sent(values: Tensor, device: torch.device) -> Tensor:
    """CPU values on a device. The copy to a GPU is from pinned memory, so the CPU prepares what comes next meanwhile."""
    if device.type != "cuda" or values.is_cuda:
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)
