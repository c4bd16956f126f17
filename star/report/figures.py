"""Pictures of results: rewards while training, paired differences, scores seed by seed.

Figures in a page are SVGs that are never shown wider than drawn, with text as text and ink in the page's colour, so that they
are sharp, readable on a phone, and right on a dark background.
"""

import html
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from star.common.files import replacing
from star.common.statistics import Estimate
from star.method.arms import ARMS
from star.records.learning_curves import WINDOW, running_mean

COLORS = tuple(arm.colour for arm in ARMS.values() if arm.colour)
DASHES = ("-", "--", ":")
INK = "#123456"
"""Stands for the colour of the page's text until the SVG is written."""

PLAIN_TEXT: Any = {"text.parse_math": False}
"""Dollar signs in prompts and names do not mark mathematics."""

INKED: Any = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
STYLE: Any = {
    **PLAIN_TEXT,
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    **dict.fromkeys(INKED, INK),
    **dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor", "legend.facecolor"), "none"),
}
POINTS_PER_INCH = 72

Curve = tuple[Sequence[float], Sequence[float]]
"""(cost, reward) of one run, epoch by epoch."""

Panel = Mapping[str, Mapping[str, Estimate]]
"""Row -> series -> number."""


def reward_curves(runs: Mapping[str, Sequence[Curve]], colors: Sequence[str], title: str, file: Path) -> None:
    """Training reward over images seen, as a PNG: every epoch as a dot, the mean of the last epochs as a line.

    Args:
        runs: method -> the curve of each seed.
        colors: of the methods; of those that share one, such as an arm and its variants, the later ones are dashed.
        title: above the picture.
        file: where to write.
    """
    with matplotlib.rc_context(PLAIN_TEXT):
        figure = Figure(figsize=(6.4, 3.6))
        axis = figure.subplots()
        for place, ((label, curves), color) in enumerate(zip(runs.items(), colors, strict=True)):
            style = DASHES[colors[:place].count(color) % len(DASHES)]
            for number, curve in enumerate(curves):
                axis.plot(*curve, ".", color=color, alpha=0.3 / len(curves) ** 0.5)
                axis.plot(*_smooth(curve), style, color=color, label="" if number else label)
        axis.set_xlabel("images seen")
        axis.set_ylabel(f"training reward (line: mean of {WINDOW} epochs)")
        axis.set_title(title, loc="left", fontsize=10)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False)
        figure.tight_layout()
        with replacing(file) as part:
            figure.savefig(part, dpi=150, format="png")


def color_of(place: int) -> str:
    """The colour of the series at that index; ink where the colours run out."""
    return COLORS[place] if place < len(COLORS) else INK


def curves_svg(
    curves: Mapping[int, Curve], reference: Mapping[int, Curve], color: str, limits: tuple[float, float], alt: str
) -> str:
    """Training reward of one arm over images seen: a line per seed, and those of a reference arm thin and dashed.

    Lines are running means of :data:`star.records.learning_curves.WINDOW` epochs, with the seed written at the end.

    Args:
        curves: seed -> its curve.
        reference: the same of another arm; may be empty.
        color: of the arm.
        limits: of the reward axis, the same for figures that stand side by side.
        alt: text alternative.
    """
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": alt}):
        figure = Figure(figsize=(3.4, 2.3))
        axis = figure.subplots()
        for curve in reference.values():
            axis.plot(*_smooth(curve), color=INK, lw=0.8, ls="--", alpha=0.6)
        lines = {str(seed): _smooth(curve) for seed, curve in curves.items()}
        for line in lines.values():
            axis.plot(*line, color=color, lw=1.4)
        axis.set_ylim(limits)
        _name_ends(axis, lines)
        axis.set_xlabel("images seen")
        axis.set_ylabel("training reward")
        return to_svg(figure, alt)


