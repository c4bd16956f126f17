"""Scoring a folder of images against their prompts, for evaluators that judge an image by its prompt's text alone."""

import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np
import pandas as pd

from evaluators.images import read_image
from star.common.errors import RunStopped, UserError
from star.common.files import replacing
from star.common.progress import track

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
SEPARATORS = {".csv": ",", ".tsv": "\t"}
FAILURES = (UserError, RunStopped)
ENDINGS = (*FAILURES, KeyboardInterrupt)

Judge = Callable[[Sequence[str], Sequence[np.ndarray]], list[dict]]
Pair = tuple[Path, str]


def score_folder(
    folder: str | Path,
    prompts: str | Path,
    judge: Judge,
    protocol: str,
    out: str | Path,
    batch: int = 16,
    progress: bool = True,
) -> pd.DataFrame:
    """Score every image of a folder and write the scores to a CSV file.

    The file appears when all is scored. If an image or its prompt cannot be scored, it appears with the rows before
    that one, and the error goes on.

    Args:
        folder: holds the images: :data:`IMAGE_SUFFIXES`; other files are not looked at.
        prompts: a text file with one prompt per line, for the images in the natural order of their names (2 before
            10). Or, if it ends in .csv, .tsv or .jsonl, a table with ``file`` (relative to the folder) and ``prompt``;
            images that it does not name are not scored.
        judge: takes prompts and as many images, uint8 (H, W, 3) in RGB, and gives plain values by name for each.
        protocol: name and version of the evaluation, with its engine.
        out: the CSV file; its folder is made if need be.
        batch: images that are judged at once.
        progress: show a progress bar.

    Returns:
        One row per image: file (relative to the folder), prompt, what ``judge`` gave, protocol.

    Raises:
        UserError: the folder or the prompts are missing, empty, unreadable or do not fit each other; an image cannot be
            read; whatever ``judge`` raises.
        RunStopped: whatever ``judge`` raises.
    """
    root, target = Path(folder), Path(out)
    pairs = read_pairs(root, Path(prompts))
    scored = _scored(root, pairs, judge, batch)
    return keep(track(scored, protocol, total=len(pairs)) if progress else scored, protocol, target)


def keep(scored: Iterable[dict], protocol: str, out: Path) -> pd.DataFrame:
    """Write rows to a CSV file when all are there; if one cannot be had, those before it, and its error goes on.

    Args:
        scored: a row per image.
        protocol: becomes their last column.
        out: the file; its folder is made if need be.

    Raises:
        UserError: the file cannot be written, and whatever ``scored`` raises.
        RunStopped: whatever ``scored`` raises.
        KeyboardInterrupt: the same, with a text.
    """
    _make_room(out)
    rows: list[dict] = []
    try:
        for row in scored:
            rows.append(row)
    except ENDINGS as error:
        kept = "nothing was scored before it"
        if rows:
            _write(_frame(rows, protocol), out)
            kept = f"the scores of the {len(rows)} images before it are in {out}"
        raise type(error)(f"{str(error) or 'interrupted'}; {kept}") from error
    frame = _frame(rows, protocol)
    _write(frame, out)
    return frame


def read_pairs(folder: Path, prompts: Path) -> list[Pair]:
    """Image files and their prompts; see :func:`score_folder`.

    Raises:
        UserError: either is missing, empty or unreadable, or they do not fit each other.
    """
    if not folder.is_dir():
        raise UserError(f"no such folder of images: {folder}")
    if prompts.suffix.lower() in (*SEPARATORS, ".jsonl"):
        pairs = [(folder / file, prompt) for file, prompt in _read_table(prompts)]
        for path, _ in pairs:
            if not path.is_relative_to(folder):
                raise UserError(f"{prompts} names {path}; files are named relative to {folder}")
            if not path.is_file():
                raise UserError(f"{prompts} names {path.relative_to(folder)}, which is not in {folder}")
        return pairs
    files = sorted((path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES), key=_natural)
    if not files:
        raise UserError(f"{folder} holds no images ({', '.join(IMAGE_SUFFIXES)})")
    texts = read_lines(prompts)
    if len(texts) != len(files):
        raise UserError(
            f"{prompts} has {len(texts)} prompts, but {folder} has {len(files)} images; line n must be the prompt of "
            "image n in the order of their names"
        )
    return list(zip(files, texts, strict=True))


