"""Summaries, tables and the comparison with a reference, on files small enough to work out by hand."""

import json
import math
import re
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest
from scipy import stats

from star.common.errors import UserError
from star.common.statistics import Estimate, wilson
from star.records import diff as diff_module
from star.records.diff import (
    against_paper,
    as_published,
    diff,
    difference,
    exit_code,
    find_paper,
    main_rows,
    published_estimate,
    run,
    to_json,
    verdict,
)
from star.records.names import is_mini
from star.records.results import PaperRow, Row, write
from star.records.summary import summarise
from star.records.tables import markdown

MACRO = "geneval_official_macro"
CLIP = "clip-vit-large-patch14@32bd6428-quick_gelu-fp32"
PAPER_SCALE = f"geneval-v1/mask2former-743b7d99+{CLIP}/paper"
MINI = "geneval-v1/mini-detector/mini"
ROW = Row("geneval", MACRO, PAPER_SCALE, "star", 0, 0.97, 0.005, 2212, 553, 100, 1000, 60.0, "abc", "def")
PUBLISHED = PaperRow("geneval", MACRO, "unstated mean", "star", Decimal("0.9759"), None, None, None, None, "STAR", "a note")
PAPER_TEXT = f"""task,metric,protocol,method,value,images,prompts,updates,images_seen,source,note
geneval,{MACRO},GenEval,base,0.63,2212,553,,,Flow-GRPO Table 1,
geneval,{MACRO},GenEval,flow_grpo,0.95,2212,553,,,Flow-GRPO Table 1,
geneval,{MACRO},unstated mean,star,0.9759,,,,,STAR,a note
geneval,{MACRO},unstated mean,spatial,,,,,,STAR,no number known
geneval,{MACRO},unstated mean,dense_grpo,0.97,,,,,DenseGRPO,
ocr,ocr_accuracy,OCR,star,0.9757,,,,,STAR,
"""


@pytest.fixture
def paper(tmp_path) -> Path:
    path = tmp_path / "paper.csv"
    path.write_text(PAPER_TEXT)
    return path


def results(folder: Path, *rows: Row, name: str = "ours.csv") -> Path:
    write(rows, folder / name)
    return folder / name


def seeds(row: Row, *values: float) -> list[Row]:
    return [replace(row, seed=seed, value=value) for seed, value in enumerate(values)]


def statuses(rows) -> dict[str, str]:
    return {row.method: row.status for row in rows}


def test_summary_of_several_seeds_is_the_t_interval():
    values = [0.95, 0.97, 0.96]
    (summary,) = summarise(seeds(ROW, *values))
    expected = stats.t.interval(0.95, 2, loc=0.96, scale=stats.sem(values))
    assert summary.estimate.interval == pytest.approx(expected)
    assert (summary.values, summary.seeds, summary.images) == (tuple(values), 3, 2212)


@pytest.mark.parametrize("change", [{"images": 8}, {"prompts": 2}, {"updates": 50}, {"images_seen": 500}])
def test_seeds_of_another_length_or_size_are_left_out_and_told(tmp_path, capsys, change):
    rows = [ROW, replace(ROW, seed=1, value=0.1, **change), replace(ROW, seed=2)]
    (summary,) = summarise(rows)
    assert (summary.values, summary.pooled, summary.left_out) == ((ROW.value, ROW.value), (0, 2), (1,))
    shown = [getattr(summary, name) for name in ("images", "prompts", "updates", "images_seen")]
    assert shown == [ROW.images, ROW.prompts, ROW.updates, ROW.images_seen]
    diff(results(tmp_path, *rows), results(tmp_path, ROW, name="other.csv"))
    (line,) = capsys.readouterr().err.splitlines()
    assert "ours.csv: geneval, STAR: seed 1 had other numbers of updates, " in line and "than seeds 0, 2; the means" in line
    assert "STAR: seed 1 had other numbers" in markdown(rows, [])


