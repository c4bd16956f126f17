"""A GPU that is none: torch takes it for ``cuda:0``, and what is on it is computed on the CPU.

It shows what a first minute on a GPU would: a tensor that was left on the CPU, a number that is waited for, memory that is not
pinned, a branch that nobody has run. Digits, times and memory of a GPU it does not show. As a plugin of pytest it puts
whole tests on it:

    PYTHONPATH=tests/double python -m pytest -p gpu_double tests/training/test_rollout.py

It needs a C++ compiler, and a torch without CUDA that has not been imported yet: what torch asks of its driver is answered by
``gpu.cpp``, and by :data:`DRIVER` where Python asks. A tensor on it is an :class:`OnGpu`.
"""

import ctypes
import math
import subprocess
import sys
import tempfile
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

HERE, REPOSITORY = Path(__file__).parent, Path(__file__).parents[2]


def driver() -> None:
    """Build ``gpu.cpp`` and load it, before torch looks for a GPU."""
    assert "torch" not in sys.modules, "torch was imported before the GPU that is none"
    spec = find_spec("torch")
    assert spec and spec.origin
    torch_folder = Path(spec.origin).parent
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder, "gpu.so")
        includes, libraries = torch_folder / "include", torch_folder / "lib"
        subprocess.run(
            ["g++", "-std=c++20", "-O0", "-shared", "-fPIC", f"-I{includes}", HERE / "gpu.cpp", "-o", library]
            + [f"-L{libraries}", "-lc10", "-ltorch_cpu", f"-Wl,-rpath,{libraries}"],
            check=True,
        )
        ctypes.CDLL(str(library))


driver()

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.overrides import _get_current_function_mode_stack  # noqa: E402
from torch.utils._device import DeviceContext, _device_constructors  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils._pytree import tree_map_only  # noqa: E402

aten = torch.ops.aten
GPU = torch.device("cuda", 0)


class OnGpu(Tensor):
    """A tensor that says it is on ``cuda:0``. What it holds is on the CPU, where nothing but :func:`computed` looks."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> "OnGpu":
        return Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            layout=held.layout,
            device=GPU,
        )

    def __init__(self, held: Tensor) -> None:
        self.held = held

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return computed(func, args, kwargs or {})

    __torch_function__ = torch._C._disabled_torch_function_impl

    def __repr__(self) -> str:
        return f"OnGpu({self.held!r})"

    def __reduce_ex__(self, protocol: Any) -> Any:
        """A file has it as one of the CPU."""
        return self.held.__reduce_ex__(protocol)

    def tolist(self) -> list:
        """Torch would look into its storage."""
        waited("tolist")
        return self.held.tolist()

    def __getitem__(self, index: Any) -> Tensor:
        return Tensor.__getitem__(self, _indices(index))

    def __setitem__(self, index: Any, value: Any) -> None:
        Tensor.__setitem__(self, _indices(index), value)


def _indices(index: Any) -> Any:
    """An index whose lists are tensors on the GPU: torch copies them there, where no mode sees it, and waits."""
    if isinstance(index, tuple):
        return tuple(_indices(part) for part in index)
    if isinstance(index, list | range):
        waited("an index that is a list")
        return torch.tensor(list(index)).to(GPU, non_blocking=True)
    return index


class Mode(TorchDispatchMode):
    """Inside, what is made with ``device=cuda`` is on the GPU that is none."""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return computed(func, args, kwargs or {})


READS = {
    aten._local_scalar_dense.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten.equal.default,
    aten._unique2.default,
    aten.unique_dim.default,
    aten.unique_consecutive.default,
    aten.repeat_interleave.Tensor,
}
"""What gives the CPU a value, or a shape that only values tell."""


INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default}
"""What does so where an index is a mask."""


def leaves(part: Any) -> Iterator[Any]:
    """What lists, tuples and dictionaries hold: torch's ``tree_leaves``, which would take most of the time here."""
    if isinstance(part, tuple | list):
        for one in part:
            yield from leaves(one)
    elif isinstance(part, dict):
        yield from leaves(list(part.values()))
    else:
        yield part


def mapped(kind: type, function: Callable[[Any], Any], part: Any) -> Any:
    """The same with the function's result in place of each of this kind: torch's ``tree_map_only``, likewise."""
    if isinstance(part, kind):
        return function(part)
    if type(part) in (tuple, list):
        return type(part)([mapped(kind, function, one) for one in part])
    if type(part) is dict:
        return {name: mapped(kind, function, one) for name, one in part.items()}
    return tree_map_only(kind, function, part) if isinstance(part, tuple | list | dict) else part


