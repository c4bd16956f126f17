"""Scoring a folder of images against their prompts, for evaluators that judge an image by its prompt's text alone."""

import csv
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import pandas as pd

from evaluators.images import batches, read_image
from evaluators.interface import check_names, check_verdicts
from evaluators.pairs import Pair, read_pairs, unseen
from star.common.console import tell
from star.common.errors import Interrupted, RunStopped, UserError, one_line, short
from star.common.files import check_file, check_output, replacing
from star.common.plugins import own_place
from star.common.progress import track
from star.common.signals import ending_like_ctrl_c

Judge = Callable[[Sequence[str], Sequence[np.ndarray]], list[dict]]

TRIED_SIDE = 64
"""The side in pixels of white images on which a judge is tried."""


def score_folder(
    folder: str | Path,
    prompts: str | Path,
    judge: Judge,
    protocol: str,
    out: str | Path,
    batch: int = 16,
    lacks: Callable[[str], str] = lambda prompt: "",
    tried: bool = False,
) -> pd.DataFrame:
    """Score every image of a folder and write the scores to a CSV file.

    The file appears once all images are scored. If an image or its prompt cannot be scored, the rows before that one, if any,
    are in a file beside it, see :func:`keep`, and the error is raised.

    Args:
        folder: holds the images; see :func:`evaluators.pairs.read_pairs`.
        prompts: their prompts, a text file or a table.
        judge: takes prompts and as many images, uint8 (H, W, 3) in RGB, and gives a dict of plain values for each.
        protocol: name and version of the evaluation, with its engine.
        out: the CSV file; its folder is made if need be.
        batch: images that are judged at once; fewer if they are large.
        lacks: says what a prompt needs but does not carry, see :meth:`evaluators.interface.Evaluator.lacks`.
        tried: whether ``judge`` is tried on white images first; a fault that shows on batches alone would else not show.

    Returns:
        One row per image: file (relative to the folder), prompt, what ``judge`` gave, protocol.

    Raises:
        UserError: the folder or the prompts are missing, empty, unreadable or do not fit each other; a prompt lacks something;
            an image cannot be read; the scores would overwrite something else; a verdict is refused
            by :func:`evaluators.interface.check_names`; or ``judge`` raises it.
        RunStopped: ``judge`` gives a value that is not finite, or raises any other error.
        Interrupted: Ctrl-C, SIGTERM or SIGHUP.
    """
    root, target = Path(folder), Path(out)
    pairs = read_pairs(root, Path(prompts))
    if caution := unseen(prompt for _, prompt in pairs):
        tell(f"{prompts}: {caution}")
    for path, prompt in pairs:
        if lack := lacks(prompt):
            raise UserError(f"{prompts}: the prompt {short(prompt)!r} of {path.name} has no {lack}; {protocol} needs it")
    if tried:
        asked = [prompt for _, prompt in pairs[:2]]
        judge(asked, [np.full((TRIED_SIDE, TRIED_SIDE, 3), 255, np.uint8)] * len(asked))
    scored = track(_scored(root, pairs, partial(_judged, judge, protocol), batch), protocol, total=len(pairs))
    return keep(scored, protocol, target, [Path(prompts)])


def keep(scored: Iterable[dict], protocol: str, out: Path, inputs: Sequence[Path] = ()) -> pd.DataFrame:
    """Write rows to a CSV file once all are there; if one fails, write those before it to another and raise its error.

    The other is called ``NAME.partial.csv``. Rows for whose file there is no room go to the folder for temporary files.

    Args:
        scored: a row per image.
        protocol: becomes their last column.
        out: the file; its folder is made if need be. An older table of scores or an empty file is replaced, nothing else is.
        inputs: files that must not be overwritten.

    Raises:
        UserError: the file cannot be written, or ``scored`` raises it.
        RunStopped: a value is not finite, or ``scored`` raises any other error.
        Interrupted: Ctrl-C, SIGTERM or SIGHUP.
    """
    beside = out.with_name(f"{out.stem}.partial{out.suffix}")
    for place in (out, beside):
        _check_place(place, inputs)
    rows: list[dict] = []
    try:
        with ending_like_ctrl_c():
            for row in scored:
                rows += check_verdicts(f"{protocol}, for {next(iter(row.values()))},", [row])
    except (Exception, KeyboardInterrupt) as error:
        kept = "nothing was scored before it"
        if rows:
            kept = f"the scores of the {len(rows)} images before it are in {beside}"
            try:
                _write(_frame(rows, protocol), beside)
            except UserError as unwritten:
                kept = str(unwritten)
        raise _with(error, kept) from error
    frame = _frame(rows, protocol)
    _write(frame, out)
    return frame


