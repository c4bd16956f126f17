"""Random numbers keyed by what they are for, never by rank, batch or order of calls.

So the same run draws the same images on any number of processes, after a resume, and for every method (common random
numbers: methods are compared pairwise).
"""

import hashlib

import torch
from torch import Tensor


def generator(*key: int | str) -> torch.Generator:
    """A CPU generator whose state depends on the key alone."""
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def normal(shape: tuple[int, ...], *key: int | str) -> Tensor:
    """Standard normal numbers, float32 on the CPU."""
    return torch.randn(shape, generator=generator(*key))