def read_lines(path: Path) -> list[str]:
    """The lines of a UTF-8 text file, stripped; empty ones at the end do not count.

    Raises:
        UserError: the file is missing, unreadable or has no lines, or an empty one among others.
    """
    lines = [line.strip() for line in _read(path).rstrip().split("\n")]
    if lines == [""]:
        raise UserError(f"{path} holds no prompts")
    if "" in lines:
        raise UserError(f"{path} line {lines.index('') + 1} is empty; every line must be a prompt")
    return lines


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8-sig")  # spreadsheets put a byte order mark first
    except FileNotFoundError:
        raise UserError(f"no such file of prompts: {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as a text file of prompts: {error}") from None


def _read_table(path: Path) -> list[tuple[str, str]]:
    """The file and the prompt of every row."""
    rows = _read_jsonl(path) if path.suffix.lower() == ".jsonl" else _read_csv(path)
    for number, row in enumerate(rows, 1):
        for key in ("file", "prompt"):
            if not isinstance(row, dict) or not isinstance(row.get(key), str) or not row[key].strip():
                raise UserError(f'{path}, row {number}: "{key}" is missing or empty; rows need "file" and "prompt"')
    if not rows:
        raise UserError(f"{path} holds no prompts")
    return [(row["file"], row["prompt"]) for row in rows]


def _read_jsonl(path: Path) -> list:
    try:
        return [json.loads(line) for line in _read(path).split("\n") if line.strip()]
    except ValueError as error:
        raise UserError(f"{path} is not one JSON object per line: {error}") from None


def _read_csv(path: Path) -> list[dict]:
    try:
        return list(csv.DictReader(io.StringIO(_read(path)), delimiter=SEPARATORS[path.suffix.lower()]))
    except csv.Error as error:
        raise UserError(f"{path} is not a table with a header: {error}") from None


def _scored(root: Path, pairs: Sequence[Pair], judge: Judge, batch: int) -> Iterator[dict]:
    """A row per image, in order. A batch that fails is judged again one by one, so that the images before the one at
    fault still get their rows."""
    for start in range(0, len(pairs), batch):
        part = pairs[start : start + batch]
        try:
            rows = _rows(root, part, judge)
        except FAILURES:
            for pair in part:
                try:
                    yield from _rows(root, [pair], judge)
                except FAILURES as error:
                    raise type(error)(f"{error}; stopped at {pair[0].name}") from error
        else:
            yield from rows


def _rows(root: Path, pairs: Sequence[Pair], judge: Judge) -> list[dict]:
    images = [read_image(path) for path, _ in pairs]
    verdicts = judge([prompt for _, prompt in pairs], images)
    return [
        {"file": path.relative_to(root).as_posix(), "prompt": prompt, **verdict}
        for (path, prompt), verdict in zip(pairs, verdicts, strict=True)
    ]


def _natural(path: Path) -> list[tuple[int, int, str]]:
    """A key that sorts numbers within names by their value."""
    parts = re.findall(r"\d+|\D+", path.name.lower())
    return [(0, int(part), part) if part.isdecimal() else (1, 0, part) for part in parts]


def _make_room(out: Path) -> None:
    """The folder of a file to be written; tells before hours of scoring if that cannot be."""
    if out.is_dir():
        raise UserError(f"the scores cannot be written to {out}: it is a folder; name a CSV file")
    with _writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=out.parent):
            pass


def _frame(rows: list[dict], protocol: str) -> pd.DataFrame:
    return pd.DataFrame(rows).assign(protocol=protocol)


def _write(frame: pd.DataFrame, out: Path) -> None:
    """Write a CSV file whole or not at all."""
    with _writing(out), replacing(out) as part:
        frame.to_csv(part, index=False)


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"the scores cannot be written to {out}: {error}; name another file with out=FILE") from None
