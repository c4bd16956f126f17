"""FSDP2: a transformer's frozen weights are sharded over the processes of a run; each holds a part of every tensor.

Trained parameters stay whole on every process: adapters are small, and gradient sums, the average, checkpoints and exports
are then the same with and without sharding. A module's weights are gathered when it computes, forward and backward, and all
processes take part in that, so each must call the transformer as often as the others, or they wait forever.
"""

from collections.abc import Iterable
from typing import Any

import torch
from diffusers import SD3Transformer2DModel
from torch import distributed, nn
from torch.distributed.fsdp import fully_shard

from star.common.errors import UserError
from star.common.processes import together


def gather() -> Any:
    """torch's own all-gather of a module's weights, but inside :func:`together`, which reports that a process has died.

    Raises:
        UserError: this version of torch does not have it in the private module where it is looked for.
    """
    try:
        from torch.distributed.fsdp._fully_shard._fsdp_collectives import DefaultAllGather
    except ImportError:
        raise UserError(
            f"model.shard=true does not know torch {torch.__version__}; use 2.9 to 2.14, or model.shard=false"
        ) from None

    class Gather(DefaultAllGather):
        def __call__(self, *arguments: Any, **named: Any) -> distributed.Work | None:
            with together():
                return super().__call__(*arguments, **named)

    return Gather()


def several_processes() -> bool:
    """Whether there are other processes to share weights with."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def shard(transformer: SD3Transformer2DModel, whole: Iterable[nn.Parameter], device: torch.device) -> None:
    """Keep only this process's part of the weights on the device; block by block, so that it never holds all of them.

    Args:
        transformer: with the same weights on every process; it may be in main memory.
        whole: parameters that are left as they are.
        device: of this process.
    """
    gathering, kept = gather(), set(whole)
    mesh = distributed.init_device_mesh(device.type, (distributed.get_world_size(),))
    for module in (*transformer.transformer_blocks, transformer):
        fully_shard(module, mesh=mesh, ignored_params=kept).set_custom_all_gather(gathering)