def test_an_evaluator_of_ones_own_may_average_over_other_images_for_each_seed():
    whole = seeds(replace(ROW, metric="mine"), 0.1, 0.2)
    (summary,) = summarise([*whole, *(replace(row, metric="found", images=4 - row.seed) for row in whole)])[:1]
    assert summary.seeds == 2 and not summary.left_out and summary.images == 3


def test_seeds_that_agree_by_chance_are_as_sure_as_one():
    rows = [replace(ROW, seed=seed, stderr=stderr) for seed, stderr in ((0, 0.004), (1, 0.006))]
    (summary,) = summarise(rows)
    assert (summary.estimate.stderr, summary.seeds) == (0.005, 2)
    assert summary.estimate.interval == pytest.approx(stats.norm.interval(0.95, 0.97, 0.005))
    (summary,) = summarise([replace(row, stderr=None) for row in rows])
    assert summary.estimate == Estimate(0.97, None, None), "without errors of their own nothing tells how sure they are"


@pytest.mark.parametrize(("metric", "value", "stderr"), [("image_reward", 1.0, 0.3), ("diversity", 0.0, 0.01)])
def test_seeds_that_agree_on_what_is_no_rate_are_no_perfect_rate(metric, value, stderr):
    (summary,) = summarise([replace(ROW, metric=metric, value=value, seed=seed, stderr=stderr) for seed in (0, 1)])
    assert summary.estimate.interval == pytest.approx(stats.norm.interval(0.95, value, stderr))
    (summary,) = summarise([replace(ROW, metric=metric, value=value, seed=seed, stderr=None) for seed in (0, 1)])
    assert summary.estimate == Estimate(value, None, None)


@pytest.mark.parametrize("value", [0.1, 0.7, 23.6])
def test_seeds_that_agree_have_no_spread_of_rounding(value):
    rows = [replace(ROW, seed=seed, value=value, stderr=0.01) for seed in range(3)]
    (summary,) = summarise(rows)
    assert (summary.estimate.value, summary.estimate.stderr) == (value, pytest.approx(0.01))


def test_summary_of_one_seed_is_its_standard_error():
    (summary,) = summarise([ROW])
    assert summary.estimate.interval == pytest.approx(stats.norm.interval(0.95, 0.97, 0.005))
    (summary,) = summarise([replace(ROW, stderr=None)])
    assert summary.estimate == Estimate(0.97, None, None)


@pytest.mark.parametrize("rows", [[replace(ROW, value=1.0, stderr=0.0)], seeds(ROW, 1.0, 1.0, 1.0)])
def test_summary_of_a_perfect_rate_is_wilsons(rows):
    (summary,) = summarise(rows)
    assert summary.estimate.interval == wilson(553, 553)


def test_summaries_keep_protocols_and_methods_apart():
    rows = [*seeds(ROW, 0.9, 0.8), replace(ROW, method="base"), replace(ROW, protocol=MINI)]
    assert [(s.method, s.protocol, s.seeds) for s in summarise(rows)] == [
        ("base", PAPER_SCALE, 1),
        ("star", PAPER_SCALE, 2),
        ("star", MINI, 1),
    ]


@pytest.mark.parametrize("protocol, mini", [(MINI, True), (PAPER_SCALE, False), ("ocr-v1/rapidocr/mini", True)])
def test_mini_is_told_from_the_protocol(protocol, mini):
    assert is_mini(protocol) == mini


def test_a_model_of_any_size_scored_by_the_mini_detector_is_mini():
    assert is_mini("geneval-v1/mini-detector/paper") and not is_mini("geneval-v1/minimal/paper")