def leads_svg(leads: Mapping[str, Curve], colors: Sequence[str], alt: str) -> str:
    """How far arms are ahead of another, epoch by epoch: a line per arm with its name at the end, around a line at 0.

    Lines are running means of :data:`star.records.learning_curves.WINDOW` epochs.

    Args:
        leads: arm -> (epochs, leads).
        colors: of the arms.
        alt: text alternative.
    """
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": alt}):
        figure = Figure(figsize=(4.6, 2.6))
        axis = figure.subplots()
        axis.axhline(0, color=INK, lw=0.8, ls="--")
        lines = {arm: _smooth(lead) for arm, lead in leads.items()}
        for line, color in zip(lines.values(), colors, strict=True):
            axis.plot(*line, color=color, lw=1.4)
        _name_ends(axis, lines)
        axis.set_xlabel("epochs")
        axis.set_ylabel("reward minus Flow-GRPO's")
        return to_svg(figure, alt)


def forest_svg(rows: Sequence[tuple[str, Estimate, Sequence[float]]], xlabel: str, alt: str) -> str:
    """Differences with their intervals, one above the other, around a line at 0.

    Args:
        rows: (label, difference, the difference of each seed), from top to bottom.
        xlabel: says what minus what, and in which unit.
        alt: text alternative.
    """
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": alt}):
        figure = Figure(figsize=(3.8, 0.7 + 0.36 * len(rows)))
        axis = figure.subplots()
        axis.axvline(0, color=INK, lw=0.8, ls="--")
        for place, (_, delta, seeds) in enumerate(rows):
            axis.plot(seeds, [place - 0.25] * len(seeds), "|", color=INK, ms=5, alpha=0.7)
            if delta.interval:
                axis.plot(delta.interval, [place, place], color=COLORS[0], lw=2)
            axis.plot(delta.value, place, "o", color=COLORS[0], ms=5)
        _rows(axis, [label for label, *_ in rows])
        axis.set_xlabel(xlabel)
        return to_svg(figure, alt)


def dots_svg(
    rows: Mapping[str, Mapping[str, Sequence[float]]], xlabel: str, alt: str, line: tuple[str, float] | None = None
) -> str:
    """Every seed's score as a dot and their mean as a bar, row by row.

    Args:
        rows: row -> series -> the values of its seeds. Several series are told apart by colour, place and a legend.
        xlabel: of the values.
        alt: text alternative.
        line: (label, value) of a line to compare with.
    """
    series = list(dict.fromkeys(name for values in rows.values() for name in values))
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": alt}):
        figure = Figure(figsize=(3.8, 0.7 + len(rows) * (0.2 + 0.13 * len(series)) + 0.22 * (len(series) > 1) * len(series)))
        axis = figure.subplots()
        if line:
            axis.axvline(line[1], color=INK, lw=0.8, ls="--", label=line[0])
        for number, name in enumerate(series):
            offset = 0.7 * ((number + 0.5) / len(series) - 0.5)
            for place, values in enumerate(rows.values()):
                own = values.get(name, ())
                heights = [place + offset] * len(own)
                axis.plot(own, heights, "o", color=color_of(number), ms=4, alpha=0.6, mew=0, label="" if place else name)
                if len(own):
                    axis.plot(sum(own) / len(own), place + offset, "|", color=color_of(number), ms=8, mew=2)
        _rows(axis, list(rows))
        axis.set_xlabel(xlabel)
        if len(series) > 1 or line:
            axis.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=2, fontsize=8)
        return to_svg(figure, alt)


def multiples_svg(panel: Panel, series: Sequence[str], alt: str) -> str:
    """Numbers and their intervals, row by row, around a line at 1; series are told apart by colour, place and a legend.

    Args:
        panel: row -> series -> number.
        series: all of them, in the order of the legend.
        alt: text alternative.
    """
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": alt}):
        figure = Figure(figsize=(3.8, 1.1 + 0.5 * len(panel)))
        axis = figure.subplots()
        _multiples(axis, panel, series)
        axis.legend(frameon=False, loc="lower left", bbox_to_anchor=(-0.3, 1), ncols=2, fontsize=8)
        return to_svg(figure, alt)


