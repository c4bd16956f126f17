"""One attempt at a cell: its command run to the end, with a log, a lock, and one line on why it failed."""

import math
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any

import psutil

from star.common.console import note
from star.common.errors import DIED, RunStopped
from star.common.files import append_jsonl
from star.records.attempts import ATTEMPTS

POLL_SECONDS = 1.0
TELL_SECONDS = 30.0  # of waiting for a cell's lock before the user is told
END_SECONDS = 20.0  # that a run has after an interrupt before it is killed
PYTHON = (sys.executable, "-m")
POSIX = os.name == "posix"
MODULES = {"star": "star", "accelerate": "accelerate.commands.accelerate_cli"}

DEAD_RANK = re.compile(r"^ *rank +: (\d+).*\n *exitcode +: -(\d+)", re.MULTILINE)
"""Finds, in the final report of torch's launcher, the ranks that a signal killed, each with the signal's number."""

REASONS = (
    rf"^star: (?!caution: |note: |{DIED})(.+)",
    r"^(?:\[rank\d+\]: *)?(?!\S*(?:ChildFailedError|CalledProcessError|SignalException)\b)(\w[\w.]*(?:Error|Exception)\b.*)",
    r"^star: (?!caution: |note: )(.+)",
    r"^(\S*SignalException\b.*)",
)
"""Patterns of the reason that a command gives, the most telling first. Launchers' errors about the processes they started do
not match; that another process has died, or somebody has ended the launcher, counts only if nothing else matches. torch puts
the rank before a traceback."""

HOLDERS = "another matrix, a run that outlived its own, or a node that died and whose lock the file system still keeps"

FOLLOWING = (signal.SIGABRT, signal.SIGTERM)
"""Signals that processes die of after another has died: libraries abort those that miss it, the launcher ends the rest."""

CONSEQUENCE = re.compile("|".join([DIED, "SignalException", *(signal.name for signal in FOLLOWING), "^exit code "]))
"""Is in the reasons of those that ended because others had."""