@pytest.mark.parametrize(
    "value, half_width, rounding, expected",
    [
        (0.0, None, 0.005, "reproduced"),
        (0.005, None, 0.005, "reproduced"),
        (0.0051, None, 0.005, "differs"),
        (0.95 + 0.005 - 0.95, None, 0.005, "reproduced"),  # a bit more than 0.005 in floating point
        (0.012, 0.02, 0.0, "reproduced"),
        (0.012, 0.0201, 0.0, "within noise"),
        (0.0, 0.3, 0.005, "within noise"),
        (-0.3, 0.3, 0.005, "within noise"),
        (-0.3051, 0.3, 0.005, "differs"),
        (0.025, 0.02, 0.005, "reproduced"),
        (0.0251, 0.02, 0.005, "differs"),
    ],
)
def test_verdict(value, half_width, rounding, expected):
    interval = None if half_width is None else (value - half_width, value + half_width)
    assert verdict(MACRO, Estimate(value, None, interval), rounding, half_width) == expected


def test_verdict_looks_at_both_sides_of_a_lopsided_interval():
    """All of 80 right: Wilson's interval reaches down to 0.954, but not up."""
    ours = Estimate(1.0, 0.0, wilson(80, 80))
    for published, expected in ((0.96, "within noise"), (0.94, "differs")):
        delta = difference(ours, Estimate(published, 0.0, (published, published)))
        assert delta.interval == pytest.approx((wilson(80, 80)[0] - published, 1.0 - published))
        assert verdict("geneval_official_counting", delta, 0.005, delta.half_width) == expected


def test_scores_that_are_not_rates_have_a_wider_resolution():
    delta = Estimate(0.01, None, (-0.03, 0.05))
    assert verdict("pickscore", delta, 0.005, delta.half_width) == "reproduced"
    assert verdict("ocr_accuracy", delta, 0.005, delta.half_width) == "within noise"
    assert verdict("pickscore", delta, 0.005, 0.051) == "within noise"


def test_difference_of_normal_intervals_adds_variances():
    ours = Estimate(0.9, 0.03, (0.9 - 1.96 * 0.03, 0.9 + 1.96 * 0.03))
    theirs = Estimate(0.8, 0.04, (0.8 - 1.96 * 0.04, 0.8 + 1.96 * 0.04))
    delta = difference(ours, theirs)
    assert delta.value == pytest.approx(0.1)
    assert delta.interval == pytest.approx((0.1 - 1.96 * 0.05, 0.1 + 1.96 * 0.05))
    assert difference(ours, Estimate(0.8, None, None)).interval is None


def test_difference_of_wilson_intervals_is_newcombes_example():
    """Newcombe (1998), Table II, method 10: 56/70 - 48/80 gives 0.0524 to 0.3339; 10/10 - 0/10 gives 0.6075 to 1."""
    for (x, m), (y, n), expected in (((56, 70), (48, 80), (0.0524, 0.3339)), ((10, 10), (0, 10), (0.6075, 1.0))):
        one, other = Estimate(x / m, None, wilson(x, m)), Estimate(y / n, None, wilson(y, n))
        assert difference(one, other).interval == pytest.approx(expected, abs=5e-5)


def test_against_the_paper_every_status(tmp_path, paper):
    ours = results(
        tmp_path,
        *seeds(ROW, 0.975, 0.976, 0.977),
        *seeds(replace(ROW, method="flow_grpo"), 0.80, 0.81, 0.82),
        *seeds(replace(ROW, method="base"), 0.55, 0.63, 0.70),
        replace(ROW, method="star_shuffled"),
    )
    rows = diff(ours, paper)
    assert [(row.method, row.status) for row in rows] == [
        ("base", "within noise"),
        ("flow_grpo", "differs"),
        ("spatial", "not run"),
        ("star", "reproduced"),
        ("star_shuffled", "no paper value"),
        ("dense_grpo", "not run"),
    ]
    star = rows[3]
    assert (star.reference, star.source, star.note, star.seeds) == ("0.9759", "STAR", "a note", 3)
    assert star.delta == pytest.approx(0.0001)
    theirs = stats.norm.ppf(0.975) * 0.005  # as ours: STAR does not say how many prompts; the base does, and has as many
    assert star.delta_low == pytest.approx(star.delta - math.hypot(star.ours - star.low, theirs))
    assert exit_code(rows) == 1


