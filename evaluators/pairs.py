"""Which image of a folder has which prompt: a text file with a line per image, or a table."""

import csv
import io
import re
from collections.abc import Collection, Iterable
from contextlib import suppress
from pathlib import Path, PurePath

from evaluators.images import SUFFIXES, images_in
from star.common.errors import UserError, one_line, short
from star.common.files import fault_of_text, parse_json

SEPARATORS = {".csv": ",", ".tsv": "\t"}
TABLES = (*SEPARATORS, ".jsonl")
CELL = re.compile(r'"(?:[^"]|"")*"')
"""A quoted cell of a CSV file."""
ITEM = re.compile(r"""(["']).*\1,""")
"""A line of a list in JSON or Python."""
LISTS = ("", ".txt")
"""Suffixes of files with one prompt per line."""
SUFFIX = re.compile(rf"(?:{'|'.join(map(re.escape, SUFFIXES))})(?!\w)", re.IGNORECASE)
"""Where the name of an image may end."""

UNSEEN = re.compile("[\u00ad\u200b\u2060\ufeff\u202a-\u202e\u2066-\u2069]")
"""Characters that nobody sees but models read: marks where words may or may not break, of byte order, and of directions that
hold until further notice. Joiners and single marks of direction are not among them: some scripts and emoji need them."""

Pair = tuple[Path, str]


def read_pairs(folder: Path, prompts: Path) -> list[Pair]:
    """Image files and their prompts.

    Args:
        folder: holds the images, :data:`evaluators.images.SUFFIXES`; hidden files are ignored.
        prompts: a text file (.txt, or without a suffix) with one prompt per line, for the images in the natural order of their
            names (2 before 10). Or, if it ends in .csv, .tsv or .jsonl, a table with ``file`` (relative to the folder) and
            ``prompt``; images that it does not name are ignored.

    Raises:
        UserError: either is missing, empty or unreadable, they do not fit each other, or the prompts can be read in more ways
            than one.
    """
    if not folder.is_dir():
        raise UserError(f"no such folder of images: {folder}")
    if prompts.suffix.lower() in TABLES:
        return [(_image(folder, file, prompts), prompt) for file, prompt in _read_table(prompts)]
    try:
        found = images_in(folder)
    except OSError as error:
        raise UserError(f"the folder of images {folder} cannot be read: {error}") from None
    if not found:
        raise UserError(f"{folder} holds no images ({', '.join(SUFFIXES)})")
    files, texts = sorted(found, key=_natural), read_lines(prompts)
    _check_plain(prompts, texts, folder, files)
    if len(texts) != len(files):
        raise UserError(
            f"{prompts} has {len(texts)} prompts, but {folder} has {len(files)} images; line n must be the prompt of "
            "image n in the natural order of their names (2 before 10)"
        )
    return list(zip(files, texts, strict=True))


def read_lines(path: Path) -> list[str]:
    """The lines of a UTF-8 text file, stripped; empty ones at the end are dropped.

    Raises:
        UserError: the file is missing, unreadable or has no lines, or an empty one among others.
    """
    lines = [line.strip() for line in _read(path).replace("\r\n", "\n").rstrip().split("\n")]
    if lines == [""]:
        raise UserError(f"{path} holds no prompts")
    if "" in lines:
        raise UserError(f"{path} line {lines.index('') + 1} is empty; every line must be a prompt")
    for number, line in enumerate(lines, 1):
        if fault := fault_of_text(line):
            raise UserError(
                f"{path} line {number} holds {fault}, which is no text; take it out, or save it as UTF-8 with Unix line ends"
            )
    return lines


def unseen(prompts: Iterable[str]) -> str:
    """A caution of prompts with invisible characters, which people's own prompts may have; empty if there is none."""
    found = [(match[0], prompt) for prompt in prompts if (match := UNSEEN.search(prompt))]
    if not found:
        return ""
    mark, prompt = found[0]
    first = f"U+{ord(mark):04X} in {short(prompt)!r}"
    return f"{len(found):,} prompts hold invisible characters, which models read; the first is {first}"


def _read(path: Path) -> str:
    try:
        if path.is_fifo() and path.absolute().parts[1] not in ("dev", "proc"):  # where a shell's own pipes are, which it fills
            raise UserError(f"{path} is a pipe, for which one may wait forever; name a file")
        # Spreadsheets put a byte order mark first. Line ends stay as they are: they may be part of a quoted cell.
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"no such file of prompts: {path}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as a text file of prompts: {error}") from None


def _image(folder: Path, name: PurePath, prompts: Path) -> Path:
    """The image that a table names."""
    if name.is_absolute() or ".." in name.parts:
        raise UserError(f"{prompts} names {one_line(short(str(name)))}; files are named relative to {folder}, and lie in it")
    try:
        there = (folder / name).is_file()
    except OSError:  # the name is too long
        there = False
    if not there:
        raise UserError(f"{prompts} names {one_line(short(str(name)))}, which is not in {folder}")
    return folder / name


