"""Pictures that need the run folders: maps over the denoising steps, and samples of several methods at the same noise.

Each is drawn once and kept as a PNG in the results folder. The file also holds its text alternative and the settings of the
runs that it shows. So a report can be made again without the run folders, and a picture is drawn again when they have changed.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from PIL import Image

from star.common.errors import RunStopped, UserError, one_line
from star.common.files import replacing, visible
from star.config import read_config
from star.records.folder import TYPED, parse_csv
from star.records.names import method_label
from star.records.results import ROWS, VERDICTS, read_rows
from star.report.blocks import Block, Picture, Text
from star.report.collection import Collection
from star.report.figures import PLAIN_TEXT
from star.tasks import Prompt, held_out_prompts

SHOWN = ("base", "flow_grpo", "star")
PROMPTS = 6
PER_LINE = 4
"""Maps side by side: few enough that their titles can be read on a phone."""
DPI = 100
PLAIN: Any = {**PLAIN_TEXT, "font.family": "sans-serif", "font.size": 8}


def filmstrip(found: Collection, task: str) -> Block:
    """STAR's weights over the denoising steps of one prompt, before and after training, or why they cannot be shown."""
    runs = _runs(found, task, ("star",))
    caption = (
        "STAR's weights (mean 1) at every denoising step, before training (above) and after (below), from the same noise and "
        "with none added on the way; left: the finished image. Bold: steps used in training, which scales their "
        "weights among themselves. The prompt is the first test prompt with the most core words."
    )

    def draw() -> tuple[Figure, str]:
        from star.report.maps import maps_of  # takes seconds, and most reports have their pictures already

        config = read_config(runs["star"] / "config.yaml")
        prompt = _richest(held_out_prompts(config, task))
        images, maps = maps_of(config, prompt, runs["star"] / "final" / "trained.safetensors")
        return _strip(prompt, images, maps, config.sampling.trainable)

    return _kept(found.folder / "figures" / f"maps-{task}.png", _source(runs), draw if runs else None, caption)


def samples(found: Collection, task: str) -> Block:
    """The same prompts and noise under base, Flow-GRPO and STAR, or why they cannot be shown."""
    runs = _runs(found, task, SHOWN)
    caption = (
        f"Test prompts at equal distances in alphabetical order, not chosen by eye; the first image of each, from the same "
        f"noise for every method: {', '.join(method_label(method) for method in SHOWN)}. Below each image is its "
        "verdict, from which the main score is computed."
    )

    def draw() -> tuple[Figure, str]:
        return _grid({method: path / "final" for method, path in runs.items()}, found.main_score(task)[0])

    return _kept(
        found.folder / "figures" / f"samples-{task}.png", _source(runs), draw if len(runs) == len(SHOWN) else None, caption
    )


def _runs(found: Collection, task: str, methods: tuple[str, ...]) -> dict[str, Path]:
    """The run of each method at the lowest seed that all trained ones share, and the base's; empty if they share none."""
    seeds = [{s for t, m, s, _ in found.runs if (t, m) == (task, method)} for method in methods if method != "base"]
    shared = sorted(set.intersection(*seeds))
    if not shared:
        return {}
    first: dict[str, Path] = {}
    for (of, method, seed, _), path in found.runs.items():
        if of == task and (method == "base" or seed == shared[0]):
            first.setdefault(method, path)  # of the plainest protocol
    return {method: first[method] for method in methods if method in first}


def _source(runs: Mapping[str, Path]) -> str:
    """What a picture is drawn from: the seed, hash of settings and commit of each run."""
    rows = {method: read_rows(path / "final" / ROWS)[0] for method, path in runs.items()}
    return "; ".join(f"{m} seed {r.seed}, settings {r.config_hash}, commit {r.commit}" for m, r in rows.items())


def _kept(file: Path, source: str, draw: Callable[[], tuple[Figure, str]] | None, caption: str) -> Block:
    """The picture in a file, drawn first if the file is missing or shows other runs; or why it cannot be drawn."""
    info = _info(file)
    if draw and info.get("Source") != source:
        try:
            figure, alt = draw()
        except (UserError, RunStopped, OSError) as error:
            return Text(f"Not drawn: {one_line(error)}", missing=True)
        info = {"Description": alt, "Source": source}
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as part:
            figure.savefig(part, format="png", dpi=DPI, metadata=info)
    if not info:
        return Text(
            f"Not drawn: the run folders are not here, and neither is {file.name} from an earlier report.", missing=True
        )
    return Picture(f"{caption} Runs: {info['Source']}.", file, info["Description"])


def _info(file: Path) -> dict[str, str]:
    """The texts inside a picture that was drawn here; empty if the file is missing or damaged."""
    try:
        with Image.open(file) as image:
            return {key: image.info[key] for key in ("Description", "Source") if key in image.info}
    except OSError:
        return {}


def _richest(prompts: list[Prompt]) -> Prompt:
    return max(prompts, key=lambda prompt: len(prompt.spans))


