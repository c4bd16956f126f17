"""What the processes of a run tell each other."""

from types import SimpleNamespace

import pytest
import torch

from star.common import processes
from star.common.errors import RunStopped, UserError

NCCL = """NCCL error in: /pytorch/NCCLUtils.cpp:93, unhandled system error (run with NCCL_DEBUG=INFO for details)
ncclSystemError: System call (e.g. socket, malloc) or external library call failed or device error.
Last error:
Error while creating shared memory segment /dev/shm/nccl-2g3h4 (size 9637888)
Exception raised from check at NCCLUtils.cpp:93 (most recent call first):
frame #0: c10::Error
"""


def test_the_reason_of_nccl_stands_in_its_last_lines():
    with (
        pytest.raises(RunStopped, match=r"out of reach.*\(NCCL error in: .*/shm/nccl-2g3h4 \(size 9637888\)\); the") as told,
        processes.together(),
    ):
        raise torch.distributed.DistBackendError(NCCL)
    assert "\n" not in str(told.value) and "frame #0" not in str(told.value)


@pytest.mark.parametrize("kind", [torch.OutOfMemoryError, torch.AcceleratorError])
def test_a_fault_of_this_process_is_not_blamed_on_another(kind):
    with pytest.raises(kind), processes.together():
        raise kind("CUDA error: uncorrectable ECC error encountered")


def test_one_of_several_that_would_think_itself_alone_is_told(monkeypatch):
    """As where ``torchrun`` starts processes and torch is the one for CPUs: accelerate counts only one."""
    monkeypatch.setattr(processes, "check_launched", lambda: None)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(processes, "Accelerator", lambda **given: SimpleNamespace(device=torch.device("cpu"), num_processes=1))
    with pytest.raises(UserError, match="started as one of 2 processes, but torch finds no GPU here: .*ACCELERATE_USE_CPU"):
        processes.joined()


def test_more_processes_than_gpus_are_told(monkeypatch):
    monkeypatch.setattr(processes, "check_launched", lambda: None)
    monkeypatch.setenv("LOCAL_RANK", "7")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 7)
    monkeypatch.setattr(processes.torch, "zeros", lambda *given, **options: None)
    eighth = SimpleNamespace(device=torch.device("cuda"), num_processes=8)
    monkeypatch.setattr(processes, "Accelerator", lambda **given: eighth)
    with pytest.raises(UserError, match="process 8 on this machine, which has 7 GPUs that work"):
        processes.joined()


def test_unlike_machines_are_known_to_all_processes(monkeypatch):
    assert processes.anywhere("H100") == "H100"
    monkeypatch.setattr(processes, "PartialState", lambda: SimpleNamespace(num_processes=3))
    monkeypatch.setattr(processes, "gather_object", lambda items: [*items, "H200", "H100"])
    assert processes.anywhere("H100") == processes.anywhere("H200") == "H100; H200"


def test_processes_that_read_other_things_do_not_go_on(monkeypatch):
    processes.check_agreed(3, "checkpoint")  # alone one agrees
    monkeypatch.setattr(processes, "PartialState", lambda: SimpleNamespace(num_processes=2))
    monkeypatch.setattr(processes, "gather_object", lambda values: values + values)
    processes.check_agreed((3, "abc"), "checkpoint")
    monkeypatch.setattr(processes, "gather_object", lambda values: [*values, (2, "def")])
    with pytest.raises(
        RunStopped, match=r"do not see the same checkpoint \(process 0: \(3, 'abc'\), process 1: \(2, 'def'\)\)"
    ):
        processes.check_agreed((3, "abc"), "checkpoint")
