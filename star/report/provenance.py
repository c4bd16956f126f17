"""How the numbers were made: protocols, code, versions and the exact commands."""

import os
import platform
import shlex
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from star import config as settings
from star.common.errors import UserError
from star.common.machine import installed
from star.common.numbers import MISSING
from star.method.arms import ARMS
from star.records.code import commit
from star.records.names import RELEASED_METHOD, MethodName, measured_on_own_task, method_label
from star.records.results import Row
from star.report import csv_export
from star.report.blocks import Code, Section, Table, Text
from star.report.collection import CURVES, IMAGES, Cell, Collection, cell_of

PACKAGES = ("star-rl", "torch", "diffusers", "transformers", "accelerate", "peft", "numpy", "scipy")


def made(found: Collection) -> Section:
    """The chapter."""
    section = Section("made", "How these numbers were made")
    main = {task: found.main_metric(task) for task in {row.task for row in found.rows}}
    sizes = sorted({(r.protocol, r.images, r.prompts) for r in found.rows if r.metric == main[r.task]})
    rows = [[protocol, f"{images:,}", f"{prompts:,}"] for protocol, images, prompts in sizes]
    section.blocks += [
        Table("Evaluation protocols", ["protocol", "images of a run", "prompts"], rows),
        Table("Runs", ["method", "task", "seed", "commit", "settings", "machine"], _runs(found), numbers=6),
        Table("Where the report was made", ["what", "version"], [["commit", commit()], *_versions()], numbers=2),
    ]
    lines, notes = _commands(found)
    section.blocks.append(Code("The command of every run; finished runs are not repeated:", "\n".join(lines)))
    section.blocks += [Text(note, missing=True) for note in notes]
    folder = f"results/{found.scale}" if found.is_shipped else found.folder
    section.blocks.append(Code("The command of this report:", f"star report {folder}"))
    section.blocks.append(
        Text(
            f"The same numbers for programs, in `{folder}`: a CSV file per task, `{CURVES}`, `{IMAGES}`, "
            f"`{csv_export.FOLDER}/{csv_export.DIFFERENCES}` with the paired differences and "
            f"`{csv_export.FOLDER}/{csv_export.AGAINST_PAPER}` with every number beside the paper's."
        )
    )
    return section


def _runs(found: Collection) -> list[list[str]]:
    """What identifies each run: the commit of its code, the hash of its settings and what computed it."""
    runs = {cell_of(r): [r.commit, r.config_hash, r.machine or MISSING] for r in _own(found)}
    order = [(task, method) for task in found.tasks for method in found.methods(task)]
    cells = sorted(runs, key=lambda cell: (order.index(cell[:2]), *cell[2:]))
    return [[method_label(cell[1]), cell[0], str(cell[2]), *runs[cell]] for cell in cells]


def _own(found: Collection) -> list[Row]:
    """Rows of runs on the task they were trained for."""
    return [row for row in found.rows if measured_on_own_task(row.method)]


def _versions() -> list[list[str]]:
    rows = [
        ["system", f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"],
        ["python", platform.python_version()],
    ]
    return [*rows, *([name, installed(name) or "not installed"] for name in PACKAGES)]


def _commands(found: Collection) -> tuple[list[str], list[str]]:
    """The command of every run, and notes on what is not known."""
    cells = sorted({cell_of(row) for row in _own(found)})
    made = [(found.commands[cell], "") if cell in found.commands else _command(found, cell) for cell in cells]
    notes = list(dict.fromkeys(note for _, note in made if note))
    if unknown := [cell for cell in cells if cell not in found.commands and cell not in found.runs]:
        notes.append(f"For {len(unknown)} runs only task, method and seed are known; their commands lack any other settings.")
    return list(dict.fromkeys(line for line, _ in made)), notes


def _command(found: Collection, cell: Cell) -> tuple[str, str]:
    """The command of a run that recorded none, from the settings in its folder, and a note on what it lacks."""
    task, method, seed, _ = cell
    name, words, note = MethodName.parse(method), [f"task={task}", f"scale={found.scale}"], ""
    if name.untrained:
        words = ["base", *words]
        if name.changes:
            note = f"{method}: its command lacks what the name has after the +."
    elif not found.trained(task, method):
        words = ["calibrate", *words]
        if name.text != RELEASED_METHOD:
            words += [f"name={method}", "lora=FOLDER"]
            note = "FOLDER stands for a LoRA, of which results keep the name alone."
    elif cell in found.runs:
        words += [f"method={name.arm if name.arm in ARMS else 'star'}", f"seed={seed}"]
        try:
            words = ["train", *words, *overrides(found.runs[cell] / "config.yaml", words)]
        except UserError as error:
            words, note = ["train", *words], f"{error}: its settings are not in the command."
    else:
        words = ["train", *words, f"method={method}", f"seed={seed}"]
    return shlex.join(["star", *words]), note


def overrides(file: Path, words: Sequence[str]) -> list[str]:
    """The settings of a run that the words do not give, as further words; folder and tracker are left out.

    Raises:
        UserError: the settings cannot be read by this version.
    """
    own, default = (settings.flat(asdict(config)) for config in (settings.read_config(file), settings.load(list(words))))
    return [
        f"{'' if name in default else '+'}{name}={settings.as_word(value)}"
        for name, value in own.items()
        if name not in ("run", "tracker") and default.get(name, MISSING) != value
    ]
