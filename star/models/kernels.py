"""Which library multiplies by a transformer's frozen weights on a CPU: torch's default one, or oneDNN.

Which is faster depends on the processor (on some AMD ones oneDNN is twice as fast as the default), so it is measured. Their
results differ in the last digit, and over a training that adds up, so a run records which one it used and resumes with it.
"""

import time
from typing import Any

import torch
from torch import Tensor, nn

KERNELS = ("torch", "onednn")

SHAPE = (48, 64, 160, 640)
"""Shape of the timed product: rows, tokens, and the widths of a feed-forward layer of the mini base."""

MARGIN = 0.9
"""The default is chosen only below this share of oneDNN's time, so that a near-tie goes the same way on every machine."""

ROUNDS = 10


class _Frozen(torch.autograd.Function):
    """A product with frozen weights that saves only these for the backward pass, as torch's own linear layer does."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        return _product(input, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        return _product(grads[0], weight.T, None), None, None


def _product(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """(B, tokens, width) by (out, width), as a 1 x 1 convolution, which torch hands to oneDNN."""
    pixels = input[:, None].permute(0, 3, 1, 2)  # a view: tokens as a row of pixels, their width as channels
    return nn.functional.conv2d(pixels, weight[:, :, None, None], bias).permute(0, 2, 3, 1)[:, 0]


class OneDNNLinear(nn.Linear):
    """A frozen linear layer that oneDNN computes."""

    def forward(self, input: Tensor) -> Tensor:
        """(B, tokens, width) -> (B, tokens, width out); other inputs take torch's default path."""
        return _Frozen.apply(input, self.weight, self.bias) if input.dim() == 3 else super().forward(input)


def faster() -> str:
    """The kernel that is faster on this machine for the mini base's products; oneDNN if the two are close."""
    if not torch.backends.mkldnn.is_available():
        return "torch"
    rows, tokens, width, out = SHAPE
    default, other = nn.Linear(width, out), OneDNNLinear(width, out)
    best = dict.fromkeys((default, other), float("inf"))
    with torch.no_grad():
        x = torch.randn(rows, tokens, width)
        for _ in range(ROUNDS):
            for layer in best:  # in turn, so that a change in the machine's speed affects both
                started = time.perf_counter()
                layer(x)
                best[layer] = min(best[layer], time.perf_counter() - started)
    return "torch" if best[default] < MARGIN * best[other] else "onednn"


def use(transformer: nn.Module, kernel: str) -> None:
    """Let a transformer's frozen linear layers compute with one of :data:`KERNELS`; trained ones stay as they are."""
    for module in transformer.modules():
        if kernel == "onednn" and type(module) is nn.Linear and not module.weight.requires_grad:
            module.__class__ = OneDNNLinear