def test_paper_rows_of_other_tasks_are_left_out_and_the_unknown_stay_without_verdict(tmp_path, paper):
    rows = diff(results(tmp_path, replace(ROW, method="spatial")), paper)
    assert {row.task for row in rows} == {"geneval"}
    assert statuses(rows)["spatial"] == "no paper value"
    assert exit_code(rows) == 0


def test_mini_is_never_compared_with_the_paper(tmp_path, paper):
    rows = diff(results(tmp_path, replace(ROW, protocol=MINI, value=0.1)), paper)
    (star,) = [row for row in rows if row.method == "star"]
    assert (star.status, star.delta, star.reference) == ("not comparable (mini)", None, "0.9759")
    assert exit_code(rows) == 0


@pytest.mark.parametrize(
    ("task", "protocol", "expected"),
    [
        ("geneval", "geneval-v1/mask2former-743b7d99+clip-vit-large-patch14@32bd6428-quick_gelu-fp32/paper", True),
        ("geneval", f"geneval-v1/mmdet-3.3.0-743b7d99+{CLIP}+flow_grpo_compat/paper", True),
        ("geneval", "geneval-v1/mask2former-743b7d99+open_clip-9ce2e8a8-quick_gelu-fp32/paper", True),
        ("geneval", f"geneval-v1/mask2former-0123abcd-unofficial+{CLIP}/paper", False),
        ("geneval", f"geneval-v1/proxy-hf-coco+{CLIP}/paper", False),
        ("geneval", f"geneval-v1/mask2former-743b7d99+{CLIP}/paper/steps=10", False),
        ("geneval", "geneval-v1/mask2former-743b7d99+clip-vit-base-patch32@3d74acf9-quick_gelu-fp32/paper", False),
        ("geneval", "geneval-v1/mask2former-743b7d99+open_clip-01234567-quick_gelu-fp32/paper", False),
        ("ocr", "ocr-v1/paddleocr-3.7.0+PP-OCRv4_mobile_det+en_PP-OCRv4_mobile_rec+flow_grpo_compat/paper", True),
        ("ocr", "ocr-v1/paddleocr-3.7.0+PP-OCRv6_small_det+PP-OCRv6_small_rec/paper", False),
        ("ocr", "ocr-v1/rapidocr-3.10.0/paper", False),
        ("pickscore", "pickscore-v1/PickScore_v1@a4e4367c/paper", True),
        ("pickscore", "pickscore-v1/my_clip@01234567/paper", False),
    ],
)
def test_what_stands_for_the_published_evaluation(task, protocol, expected):
    assert as_published(task, protocol) == expected


def test_proxies_get_no_verdict_beside_the_paper(tmp_path, paper):
    rows = diff(results(tmp_path, replace(ROW, protocol="geneval-v1/proxy-hf-coco+clip/paper", value=0.1)), paper)
    (star,) = [row for row in rows if row.method == "star"]
    assert (star.status, star.delta, star.reference) == ("not comparable (protocol)", None, "0.9759")
    assert exit_code(rows) == 0


def test_two_result_files(tmp_path):
    ours = results(tmp_path, *seeds(ROW, 0.90, 0.91, 0.92), replace(ROW, method="base"))
    theirs = results(tmp_path, *seeds(ROW, 0.97, 0.971, 0.972), replace(ROW, method="flow_grpo"), name="theirs.csv")
    rows = diff(ours, theirs)
    assert statuses(rows) == {"base": "no reference value", "flow_grpo": "not run", "star": "differs"}
    assert rows[-1].source == str(theirs) and rows[-1].delta == pytest.approx(-0.061)


def test_the_wider_interval_of_two_files_has_to_be_narrow(tmp_path):
    narrow, wide = results(tmp_path, ROW), results(tmp_path, replace(ROW, stderr=0.02), name="wide.csv")
    for pair in ((narrow, wide), (wide, narrow)):
        assert statuses(diff(*pair)) == {"star": "within noise"}


