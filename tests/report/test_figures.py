"""The drawings of a report: what is in them, read from the SVG."""

import re
import xml.etree.ElementTree as ET
from itertools import pairwise

import pytest

from star.common.statistics import Estimate
from star.report.figures import INK, curves_svg, dots_svg, forest_svg

SVG = "{http://www.w3.org/2000/svg}"
ROWS = [("STAR", Estimate(0.1, 0.02, (0.05, 0.15)), (0.08, 0.12)), ("a <b> & c", Estimate(-0.1, None, None), ())]
CURVES = {0: (range(100, 900, 100), [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]), 3: ([100, 200], [0.2, 0.4])}
DRAWINGS = {
    "forest": lambda alt: forest_svg(ROWS, "accuracy, minus Flow-GRPO", alt),
    "curves": lambda alt: curves_svg(CURVES, {1: CURVES[0]}, "#D55E00", (0, 1), alt),
    "dots": lambda alt: dots_svg({"counting": {"base": [0.1], "STAR": (0.2, 0.4)}, "colors": {"STAR": [0.3]}}, "share", alt),
}


def texts(svg: str) -> list[str]:
    return ["".join(element.itertext()).strip() for element in ET.fromstring(svg).iter(f"{SVG}text")]


def lines(svg: str) -> list[list[tuple[float, float]]]:
    """The points of every path that is a curve: two points or more, not filled."""
    found = []
    for path in ET.fromstring(svg).iter(f"{SVG}path"):
        points = re.findall(r"([-\d.]+) ([-\d.]+)", path.get("d", ""))
        if len(points) > 1 and "fill: none" in path.get("style", "") and "clip-path" in path.attrib:
            found.append([(float(x), float(y)) for x, y in points])
    return found


@pytest.mark.parametrize("draw", DRAWINGS.values(), ids=DRAWINGS)
def test_every_drawing_is_a_named_image_that_fits_a_page(draw):
    svg = draw('5 < 6 & "so on"')
    root = ET.fromstring(svg)
    assert (root.tag, root.get("role"), root.get("aria-label")) == (f"{SVG}svg", "img", '5 < 6 & "so on"')
    assert root.get("width") is None and "max-width" in root.get("style") and root.get("viewBox")
    assert INK not in svg and "currentColor" in svg
    assert "2026" not in svg and "<metadata" not in svg
    assert svg == draw('5 < 6 & "so on"')


def test_drawings_on_one_page_share_no_ids():
    pages = [re.findall(r' id="([^"]+)"', draw(name)) for name, draw in DRAWINGS.items()]
    ids = [name for page in pages for name in page]
    assert len(ids) == len(set(ids)) and ids


def test_forest_has_a_row_per_arm_from_the_top_and_an_interval_where_there_is_one():
    svg = forest_svg(ROWS, "accuracy, minus Flow-GRPO", "forest")
    assert [text for text in texts(svg) if text in ("STAR", "a <b> & c", "accuracy, minus Flow-GRPO")] == [
        *("accuracy, minus Flow-GRPO", "STAR", "a <b> & c"),
    ]
    (interval,) = [points for points in lines(svg) if points[0][1] == points[1][1]]
    heights = {"".join(text.itertext()).strip(): float(text.get("y")) for text in ET.fromstring(svg).iter(f"{SVG}text")}
    assert heights["STAR"] < heights["a <b> & c"] and abs(heights["STAR"] - interval[0][1]) < 8
    (zero,) = {points[0][0] for points in lines(svg) if points[0][0] == points[1][0] and points[0][0] < interval[0][0]} & {
        max(p[0][0] for p in lines(svg) if p[0][0] == p[1][0] and p[0][0] < interval[0][0])
    }
    # 0 to 0.05 is half as far as 0.05 to 0.15
    assert interval[0][0] - zero == pytest.approx((interval[1][0] - interval[0][0]) / 2, rel=1e-3)


def test_curves_are_running_means_and_short_runs_are_shown_as_they_are():
    svg = curves_svg(CURVES, {}, "#D55E00", (0, 1), "curves")
    assert sorted(len(points) for points in lines(svg)) == [2, 4]
    long = max(lines(svg), key=len)
    steps = [long[i + 1][1] - long[i][1] for i in range(3)]
    assert steps == pytest.approx([steps[0]] * 3, rel=1e-3) and steps[0] < 0
    assert [text for text in texts(svg) if text in ("0", "3")] == ["3", "0"]  # the seeds, from the lowest end
    alike = curves_svg(dict.fromkeys(range(4), CURVES[0]), {}, "#D55E00", (0, 0.6), "alike")
    places = [float(y) for y in re.findall(r' y="([-\d.]+)"[^>]*>[0-3]</text>', alike)]
    assert len(places) == 4 and min(abs(a - b) for a, b in pairwise(places)) > 8  # readable, also above the axis
    with_reference = curves_svg(CURVES, {1: CURVES[0]}, "#D55E00", (0, 1), "curves")
    assert sorted(len(points) for points in lines(with_reference)) == [2, 4, 4]


def test_dots_name_their_series_and_their_line():
    svg = dots_svg({"counting": {"base": [0.1], "STAR": [0.2]}}, "share", "dots", ("before", 0.3))
    assert {"base", "STAR", "before", "counting", "share"} <= set(texts(svg))
    assert "seeds" not in texts(dots_svg({"STAR": {"seeds": [0.2, 0.3]}}, "share", "dots"))
