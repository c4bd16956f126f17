"""The figures on disk: a line for every step of every run, and the latest of each step as a table."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from star.bench.gpu.steps import STEPS
from star.common import markdown
from star.common.files import append_jsonl, read_jsonl, write_text

Line = dict[str, Any]
"""A step of a run, with the keys ``run``, ``date``, ``command``, ``commit``, ``machine`` (facts), ``step``, ``state``,
``reason``, ``seconds`` and ``figures``."""

NAMES = {"cuda": "bench", "cpu": "shrunken"}
"""Kind of the device -> name of its files: a CPU's figures, of toy sizes, are never mixed with those of a GPU."""

ON_A_GPU = (
    "# What one GPU does",
    "",
    "SD3.5 Medium at 512 pixels with random weights: speed, memory and arithmetic, and nothing about quality.",
    "`star bench gpu` writes this file; docs/paper_scale.md says what the steps are.",
)
ON_A_CPU = (
    "# A shrunken model on a CPU",
    "",
    "**A CPU run of a model of toy size.** It shows that every step of `star bench gpu` runs, and says nothing about a GPU.",
)


class Record:
    """The files of one kind of device in a folder.

    Attributes:
        lines: the JSON Lines file with all that was ever measured.
        table: the Markdown file.
        run: number of the run that is being recorded.
    """

    def __init__(self, folder: Path, kind: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._kind = kind
        self.lines, self.table = folder / f"{NAMES[kind]}.jsonl", folder / f"{NAMES[kind]}.md"
        self.run = 1 + max((line["run"] for line in read_jsonl(self.lines)), default=0)

    def add(self, line: Line) -> None:
        """Append a step to the lines, and write the table anew."""
        append_jsonl(self.lines, {"run": self.run} | line)
        head = ON_A_GPU if self._kind == "cuda" else ON_A_CPU
        write_text(self.table, "\n".join([*head, *_sections(read_jsonl(self.lines))]) + "\n")


def _sections(lines: Sequence[Line]) -> list[str]:
    """A section for each device, in the order of their first lines."""
    devices = list(dict.fromkeys(line["machine"]["device"] for line in lines))
    return [text for device in devices for text in _section(device, [x for x in lines if x["machine"]["device"] == device])]


def _section(device: str, lines: Sequence[Line]) -> list[str]:
    latest: dict[str, Line] = {}
    for line in lines:
        # A step that a later run skipped keeps its earlier figures.
        if line["state"] != "skipped" or line["step"] not in latest:
            latest[line["step"]] = line
    order = [step.name for step in STEPS]
    chosen = sorted(latest.values(), key=lambda line: order.index(line["step"]) if line["step"] in order else len(order))
    rows = [row for line in chosen for row in _rows(line)]
    runs = {line["run"]: line for line in chosen}
    return [
        "",
        f"## {device}",
        "",
        *markdown.table(["step", "what", "measured", "unit", "run"], rows, numbers=2),
        "",
        *(_run(runs[number]) for number in sorted(runs)),
    ]


def _rows(line: Line) -> list[list[str]]:
    step, run = line["step"], str(line["run"])
    rows = [[step, figure["what"], _value(figure), figure["unit"], run] for figure in line["figures"]]
    if line["state"] == "done":
        return [*rows, [step, "the whole step", f"{line['seconds']:.1f}", "s", run]]
    return [*rows, [step, line["state"], line["reason"], "", run]]


def _value(figure: Mapping[str, Any]) -> str:
    if isinstance(figure["value"], str):
        return figure["value"]
    if figure["low"] is None:
        return f"{figure['value']:.4g}"
    return f"{figure['value']:.4g} [{figure['low']:.4g}, {figure['high']:.4g}]"


def told(figure: Mapping[str, Any]) -> str:
    """A figure in one line."""
    return f"{figure['what']}: {_value(figure)} {figure['unit']}".rstrip()


def _run(line: Line) -> str:
    facts = ", ".join(f"{name} {value}" for name, value in line["machine"].items() if name != "device")
    return f"* run {line['run']}: {line['date']}, commit {line['commit']}, {facts}; `{line['command']}`"