def attempt(
    folder: Path,
    words: Sequence[str],
    environment: Mapping[str, str] = MappingProxyType({}),
    patience: float = math.inf,
) -> Generator[None, None, int]:
    """Run a command for a cell, yielding about every second until it has ended; returns its exit code.

    Its output is appended to ``log.txt``, and its outcome to ``attempts.jsonl``. Closing the generator ends the processes.
    Where the system has file locks, a later attempt at the same cell waits for this one, even if this matrix is killed.

    Args:
        folder: the cell's.
        words: the command, ``star ...`` or ``accelerate ...``.
        environment: variables that it gets in addition to those of this process.
        patience: seconds to wait for a process that has the cell's lock.

    Raises:
        RunStopped: the other process still has it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock, open(folder / "log.txt", "ab") as log:
        started = time.monotonic()
        try:
            yield from _locked(lock, log, patience)
        except RunStopped as stopped:
            _record(folder, started, str(stopped))
            raise
        start, started, code = log.seek(0, os.SEEK_END), time.monotonic(), None
        try:
            code = yield from carry_out(words, log, lock, environment)
        finally:
            _record(folder, started, _reason(folder / "log.txt", start, code) if code else None)
    return code


def attempt_beside(folder: Path, words: Sequence[str], node: int) -> Generator[None, None, int]:
    """What :func:`attempt` is on the first node of a job, on another one.

    Its output is appended to ``log-NODE.txt``; if it fails, ``attempts.jsonl`` gets a line with the node and the reason, which
    is none of the attempts.
    """
    file = folder / f"log-{node}.txt"
    with open(file, "ab") as log:
        start = log.seek(0, os.SEEK_END)
        code = yield from carry_out(words, log)
    if code:
        append_jsonl(folder / ATTEMPTS, {"node": node, "reason": f"node {node}: {_reason(file, start, code)}"})
    return code


def _record(folder: Path, started: float, reason: str | None) -> None:
    """Record the outcome and duration of an attempt that began at ``started`` on the monotonic clock."""
    seconds = round(time.monotonic() - started, 1)
    append_jsonl(folder / ATTEMPTS, {"seconds": seconds, "reason": reason})


def carry_out(
    words: Sequence[str], log: IO[bytes], lock: IO[str] | None = None, environment: Mapping[str, str] = MappingProxyType({})
) -> Generator[None, None, int]:
    """Run a command and return its exit code; closing the generator ends its processes."""
    log.write(f"$ {shlex.join(words)}\n".encode())
    log.flush()
    child = subprocess.Popen(
        [*PYTHON, MODULES[words[0]], *words[1:]],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        env={**os.environ, **environment},
        **_apart(lock),
    )
    try:
        while True:
            yield
            with suppress(subprocess.TimeoutExpired):
                return child.wait(POLL_SECONDS)
    finally:
        if child.poll() is None:
            _end(child)


def _locked(file: IO[str], log: IO[bytes], patience: float) -> Iterator[None]:
    """Take the lock of a cell, waiting for whoever has it; the log mentions a long wait.

    It is the system's own lock, not a library's, because the cell's process inherits it; Windows has none that can be.
    """
    began, told = time.monotonic(), ""
    try:
        import fcntl
    except ImportError:
        return
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            waited = time.monotonic() - began
            if waited >= patience:
                raise RunStopped(f"somebody else has had {file.name} for {waited:.0f} seconds: {HOLDERS}") from None
            if waited >= TELL_SECONDS and not told:
                told = f"waiting for whoever has {file.name}: {HOLDERS}"
                note(told)
                log.write(f"star: note: {told}\n".encode())
                log.flush()
            time.sleep(POLL_SECONDS)
            yield
        except OSError:  # some clusters' file systems have no locks; there SLURM is asked instead, see _queued
            return


def _apart(lock: IO[str] | None) -> dict[str, Any]:
    """Options of Popen that keep signals to this process from a child, so that only :func:`_end` ends it."""
    if not POSIX:
        return {"creationflags": getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)}
    # The lock is held for as long as the child lives, whatever happens to this process.
    return {"start_new_session": True, "preexec_fn": _set_signals, "pass_fds": [lock.fileno()] if lock else []}


def _set_signals() -> None:
    """Runs in the child: sets signal handlers so that :func:`_end` can end it and SLURM's signal does not."""
    # What a shell runs in the background ignores Ctrl-C, and so would its children.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    # SLURM sends it to all processes of a job whose time is up; submitit then requeues the job and ends this attempt.
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)


def _end(child: subprocess.Popen) -> None:
    """End a child and its descendants: first as Ctrl-C does, and if that takes too long or is not possible, by force.

    Descendants are looked up one by one: torch's launcher gives each process of a run on several GPUs its own session, which
    no signal to the child's group reaches.
    """
    every: list[psutil.Process] = []
    with suppress(psutil.NoSuchProcess):
        every = psutil.Process(child.pid).children(recursive=True)
    try:
        if POSIX:
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                child.wait(END_SECONDS)
    finally:
        for process in every:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        if POSIX and child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)  # and what it has started since
        child.kill()
        child.wait()


def _reason(log: Path, start: int, code: int) -> str:
    """One line on why a command failed, by its exit code and its output from byte ``start`` of the log on."""
    if code < 0:
        return f"killed by {_signal(-code)}"
    text = log.read_bytes()[start:].decode(errors="replace")
    if killed := [(rank, int(number)) for rank, number in DEAD_RANK.findall(text)]:
        # What torchrun calls the first failure may be a process that missed the dead one.
        rank, number = min(killed, key=lambda one: FOLLOWING.index(one[1]) if one[1] in FOLLOWING else -1)
        return f"the process of rank {rank} was killed by {_signal(number)}"
    for pattern in REASONS:
        if found := re.findall(pattern, text, re.MULTILINE):
            return found[-1].strip()
    return f"exit code {code}"


def _signal(number: int) -> str:
    """A signal's name, or its number: most of the real-time range has no names in Python."""
    try:
        name = signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
    return name + (" (out of memory?)" if name == "SIGKILL" else "")
