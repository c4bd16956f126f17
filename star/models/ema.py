"""Exponential moving average of trained weights."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor


class EMA:
    """Average of named tensors, with Flow-GRPO's ramp: decay min((1 + n) / (10 + n), decay) after n updates.

    Attributes:
        values: name -> average.
    """

    def __init__(self, tensors: Mapping[str, Tensor], decay: float, every: int = 1) -> None:
        """
        Args:
            tensors: what is averaged; the average starts at their current values.
            decay: upper limit of the decay, the weight of the past average.
            every: the average changes only after updates every - 1, 2 every - 1 and so on, as in Flow-GRPO.
        """
        self.decay, self.every, self.updates = decay, every, 0
        self.values = {name: tensor.detach().clone() for name, tensor in tensors.items()}

    def update(self, tensors: Mapping[str, Tensor]) -> None:
        """Take in the values after an optimizer step."""
        self.updates += 1
        if (self.updates + 1) % self.every:
            return
        decay = min((1 + self.updates) / (10 + self.updates), self.decay)
        current = [tensors[name].detach() for name in self.values]
        torch._foreach_lerp_(list(self.values.values()), current, 1 - decay)

    def state_dict(self) -> dict:
        """What a checkpoint holds."""
        return {"updates": self.updates, "values": self.values}

    def load_state_dict(self, state: dict) -> None:
        """Restore the state that a checkpoint holds."""
        self.updates = state["updates"]
        for name, value in self.values.items():
            value.copy_(state["values"][name])


@contextmanager
def swapped(tensors: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> Iterator[None]:
    """Inside, the named tensors hold other values, e.g. their moving averages."""
    current = {name: tensor.data for name, tensor in tensors.items()}
    try:
        for name, tensor in tensors.items():
            tensor.data = values[name]
        yield
    finally:
        for name, tensor in tensors.items():
            tensor.data = current[name]
