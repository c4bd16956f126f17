"""Flow-GRPO's prompts for ocr and pickscore (arXiv 2505.05470): put in place once, checked whenever they are used."""

import hashlib
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

from star.common.errors import UserError
from star.common.files import check_room, replacing

COMMIT = "94e23ee5405ab7241fc1f75d30cac8147e2b1f53"
SOURCE = f"https://raw.githubusercontent.com/yifan123/flow_grpo/{COMMIT}/dataset"
ROOT = Path("data")
SECONDS = 60


@dataclass(frozen=True)
class Published:
    """What a published file of prompts must be: its number of lines and, where it is known, its sha256."""

    lines: int
    sha256: str | None = None


FILES = {
    "ocr": {
        "train.txt": Published(19_653),
        "test.txt": Published(1_018, "4dd8caf3ab6ade73bd376c7d14c6ca49b6eacfb1bd321e22c40714ae4a98d4dc"),
    },
    "pickscore": {
        "train.txt": Published(25_432),
        "test.txt": Published(2_048, "d75c025fa451866e70f7e36243f7cdd93095523cb51f5f9651f2ce3236d20262"),
    },
}


def fetch(task: str, source: Path | None = None) -> Path:
    """Put a task's prompts into ``data/<task>/`` below the working directory. All files are checked before any is written.

    Args:
        task: ``ocr`` or ``pickscore``.
        source: a folder with train.txt and test.txt, or one file of either name; by default they are downloaded from
            Flow-GRPO's repository.

    Returns:
        the folder ``data/<task>``.

    Raises:
        UserError: an unknown task, a source that is missing or cannot be downloaded, or a file that is not the published
            one.
    """
    if task not in FILES:
        known = ", ".join(FILES)
        raise UserError(f"there are no prompts to fetch for {task!r} (GenEval's are generated); there are for: {known}")
    folder = ROOT / task
    check_room(folder, "prompts")
    read = _reader(task, source)
    names = [source.name] if source is not None and source.is_file() else list(FILES[task])
    contents = {name: read(name) for name in names}
    for name, content in contents.items():
        _check(task, name, content, str(source or SOURCE))
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        with replacing(folder / name) as part:
            part.write_bytes(content)
    return folder


def load_prompts(task: str, split: str) -> list[str]:
    """The prompts of ``data/<task>/<split>.txt``, stripped, in the file's order, without empty lines.

    Args:
        task: ``ocr`` or ``pickscore``.
        split: ``train`` or ``test``.

    Raises:
        UserError: the file is missing or not the published one.
    """
    file = ROOT / task / f"{split}.txt"
    try:
        content = file.read_bytes()
    except OSError:
        raise UserError(f"{file} is missing; `star data {task}` downloads it, `star data {task} FOLDER` copies it") from None
    _check(task, file.name, content, str(file))
    return [line.strip() for line in _lines(content) if line.strip()]


def _reader(task: str, source: Path | None) -> Callable[[str], bytes]:
    """A function that reads the content of a file, given its name."""
    if source is None:
        return lambda name: _download(f"{SOURCE}/{task}/{name}")
    if source.is_file():
        if source.name not in FILES[task]:
            raise UserError(f"{source} must be called {' or '.join(FILES[task])}, which says what it is")
        return lambda name: source.read_bytes()
    if not source.is_dir():
        raise UserError(f"no such file or folder: {source}")
    for name in FILES[task]:
        if not (source / name).is_file():
            raise UserError(f"{source} has no {name}; it must be Flow-GRPO's folder dataset/{task}")
    return lambda name: (source / name).read_bytes()


def _download(url: str) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=SECONDS) as answer:
            return answer.read()
    except (OSError, HTTPException) as error:  # urllib's own errors are kinds of OSError
        raise UserError(
            f"cannot download {url}: {error}; get the file another way and name its folder as the last argument"
        ) from None


def _check(task: str, name: str, content: bytes, origin: str) -> None:
    published = FILES[task][name]
    try:
        lines, digest = len(_lines(content)), hashlib.sha256(content).hexdigest()
    except UnicodeDecodeError as error:
        raise UserError(f"{origin}: {name} is no UTF-8 text: {error}") from None
    if lines != published.lines:
        raise UserError(f"{origin}: {name} has {lines} lines, but Flow-GRPO's {task}/{name} has {published.lines}")
    if published.sha256 not in (None, digest):
        raise UserError(f"{origin}: the sha256 of {name} is {digest}, but Flow-GRPO's {task}/{name} has {published.sha256}")


def _lines(content: bytes) -> list[str]:
    """Lines as Python's readlines counts them: a final line feed does not start another line."""
    lines = content.decode("utf-8").split("\n")
    return lines[:-1] if lines[-1] == "" else lines
