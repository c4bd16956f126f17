"""Processes that start at once: forked from a server that imported once what each would take seconds to import."""

import atexit
import gc
import multiprocessing
import os
import runpy
import shlex
import subprocess
import sys
from collections.abc import Generator, Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import MappingProxyType
from typing import IO

import pytest

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["star.cli", "star.training.runs", "torch.distributed.launcher.api"])
LAUNCHER = "torch.distributed.run"


def torchrun(words: Sequence[str], log: Path) -> subprocess.CompletedProcess:
    """What ``torchrun`` says and ends with; the processes that it starts are forked, too."""
    log.unlink(missing_ok=True)
    process = start(LAUNCHER, ["--start-method=fork", "--run-path", *words], log)
    process.join(600)
    if process.exitcode is None:
        process.terminate()
        process.join()
        pytest.fail(f"it did not end: {log.read_text()}")
    return subprocess.CompletedProcess(words, process.exitcode, stderr=log.read_text())


def carry_out(
    words: Sequence[str], log: IO[bytes], lock: IO[str] | None = None, environment: Mapping[str, str] = MappingProxyType({})
) -> Generator[None, None, int | None]:
    """In place of the function of this name in :mod:`star.matrix.commands`."""
    log.write(f"$ {shlex.join(words)}\n".encode())
    log.flush()
    process = start(words[0], words[1:], Path(log.name), environment)
    while process.exitcode is None:
        yield
        process.join(0.1)
    return process.exitcode


def start(module: str, words: Sequence[str], log: Path, environment: Mapping[str, str] = MappingProxyType({})) -> BaseProcess:
    """``python -m MODULE WORDS``, here and with what it says at the end of the log."""
    process = SERVER.Process(target=_run, args=(module, words, log, os.getcwd(), {**os.environ, **environment}))
    process.start()
    return process


def _run(module: str, words: Sequence[str], log: Path, folder: str, environment: dict[str, str]) -> None:
    os.chdir(folder)
    with open(log, "a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.clear()
    os.environ.update(environment)
    import torch

    gc.freeze()
    torch.set_num_threads(1)
    sys.argv = [module, *words]
    sys.path.insert(0, folder)
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        atexit._run_exitfuncs()  # multiprocessing would first wait for processes that end by these
