"""Where the code of this project is, and which commit it is at."""

import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("star", "evaluators", "baselines")


def commit() -> str:
    """Short hash of the git commit this code is at.

    "+dirty" is appended when the code differs from that commit; "unknown" if it is not a git checkout.
    """
    place = _git("rev-parse", "--show-toplevel")
    if not place or Path(place) != ROOT:  # compared as paths, since git writes them in its own way on Windows
        return "unknown"
    head = _git("rev-parse", "--short=10", "HEAD")
    if not head:
        return "unknown"
    changes = _git("status", "--porcelain", "--", *PACKAGES)
    return "unknown" if changes is None else head + ("+dirty" if changes else "")


def committed(file: Path) -> bool:
    """Whether a file is in this checkout's commit as it is now."""
    return bool(_git("ls-files", "--", str(file))) and _git("status", "--porcelain", "--", str(file)) == ""


def is_commit(text: str) -> bool:
    """Whether a :func:`commit` is one that others can check out; for ``A..B``, of a resumed run, whether both are."""
    return "unknown" not in text and "+dirty" not in text


def _git(*arguments: str) -> str | None:
    """What git prints; None if it fails."""
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