def computed(func: Any, args: tuple, kwargs: dict) -> Any:
    """An operator's result, by the CPU.

    Raises:
        RuntimeError: some of its tensors are on the GPU and some are not; of the latter those without dimensions may be.
    """
    if torch.is_inference_mode_enabled():  # where operators come as they are called, not as what they are made of
        with Mode():
            parts = func.decompose(*args, **kwargs)
        if parts is not NotImplemented:
            return parts
    if func is aten._to_copy.default:
        return _copied(args[0], kwargs)
    tensors = [part for part in leaves((args, kwargs)) if isinstance(part, Tensor)]
    here = any(isinstance(tensor, OnGpu) for tensor in tensors)
    if func is aten.copy_.default:
        to, source = args[:2]
        _copying(isinstance(source, OnGpu), isinstance(to, OnGpu), source, kwargs.get("non_blocking") or args[2:] == (True,))
    elif here and any(not isinstance(tensor, OnGpu) and tensor.dim() for tensor in tensors):
        raise RuntimeError(f"{func.name()}: expected all tensors to be on the same device, but some are on the CPU")
    masked = func in INDEXING and any(part.dtype == torch.bool for part in leaves(args[1]) if isinstance(part, Tensor))
    if here and (func in READS or masked):
        waited(func.name())
    device = kwargs.get("device")
    there = here if device is None else torch.device(device).type == "cuda"
    args, kwargs = mapped(OnGpu, lambda tensor: tensor.held, (args, kwargs))
    if device is not None:
        kwargs = {**kwargs, "device": "cpu"}
    result = (KERNELS.get(func, func) if here else func)(*args, **kwargs)
    return mapped(Tensor, OnGpu, result) if there else result


def _copied(source: Tensor, kwargs: dict) -> Tensor:
    """``Tensor.to``: from one device to the other, or to another dtype or layout."""
    device = kwargs.get("device")
    before = isinstance(source, OnGpu)
    after = before if device is None else torch.device(device).type == "cuda"
    _copying(before, after, source, kwargs.get("non_blocking"))
    kwargs = kwargs if device is None else {**kwargs, "device": "cpu"}
    copy = aten._to_copy.default(source.held if isinstance(source, OnGpu) else source, **kwargs)
    return OnGpu(copy) if after else copy


STAGED = 64 << 10
"""Bytes of memory that is not pinned which a copy takes with it."""


def _copying(before: bool, after: bool, source: Tensor, non_blocking: Any) -> None:
    """Note that a copy waits, if it does: one to the GPU also where the driver has to stage more than it takes at once."""
    staged = after and not source.is_pinned() and source.nbytes > STAGED
    if before != after and (staged or not non_blocking):
        waited(f"a copy of {'x'.join(map(str, source.shape))} to the {'GPU' if after else 'CPU'}")


WAITS: Counter[str] = Counter()
"""How often the CPU waited for the GPU, by what for and at which line of this repository."""


def waited(what: str) -> None:
    """Count one wait."""
    own = [f for f in traceback.extract_stack() if f.filename.startswith(str(REPOSITORY)) and f.filename != __file__]
    at = f"{Path(own[-1].filename).relative_to(REPOSITORY)}:{own[-1].lineno}" if own else "a library"
    WAITS[f"{what} at {at}"] += 1


@contextmanager
def waits() -> Iterator[Counter[str]]:
    """Inside, what is waited for is counted in what it gives."""
    before, found = Counter(WAITS), Counter[str]()
    yield found
    found.update(WAITS - before)


def _attended(query: Tensor, key: Tensor, bias: Tensor | None, causal: bool, scale: float | None) -> tuple[Tensor, float]:
    """The logits (B, heads, queries, keys), and the factor of the products in them."""
    assert query.stride(3) == 1, "the kernels read heads that lie together"
    factor = scale or 1 / math.sqrt(query.shape[3])
    logits = query.float() @ key.float().mT * factor
    if bias is not None:
        logits = logits + bias
    if causal:
        logits = logits.masked_fill(torch.ones_like(logits, dtype=torch.bool).triu(1), float("-inf"))
    return logits, factor


def _forward(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, causal: bool, scale: float | None) -> tuple[Tensor, Tensor]:
    """The output, which lies in memory as the kernels leave it, (B, queries, heads, d), and the log-sum-exp."""
    logits, _ = _attended(q, k, bias, causal, scale)
    output = (logits.softmax(-1) @ v.float()).to(q.dtype)
    return output.transpose(1, 2).contiguous().transpose(1, 2), logits.logsumexp(-1)


