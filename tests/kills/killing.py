"""`python -m killing MOMENT star WORDS`: the command, killed at a moment of its life.

A moment is ``before:N`` or ``after:N``, of the N-th time that a file or folder gets its name, ``within:N``, when it is half
written, or a number of seconds after the start.
"""

import os
import runpy
import signal
import sys
import threading
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

NAMING = ("replace", "rename")


def die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def watched(call: Callable[..., Any], number: "count[int]", moment: str, of: int) -> Callable[..., Any]:
    """A call of the system that gives a file its name, and kills at the one that is meant."""

    def watching(source: Any, *rest: Any, **options: Any) -> Any:
        if next(number) != of:
            return call(source, *rest, **options)
        if moment == "within" and Path(source).is_file():
            os.truncate(source, Path(source).stat().st_size // 2)
        if moment != "after":
            die()
        call(source, *rest, **options)
        return die()

    return watching


def main() -> None:
    moment, module, *words = sys.argv[1:]
    kind, _, of = moment.partition(":")
    if of:
        number = count(1)
        for name in NAMING:
            setattr(os, name, watched(getattr(os, name), number, kind, int(of)))
    elif kind:
        threading.Timer(float(kind), die).start()
    sys.argv = [module, *words]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