def _check_plain(path: Path, lines: list[str], folder: Path, files: list[Path]) -> None:
    """Refuse lines that are rows of a table, or its cells, rather than prompts."""
    names = {name.as_posix() for file in files for name in (PurePath(file.name), folder.name / PurePath(file.name), file)}
    if _is_json(lines) or any(_names_image(line, names) for line in lines):
        raise UserError(f"{path} looks like a table, not like one prompt per line; call it {', '.join(TABLES)}")
    if path.suffix.lower() not in LISTS:
        raise UserError(f"{path} is read as one prompt per line if it is called .txt, as a table if {', '.join(TABLES)}")
    if all("\t" in line for line in lines) or _is_list(lines):
        raise UserError(f"{path} looks like a list of another format, not like one prompt per line; leave only the prompts")
    cells = [bool(CELL.fullmatch(line)) for line in lines]
    doubled = [cell and '""' in line[1:-1] for cell, line in zip(cells, lines, strict=True)]
    if any(doubled) or all(cells):
        number = doubled.index(True) + 1 if any(doubled) else 1
        raise UserError(
            f"{path} line {number} is in quotes like a table's cell; make it a .csv with the columns file and "
            "prompt, or take the outer quotes away and write inner ones once"
        )


def _is_list(lines: list[str]) -> bool:
    """Whether all lines are marked as items of a list. A prompt may begin with a quote, dash or number; all of many do not."""
    items = [bool(ITEM.fullmatch(line)) for line in lines]
    several = len(lines) > 1
    dashed = several and any(all(line.startswith(mark) for line in lines) for mark in ("- ", "* "))
    numbers = [re.match(r"(\d{1,9})[.):,;] ?\D", line) for line in lines]
    counted = several and all(number and int(number[1]) - place in (0, 1) for place, number in enumerate(numbers))
    return all(items[:-1] if several else items) or dashed or counted


def _names_image(line: str, names: Collection[str]) -> bool:
    """Whether a line begins with an image's name, or ends with one after a separator."""
    cells = [line[: suffix.end()] for suffix in SUFFIX.finditer(line)] + [re.split("[\t,;]", line.rstrip('"'))[-1]]
    return any(PurePath(cell.removeprefix('"')).as_posix() in names for cell in cells)


def _is_json(lines: list[str]) -> bool:
    """Whether the first line, or else all lines together, is a JSON object or list rather than prompts."""
    for text in (lines[0], "\n".join(lines)):
        with suppress(ValueError):
            return isinstance(parse_json(text), dict | list)
    return False


def _read_table(path: Path) -> list[tuple[PurePath, str]]:
    """The file and the prompt of every row."""
    rows = _read_jsonl(path) if path.suffix.lower() == ".jsonl" else _read_csv(path)
    found: dict[tuple[PurePath, str], int] = {}
    for number, row in enumerate(rows, 1):
        for key in ("file", "prompt"):
            if not isinstance(row, dict) or not isinstance(row.get(key), str) or not row[key].strip():
                there = f", and this one has {short(', '.join(map(repr, row)))}" if isinstance(row, dict) else ""
                raise UserError(f'{path}, row {number}: "{key}" is missing or empty; rows need "file" and "prompt"{there}')
            if fault := fault_of_text(row[key]):
                raise UserError(f'{path}, row {number}: "{key}" holds {fault}, which is no text')
        pair = PurePath(row["file"]), row["prompt"]  # 1.png and ./1.png are one image
        if pair in found:
            raise UserError(f"{path}, row {number}: the same file and prompt as in row {found[pair]}; keep one")
        found[pair] = number
    if not found:
        raise UserError(f"{path} holds no prompts")
    return list(found)


def _read_jsonl(path: Path) -> list:
    try:
        return [parse_json(line) for line in _read(path).split("\n") if line.strip()]
    except ValueError as error:
        raise UserError(f"{path} is not one JSON object per line: {error}") from None


def _read_csv(path: Path) -> list[dict[str, str]]:
    text, separator = _read(path), SEPARATORS[path.suffix.lower()]
    # Strict, or an unclosed quote would swallow the rows after it, and quotes around a part of a cell would be lost.
    lines, trimmed = (
        csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True, skipinitialspace=trim)
        for trim in (False, True)
    )
    rows = []
    try:
        header = next(lines, [])
        next(trimmed, [])
        if twice := {name for name in header if header.count(name) > 1} & {"file", "prompt"}:
            raise UserError(f"{path} has two columns {min(twice)}; keep one")
        for cells in lines:
            if len(cells) > len(header):
                raise UserError(
                    f"{path} line {lines.line_num}: {len(cells)} cells, but the header has {len(header)}; put double quotes "
                    "around a prompt with separators in it"
                )
            if cells != next(trimmed, []):  # a quote after a space quotes nothing, and a prompt with separators is cut there
                raise UserError(
                    f"{path} line {lines.line_num}: a cell begins with a space; take it out, or put the cell in double quotes"
                )
            rows += [dict(zip(header, cells, strict=False))] if cells else []
    except csv.Error as error:
        raise UserError(
            f"{path} line {lines.line_num} is no row of a table ({error}); quotes in a cell are doubled, and the cell quoted"
        ) from None
    return rows


def _natural(path: Path) -> tuple[list[tuple[int, int, str]], str]:
    """A sort key that compares numbers within names by value and ignores the case of letters, except between equals."""
    parts = re.findall(r"\d+|\D+", path.name.lower())
    return [(0, int(part), part) if part.isdecimal() else (1, 0, part) for part in parts], path.name