def _backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, causal: bool, scale: float | None
) -> tuple[Tensor, ...]:
    """The gradients of queries, keys and values."""
    logits, factor = _attended(q, k, bias, causal, scale)
    shares, grad = logits.softmax(-1), grad.float()
    of_shares = grad @ v.float().mT
    of_logits = shares * (of_shares - (shares * of_shares).sum(-1, keepdim=True)) * factor
    gradients = of_logits @ k.float(), of_logits.mT @ q.float(), shares.mT @ grad
    return tuple(gradient.to(q.dtype) for gradient in gradients)


def _check_half(query: Tensor) -> None:
    assert query.dtype in (torch.float16, torch.bfloat16), "this kernel takes half precision alone"


def _seed() -> Tensor:
    return torch.zeros((), dtype=torch.int64)


def _efficient(
    q: Tensor, k: Tensor, v: Tensor, bias: Any, wanted: bool, drop: float = 0.0, causal: bool = False, scale: Any = None
) -> tuple:
    output, normaliser = _forward(q, k, v, bias, causal, scale)
    # To whole tiles of 32 queries; nothing if it is not asked for.
    padded = nn.functional.pad(normaliser, (0, -q.shape[2] % 32), value=float("inf")) if wanted else normaliser[:, :, :0]
    return output, padded, _seed(), _seed()


def _efficient_backward(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Any, *rest: Any, scale: Any = None) -> tuple:
    _output, normaliser, _seed, _offset, _drop, _mask, *causal = rest
    assert normaliser.shape[2] >= q.shape[2], "the forward pass was not asked for its log-sum-exp"
    return *_backward(grad, q, k, v, bias, any(causal), scale), None


def _flash(
    q: Tensor, k: Tensor, v: Tensor, drop: float = 0.0, causal: bool = False, mask: bool = False, scale: Any = None
) -> tuple:
    _check_half(q)
    nothing, state = torch.zeros(0), torch.zeros(2, dtype=torch.uint64)
    return *_forward(q, k, v, None, causal, scale), nothing, nothing, q.shape[2], k.shape[2], state, state[0], nothing


def _flash_backward(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *rest: Any, scale: Any = None) -> tuple:
    _output, _normaliser, *_lengths, _drop, causal, _seed, _offset = rest
    return _backward(grad, q, k, v, None, causal, scale)


def _cudnn(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Any,
    wanted: bool,
    drop: float = 0.0,
    causal: bool = False,
    mask: bool = False,
    scale: Any = None,
) -> tuple:
    _check_half(q)
    output, normaliser = _forward(q, k, v, bias, causal, scale)
    nothing = torch.zeros(0)
    return output, normaliser[..., None], nothing, nothing, q.shape[2], k.shape[2], _seed(), _seed(), nothing


def _cudnn_backward(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *rest: Any, scale: Any = None) -> tuple:
    _output, _normaliser, _seed, _offset, bias, *_lengths, _drop, causal = rest
    return _backward(grad, q, k, v, bias, causal, scale)


def _choice(query: Tensor, key: Tensor, value: Tensor, *rest: Any, **options: Any) -> int:
    """Which kernel torch's own attention takes: the efficient one (2) in float32 or with a mask, else flash (1)."""
    masked = any(isinstance(part, Tensor) for part in (*rest, *options.values()))
    return 2 if query.dtype == torch.float32 or masked else 1


KERNELS: dict[Any, Callable[..., Any]] = {
    aten._scaled_dot_product_efficient_attention.default: _efficient,
    aten._scaled_dot_product_efficient_attention_backward.default: _efficient_backward,
    aten._scaled_dot_product_flash_attention.default: _flash,
    aten._scaled_dot_product_flash_attention_backward.default: _flash_backward,
    aten._scaled_dot_product_cudnn_attention.default: _cudnn,
    aten._scaled_dot_product_cudnn_attention_backward.default: _cudnn_backward,
    aten._fused_sdp_choice.default: _choice,
}
"""Operators that a CPU has not: a GPU's attention, with what its kernels ask for and the shapes that they give."""


class Event:
    """An event or a stream: all work is done when it is asked for."""

    device = GPU

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...
    def record(self, *args: Any) -> None: ...
    def synchronize(self) -> None: ...
    def wait_stream(self, other: Any) -> None: ...
    def wait_event(self, event: "Event") -> None: ...
    def record_event(self) -> "Event":
        return self

    def query(self) -> bool:
        return True

    def elapsed_time(self, other: "Event") -> float:
        return 1.0


CARD = SimpleNamespace(
    name="a GPU that is none",
    total_memory=80 << 30,
    major=9,
    minor=0,
    multi_processor_count=132,
    L2_cache_size=50 << 20,
)

