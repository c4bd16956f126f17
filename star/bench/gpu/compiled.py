"""What compiling the transformer's blocks costs, and what it gains."""

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch._dynamo.utils import counters
from torch._inductor import config as inductor

from star.bench.gpu.bench import Bench
from star.bench.gpu.figures import Figure, attempt, free
from star.bench.gpu.model import REDUCTIONS, Passes, ratio_error
from star.models.sd3 import compile_blocks

CACHE = "TORCHINDUCTOR_CACHE_DIR"
"""The environment variable for the folder in which the compiler keeps its code between processes."""

CHANGED = (
    (torch._dynamo.config, "recompile_limit"),
    (torch._dynamo.config, "fail_on_recompile_limit_hit"),
    (inductor, "emulate_precision_casts"),
    (inductor, "deterministic"),  # torch 2.9 may lack it
)
"""The settings of the compiler that :func:`star.models.sd3.compile_blocks` changes."""


def compiled(bench: Bench) -> Iterator[Figure]:
    """Seconds of every pass eager, in its first compiled call and compiled; ratio errors when compiled; number of graphs."""
    base = bench.base(bench.config("model.compile=false"))
    passes = Passes(bench, base, bench.sizes.micro_batch)
    actions: dict[str, Callable[[], None]] = {
        "rollout step": passes.rollout,
        "rollout step with relevance": partial(passes.rollout, passes.capture()),
        "reference pass": passes.reference,
        "forward and backward": passes.learn,
    }
    eager = {}
    for name, action in actions.items():
        eager[name] = passes.timed(action)
        yield Figure(f"{name}, eager", eager[name], "s")
    free()
    with _compiler():
        compile_blocks(base.transformer, bench.device, bench.sizes.backend)
        for name, action in actions.items():
            yield from attempt(f"{name}, compiled", partial(_pass, passes, name, action, eager[name]))
        for reduction, method in REDUCTIONS.items():
            label = f"compiled, per {reduction}"  # of the same shape, since another would be compiled anew
            yield from attempt(label, partial(ratio_error, bench, base, label, method, passes.size))
        yield Figure("graphs", counters["stats"]["unique_graphs"])


def _pass(passes: Passes, name: str, action: Callable[[], None], eager: float) -> Iterator[Figure]:
    started = time.perf_counter()
    action()
    free()
    yield Figure(f"{name}, compiled for the first time", time.perf_counter() - started, "s")
    warm = passes.timed(action)
    yield Figure(f"{name}, compiled", warm, "s")
    yield Figure(f"{name}, eager / compiled", eager / warm)


@contextmanager
def _compiler() -> Iterator[None]:
    """Inside, the compiler starts with nothing cached; afterwards its settings are as before."""
    settings = [(of, name, getattr(of, name)) for of, name in CHANGED if hasattr(of, name)]
    before = os.environ.get(CACHE)
    torch._dynamo.reset()
    counters.clear()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        os.environ[CACHE] = folder
        try:
            yield
        finally:
            torch._dynamo.reset()
            for of, name, value in settings:
                setattr(of, name, value)
            os.environ.pop(CACHE)
            if before is not None:
                os.environ[CACHE] = before
