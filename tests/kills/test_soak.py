"""A training of an hour on the embedded default: memory and handles stay flat. Slow: ``tox -e kills`` has it as its last test,
``STAR_SOAK_MINUTES`` is how long it takes."""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence

import psutil
import pytest

pytestmark = pytest.mark.slow

MINUTES = float(os.environ.get("STAR_SOAK_MINUTES", "60"))
EVERY = 5  # seconds
WORDS = (
    "task=geneval method=star seed=200 model.kernels=torch train.epochs=100000 train.schedule=constant train.lr=1e-5 "
    "evaluation.every=15 evaluation.images=1 run=soak"
)
"""With all that repeats: rollouts, updates, checkpoints that replace older ones, evaluations on the way."""


def of_family(process: psutil.Process) -> tuple[float, int, int]:
    """Memory in MiB, handles and threads of a process and its children."""
    memory, handles, threads = 0.0, 0, 0
    for one in [process, *process.children(recursive=True)]:
        memory += one.memory_info().rss / 2**20
        handles += one.num_fds()
        threads += one.num_threads()
    return memory, handles, threads


def quarters(values: Sequence[float]) -> list[float]:
    """Medians of the four quarters."""
    size = len(values) // 4
    return [statistics.median(values[start * size : (start + 1) * size]) for start in range(4)]


def test_an_hour_of_training(tmp_path):
    seen = []
    with open(tmp_path / "log.txt", "w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "star", "train", *WORDS.split()], cwd=tmp_path, stdout=log, stderr=log
        )
        end = time.monotonic() + 60 * MINUTES
        while time.monotonic() < end and process.poll() is None:
            time.sleep(EVERY)
            seen.append(of_family(psutil.Process(process.pid)))
        assert process.poll() is None, (tmp_path / "log.txt").read_text()
        process.terminate()  # what a shell runs in the background ignores Ctrl-C
        process.wait(120)
    epochs = len((tmp_path / "soak" / "metrics.jsonl").read_text().splitlines())
    memory, handles, threads = (quarters(values) for values in zip(*seen, strict=True))
    print(
        f"\nsoak: {MINUTES:g} minutes, {epochs} epochs; medians by quarter: MiB {memory}, handles {handles}, threads {threads}"
    )
    assert len(list((tmp_path / "soak" / "checkpoints").iterdir())) <= 2
    # The first quarter holds the start.
    assert memory[3] <= 1.02 * memory[1] and handles[3] <= handles[1] and threads[3] <= threads[1]