DRIVER: dict[str, Callable[..., Any]] = {
    "_lazy_init": lambda: None,
    "init": lambda: None,
    "is_available": lambda: True,
    "is_initialized": lambda: True,
    "device_count": lambda: 1,
    "current_device": lambda: 0,
    "set_device": lambda device: None,
    "get_device_name": lambda device=None: CARD.name,
    "get_device_properties": lambda device=None: CARD,
    "get_device_capability": lambda device=None: (CARD.major, CARD.minor),
    "get_arch_list": lambda: ["sm_90"],
    "is_bf16_supported": lambda *args, **kwargs: True,
    "is_tf32_supported": lambda: True,
    "is_current_stream_capturing": lambda: False,
    "synchronize": lambda device=None: None,
    "empty_cache": lambda: None,
    "ipc_collect": lambda: None,
    "memory_allocated": lambda device=None: 1 << 30,
    "max_memory_allocated": lambda device=None: 1 << 30,
    "memory_reserved": lambda device=None: 1 << 30,
    "max_memory_reserved": lambda device=None: 1 << 30,
    "reset_peak_memory_stats": lambda device=None: None,
    "mem_get_info": lambda device=None: (70 << 30, CARD.total_memory),
    "manual_seed": lambda seed: None,
    "manual_seed_all": lambda seed: None,
    "get_rng_state": lambda device=None: torch.zeros(16, dtype=torch.uint8),
    "get_rng_state_all": lambda: [torch.zeros(16, dtype=torch.uint8)],
    "set_rng_state": lambda state, device=None: None,
    "set_rng_state_all": lambda states: None,
    "Event": Event,
    "Stream": Event,
    "current_stream": lambda device=None: Event(),
    "default_stream": lambda device=None: Event(),
    "stream": lambda stream: nullcontext(),
}
"""What ``torch.cuda`` asks of a driver."""


def installed() -> None:
    """Let torch and safetensors take the GPU that is none for one."""
    assert torch.version.cuda is None, "this is for a torch without CUDA: with a GPU its own tests run on it"
    for name, answer in DRIVER.items():
        setattr(torch.cuda, name, answer)
    torch.version.cuda = "13.0"
    torch.autograd.set_multithreading_enabled(False)  # its thread for a GPU would look for the GPU
    # A module's weights become other tensors where it moves, since a tensor of the CPU cannot become one of another class.
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    Tensor.data = property(torch._C.TensorBase.data.__get__, _replaced)
    _device_constructors()  # is remembered, and must be of the functions that are replaced now
    for name in ("tensor", "as_tensor"):
        setattr(torch, name, _made_here_and_moved(getattr(torch, name)))
    threading.Thread.run = _in_mode(threading.Thread.run)

    import safetensors.torch

    for name in ("storage_ptr", "storage_size", "_end_ptr"):
        setattr(safetensors.torch, name, _of_held(getattr(safetensors.torch, name)))


def _replaced(tensor: Tensor, value: Tensor) -> None:
    """``tensor.data = value``."""
    if isinstance(tensor, OnGpu) and isinstance(value, OnGpu):
        tensor.held = value.held
    elif isinstance(tensor, OnGpu) or isinstance(value, OnGpu):
        other = nn.Parameter(value, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else value.detach()
        torch.utils.swap_tensors(tensor, other)
        return
    torch._C.TensorBase.data.__set__(tensor, value)


def _made_here_and_moved(make: Callable) -> Callable:
    """``torch.tensor`` and the like, which copy to the device where no mode sees it."""

    def made(data: Any, *args: Any, device: Any = None, **kwargs: Any) -> Tensor:
        contexts = [mode for mode in _get_current_function_mode_stack() if isinstance(mode, DeviceContext)]
        wanted = torch.device(device or (contexts[-1].device if contexts else "cpu"))
        if isinstance(data, Tensor) or wanted.type != "cuda":
            return make(data, *args, **({} if device is None else {"device": device}), **kwargs)
        return make(data, *args, device="cpu", **kwargs).to(GPU)

    return made


def _in_mode(function: Callable) -> Callable:
    """The same, in :class:`Mode`, which each thread has its own of."""

    def inside(*args: Any, **kwargs: Any) -> Any:
        with Mode():
            return function(*args, **kwargs)

    return inside


def _of_held(function: Callable) -> Callable:
    """The same of what a tensor holds."""
    return lambda tensor: function(tensor.held if isinstance(tensor, OnGpu) else tensor)


installed()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Every test and its fixtures are on the GPU that is none."""
    with Mode():
        yield
