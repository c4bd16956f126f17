"""The building blocks of a report, and how they are written: the same content as Markdown and as one HTML page."""

import base64
import html
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup, escape
from PIL import Image

from star.common import markdown
from star.common.numbers import sample_size
from star.records.comparison import Comparison
from star.records.summary import Summary

UNBROKEN = re.compile(r"(?<=\d) (?=[%±])|(?<=±) |(?<=\d,) (?=[+\N{MINUS SIGN}-]?\d[\d.,]*[\])])")
"""Spaces at which no line may break: between a number and its unit or error, and between the ends of an interval."""


@dataclass(frozen=True)
class Text:
    """A paragraph; ``strong`` is its beginning in bold, and ``missing`` marks one that says what is not there."""

    text: str
    strong: str = ""
    missing: bool = False


@dataclass(frozen=True)
class Table:
    """A table with a caption. The first column names the row; columns from index ``numbers`` on are set like numbers."""

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: int = 1


@dataclass(frozen=True)
class Gallery:
    """Small drawings side by side under one caption: SVG elements that carry their own text alternatives."""

    caption: str
    svgs: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Picture:
    """A PNG file, its caption and its text alternative."""

    caption: str
    file: Path
    alt: str

    @property
    def source(self) -> str:
        """The picture itself, as a data URL."""
        return "data:image/png;base64," + base64.b64encode(self.file.read_bytes()).decode()

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        with Image.open(self.file) as image:
            return image.size


@dataclass(frozen=True)
class Code:
    """Commands, one per line."""

    caption: str
    text: str


Block = Text | Table | Gallery | Picture | Code


@dataclass
class Section:
    """A chapter, or a part of one: a heading, blocks, and parts."""

    anchor: str
    title: str
    blocks: list[Block] = field(default_factory=list)
    parts: list["Section"] = field(default_factory=list)


@dataclass(frozen=True)
class Page:
    """A whole report."""

    title: str
    subtitle: str
    warning: str
    sections: Sequence[Section]


def to_html(page: Page) -> str:
    """The page as one HTML file that needs nothing else: no network, no script."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(resources.files("star.report").joinpath("page.html").read_text(encoding="utf-8"))
    style = resources.files("star.report").joinpath("page.css").read_text(encoding="utf-8")
    return (
        template.render(page=page, style=Markup(style), kind=lambda block: type(block).__name__, svg=Markup, inline=_inline)
        + "\n"
    )


def to_markdown(page: Page, folder: Path) -> str:
    """The page as Markdown; pictures are linked relative to ``folder``, drawings are only in the HTML page."""
    lines = [f"# {_plain(page.title)}", "", _plain(page.subtitle), ""]
    if page.warning:
        lines += [f"> {page.warning}", ""]
    for section in page.sections:
        lines += _section(section, 2, folder)
    return "\n".join(lines).rstrip() + "\n"


ONE_SEED = " (one seed: prompts alone)"
"""Behind the interval of a single training, which says nothing of how another would have ended."""


def sizes(measured: Iterable[Comparison | Summary]) -> str:
    """``788 images of 197 prompts``, or all such sizes if they differ."""
    return " or ".join(dict.fromkeys(sample_size(m.images, m.prompts) for m in measured))


def _inline(text: str) -> Markup:
    """Text for the page: what stands between backticks is code."""
    return Markup(re.sub("`([^`]+)`", r"<code>\1</code>", str(escape(UNBROKEN.sub("\N{NO-BREAK SPACE}", text)))))


def _section(section: Section, level: int, folder: Path) -> list[str]:
    lines = ["#" * level + " " + _plain(section.title), ""]
    for block in section.blocks:
        lines += [*_block(block, folder), ""]
    for part in section.parts:
        lines += _section(part, level + 1, folder)
    return lines


def _block(block: Block, folder: Path) -> list[str]:
    match block:
        case Text():
            return [(f"**{block.strong}** " if block.strong else "") + _plain(block.text)]
        case Table():
            head, *rows = [[_plain(cell) for cell in row] for row in (block.head, *block.rows)]
            return [f"*{_plain(block.caption)}*", "", *markdown.table(head, rows, block.numbers)]
        case Picture():
            return [f"![{_plain(block.alt)}]({Path(os.path.relpath(block.file, folder)).as_posix()})", "", block.caption]
        case Code():
            return [block.caption, "", "```sh", block.text, "```"]
        case Gallery():
            return [f"*{_plain(block.caption)}* (drawn in the HTML page)"]


def _plain(text: str) -> str:
    """Text in which characters of HTML and underscores that Markdown would take for emphasis are escaped."""
    return markdown.EDGES.sub(r"\\_", html.escape(text, quote=False))