def spread(count: int) -> np.ndarray:
    """Indices of :data:`PROMPTS` items at equal distances among ``count``, all if there are fewer: not chosen by eye."""
    return np.unique(np.linspace(0, count - 1, min(PROMPTS, count)).round().astype(int))


def _strip(prompt: Prompt, images: list[np.ndarray], maps: list[np.ndarray], trained: range) -> tuple[Figure, str]:
    steps, highest = len(maps[0]), max(float(weights.max()) for weights in maps)
    lines = -(-steps // PER_LINE)
    with matplotlib.rc_context(PLAIN):
        figure = Figure(figsize=(5.6, 0.9 + 2.55 * lines), layout="constrained")
        axes = figure.subplots(2 * lines, PER_LINE + 1)
        figure.suptitle(prompt.text, fontsize=10, x=0.01, ha="left")
        for axis in axes.flat:
            axis.set_axis_off()
        for row in range(2 * lines):
            axes[row, 0].imshow(images[row % 2], interpolation="nearest")
            axes[row, 0].set_title(("before", "after")[row % 2])
            for step in range(row // 2 * PER_LINE, min(steps, (row // 2 + 1) * PER_LINE)):
                axis = axes[row, step % PER_LINE + 1]
                shown = axis.imshow(maps[row % 2][step], cmap="magma", vmin=0, vmax=highest)
                axis.set_title(f"step {step + 1}", weight="bold" if step in trained else "normal")
        figure.colorbar(shown, ax=axes, location="bottom", shrink=0.5, aspect=40, label="weight")
    return figure, (
        f"Two rows of {steps} maps for the prompt “{prompt.text}”, above of the base and below of the model that STAR "
        f"trained, each after the finished image. Weights reach {maps[0].max():.1f} times the mean before and "
        f"{maps[1].max():.1f} after training; the steps' mean weights go from {_per_step(maps[0])} before and from "
        f"{_per_step(maps[1])} after."
    )


def _per_step(weights: np.ndarray) -> str:
    means = weights.mean((1, 2))
    return f"{means[0]:.2f} at the first to {means[-1]:.2f} at the last"


def grid(rows: Mapping[str, Sequence[tuple[np.ndarray, str]]]) -> Figure:
    """Images side by side, each with the words below it, a row per prompt."""
    across = max(map(len, rows.values()))
    with matplotlib.rc_context(PLAIN):
        figure = Figure(figsize=(1.25 * across, 1.75 * len(rows)))
        axes = figure.subplots(len(rows), across, squeeze=False)
        for line, (prompt, cells) in zip(axes, rows.items(), strict=True):
            for axis, (image, told) in zip(line, cells, strict=True):
                axis.imshow(image, interpolation="nearest")
                axis.set(xticks=[], yticks=[])
                axis.set_xlabel(told, labelpad=3)
                axis.spines[:].set_visible(False)
            line[0].set_title(prompt.removeprefix("a photo of "), fontsize=9, loc="left", pad=3)
        figure.subplots_adjust(left=0.01, right=0.99, bottom=0.03, top=0.975, hspace=0.4, wspace=0.05)
    return figure


def _grid(folders: Mapping[str, Path], column: str) -> tuple[Figure, str]:
    """Samples of the methods side by side, a row per prompt, with the verdicts of a column of ``images.csv``.

    Raises:
        UserError: a folder lacks the sample of a prompt, or the methods' prompts differ.
    """
    verdicts = {method: _first_images(folder, column) for method, folder in folders.items()}
    files = {method: visible((folder / "samples").glob("*.png")) for method, folder in folders.items()}
    prompts = list(next(iter(verdicts.values())).index)
    if any(list(verdicts[method].index) != prompts or len(files[method]) != len(prompts) for method in folders):
        raise UserError("the run folders do not have a sample of each of the same prompts")
    chosen = spread(len(prompts))

    def cell(method: str, number: int) -> tuple[np.ndarray, str]:
        with Image.open(files[method][number]) as image:
            return np.asarray(image), f"{method_label(method)}: {_verdict(verdicts[method].iloc[number])}"

    figure = grid({prompts[number]: [cell(method, number) for method in folders] for number in chosen})
    listed = "; ".join(
        f"“{prompts[number]}”: " + ", ".join(f"{method_label(m)} {_verdict(verdicts[m].iloc[number])}" for m in folders)
        for number in chosen
    )
    return figure, f"Samples of {', '.join(method_label(m) for m in folders)} side by side. {listed}."


def _first_images(folder: Path, column: str) -> pd.Series:
    """Prompt -> the verdict on its first image, in the order of the samples."""
    table = parse_csv(folder / VERDICTS, **TYPED)
    if column not in table:
        raise UserError("the methods were judged by different evaluators")
    return table[table["image"] == 0].drop_duplicates("prompt").set_index("prompt")[column].sort_index()


def _verdict(value: bool | float) -> str:
    if isinstance(value, bool | np.bool_):
        return "right" if value else "wrong"
    return f"{value:.2f}"
