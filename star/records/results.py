"""Result files: one CSV row per number that was measured (or published), validated on the way in and out."""

import csv
import io
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import MISSING, astuple, dataclass, fields
from decimal import Decimal, InvalidOperation
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

from evaluators.interface import MOST_SCORE, is_rate
from star.common.errors import UserError, short
from star.common.files import fault_of_text, read_json, replacing, visible
from star.config import options
from star.config.schema import BELOW_2_63
from star.records.names import MethodName

FORMULA = ("=", "+", "-", "@")
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
"""A number as tables hold it: Python would also take 9_7 for one."""
MOST_DIGITS = 18
"""The most digits before or behind the point of a published number."""
COUNT_DIGITS = 19
"""The digits of the largest whole number that every table can hold, 2^63 - 1."""

ROWS, VERDICTS, METRICS = "rows.json", "images.csv", "../metrics.jsonl"
"""The result files of an evaluation's folder: its rows, its verdicts by image and, one level up, what training logged."""

GIVEN = "given.json"
"""The file with the digests of what an evaluation without a training was given, see :mod:`star.training.given`."""

Key = tuple[str, str, str, str, int]


@dataclass(frozen=True)
class Row:
    """One number of one run.

    Attributes:
        task: the benchmark it was measured on: geneval, ocr, pickscore, ...
        metric: its name, e.g. ``geneval_official_macro``, ``ocr_accuracy``, ``pickscore``.
        protocol: evaluation protocol, version first and scale last: ``geneval-v1/mini-detector/mini``.
        method: base, flow_grpo, star, ...; with ``:task`` after it when the checkpoint was trained for another task.
        seed: of the training run; of the evaluation noise where nothing was trained.
        value: finite, in the metric's own unit.
        stderr: standard error of ``value`` over prompts, or None where it cannot be estimated.
        images, prompts: how many images the value is a mean over, and of how many distinct prompts.
        updates, images_seen: optimizer steps and images drawn in training; 0 where nothing was trained.
        seconds: wall-clock time of training.
        commit: see :func:`star.records.code.commit`.
        config_hash: see :func:`star.config.config_hash`.
        machine: what trained it, or evaluated what was not trained, see :func:`star.common.machine.machine`; empty in rows
            from before it was recorded.
    """

    task: str
    metric: str
    protocol: str
    method: str
    seed: int
    value: float
    stderr: float | None
    images: int
    prompts: int
    updates: int
    images_seen: int
    seconds: float
    commit: str
    config_hash: str
    machine: str = ""  # came later than the rest

    @property
    def key(self) -> Key:
        """What identifies a row: a file holds one row per key."""
        return self.task, self.metric, self.protocol, self.method, self.seed


@dataclass(frozen=True)
class PaperRow:
    """One published number.

    Attributes:
        task, metric, protocol, method: as in :class:`Row`; the protocol in words, as far as the source states it.
        value: with the digits that were printed, or None where the source exists but its number is not known.
        images, prompts: of the evaluation; None where the source does not say.
        updates, images_seen: of the training, see :class:`Row`; None where they are not known.
        source: paper and table, or repository and issue.
        note: what a reader must know before using the number; may be empty.
    """

    task: str
    metric: str
    protocol: str
    method: str
    value: Decimal | None
    images: int | None
    prompts: int | None
    updates: int | None
    images_seen: int | None
    source: str
    note: str

    @property
    def key(self) -> tuple[str, str, str]:
        """What identifies a row: a file holds one per key."""
        return self.task, self.metric, self.method

    @property
    def rounding(self) -> float:
        """Half a unit in the last printed digit: 0.005 for 0.95. Zero without a value."""
        return 0.0 if self.value is None else 0.5 * 10.0 ** int(self.value.as_tuple().exponent)


COLUMNS = tuple(field.name for field in fields(Row))
FORMATS = {"value": ".6f", "stderr": ".6f", "seconds": ".1f"}


