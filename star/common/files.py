"""Files that are written whole or not at all, locks, JSON, and digests of files."""

import errno
import hashlib
import json
import os
import platform
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from glob import escape
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

import psutil
from filelock import BaseFileLock, FileLock, Timeout
from safetensors import SafetensorError

from star.common.errors import RunStopped, UserError, first_line

HOST = platform.node() or "here"
"""Part of the names of files being written: only processes of this machine can be checked for being alive."""

TRIED = 2**16
"""How many bytes are written to see whether there is room; a file of scores is seldom larger."""

NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EROFS)
"""Numbers of the errors of file systems that have no locks, or that nobody can write to."""


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """A path to write to; what was written replaces the file at the end, and is deleted if an error comes before.

    It is on the disk by then, so that a power cut leaves the old file or the new one. What killed processes of this machine
    left of the same file is deleted, too.
    """
    part = _part(file)
    for left in file.parent.glob(f".{escape(file.name)}.{escape(HOST)}.*.part"):
        _delete_if_left(left)
    try:
        yield part
        to_disk(part)
        os.replace(part, file)
    finally:
        part.unlink(missing_ok=True)


def to_disk(file: Path) -> None:
    """Wait until a file's content is on the disk: a system that loses its power may keep a new name without what is in it."""
    with open(file, "rb+") as written:
        _synced(written)


def _synced(opened: IO[bytes]) -> None:
    """Wait until what was written to an open file is on the disk."""
    opened.flush()
    os.fsync(opened.fileno())


def _part(file: Path) -> Path:
    """The path to which this process writes what will replace a file."""
    return file.with_name(f".{file.name}.{HOST}.{os.getpid()}.part")


def check_output(out: Path, inputs: Iterable[Path]) -> None:
    """Refuse, before the work, an output that is an input by any spelling or link, or a folder that an input lies in.

    Raises:
        UserError: the output is an input or such a folder.
    """
    for file in inputs:
        same = os.path.exists(out) and os.path.exists(file) and os.path.samefile(out, file)
        if same or out.resolve() in file.resolve().parents:
            raise UserError(f"{out} is an input of this command ({file}) and would be overwritten; name another file to write")


def visible(files: Iterable[Path]) -> list[Path]:
    """Files in the order of their paths, without hidden ones: macOS puts a ``._NAME`` beside every NAME on foreign disks."""
    return sorted(file for file in files if not file.name.startswith("."))


def sweep(folder: Path) -> None:
    """Delete what killed processes of this machine left of files that they were :func:`replacing`, in a folder and below."""
    for part in folder.rglob(f".*.{escape(HOST)}.*.part"):
        _delete_if_left(part)


def _delete_if_left(part: Path) -> None:
    """Delete a temporary file of :func:`replacing`, made on this machine, if its process no longer runs."""
    pid = part.name.split(".")[-2]
    if pid.isdecimal() and not psutil.pid_exists(int(pid)):
        part.unlink(missing_ok=True)


def free_bytes(folder: Path) -> int:
    """What is free on the disk where a folder lies, or would if it were made."""
    path = folder.absolute()
    return shutil.disk_usage(next(there for there in (path, *path.parents) if there.exists())).free


def check_room(folder: Path, told: str) -> None:
    """Check that a folder can be made and written to, before the work whose results go there.

    Nothing is made that another process could see: it may be making the same folder.

    Args:
        folder: the folder.
        told: what it is for; the error begins with this.

    Raises:
        UserError: it cannot be made or written to.
    """
    try:
        there = next(path for path in (folder, *folder.parents) if _is_there(path))
        for name in folder.relative_to(there).parts:
            _is_there(there / name)  # it may be too long
        with TemporaryFile(dir=there) as tried:
            tried.write(bytes(TRIED))  # a full disk still takes empty files,
            _synced(tried)  # and some systems promise room that they do not have
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"{told} cannot go to {str(folder)!r}: {reason}; name another folder or make room there") from None


