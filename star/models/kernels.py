"""Which library multiplies by a transformer's frozen weights on a CPU: torch's default one, or oneDNN.

Which is faster depends on the processor (on some AMD ones oneDNN is twice as fast as the default), so it is measured. Their
results differ in the last digit, and over a training that adds up: a run records which it used, and goes on with that.
"""

import time
from typing import Any

import torch
from torch import Tensor, nn

KERNELS = ("torch", "onednn")

SHAPE = (48, 64, 160, 640)
"""Of the product that is timed: rows, tokens, and the widths of a feed-forward layer of the mini base."""

MARGIN = 0.9
"""The default must need less than this share of oneDNN's time to be chosen, so that a tie is the same on every machine."""

ROUNDS = 10


class _Frozen(torch.autograd.Function):
    """A product with frozen weights that keeps nothing but them for the backward pass, as torch's own does."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        return _product(input, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        return _product(grads[0], weight.T, None), None, None


def _product(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """(B, tokens, width) by (out, width), as a convolution of one pixel, which torch gives to oneDNN."""
    pixels = input[:, None].permute(0, 3, 1, 2)  # tokens are a row of pixels, their width the channels; nothing moves
    return nn.functional.conv2d(pixels, weight[:, :, None, None], bias).permute(0, 2, 3, 1)[:, 0]


class OneDNNLinear(nn.Linear):
    """A frozen linear layer that oneDNN computes."""

    def forward(self, input: Tensor) -> Tensor:
        """(B, tokens, width) -> (B, tokens, width out); anything else goes the usual way."""
        return _Frozen.apply(input, self.weight, self.bias) if input.dim() == 3 else super().forward(input)


def faster() -> str:
    """The kernel that is faster here for the mini base's products, oneDNN where there is little between them."""
    if not torch.backends.mkldnn.is_available():
        return "torch"
    rows, tokens, width, out = SHAPE
    default, other = nn.Linear(width, out), OneDNNLinear(width, out)
    best = dict.fromkeys((default, other), float("inf"))
    with torch.no_grad():
        x = torch.randn(rows, tokens, width)
        for _ in range(ROUNDS):
            for layer in best:  # in turn, so that a change of the machine's speed meets both
                started = time.perf_counter()
                layer(x)
                best[layer] = min(best[layer], time.perf_counter() - started)
    return "torch" if best[default] < MARGIN * best[other] else "onednn"


def use(transformer: nn.Module, kernel: str) -> None:
    """Multiply by the frozen linear layers of a transformer with one of :data:`KERNELS`. Trained ones stay as they are."""
    for module in transformer.modules():
        if kernel == "onednn" and type(module) is nn.Linear and not module.weight.requires_grad:
            module.__class__ = OneDNNLinear