def test_a_file_agrees_with_itself(tmp_path):
    ours = results(tmp_path, *seeds(ROW, 0.90, 0.91, 0.92), replace(ROW, method="base", stderr=None))
    assert statuses(diff(ours, ours)) == {"base": "reproduced", "star": "within noise"}
    assert run(ours, ours, as_json=True) == 0


def test_two_mini_files_are_compared_and_other_protocols_are_not(tmp_path):
    mini = replace(ROW, protocol=MINI)
    ours = results(tmp_path, mini)
    assert statuses(diff(ours, results(tmp_path, mini, name="a.csv"))) == {"star": "reproduced"}
    assert statuses(diff(ours, results(tmp_path, ROW, name="b.csv"))) == {"star": "not comparable (mini)"}
    newer = replace(ROW, protocol=MINI.replace("v1", "v2"))
    assert statuses(diff(ours, results(tmp_path, newer, name="c.csv"))) == {"star": "not comparable (protocol)"}
    both = diff(ours, results(tmp_path, mini, newer, name="d.csv"))
    assert [(row.status, row.reference_protocol) for row in both] == [
        ("not run", newer.protocol),
        ("reproduced", MINI),
    ]


def test_main_rows_leave_out_other_systems_and_side_metrics_but_nothing_that_differs(tmp_path, paper):
    side = replace(ROW, metric="geneval_strict_micro")
    ours = results(tmp_path, ROW, side, replace(ROW, method="star_random"))
    assert [(row.method, row.metric) for row in main_rows(diff(ours, paper))] == [
        ("base", MACRO),
        ("flow_grpo", MACRO),
        ("spatial", MACRO),
        ("star", MACRO),
        ("star_random", MACRO),
    ]
    other = results(tmp_path, replace(side, value=0.5), name="other.csv")
    assert [row.metric for row in main_rows(diff(ours, other)) if row.status == "differs"] == ["geneval_strict_micro"]


def test_of_what_the_reference_lacks_the_main_metric_alone_is_shown(tmp_path, paper):
    tag = "geneval_single_object"
    own = [replace(ROW, method=method, metric=metric) for method in ("star", "star_random") for metric in (MACRO, tag)]
    ours = results(tmp_path, *own, replace(ROW, method="star:pickscore"))
    rows = main_rows(diff(ours, paper))
    assert [(row.method, row.metric) for row in rows if row.seeds] == [("star", MACRO), ("star_random", MACRO)]
    assert {row.status for row in rows} == {"reproduced", "no paper value", "not run"}
    lacking = results(tmp_path, replace(ROW, method="star_random", metric=tag), name="tag.csv")
    assert [row.metric for row in main_rows(diff(lacking, paper)) if row.seeds] == [tag]


def test_json_holds_every_row(tmp_path, paper, capsys):
    ours = results(tmp_path, replace(ROW, value=0.5))
    assert run(ours, paper, as_json=True) == 1
    document = json.loads(capsys.readouterr().out)
    assert document == json.loads(to_json(diff(ours, paper)))
    assert document["exit_code"] == 1 and document["counts"] == {"differs": 1, "not run": 4}
    assert document["rows"][3]["method"] == "star" and document["rows"][3]["ours"] == 0.5


@pytest.mark.parametrize("count", [1, 3])
def test_numbers_below_zero_have_real_minus_signs_in_every_table(tmp_path, capsys, count):
    rows = seeds(replace(ROW, task="own", metric="warmth"), *(-0.6, -0.5, -0.4)[:count])
    published = replace(PUBLISHED, task="own", metric="warmth", value=Decimal("-0.55"))
    lines = [line for line in markdown(rows, [published]).splitlines() if line.startswith("| STAR")]
    write([replace(row, value=row.value - 0.01) for row in rows], tmp_path / "theirs.csv")
    run(results(tmp_path, *rows), tmp_path / "theirs.csv", as_json=False)
    text = "".join([*lines, *(line for line in capsys.readouterr().out.splitlines() if "warmth" in line)])
    assert text.count("\N{MINUS SIGN}") >= 4 and not re.search(r"-\d", text)


