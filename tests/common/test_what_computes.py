import platform
from pathlib import Path

import pytest
import torch

from star.common import machine


@pytest.fixture
def cpu(monkeypatch):
    """A CPU of which /proc tells what the test says."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")

    def tells(text):
        def read_text(path, *given):
            assert str(path) == "/proc/cpuinfo"
            if text is None:
                raise FileNotFoundError
            return text

        monkeypatch.setattr(Path, "read_text", read_text)

    return tells


def test_a_processor_goes_by_its_name_and_what_digits_depend_on(cpu, monkeypatch):
    cpu("processor\t: 0\nmodel\t\t: 1\nmodel name\t: AMD EPYC: 9\n\nprocessor\t: 1\nmodel name\t: other\n")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert machine.machine() == "AMD EPYC: 9, AVX2, 1 thread"
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert machine.machine(4) == "4 x AMD EPYC: 9, AVX2, 2 threads"


@pytest.mark.parametrize("text", [None, "processor\t: 0\n", "model name\t: \n"])
def test_one_that_has_no_name_goes_by_its_architecture(cpu, monkeypatch, text):
    cpu(text)
    monkeypatch.setattr(platform, "processor", lambda: "")
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    assert machine.machine().startswith("arm64, AVX2, ")


def test_what_is_said_where_torch_finds_no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    assert machine.torch_for_gpu().startswith("pip install -r torch-gpu.txt")
    monkeypatch.setattr(torch.version, "cuda", "13.0")  # to install it once more would not help
    assert "is for CUDA 13.0, but finds no GPU: nvidia-smi says" in machine.torch_for_gpu()
    assert "torch-gpu.txt" not in machine.torch_for_gpu()


def test_a_gpu_goes_by_its_name(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100 80GB HBM3")
    assert machine.machine() == "NVIDIA H100 80GB HBM3" and machine.machine(8) == "8 x NVIDIA H100 80GB HBM3"
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")  # what computes is the processor all the same
    assert "thread" in machine.machine() and "NVIDIA" not in machine.machine()