def multiples_png(panels: Mapping[str, Panel], series: Sequence[str], file: Path) -> None:
    """The panels of several tasks side by side, as a PNG with one legend.

    Args:
        panels: title -> panel, as for :func:`multiples_svg`.
        series: of all panels.
        file: where to write; its folder must exist.
    """
    rows = list(dict.fromkeys(row for panel in panels.values() for row in panel))
    with matplotlib.rc_context({**STYLE, **dict.fromkeys(INKED, "black")}):
        figure = Figure(figsize=(3.4 * len(panels), 1.2 + 0.5 * len(rows)), layout="constrained", facecolor="white")
        axes = np.atleast_1d(figure.subplots(1, len(panels), sharey=True, sharex=True))
        for axis, (title, panel) in zip(axes, panels.items(), strict=True):
            _multiples(axis, {row: panel.get(row, {}) for row in rows}, series)
            axis.set_title(title, loc="left", fontsize=10)
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper left", frameon=False, ncols=len(series))
        with replacing(file) as part:
            figure.savefig(part, dpi=150, format="png")


def _multiples(axis: Axes, panel: Panel, series: Sequence[str]) -> None:
    axis.axvline(1, color=matplotlib.rcParams["text.color"], lw=0.8, ls="--")
    for number, name in enumerate(series):
        offset = 0.6 * ((number + 0.5) / len(series) - 0.5)
        color = color_of(number)
        axis.plot([], [], "o-", color=color, ms=4, label=name)
        for place, row in enumerate(panel.values()):
            if gain := row.get(name):
                axis.plot(gain.value, place + offset, "o", color=color, ms=4)
                if gain.interval:
                    axis.plot(gain.interval, [place + offset] * 2, color=color, lw=1.6)
    _rows(axis, list(panel))
    axis.set_xlabel("gain, Flow-GRPO's = 1")


def to_svg(figure: Figure, alt: str) -> str:
    """A figure as an SVG element for a page, marked as an image: as wide as the page allows, but not wider than drawn."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # Ids of groups ("axes_1") would repeat from figure to figure, and nothing refers to them; ids in use are hashes.
    svg = re.sub(r'<g id="[^"]*"', "<g", svg).replace(INK, "currentColor")
    size = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)
    assert size, "matplotlib gives every SVG a viewBox"
    width = float(size[1]) / POINTS_PER_INCH
    opening = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" role="img" '
        f'aria-label="{html.escape(alt)}" {size[0]} style="width: 100%; max-width: {width:.2f}in; height: auto">'
    )
    return re.sub(r"<svg[^>]*>", lambda _: opening, svg, count=1)


def _smooth(curve: Curve) -> tuple[np.ndarray, np.ndarray]:
    """The running mean of a curve, each value at the cost of its last epoch; a curve shorter than the window as it is."""
    costs, rewards = (np.asarray(values, dtype=np.float64) for values in curve)
    mean = running_mean(rewards)
    return (costs[WINDOW - 1 :], mean) if len(mean) else (costs, rewards)


def _name_ends(axis: Axes, curves: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> None:
    """Write each curve's name at its end, with the names far enough apart to be read."""
    low, high = axis.get_ylim()
    place = -np.inf
    for name, (costs, rewards) in sorted(curves.items(), key=lambda item: item[1][1][-1]):
        place = max(rewards[-1], place + 0.08 * (high - low))
        spot = (costs[-1], place)
        axis.annotate(name, spot, (4, 0), textcoords="offset points", va="center", fontsize=8, annotation_clip=False)


def _rows(axis: Axes, labels: Sequence[str]) -> None:
    """Label rows 0, 1, ... from the top."""
    axis.set_yticks(range(len(labels)), labels)
    axis.set_ylim(len(labels) - 0.5, -0.5)
    axis.tick_params(axis="y", length=0)
    axis.locator_params(axis="x", nbins=5)
    axis.spines["left"].set_visible(False)
    axis.grid(axis="x", color=INK, alpha=0.15, lw=0.6)