def test_terminal_table_is_complete_in_a_file(tmp_path, paper, capsys):
    assert run(results(tmp_path, replace(ROW, protocol=MINI)), paper, as_json=False) == 0
    printed = capsys.readouterr().out
    (line,) = [line for line in printed.splitlines() if "STAR" in line]
    for part in ("official macro", "0.9759", "0.9700 [0.9602, 0.9798]", "not comparable (mini)"):
        assert part in line
    assert "1 more rows" in printed and "dense_grpo" not in printed
    alone = "with one seed the interval is over prompts alone"
    assert alone in printed
    run(results(tmp_path, *(replace(ROW, protocol=MINI, seed=seed) for seed in (0, 1)), name="two.csv"), paper, as_json=False)
    assert alone not in capsys.readouterr().out


def test_the_table_of_the_diff(tmp_path, paper, capsys):
    assert run(results(tmp_path, replace(ROW, value=0.96)), paper, as_json=False) == 1
    printed = capsys.readouterr().out
    lines = [[cell.strip() for cell in line.strip("│┃ ").split("│")] for line in printed.splitlines()]
    delta = "\N{MINUS SIGN}0.0159"
    assert ["STAR", "official macro", "0.9759", "0.9600 [0.9502, 0.9698]", delta, "1", "2,212", "differs"] in lines
    assert ["Flow-GRPO", "official macro", "0.95", "–", "–", "–", "–", "not run"] in lines
    assert f"\ndiffers: 1; not run: {sum(line[-1] == 'not run' for line in lines)}\n" in printed


def test_bad_input_is_the_users_error(tmp_path, paper):
    with pytest.raises(UserError, match="no such file"):
        run(tmp_path / "none.csv", paper, as_json=False)
    with pytest.raises(UserError, match="no such file"):
        diff(results(tmp_path, ROW), tmp_path / "none.csv")
    with pytest.raises(UserError, match="line 1: the columns are"):
        diff(paper, paper)
    with pytest.raises(UserError, match="no results"):
        diff(results(tmp_path, name="empty.csv"), paper)


def test_the_paper_file_is_found_beside_the_package_or_here(tmp_path, monkeypatch):
    assert find_paper().parts[-2:] == ("results", "paper.csv")
    monkeypatch.setattr(diff_module, "ROOT", tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"no results/paper\.csv"):
        find_paper()
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "paper.csv").write_text(PAPER_TEXT)
    assert find_paper() == tmp_path / "results" / "paper.csv"


def table_of(*rows: Row, paper=(PUBLISHED,)) -> list[list[str]]:
    lines = [line for line in markdown(rows, paper).splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if "---" not in line]


def test_table_sets_ours_above_the_published():
    tag = replace(ROW, metric="geneval_official_counting", value=0.5, stderr=None)
    heading, ours, published = table_of(*seeds(ROW, 0.95, 0.97, 0.96), tag)
    assert heading[:4] == ["method", "numbers", "seeds", "official macro"]
    assert ours[:4] == ["STAR", "this project", "3", "0.960 [0.935, 0.985]"]
    assert ours[heading.index("counting")] == "0.500"
    assert published[:4] == ["STAR", "published", "", "0.9759"]
    assert set(published[4:]) == {"–"}


def test_table_of_geneval_has_the_columns_that_were_asked_for():
    heading, *_ = table_of(ROW)
    assert heading[3:] == [
        *("official macro", "official micro", "strict macro", "continuous macro"),
        *("single_object", "two_object", "counting", "colors", "position", "color_attr", "diversity"),
    ]


def test_table_marks_every_mini_row_and_says_what_that_means():
    text = markdown([replace(ROW, protocol=MINI), ROW], [PUBLISHED])
    assert [line.split("|")[2].strip() for line in text.splitlines() if line.startswith("| STAR")] == [
        "this project",
        "this project, **mini**",
        "published",
    ]
    assert "not comparable" in text and f"`{MINI}`: 2,212 images of 553 prompts" in text
    assert "not comparable" not in markdown([ROW], [PUBLISHED])


