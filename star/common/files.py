"""Files that are there whole or not at all, and what is in files of weights."""

import hashlib
import json
import os
import platform
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import psutil
from filelock import BaseFileLock, FileLock, Timeout
from safetensors import SafetensorError

from star.common.errors import RunStopped, UserError

HOST = platform.node() or "here"
"""In the names of files that are being written: processes of other machines cannot be asked whether they live."""

ROOM_ATTEMPTS = 100
"""At making a folder that other processes make and delete; each takes less than a millisecond."""

NO_LOCKS = (OSError, NotImplementedError)
"""What file systems without locks answer."""


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """A path to write to; what was written takes the file's place at the end, and is thrown away if that did not come.

    What a process of this machine that was killed left of the same file goes, too.
    """
    part = _part(file)
    for left in file.parent.glob(f".{escape(file.name)}.{escape(HOST)}.*.part"):
        _delete_if_left(left)
    try:
        yield part
        os.replace(part, file)
    finally:
        part.unlink(missing_ok=True)


def _part(file: Path) -> Path:
    """Where this process writes what takes a file's place."""
    return file.with_name(f".{file.name}.{HOST}.{os.getpid()}.part")


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


def sweep(folder: Path) -> None:
    """Delete what processes of this machine that were killed left of files that they were :func:`replacing`, in a folder and
    those in it."""
    for part in folder.rglob(f".*.{escape(HOST)}.*.part"):
        _delete_if_left(part)


def _delete_if_left(part: Path) -> None:
    """Delete a file of :func:`replacing` of this machine whose process is not any more."""
    pid = part.name.split(".")[-2]
    if pid.isdecimal() and not psutil.pid_exists(int(pid)):
        part.unlink(missing_ok=True)


def check_room(folder: Path, told: str) -> None:
    """See that a folder can be made and written to: before the work whose results go there, not after it. Nothing is left.

    Args:
        folder: the folder.
        told: what it is for, at the beginning of the error.

    Raises:
        UserError: it cannot be made or written to.
    """
    made: list[Path] = []
    try:
        made += [path for path in (folder, *folder.parents) if not path.exists()]
        for attempt in range(ROOM_ATTEMPTS):
            try:
                folder.mkdir(parents=True, exist_ok=True)
                with TemporaryFile(dir=folder):
                    break
            except FileNotFoundError:  # another process that looked for room there has just cleared up
                if attempt == ROOM_ATTEMPTS - 1:
                    raise
    except (OSError, ValueError) as error:  # a name with a null byte is no error of the system
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"{told} cannot go to {str(folder)!r}: {reason}; name another folder or make room there") from None
    finally:
        with suppress(OSError, ValueError):  # somebody else may be there by now
            for path in made:
                path.rmdir()


def check_file(file: Path, told: str) -> None:
    """See that a file can be written: before the work whose results go there. Nothing is left, and no file is touched.

    Args:
        file: the file; may be there.
        told: what it is for, at the beginning of the error.

    Raises:
        UserError: it is a folder, or its own cannot be made or written to.
    """
    check_room(file.parent, told)
    try:
        taken = file.is_dir() or _part(file).is_dir()
    except (OSError, ValueError) as error:  # a name that is too long
        raise UserError(f"{told} cannot go to {str(file)!r}: {getattr(error, 'strerror', error)}") from None
    if taken:
        raise UserError(f"{told} cannot go to {str(file)!r}: it is a folder; name a file in it")


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Inside, what was computed is written into a folder.

    Raises:
        RunStopped: that failed: the disk is full, say.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:  # torch's writer raises RuntimeErrors
        reason = getattr(error, "strerror", None) or str(error).strip().partition("\n")[0]
        raise RunStopped(f"{folder} cannot be written to: {reason}; the same command goes on where it was") from error


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Inside, nobody else is: files that are read, changed and written again lose nothing of another process.

    The folder is made if need be; the lock lies beside it. File systems without locks go without.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _held(folder.with_name(f".{folder.name}.lock")):
        sweep(folder)
        yield


