"""``star demo``: what training does and where STAR's reward goes, in a minute, with adapters shipped for the small model."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from evaluators.geneval.evaluator import GenEval
from star.common.console import note
from star.common.errors import UserError
from star.common.files import check_file, replacing, write_text
from star.common.launched import check_alone
from star.common.numbers import with_error
from star.common.processes import joined
from star.common.shipped import WEIGHTS
from star.config import Config, load
from star.models import lora
from star.models.interface import BaseModel
from star.records.names import method_label
from star.report.blocks import Page, Picture, Section, Table, Text, to_html
from star.report.maps import denoised, drawn_weights
from star.report.pictures import grid, spread
from star.tasks import Prompt, load_task
from star.training.evaluation import Evaluation, evaluate
from star.training.machine import loaded

ADAPTERS = WEIGHTS / "demo"
METHODS = ("flow_grpo", "star")
METRICS = {"geneval_official_macro": "GenEval, official macro", "geneval_strict_macro": "strict macro"}
TITLE = "STAR and Flow-GRPO on the embedded small model"
INTRODUCTION = (
    "A small text-to-image model of SD3.5's kind draws the held-out prompts of its world, as it was before and as it is after "
    "reinforcement learning for GenEval, by Flow-GRPO and by STAR. Flow-GRPO gives every position of a picture the same "
    "reward; STAR gives more of it where the picture attends to the prompt's core words. One training of each does not say "
    "which is better: `results/mini/report.md` has several of each, and `star reproduce geneval seed=0..7` makes as many here."
)


@dataclass(frozen=True)
class Demo:
    """What was drawn.

    Attributes:
        page: the file to open.
        rows: per method its name and a text per score.
    """

    page: Path
    rows: list[list[str]]


def demo(folder: Path, overrides: Sequence[str]) -> Demo:
    """Draw and judge one image of every held-out prompt with each method, and write a page with pictures and maps.

    Args:
        folder: for ``index.html`` and its picture; is created.
        overrides: settings, e.g. ``evaluation.steps=8``.

    Raises:
        UserError: a setting cannot be used, or makes a model that the adapters do not fit; the folder cannot be written to,
            or has another page; or there are several processes.
    """
    check_alone("star demo")
    page, picture = folder / "index.html", folder / "pictures.png"
    _check_place(page, picture)
    config = load(["task=geneval", *overrides], own_folder=False)
    task, accelerator = load_task(config, config.task.name), joined()
    if not isinstance(task.evaluator, GenEval):
        raise UserError(
            f"star demo shows GenEval's scores, and {task.evaluator.protocol} gives others; leave task and evaluators out"
        )
    base = loaded(config)
    adapters = {method: lora.read(ADAPTERS / method).values(base) for method in METHODS}
    found: dict[str, Evaluation] = {}
    for method in ("base", *METHODS):
        note(f"{method_label(method)}, model {1 + len(found)} of {1 + len(METHODS)}")
        with base.weights(adapters[method]) if method in adapters else nullcontext():
            found[method] = evaluate(base, task, config, 1, accelerator)
    prompts = _chosen(task.test)
    maps = {prompt.text: _map(base, config, prompt) for prompt in prompts}
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(picture) as part:
        _drawn(found, maps).savefig(part, format="png", dpi=110)
    rows = [[method_label(method), *_scores(evaluation)] for method, evaluation in found.items()]
    write_text(page, to_html(_page(rows, picture, prompts, _reasons(found, prompts))))
    return Demo(page, rows)


def _check_place(page: Path, picture: Path) -> None:
    """Check, before the work, that page and picture can be written and would replace nothing else."""
    check_file(page, "the page")
    check_file(picture, "the page's picture")
    ours = page.exists() and TITLE in page.read_text(errors="replace")
    if not ours and (there := [file for file in (page, picture) if file.exists()]):
        raise UserError(f"{there[0]} is not of this command and would be overwritten; name another folder with --out")


def _chosen(prompts: Sequence[Prompt]) -> list[Prompt]:
    """Evenly spaced prompts in alphabetical order."""
    ordered = sorted(prompts, key=lambda prompt: prompt.text)
    return [ordered[place] for place in spread(len(ordered))]


def _map(base: BaseModel, config: Config, prompt: Prompt) -> np.ndarray:
    """STAR's weights (h, w) for a prompt under the base's parameters, averaged over the steps that training may use."""
    _, relevance = denoised(base, config, prompt)
    steps = config.sampling.trainable
    mean: np.ndarray = drawn_weights(config, relevance[steps.start : steps.stop]).mean(0)
    return mean


def _scores(evaluation: Evaluation) -> list[str]:
    scores = {score.metric: score for score in evaluation.scores}
    return [with_error(scores[metric].value, scores[metric].stderr) for metric in METRICS]


def _drawn(found: Mapping[str, Evaluation], maps: Mapping[str, np.ndarray]) -> Figure:
    """A row per prompt: the image of each method with its verdict, and the map."""
    right = {method: {row["prompt"]: row["correct"] for row in evaluation.rows} for method, evaluation in found.items()}
    highest = max(float(weights.max()) for weights in maps.values())
    rows = {}
    for text, weights in maps.items():
        images = [(found[m].samples[text], f"{method_label(m)}: {'right' if right[m][text] else 'wrong'}") for m in found]
        rows[text] = [*images, (matplotlib.colormaps["magma"](weights / highest), f"weights up to {weights.max():.1f}")]
    return grid(rows)


def _reasons(found: Mapping[str, Evaluation], prompts: Sequence[Prompt]) -> list[list[str]]:
    """What the detector says about the pictured images that are wrong: prompt, method, reason."""
    return [
        [prompt.text.removeprefix("a photo of "), method_label(method), row["reason"].replace("\n", "; ")]
        for prompt in prompts
        for method, evaluation in found.items()
        for row in evaluation.rows
        if row["prompt"] == prompt.text and not row["correct"]
    ]


def _page(rows: Sequence[Sequence[str]], picture: Path, prompts: Sequence[Prompt], reasons: Sequence[Sequence[str]]) -> Page:
    head = ["method", *METRICS.values()]
    caption = (
        "The same noise for every method; prompts at equal distances in alphabetical order. Right: STAR's weights (mean 1) at "
        "the steps that training uses, bright where the reward counts most."
    )
    alt = "Images of base, Flow-GRPO and STAR and STAR's weights for: " + "; ".join(prompt.text for prompt in prompts) + "."
    why = Table("What the detector says of those that are wrong", ["prompt", "method", "reason"], reasons, numbers=3)
    images = Section("pictures", "Before and after, and where the reward goes", [Picture(caption, picture, alt), why])
    what = "One image of each held-out prompt, ± standard error over prompts"
    scores = Section("scores", "Scores", [Table(what, head, rows)])
    return Page(
        title=TITLE,
        subtitle="An open reproduction of STAR (arXiv 2606.17979).",
        warning="These numbers are the small model's, with its own prompts and evaluator.",
        sections=[Section("what", "What this is", [Text(INTRODUCTION)]), scores, images],
    )