def test_table_keeps_arms_that_were_not_run_and_orders_methods():
    missing = replace(PUBLISHED, method="spatial", value=None)
    rows = table_of(replace(ROW, method="dense_uniform"), replace(ROW, method="base"), ROW, paper=[PUBLISHED, missing])
    assert [(row[0], row[1], row[3]) for row in rows[1:]] == [
        ("base", "this project", "0.970 ± 0.005"),
        ("spatial only", "this project", "not run"),
        ("spatial only", "published", "not known"),
        ("STAR", "this project", "0.970 ± 0.005"),
        ("STAR", "published", "0.9759"),
        ("dense_uniform", "this project", "0.970 ± 0.005"),
    ]


def test_table_of_a_task_nobody_foresaw_and_of_a_perfect_rate():
    row = replace(ROW, task="poems", metric="rhymes", value=1.0, stderr=0.0, prompts=20, method="star:geneval")
    assert table_of(row) == [
        ["method", "numbers", "seeds", "rhymes"],
        ["STAR (trained for geneval)", "this project", "1", "1.000 [0.839, 1.000]"],
    ]


@pytest.mark.parametrize(
    "updates, told, expected",
    [
        (2500, 5000, "differs"),
        (2499, 5000, "partial budget"),
        (10_000, 5000, "differs"),
        (10_001, 5000, {"flow_grpo": "partial budget", "star": "differs"}),
        (10, None, "differs"),
        (0, 5000, "differs"),
        (5000, "5000,1999", "differs"),
        (5000, "5000,2001", "partial budget"),  # ours saw 1,000 images
        (5000, "5000,499", {"flow_grpo": "partial budget", "star": "differs"}),
    ],
)
def test_another_budget_is_no_difference(tmp_path, updates, told, expected):
    """Told in updates or in images. Of STAR, of which nobody tells them, half of Flow-GRPO's are too few, and more are not too
    many."""
    paper = tmp_path / "paper.csv"
    cell = "" if told is None else told
    cells = str(cell) if "," in str(cell) else f"{cell},"
    paper.write_text(PAPER_TEXT.replace("flow_grpo,0.95,2212,553,,,", f"flow_grpo,0.95,2212,553,{cells},"))
    rows = [replace(ROW, method=method, value=0.7, updates=updates) for method in ("flow_grpo", "star")]
    found = diff(results(tmp_path, *rows), paper)
    expected = expected if isinstance(expected, dict) else dict.fromkeys(("flow_grpo", "star"), expected)
    assert {row.method: row.status for row in found if row.seeds} == expected
    assert exit_code(found) == ("differs" in expected.values())


def test_a_budget_is_that_of_a_training_whatever_the_metric(tmp_path):
    """The file tells it in the row of the main score."""
    rows = [
        replace(ROW, method="flow_grpo", metric=metric, value=0.5, updates=1000)
        for metric in (MACRO, "geneval_official_micro", "geneval_official_counting")
    ]
    found = [row for row in diff(results(tmp_path, *rows)) if row.seeds and row.reference]
    assert len(found) == 2 and {row.status for row in found} == {"partial budget"}


@pytest.mark.parametrize(
    ("updates", "status"), [(699, "partial budget"), (700, "differs"), (2800, "differs"), (2801, "partial budget")]
)
def test_a_budget_is_that_of_the_task_a_checkpoint_was_trained_for(tmp_path, updates, status):
    """Flow-GRPO's on PickScore is 1,400 updates, and those on GenEval, where it is measured here, are 5,000."""
    row = replace(ROW, method="flow_grpo:pickscore", value=0.3, updates=updates, images_seen=806_400)
    found = [row for row in diff(results(tmp_path, row)) if row.seeds]
    assert [(row.reference, row.status) for row in found] == [("0.54", status)]