@contextmanager
def changing(file: Path) -> Iterator[None]:
    """Inside, nobody else changes a file that is read, changed and written again. Its folder is made if need be."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with _held(file.with_name(f".{file.name}.lock")):
        yield


@contextmanager
def _held(file: Path) -> Iterator[None]:
    """Inside, this process has a lock; it is waited for. File systems without locks go without."""
    lock = _lock(file)
    with suppress(*NO_LOCKS):
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Inside, no other process works in a run folder; a folder that cannot be written to needs no lock.

    Raises:
        UserError: one does.
    """
    lock = _lock(folder / ".running.lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
        sweep(folder)
    except Timeout:
        raise UserError(f"another process works in {folder}; wait until it is done, or use another folder") from None
    except NO_LOCKS:
        pass
    try:
        yield
    finally:
        lock.release()


def _lock(file: Path) -> BaseFileLock:
    """A lock of the system's, which goes with its process: no file that a process of another machine could leave behind."""
    return FileLock(file, fallback_to_soft=False)


def write_text(file: Path, text: str) -> None:
    """Write a file in one stroke."""
    with replacing(file) as part:
        part.write_bytes(text.encode())


def read_json(file: Path) -> Any:
    """What a JSON file holds; None if there is no such file, or if it is damaged: cut, empty, or with NaN for a number."""
    try:
        return _parsed(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def read_jsonl(file: Path) -> list[dict[str, Any]]:
    """The objects of a JSON Lines file, none if there is no file; lines that were cut off or damaged do not count."""
    return _objects(file.read_bytes()) if file.exists() else []


TAIL = 2**16
"""Bytes at the end of a long file that are looked at first."""


def last_of_jsonl(file: Path) -> dict[str, Any] | None:
    """The last object that :func:`read_jsonl` gives, None if there is none; a long file is not read whole for it."""
    if not file.exists():
        return None
    with open(file, "rb") as opened:
        opened.seek(max(0, opened.seek(0, os.SEEK_END) - TAIL))
        found = _objects(opened.read())  # the first line may be cut, and then is no object
    found = found or read_jsonl(file)
    return found[-1] if found else None


def _objects(data: bytes) -> list[dict[str, Any]]:
    found = []
    for line in data.splitlines(keepends=True):
        with suppress(ValueError, RecursionError):
            value = _parsed(line.decode()) if line.endswith(b"\n") else None
            found += [value] if isinstance(value, dict) else []
    return found


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


def fault_of_text(value: str) -> str:
    """What keeps a string from being text in a table, in words; empty if nothing does. JSON can write it, and files of other
    encodings look so."""
    if "\0" in value:
        return "a null character"
    if "\r" in value:
        return "a carriage return"
    try:
        value.encode()
    except UnicodeEncodeError:
        return "half a character (a lone surrogate)"
    return ""


def append_jsonl(file: Path, line: dict[str, Any]) -> None:
    """Add a line to a JSON Lines file; not to one that was cut off in the middle, which stays a line of its own."""
    with open(file, "ab+") as log:
        if log.tell():
            log.seek(-1, os.SEEK_END)
            log.write(b"" if log.read(1) == b"\n" else b"\n")
        log.write(json.dumps(line).encode() + b"\n")


def _parsed(text: str) -> Any:
    def refuse(number: str) -> None:
        raise ValueError(f"{number} is no JSON")

    return json.loads(text, parse_constant=refuse)


SUMS = "SHA256SUMS"
"""The file beside files that holds their digests, as ``sha256sum --check`` reads it."""

SUM = re.compile(r"([0-9a-f]{64})  (.+)")
"""A line of it."""


def write_last(file: Path, text: str, others: Sequence[str]) -> None:
    """Write the file whose presence says that a folder is complete, after the digests of it and of others, which :func:`fault`
    checks.

    Args:
        file: it.
        text: what it holds.
        others: the files that it stands for, as paths from its folder. Digests of further files of the folder stay.
    """
    known = {name: digest for name, digest in _sums(file.parent).items() if name != SUMS}
    known |= {name: sha256(file.parent / name) for name in others}
    known |= {file.name: hashlib.sha256(text.encode()).hexdigest()}
    write_text(file.parent / SUMS, "".join(f"{digest}  {name}\n" for name, digest in known.items()))
    write_text(file, text)


def fault(folder: Path, *names: str) -> str:
    """What became of files since :func:`write_last`: the first one that is missing or has changed, with words for a message.

    Args:
        folder: the folder.
        names: files to look at; by default all whose digests are known.

    Returns:
        an empty string if there is no fault, or no digests.
    """
    for name, digest in _sums(folder).items():
        if names and name not in (SUMS, *names):
            continue
        file = Path(os.path.normpath(folder / name))
        if not file.is_file():
            return f"{file} is missing"
        if sha256(file) != digest:
            return f"{file} is not what was written"
    return ""


def _sums(folder: Path) -> dict[str, str]:
    """Name -> digest of files of a folder; of the file of digests itself, which has none, if it is damaged."""
    file = folder / SUMS
    lines = file.read_text(errors="replace").split("\n") if file.exists() else []
    found = [SUM.fullmatch(line) for line in lines if line.strip()]
    return {match[2]: match[1] for match in found if match} | ({} if all(found) else {SUMS: ""})


def sha256(file: Path) -> str:
    """The sha256 of a file, in hexadecimal digits."""
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def weights_digest(folder: Path) -> str:
    """A sha256 of all weights of a folder and those in it, in the order of their paths; of a single file it is the file's."""
    total = hashlib.sha256()
    for file in visible(folder.rglob("*.safetensors")) or visible(folder.rglob("*.bin")):
        with open(file, "rb") as weights:
            while part := weights.read(2**24):
                total.update(part)
    return total.hexdigest()
