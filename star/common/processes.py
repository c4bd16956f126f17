"""Communication among the processes of a run; one that waits for another that has died ends with a reason."""

import os
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

import torch
from accelerate import Accelerator, InitProcessGroupKwargs, PartialState
from accelerate.utils import gather_object
from torch import Tensor

from star.common.errors import DIED, RunStopped, UserError, one_line
from star.common.launched import asked, check_launched
from star.common.machine import torch_for_gpu

Item = TypeVar("Item")

PATIENCE = timedelta(minutes=30)
"""How long processes wait for each other, e.g. while one writes a checkpoint to a slow disk or waits for a hanging judge."""


def joined(**options: Any) -> Accelerator:
    """This process's place among those of its run, and its device.

    Args:
        options: of ``Accelerator``.

    Raises:
        UserError: variables of the environment are incomplete, wrong, or ask for what is not done here.
    """
    check_launched()
    # Accelerators of other makes, e.g. a Mac's, are not supported, and would compute other digits.
    on_cpu = torch.accelerator.is_available() and not torch.cuda.is_available()
    try:
        accelerator = Accelerator(cpu=on_cpu, kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)], **options)
        torch.zeros(1, device=accelerator.device)
    except (ValueError, RuntimeError, AssertionError) as error:
        if isinstance(error, torch.OutOfMemoryError) or not asked():
            raise
        reason = one_line(error)
        raise UserError(f"the environment's {asked()} cannot be used: {reason}; unset or correct it") from None
    if accelerator.device.type not in ("cpu", "cuda"):
        raise UserError(f"this runs on CPUs and NVIDIA GPUs, not on {accelerator.device.type}; the environment has {asked()}")
    place, gpus = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if accelerator.device.type == "cuda" and place >= gpus:  # it would share one, and NCCL would blame another process
        raise UserError(f"process {place + 1} on this machine, which has {gpus} GPUs that work; start one for each")
    if (count := int(os.environ.get("WORLD_SIZE", "1"))) > accelerator.num_processes:  # each would think that it is alone
        raise UserError(
            f"started as one of {count} processes, but torch finds no GPU here: {torch_for_gpu()}; on CPUs they run with "
            "ACCELERATE_USE_CPU=true"
        )
    if accelerator.num_processes > 1:
        _meet()
    return accelerator


@cache
def _meet() -> None:
    """Wait for all processes once, before anything that takes time or may fail on one of them.

    NCCL connects processes when they first communicate, and waits forever for one that has died before that.
    """
    with together():
        PartialState().wait_for_everyone()


def gather(place: Accelerator | PartialState, items: list[Item]) -> list[Item]:
    """The items of all processes, in the order of their ranks.

    Raises:
        RunStopped: another process has died.
    """
    with together():
        return gather_object(items) if place.num_processes > 1 else items


def total(accelerator: Accelerator, values: Tensor) -> Tensor:
    """The sum over all processes; raises what :func:`gather` does."""
    with together():
        summed: Tensor = accelerator.reduce(values, "sum")
    return summed


def wait(accelerator: Accelerator) -> None:
    """Wait until all processes are here; raises what :func:`gather` does."""
    with together():
        accelerator.wait_for_everyone()


def anywhere(text: str) -> str:
    """The texts of all processes, each once, joined by semicolons; raises what :func:`gather` does."""
    return "; ".join(sorted(set(gather(PartialState(), [text]))))


def check_agreed(value: Hashable, what: str) -> None:
    """Check that all processes of a run read the same from its folder.

    Args:
        value: what this one read.
        what: what the value is, for the message.

    Raises:
        RunStopped: another one read something else: their folders are not the same, or a file could not be read everywhere.
    """
    values = gather(PartialState(), [value])
    if len(set(values)) > 1:
        told = ", ".join(f"process {rank}: {value}" for rank, value in enumerate(values))
        raise RunStopped(
            f"the processes of this run do not see the same {what} ({told}); its folder must be one that all nodes share. If "
            "it is, the file system failed for a moment: the same command goes on"
        )


@contextmanager
def together() -> Iterator[None]:
    """Inside, processes only communicate, so that a RuntimeError means that another one has died or is out of reach."""
    try:
        yield
    except (torch.OutOfMemoryError, torch.AcceleratorError):  # RuntimeErrors too, but of this process's own GPU
        raise
    except RuntimeError as error:  # the base class of torch.distributed's errors
        # NCCL's cause stands in its last lines; where in C++ an error was raised is nobody's concern.
        reason = one_line(str(error).partition("Exception raised from")[0]) or type(error).__name__
        raise RunStopped(
            f"{DIED} or is out of reach, see what it said or whether memory ran out ({reason}); the same command goes on from "
            "the last checkpoint, with any number of processes"
        ) from None