def _with(error: BaseException, words: str) -> Exception:
    """The error with words appended, as one of this package's; any other becomes a RunStopped with its kind and text."""
    match error:
        case UserError():
            return UserError(f"{error}; {words}")
        case RunStopped():  # its subclasses take more than a message
            return RunStopped(f"{error}; {words}")
        case KeyboardInterrupt():
            return Interrupted(f"{str(error) or 'interrupted'}; {words}")
    place = f"{told}: " if (told := own_place(error)) else ""
    return RunStopped(f"{place}{type(error).__name__}: {one_line(error)}; {words}")


def _scored(root: Path, pairs: Sequence[Pair], judge: Judge, batch: int) -> Iterator[dict]:
    """A row per image, in order. If a batch fails, its images are judged again one by one, up to the one at fault, so that
    those before it still get their rows."""
    for place in batches([path for path, _ in pairs], batch):
        part = pairs[place]
        try:
            rows = _rows(root, part, judge)
        except Exception as first:
            known = getattr(first, "image", None)
            for number, pair in enumerate(part):
                if number == known:
                    raise _with(first, f"stopped at {pair[0].name}") from first
                try:
                    yield from _rows(root, [pair], judge)
                except Exception as error:
                    raise _with(error, f"stopped at {pair[0].name}") from error
        else:
            yield from rows


def _judged(judge: Judge, protocol: str, prompts: Sequence[str], images: Sequence[np.ndarray]) -> list[dict]:
    """Verdicts that leave the rows' own columns alone."""
    verdicts = judge(prompts, images)
    check_names(protocol, verdicts)
    return verdicts


def _rows(root: Path, pairs: Sequence[Pair], judge: Judge) -> list[dict]:
    images = [read_image(path) for path, _ in pairs]
    verdicts = judge([prompt for _, prompt in pairs], images)
    return [
        {"file": path.relative_to(root).as_posix(), "prompt": prompt, **verdict}
        for (path, prompt), verdict in zip(pairs, verdicts, strict=True)
    ]


def _check_place(out: Path, inputs: Sequence[Path]) -> None:
    """Raise before hours of scoring, not after, if the file cannot be written."""
    check_file(out, "the scores")
    if out.suffix.lower() != ".csv":
        raise UserError(f"the scores cannot be written to {out}: name a CSV file, out=NAME.csv")
    check_output(out, inputs)
    if out.exists() and not (out.is_file() and _holds_scores(out)):
        raise UserError(f"{out} is no table of scores and would be overwritten; name another file with out=FILE")


def _holds_scores(file: Path) -> bool:
    """Whether a file is what :func:`keep` writes, or empty."""
    with open(file, encoding="utf-8", errors="replace", newline="") as opened:
        header = next(csv.reader([opened.readline(2**16)]), [])
    return not header or (header[0] in ("file", "filename") and "prompt" in header and header[-1] == "protocol")


def _frame(rows: list[dict], protocol: str) -> pd.DataFrame:
    return pd.DataFrame(rows).assign(protocol=protocol)


def _write(frame: pd.DataFrame, out: Path) -> None:
    """Write a CSV file whole or not at all. What cannot be written was hours of work: it is put where there may be room."""
    try:
        _write_whole(frame, out)
    except OSError as error:
        told = f"the scores cannot be written to {out}: {error}"
        with suppress(OSError):
            other = Path(mkdtemp(prefix="star-"), out.name)
            _write_whole(frame, other)
            raise UserError(f"{told}; they are in {other}") from None
        raise UserError(f"{told}; name another file with out=FILE") from None


def _write_whole(frame: pd.DataFrame, out: Path) -> None:
    with replacing(out) as part:
        out.parent.mkdir(parents=True, exist_ok=True)
        # File names need not be valid Unicode; that must not cost the scores.
        frame.to_csv(part, index=False, encoding="utf-8", errors="backslashreplace")
