"""Files that are there whole or not at all, and what is in files of weights."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from star.common.errors import UserError

NO_LOCKS = (OSError, NotImplementedError)
"""What file systems without locks answer."""


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """A path to write to; what was written takes the file's place at the end, and is thrown away if that did not come."""
    part = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        yield part
        os.replace(part, file)
    finally:
        part.unlink(missing_ok=True)


def check_output(out: Path, inputs: Iterable[Path]) -> None:
    """No output may land on an input, by whatever name: another spelling, a link, or as a folder that is replaced with what
    lies in it. To be called before the work.

    Raises:
        UserError: it would.
    """
    for file in inputs:
        same = os.path.exists(out) and os.path.exists(file) and os.path.samefile(out, file)
        if same or out.resolve() in file.resolve().parents:
            raise UserError(f"{out} is an input of this command ({file}) and would be overwritten; name another file to write")


def visible(files: Iterable[Path]) -> list[Path]:
    """Files in the order of their paths, without hidden ones: macOS puts a ``._NAME`` beside every NAME on foreign disks."""
    return sorted(file for file in files if not file.name.startswith("."))


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Inside, nobody else is: files that are read, changed and written again lose nothing of another process.

    The folder is made if need be; the lock lies beside it. File systems without locks go without.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.with_name(f".{folder.name}.lock"))
    with suppress(*NO_LOCKS):
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Inside, no other process works in a run folder.

    Raises:
        UserError: one does.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".running.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(
            f"another process works in {folder}; wait until it is done, or name another folder with run=..."
        ) from None
    except NO_LOCKS:
        pass
    try:
        yield
    finally:
        lock.release()


def write_text(file: Path, text: str) -> None:
    """Write a file in one stroke."""
    with replacing(file) as part:
        part.write_text(text, encoding="utf-8")


def read_jsonl(file: Path) -> list[dict[str, Any]]:
    """The lines of a JSON Lines file, none if there is no file; a last line that was cut off does not count."""
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def parse_json(text: str) -> Any:
    """A JSON value.

    Raises:
        ValueError: it is none, is nested too deeply, or an object in it says a thing twice.
    """
    try:
        return json.loads(text, object_pairs_hook=_once)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} stands twice in one object")
    return found


def is_text(value: str) -> bool:
    """Whether files can hold it: JSON can write half a character (a lone surrogate), which no encoding has."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def append_jsonl(file: Path, line: dict[str, Any]) -> None:
    """Add a line to a JSON Lines file."""
    with open(file, "a") as log:
        log.write(json.dumps(line) + "\n")


def weights_digest(folder: Path) -> str:
    """A sha256 of all weights of a folder and those in it, in the order of their paths; of a single file it is the file's."""
    total = hashlib.sha256()
    for file in visible(folder.rglob("*.safetensors")) or visible(folder.rglob("*.bin")):
        with open(file, "rb") as weights:
            while part := weights.read(2**24):
                total.update(part)
    return total.hexdigest()
