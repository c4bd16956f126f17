"""The machine alone: how fast it copies and multiplies, and what each attention kernel does."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
from diffusers.models.normalization import RMSNorm
from torch import Tensor

from star.bench.gpu.bench import SEED, Bench
from star.bench.gpu.figures import Figure, attempt, median_seconds, products, seconds
from star.method.attention import KERNELS, Attended, may_have, normalised

PRECISIONS = {"bfloat16": "bfloat16", "float16": "float16", "TF32": "float32", "float32": "float32"}
"""Precision of a product -> type of its tensors."""

AT_ONCE = 10
"""Products or copies in one timing, since reading the clock takes longer than a short one."""


def ceilings(bench: Bench) -> Iterator[Figure]:
    """How fast memory is copied, and square matrices are multiplied."""
    yield from attempt("copy", partial(_copies, bench))
    for name in PRECISIONS:
        yield from attempt(f"product, {name}", partial(_product, bench, name))


def product_ceiling(bench: Bench, precision: str) -> float:
    """Floating-point operations per second in a large square product, which takes 2 n^3, in one of :data:`PRECISIONS`."""
    size = bench.sizes.product
    one, other = torch.randn(2, size, size, device=bench.device).to(getattr(torch, PRECISIONS[precision]))
    result = torch.empty_like(one)

    def multiply() -> None:
        for _ in range(AT_ONCE):
            torch.mm(one, other, out=result)

    with products(precision):
        taken = median_seconds(multiply, bench.device, 1, bench.sizes.repeats)
    return 2 * size**3 * AT_ONCE / taken


def _copies(bench: Bench) -> Iterator[Figure]:
    here = torch.zeros(bench.sizes.copied, dtype=torch.uint8, device=bench.device)
    there = torch.empty_like(here)

    def copy() -> None:
        for _ in range(AT_ONCE):
            there.copy_(here)

    taken = median_seconds(copy, bench.device, 1, bench.sizes.repeats)
    yield Figure("copy, read and written", 2 * bench.sizes.copied * AT_ONCE / taken / 1e12, "TB/s")
    if bench.device.type == "cuda":
        yield from _transfers(here)


def _transfers(here: Tensor) -> Iterator[Figure]:
    """Copies to the device, as for text encoders that rest in main memory."""
    rests = torch.zeros_like(here, device="cpu")
    for kind, source in (("pageable", rests), ("pinned", rests.pin_memory())):
        here.copy_(source)
        taken = seconds(partial(here.copy_, source), here.device)
        yield Figure(f"to the device, {kind} memory", here.numel() / taken / 1e9, "GB/s")


def _product(bench: Bench, precision: str) -> Iterator[Figure]:
    yield Figure(f"product, {precision}", product_ceiling(bench, precision) / 1e12, "TFLOP/s")


class Inputs(NamedTuple):
    """Queries, keys and values of an attention, each (B, heads, tokens, d), and the gradient of its output."""

    query: Tensor
    key: Tensor
    value: Tensor
    grad: Tensor


def attention(bench: Bench) -> Iterator[Figure]:
    """The speed of every attention kernel and of torch's own choice, whether gradients change its output, and the norm's."""
    for dtype in ("bfloat16", "float16", "float32"):
        kernels = {name: kernel for name, kernel in KERNELS.items() if may_have(bench.device.type, name, dtype)}
        reference: list[Tensor] = []
        for name, kernel in {**kernels, "torch's choice": _torch}.items():
            label = f"{dtype}, {name}"
            yield from attempt(label, partial(_kernel, bench, label, kernel, getattr(torch, dtype), reference))
        yield from attempt(f"{dtype}, norm", partial(_norm, bench, dtype))


def _torch(query: Tensor, key: Tensor, value: Tensor) -> Attended:
    return torch.nn.functional.scaled_dot_product_attention(query, key, value), query.new_empty(0)


def _kernel(
    bench: Bench, label: str, kernel: Callable[[Tensor, Tensor, Tensor], Attended], dtype: torch.dtype, reference: list[Tensor]
) -> Iterator[Figure]:
    """One kernel in one precision; the first kernel's output is the reference for those that follow."""
    inputs = _inputs(bench, dtype)
    parts, repeats = inputs[:3], bench.sizes.repeats

    def both() -> None:
        output, _ = kernel(*parts)
        torch.autograd.grad(output, parts, inputs.grad)

    with torch.no_grad():
        without, _ = kernel(*parts)
        forward = median_seconds(partial(kernel, *parts), bench.device, 1, repeats)
    following = kernel(*parts)[0].detach()
    total = median_seconds(both, bench.device, 1, repeats)
    rows, heads, tokens, width = bench.sizes.attention
    flops = 4 * rows * heads * tokens**2 * width  # two products forward, five backward
    yield Figure(f"{label}, forward", 1000 * forward, "ms")
    yield Figure(f"{label}, forward", flops / forward / 1e12, "TFLOP/s")
    yield Figure(f"{label}, forward and backward", 1000 * total, "ms")
    yield Figure(f"{label}, forward and backward", 3.5 * flops / total / 1e12, "TFLOP/s")
    apart = (following.float() - without.float()).abs().max().item()  # of rollouts and updates, which must agree
    yield Figure(f"{label}, output with and without gradients", _same(apart))
    if not reference:
        reference.append(without)
    elif apart := (without.float() - reference[0].float()).abs().max().item():
        yield Figure(f"{label}, output off that of the first kernel by at most", apart)


def _norm(bench: Bench, dtype: str) -> Iterator[Figure]:
    """The norm of one layer's queries, here and as diffusers computes it."""
    rows, heads, tokens, width = bench.sizes.attention
    norm = RMSNorm(width, 1e-6).to(bench.device, getattr(torch, dtype)).requires_grad_(False)
    torch.manual_seed(SEED)
    split, grad = torch.randn(2, rows, tokens, heads, width, device=bench.device).to(norm.weight.dtype)
    split.requires_grad_()

    def several(normed: Callable[[], Tensor], backward: bool) -> None:
        for _ in range(AT_ONCE):
            output = normed()
            if backward:
                torch.autograd.grad(output, split, grad)

    for whose, normed in (("here", lambda: normalised(split, norm)), ("of diffusers", lambda: norm(split))):
        for backward, what in ((False, "forward"), (True, "forward and backward")):
            with torch.set_grad_enabled(backward):
                taken = median_seconds(partial(several, normed, backward), bench.device, 1, bench.sizes.repeats)
            yield Figure(f"{dtype}, norm {whose}, {what}", 1000 * taken / AT_ONCE, "ms")


def _same(apart: float) -> str:
    return "equal to the bit" if apart == 0 else f"apart by up to {apart:.2g}"


def _inputs(bench: Bench, dtype: torch.dtype) -> Inputs:
    torch.manual_seed(SEED)
    query, key, value, grad = torch.randn(4, *bench.sizes.attention, device=bench.device).to(dtype)
    return Inputs(query.requires_grad_(), key.requires_grad_(), value.requires_grad_(), grad)
