"""``star report``: a results folder as one HTML page, the same as Markdown, and the numbers that it works out as CSV."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from star.common.errors import UserError
from star.common.files import check_file, check_room, write_text
from star.common.numbers import named_seeds
from star.records.comparison import Comparison
from star.report import csv_export
from star.report.ablation import comparisons
from star.report.blocks import Page, to_html, to_markdown
from star.report.brief import write_brief
from star.report.collection import Collection, collect
from star.report.glance import write_picture
from star.report.sections import sections

TITLE = "STAR and its baselines"
MINI = (
    "These numbers come from the small embedded model with its own prompts and evaluators. They compare methods on "
    "that model; they cannot be compared with the published numbers, which are SD3.5 Medium's."
)


def report(folder: Path, runs: Path = Path("runs"), out: Path | None = None) -> tuple[Path, Path]:
    """Write the report of a results folder.

    Args:
        folder: ``results/<scale>``: result files, and ``curves.csv`` and ``images.csv.gz`` if there.
        runs: folder of the run folders, which settings and pictures are read from; need not exist.
        out: the HTML page, by default ``report.html`` in the folder; Markdown goes beside it, as ``.md``. Pictures and
            CSV files go into ``figures`` and ``tables`` in the results folder, each task's table and curves beside its result
            file.

    Returns:
        the HTML file and the Markdown file.

    Raises:
        UserError: there are no results, a file does not follow its schema, or ``out`` is no HTML file in a folder.
    """
    return write_report(collect(folder, runs), out)


def write_report(found: Collection, out: Path | None = None) -> tuple[Path, Path]:
    """Write the report of what was collected; arguments, result and errors are those of :func:`report`."""
    page_file = out or found.folder / "report.html"
    check_room(found.folder, "the report")
    if page_file.suffix == ".html":
        check_file(page_file, "the page")
    if page_file.suffix != ".html" or not page_file.parent.is_dir():
        raise UserError(f"--out {page_file}: name an .html file in a folder that exists")
    markdown_file = page_file.with_suffix(".md")
    tasks = found.tasks if page_file.parent.resolve() == found.folder.resolve() else []
    for file in (page_file, markdown_file):
        if page_file.stem in tasks or (file.exists() and not _is_report(file)):
            raise UserError(f"--out {page_file}: {file} is no report and would be overwritten; name another file")
    compared = {task: comparisons(found, task) for task in found.tasks}
    page = _page(found, compared)
    csv_export.write(found, compared)
    write_picture(found, found.folder / "figures" / "gains.png")
    for task in found.tasks:
        write_brief(found, task)
    write_text(page_file, to_html(page))
    write_text(markdown_file, to_markdown(page, markdown_file.parent))
    return page_file, markdown_file


def _is_report(file: Path) -> bool:
    """Whether a file is a report, and so may be overwritten."""
    return file.is_file() and TITLE.encode() in file.read_bytes()


def _page(found: Collection, compared: Mapping[str, Sequence[Comparison]]) -> Page:
    seeds = sorted({row.seed for row in found.rows if row.updates})
    trained = f"training {named_seeds(seeds)}" if seeds else "nothing trained"
    return Page(
        title=f"{TITLE}, scale {found.scale}",
        subtitle=f"Tasks: {', '.join(found.tasks)}; {trained}. An open reproduction of STAR (arXiv 2606.17979).",
        warning=MINI if found.mini else "",
        sections=sections(found, compared),
    )
