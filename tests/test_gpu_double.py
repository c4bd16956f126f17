"""What can be seen of a GPU without one: see tests/double."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent


@pytest.mark.skipif(torch.version.cuda is not None, reason="with a GPU the tests run on it; torch must be the one for CPUs")
@pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("g++") is None, reason="what torch asks of a driver is answered in C++"
)
def test_a_training_and_its_measurements_run_on_a_gpu_that_is_none():
    # A process of its own: what is replaced must be so before torch is imported, and stays so.
    words = [sys.executable, "-m", "pytest", "-p", "gpu_double", "-p", "no:cacheprovider", HERE / "double" / "on_gpu.py"]
    path = os.pathsep.join(filter(None, [str(HERE / "double"), os.environ.get("PYTHONPATH")]))
    ended = subprocess.run(words, cwd=HERE.parent, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
