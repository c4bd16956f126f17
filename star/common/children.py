"""Child processes that end when their parent is killed."""

import multiprocessing
import os
import threading


def end_with_parent() -> None:
    """Make this process, a child of multiprocessing, end when its parent does, even if the parent is killed."""
    threading.Thread(target=_wait, daemon=True).start()


def _wait() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
