"""Exponential moving average of trained weights."""

import torch
from torch import Tensor


class EMA:
    """Average of named tensors, with the published ramp: decay min((1 + n) / (10 + n), decay) at update n.

    Attributes:
        values: name -> average, float32.
    """

    def __init__(self, tensors: dict[str, Tensor], decay: float, every: int = 1) -> None:
        """
        Args:
            tensors: what is averaged; their present values are where the average starts.
            decay: weight of the past.
            every: only every so-many-th update counts, as in Flow-GRPO.
        """
        self.decay, self.every, self.updates = decay, every, 0
        self.values = {name: tensor.detach().clone() for name, tensor in tensors.items()}

    @torch.no_grad()
    def update(self, tensors: dict[str, Tensor]) -> None:
        """Take in the values after an optimizer step."""
        self.updates += 1
        if self.updates % self.every:
            return
        decay = min((1 + self.updates) / (10 + self.updates), self.decay)
        for name, value in self.values.items():
            value.lerp_(tensors[name].detach(), 1 - decay)

    def state_dict(self) -> dict:
        return {"updates": self.updates, "values": self.values}

    def load_state_dict(self, state: dict) -> None:
        self.updates = state["updates"]
        for name, value in self.values.items():
            value.copy_(state["values"][name])