def _is_there(path: Path) -> bool:
    """Whether a path exists, if only as a broken link; raises an OSError or a ValueError if it never can."""
    try:
        path.lstat()
    except FileNotFoundError:
        return False
    return True


def check_file(file: Path, told: str) -> None:
    """Check that a file can be written, before the work whose results go there. Touches no file and leaves nothing behind.

    Args:
        file: the file; may exist.
        told: what it is for; the error begins with this.

    Raises:
        UserError: it is a folder, or the folder that it goes to cannot be made or written to.
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
        RunStopped: writing failed, e.g. because the disk is full.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:  # torch's writer raises RuntimeErrors
        reason = getattr(error, "strerror", None) or first_line(error)
        raise RunStopped(f"{folder} cannot be written to: {reason}; the same command goes on where it was") from error


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Inside, this process has a folder's lock, so that read-modify-write of files there loses no other process's changes.

    The folder is made if need be; the lock lies beside it. On file systems without locks there is none.

    Raises:
        UserError: the lock cannot be opened: another user made it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _held(folder.with_name(f".{folder.name}.lock")):
        sweep(folder)
        yield


@contextmanager
def changing(file: Path) -> Iterator[None]:
    """Inside, nobody else changes a file that is read, changed and written again. Its folder is made if need be.

    Raises:
        UserError: as for :func:`locked`.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with _held(file.with_name(f".{file.name}.lock")):
        yield