def write(rows: Iterable[Row], path: Path) -> None:
    """Write a result file atomically: sorted by key, fixed float formats, LF line ends.

    Raises:
        ValueError: two rows have the same key.
        UserError: a row would not pass :func:`read`, such as one of a user's own evaluator.
    """
    ordered = sorted(rows, key=lambda row: row.key)
    for one, other in pairwise(ordered):
        if one.key == other.key:
            raise ValueError(f"two rows with the key {one.key}")
    lines = [_line(row) for row in ordered]
    for row, line in zip(ordered, lines, strict=True):
        _checked(dict(zip(COLUMNS, line, strict=True)), PARSERS, f"{path}: the new row {row.key}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([COLUMNS, *lines])


def alike(one: Row, other: Row) -> bool:
    """Whether two rows are the same line of a result file, which keeps six digits of a value."""
    return _line(one) == _line(other)


def upsert(path: Path, rows: Iterable[Row], outdated: Callable[[Row], bool] = lambda row: False) -> list[Row]:
    """Add rows to a result file; a row with the key of an old one replaces it. The file is created if need be.

    Args:
        path: the file.
        rows: the new ones.
        outdated: tells which old rows to remove.

    Returns:
        the old rows that were removed as outdated.
    """
    old = read(path) if path.exists() else []
    left_out = {row.key: row for row in old if outdated(row)}
    kept = {row.key: row for row in old if row.key not in left_out}
    write((kept | {row.key: row for row in rows}).values(), path)
    return list(left_out.values())


def read(path: Path) -> list[Row]:
    """The rows of a result file, in the file's order.

    Raises:
        UserError: no such file, or a cell that the schema does not allow; names file, line, column and what is allowed.
    """
    return _parse(path, Row, PARSERS)


def is_of_rows(path: Path) -> bool:
    """Whether a file is a result file, by its header.

    Raises:
        UserError: it cannot be read.
    """
    return _header(_bytes(path, first_line=True).decode("utf-8-sig", errors="replace")) in _headers(Row)


def result_files(folder: Path) -> list[Path]:
    """The result files of a results folder: those named after a known task, whatever is in them, and others by their header.

    Raises:
        UserError: a file cannot be read.
    """
    return [file for file in visible(folder.glob("*.csv")) if file.stem in options("task") or is_of_rows(file)]


def read_together(paths: Iterable[Path]) -> list[Row]:
    """The rows of several result files, in their order.

    Raises:
        UserError: as :func:`read`; or two files have a row with the same key, such as a file and an old copy of it: no seed
            may count twice.
    """
    where: dict[Key, Path] = {}
    rows = []
    for path in paths:
        for row in read(path):
            if row.key in where:
                told = ", ".join(map(str, row.key))
                raise UserError(f"{where[row.key]} and {path} both have a row for {told}; move one of the files elsewhere")
            where[row.key] = path
            rows.append(row)
    return rows


def read_rows(file: Path) -> list[Row]:
    """The rows that an evaluation's folder keeps, :data:`ROWS`; none if there is no such file or it is damaged."""
    found = read_json(file)
    try:
        return [Row(**row) for row in found or []]
    except TypeError:
        return []


def read_paper(path: Path) -> list[PaperRow]:
    """The rows of a file of published numbers, in the file's order; one per (task, metric, method).

    Raises:
        UserError: as :func:`read`.
    """
    return _parse(path, PaperRow, PAPER_PARSERS)


def is_paper(path: Path) -> bool:
    """Whether a file holds published numbers rather than results of runs, by its header."""
    return "source" in _header(_open(path))


def _header(text: str) -> list[str]:
    """The cells of the first line of a CSV file; none if it has no such line."""
    try:
        return next(csv.reader(text.splitlines()[:1]), [])
    except csv.Error:
        return []


def _line(row: Row) -> list[str]:
    return [_text(name, value) for name, value in zip(COLUMNS, astuple(row), strict=True)]


def _text(name: str, value: Any) -> str:
    return "" if value is None else format(value, FORMATS.get(name, ""))


def _word(text: str) -> str:
    # Spreadsheets evaluate text that begins like a formula.
    if not text or text != text.strip() or "\n" in text or fault_of_text(text) or text.startswith(FORMULA):
        raise ValueError
    return text


def _method(text: str) -> str:
    try:
        return MethodName.parse(_word(text)).text
    except UserError:
        raise ValueError from None


def _count(text: str) -> int:
    if not text.isdecimal() or len(text) > COUNT_DIGITS or not BELOW_2_63.allows(int(text)):
        raise ValueError
    return int(text)


def _number(text: str) -> str:
    if not NUMBER.fullmatch(text):
        raise ValueError
    return text


def _finite(text: str) -> float:
    number = float(_number(text))
    if abs(number) > MOST_SCORE:
        raise ValueError
    return number


def _not_negative(text: str) -> float:
    number = _finite(text)
    if number < 0:
        raise ValueError
    return number


def _decimal(text: str) -> Decimal:
    number = Decimal(_number(text))
    if abs(number) > MOST_SCORE or abs(int(number.as_tuple().exponent)) > MOST_DIGITS:
        raise ValueError
    return number


def _within(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """A parser that also refuses what is no rate: below 0 or above 1."""

    def rate(text: str) -> Any:
        number = parse(text)
        if number is not None and not 0 <= number <= 1:
            raise ValueError
        return number

    return rate


def _optional(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    return lambda text: parse(text) if text else None


Parser = tuple[Callable[[str], Any], str]
WORD: Parser = (_word, "a word, not empty, that begins with none of = + - @")
METHOD: Parser = (_method, "a method's name, like star, flow_grpo@released or star+fast:ocr")
COUNT: Parser = (_count, "a whole number, 0 or more, below 2^63")
OPTIONAL_COUNT: Parser = (_optional(_count), "a whole number, 0 or more, below 2^63, or nothing")
PARSERS: dict[str, Parser] = {
    **dict.fromkeys(("task", "metric", "protocol", "commit", "config_hash"), WORD),
    "method": METHOD,
    **dict.fromkeys(("seed", "images", "prompts", "updates", "images_seen"), COUNT),
    "value": (_finite, f"a finite number, at most {MOST_SCORE:g}"),
    "machine": (lambda text: _word(text) if text else "", "a word, or nothing"),
    "stderr": (_optional(_not_negative), "a number, 0 or more, or nothing"),
    "seconds": (_not_negative, "a number, 0 or more"),
}
PAPER_PARSERS: dict[str, Parser] = {
    **dict.fromkeys(("task", "metric", "protocol", "source"), WORD),
    "method": METHOD,
    **dict.fromkeys(("images", "prompts", "updates", "images_seen"), OPTIONAL_COUNT),
    "value": (_optional(_decimal), f"a finite number, at most {MOST_SCORE:g}, or nothing"),
    "note": (str, "any text"),
}


def _open(path: Path) -> str:
    try:
        return _bytes(path).decode("utf-8-sig")  # spreadsheets put a byte order mark first
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: cannot be read as a CSV file: {error}") from None


def _bytes(path: Path, first_line: bool = False) -> bytes:
    try:
        with path.open("rb") as file:
            return file.readline() if first_line else file.read()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run `star reproduce geneval` to make results, or check the name") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder; name a result file in it, e.g. {path / 'geneval.csv'}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read as a CSV file: {error.strerror or error}") from None


def _lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The cells of every line of a CSV file, with its number."""
    reader = csv.reader(io.StringIO(_open(path), newline=""), strict=True)
    try:
        for cells in reader:
            yield reader.line_num, cells
    except csv.Error as error:
        raise UserError(f"{path} line {reader.line_num}: no line of a CSV file: {error}") from None


def _headers(kind: type[Row] | type[PaperRow]) -> tuple[list[str], list[str]]:
    """The columns of a file of such rows, and those of files from before the last ones were added."""
    return [field.name for field in fields(kind)], [field.name for field in fields(kind) if field.default is MISSING]


AnyRow = TypeVar("AnyRow", Row, PaperRow)


def _parse(path: Path, kind: type[AnyRow], parsers: Mapping[str, Parser]) -> list[AnyRow]:
    """Every line of a CSV file as a row of the given kind, checked cell by cell."""
    lines = _lines(path)
    _, header = next(lines, (1, []))
    if header not in _headers(kind):
        found = short(",".join(header)) or "(none)"
        raise UserError(
            f"{path} line 1: the columns are {found}; allowed: {','.join(_headers(kind)[0])}; if it is no such file, move it "
            "elsewhere"
        )
    rows: dict[tuple[Any, ...], AnyRow] = {}
    for number, line in lines:
        where = f"{path} line {number}"
        if len(line) != len(header):
            raise UserError(f"{where}: {len(line)} cells; the header has {len(header)} columns")
        row = kind(**_checked(dict(zip(header, line, strict=True)), parsers, where))
        if row.key in rows:
            raise UserError(f"{where}: a second row for {', '.join(map(str, row.key))}; keep one")
        rows[row.key] = row
    return list(rows.values())


def _checked(cells: Mapping[str, str], parsers: Mapping[str, Parser], where: str) -> dict[str, Any]:
    """The values in a line, by column."""
    if is_rate(cells["metric"]):
        parsers = {
            **parsers,
            "value": (_within(parsers["value"][0]), f"a number from 0 to 1, since {cells['metric']} is a rate"),
        }
    found = {}
    for name, text in cells.items():
        parse, allowed = parsers[name]
        try:
            found[name] = parse(text)
        except (ValueError, InvalidOperation):
            raise UserError(f"{where}, column {name}: {short(text)!r} is not allowed; allowed: {allowed}") from None
    return found