def test_a_published_score_of_an_unstated_mean_is_held_against_both(tmp_path):
    def statuses(macro, micro):
        rows = [
            replace(ROW, metric=metric, value=value, seed=seed, updates=5000, images_seen=2_880_000)
            for metric, value in ((MACRO, macro), ("geneval_official_micro", micro))
            for seed in range(3)
        ]
        rows = [replace(row, value=row.value + 1e-4 * row.seed) for row in rows]
        found = diff(results(tmp_path, *rows))
        return [row.status for row in found if row.seeds], exit_code(found)

    assert statuses(0.94, 0.9758) == (["agrees by the other mean", "reproduced"], 0)
    assert statuses(0.9758, 0.94) == (["reproduced", "agrees by the other mean"], 0)
    assert statuses(0.94, 0.93) == (["differs"] * 2, 1)


@pytest.mark.parametrize(
    ("value", "spread", "expected"),
    [
        ("0.95", None, math.sqrt(0.95 * 0.05 / 2212)),
        ("0.95", 0.1, math.sqrt(0.95 * 0.05 / 2212)),
        ("0.95", 0.4, 0.4 / math.sqrt(553)),
        ("23.31", 1.2, 1.2 / math.sqrt(553)),  # no rate
        ("23.31", None, 0.0),
    ],
)
@pytest.mark.parametrize("own", [True, False])
def test_a_published_number_is_as_uncertain_as_its_prompts(value, spread, expected, own):
    """It is of so many images and prompts by its own row, or by the base's."""
    known = replace(PUBLISHED, value=Decimal(value), images=2212, prompts=553)
    row, base = (known, None) if own else (replace(known, images=None, prompts=None), known)
    found = published_estimate(row, base, spread)
    assert found.stderr == pytest.approx(expected)
    assert found.interval == pytest.approx((float(value) - 1.959964 * expected, float(value) + 1.959964 * expected))


def test_a_published_number_has_the_prompts_of_the_base_by_its_metric_or_by_most_images():
    base = replace(PUBLISHED, method="base", value=Decimal("0.63"), images=320, prompts=80)
    tag, same = replace(base, metric="geneval_official_counting"), replace(base, metric=MACRO)
    overall = replace(base, metric="geneval_official_micro", images=2212, prompts=553)

    def told(*bases):
        row, *_ = against_paper(summarise([ROW]), [PUBLISHED, *bases])
        return row.delta - row.delta_low

    of_many, of_few = (1.959964 * math.hypot(0.005, 0.005 * math.sqrt(553 / prompts)) for prompts in (553, 80))
    assert told(tag, overall) == pytest.approx(of_many) and told(overall, tag) == pytest.approx(of_many)
    assert told(overall, same) == pytest.approx(of_few) and told(same, overall) == pytest.approx(of_few)


def test_our_own_interval_has_to_be_narrow_and_not_the_published_one(tmp_path):
    """0.63 of 2,212 images is uncertain by 0.020."""
    base = replace(ROW, method="base", metric=MACRO, value=0.63, stderr=0.001, seed=1000, updates=0)
    (row,) = [row for row in diff(results(tmp_path, base)) if row.seeds]
    assert row.status == "reproduced" and row.delta_high > 0.0201
    (row,) = [row for row in diff(results(tmp_path, replace(base, stderr=0.011))) if row.seeds]
    assert row.status == "within noise"


def test_a_rate_s_interval_is_shown_within_0_and_1_and_judged_whole(tmp_path):
    seeds = [replace(ROW, metric=MACRO, seed=seed, value=value) for seed, value in enumerate((0.99, 0.95))]
    (ours,) = summarise(seeds)
    low, high = ours.estimate.interval
    assert low < 1 < high and ours.shown.interval == (low, 1.0) and ours.shown.value == ours.estimate.value
    (score,) = summarise([replace(row, task="pickscore", metric="pickscore") for row in seeds])
    assert score.shown == score.estimate
    (row,) = [row for row in diff(results(tmp_path, *seeds)) if row.seeds]
    assert (row.low, row.high) == (low, 1.0)
