"""Signals that ask a process to end."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

ASKED = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
"""What batch systems and closed terminals send; Windows has no SIGHUP."""


@contextmanager
def ending_like_ctrl_c() -> Iterator[None]:
    """Inside, a signal that asks for the end raises a KeyboardInterrupt with its name, so that finished work can be kept.

    Signals that are ignored (under nohup, say) stay ignored; outside the main thread nothing changes.
    """
    main = threading.current_thread() is threading.main_thread()
    default = [number for number in ASKED if main and signal.getsignal(number) is signal.SIG_DFL]
    for number in default:
        signal.signal(number, _interrupt)
    try:
        yield
    finally:
        for number in default:
            signal.signal(number, signal.SIG_DFL)


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt(f"ended by {signal.Signals(number).name}")