@contextmanager
def _held(file: Path, timeout: float = -1) -> Iterator[None]:
    """Inside, this process has a lock, for which it waits; raises what :func:`_taken` does."""
    lock = _taken(file, timeout)
    try:
        yield
    finally:
        if lock:
            lock.release()


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Inside, no other process works in a run folder; a folder that cannot be written to needs no lock.

    Raises:
        UserError: another process works in it, or as for :func:`locked`.
    """
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        try:
            stack.enter_context(_held(folder / ".running.lock", timeout=0))
        except Timeout:
            raise UserError(f"another process works in {folder}; wait until it is done, or use another folder") from None
        with suppress(OSError):
            sweep(folder)
        yield


def _taken(file: Path, timeout: float) -> BaseFileLock | None:
    """A lock of the operating system, which ends with its process, unlike a file that a killed process leaves behind.

    None on file systems without locks, and in a folder that cannot be written to. Whoever can write there may take the lock.

    Raises:
        Timeout: another process has it, still after so many seconds.
        UserError: it cannot be opened.
    """
    try:
        lock = FileLock(file, mode=0o600 | file.parent.stat().st_mode & 0o066, fallback_to_soft=False)
        lock.acquire(timeout=timeout)
    except Timeout:  # an OSError, too
        raise
    except NotImplementedError:
        return None
    except OSError as error:
        if error.errno in NO_LOCKS or not os.access(file.parent, os.W_OK):
            return None
        raise UserError(
            f"{file} cannot be locked: {error.strerror or error}; if another user made it, they can delete it when nothing of "
            "theirs runs there"
        ) from None
    return lock


def write_text(file: Path, text: str) -> None:
    """Write a file atomically."""
    with replacing(file) as part:
        part.write_bytes(text.encode())


def read_json(file: Path) -> Any:
    """The value in a JSON file; None if there is no such file or it is damaged: cut off, empty, or with NaN for a number."""
    try:
        return _parsed(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def read_jsonl(file: Path) -> list[dict[str, Any]]:
    """The objects of a JSON Lines file, none if there is no file; lines that are cut off or damaged are skipped."""
    return _objects(file.read_bytes()) if file.exists() else []


MOST_AMOUNT = 1e15
"""Above all that is counted here, and far below what the arithmetic of floats takes."""


def is_amount(value: object, least: float = 0.0) -> bool:
    """Whether a value from JSON is a number that can be reckoned with: from the least to :data:`MOST_AMOUNT`."""
    return isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= MOST_AMOUNT


TAIL = 2**16
"""How many bytes at the end of a file are read first."""


def last_of_jsonl(file: Path, fits: Callable[[dict[str, Any]], bool]) -> dict[str, Any] | None:
    """The last fitting object that :func:`read_jsonl` gives, or None; a long file is read whole only if its end has none."""
    if not file.exists():
        return None
    with open(file, "rb") as opened:
        opened.seek(max(0, opened.seek(0, os.SEEK_END) - TAIL))
        found = list(filter(fits, _objects(opened.read())))  # the first line may be cut, and then is no object
    found = found or list(filter(fits, read_jsonl(file)))
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
        ValueError: the text is no JSON, is nested too deeply, or an object in it has a name twice.
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
    """What makes a string, from JSON or a wrong encoding, unfit as text in a table, in words; empty if nothing does."""
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
    """Add a line to a JSON Lines file; a last line that was cut off is ended first and stays a line of its own."""
    with open(file, "ab+") as log:
        if log.tell():
            log.seek(-1, os.SEEK_END)
            log.write(b"" if log.read(1) == b"\n" else b"\n")
        log.write(json.dumps(line).encode() + b"\n")
        _synced(log)


def _parsed(text: str) -> Any:
    def refuse(number: str) -> None:
        raise ValueError(f"{number} is no JSON")

    return json.loads(text, parse_constant=refuse)


SUMS = "SHA256SUMS"
"""The file with the digests of the files beside it, in the format of ``sha256sum --check``."""

SUM = re.compile(r"([0-9a-f]{64})  (.+)")
"""A line of it."""

COUNT = "# {} files"
"""Its first line, a comment, by which lines that are missing are noticed; older versions wrote none."""


def write_last(file: Path, text: str, others: Sequence[str]) -> None:
    """Write the file whose presence says that a folder is complete, after the digests that :func:`fault` checks.

    Args:
        file: that file.
        text: its content.
        others: files whose digests are written beside its own, as paths from its folder. Digests of further files stay.
    """
    known = {name: digest for name, digest in _sums(file.parent).items() if name != SUMS}
    known |= {name: sha256(file.parent / name) for name in others}
    known |= {file.name: hashlib.sha256(text.encode()).hexdigest()}
    lines = [COUNT.format(len(known)), *(f"{digest}  {name}" for name, digest in known.items())]
    write_text(file.parent / SUMS, "".join(f"{line}\n" for line in lines))
    write_text(file, text)


def fault(folder: Path, *names: str) -> str:
    """The first file that is missing or has changed since :func:`write_last`, in words for a message.

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
    """Name -> digest of a folder's files; if :data:`SUMS` is damaged it is among them, with an empty digest."""
    file = folder / SUMS
    if not file.exists():
        return {}
    lines = [line for line in file.read_text(errors="replace").split("\n") if line.strip()]
    counted = lines[:1] == [COUNT.format(len(lines) - 1)]
    found = [SUM.fullmatch(line) for line in (lines[1:] if counted else lines)]
    return {match[2]: match[1] for match in found if match} | ({} if found and all(found) else {SUMS: ""})


def sha256(file: Path) -> str:
    """The sha256 of a file, in hexadecimal digits."""
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def weights_digest(folder: Path) -> str:
    """A sha256 over all weights files in a folder and below, in the order of their paths; for one file it is the file's."""
    total = hashlib.sha256()
    for file in visible(folder.rglob("*.safetensors")) or visible(folder.rglob("*.bin")):
        with open(file, "rb") as weights:
            while part := weights.read(2**24):
                total.update(part)
    return total.hexdigest()


READ_BESIDE = (
    *("config.json", "preprocessor_config.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json"),
    *("special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt"),
)
"""The files from which transformers takes how to compute with weights, cut texts into tokens and prepare pictures."""


def model_digest(*folders: Path) -> str:
    """A sha256 over all that a model's results depend on: its weights, in the first folder, and :data:`READ_BESIDE` in all."""
    total = hashlib.sha256(weights_digest(folders[0]).encode())
    for folder in dict.fromkeys(folders):
        for file in (folder / name for name in READ_BESIDE):
            if file.is_file():
                total.update(f"{file.name} {sha256(file)}\n".encode())
    return total.hexdigest()
