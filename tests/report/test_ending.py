"""The screen at the end: one's own numbers beside the shipped and the published ones."""

import json
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from fake_results import verdicts, write_matrix, write_run

from star.common.errors import UserError
from star.common.statistics import Estimate, detectable
from star.records.beside import agreement
from star.records.comparison import Comparison
from star.records.folder import latest_own_results
from star.records.results import read, write
from star.report import ending as screen
from star.report.collection import collect


@pytest.fixture
def places(tmp_path, monkeypatch):
    """Own results of seed 0, and shipped ones of seeds 0 to 2, which are made by the same rule and so equal."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("star.records.folder.ROOT", tmp_path)
    shipped = write_matrix(tmp_path, arms=("flow_grpo", "star"), tasks=("ocr",))
    own = write_matrix(tmp_path / "runs", arms=("flow_grpo", "star"), seeds=(0,), tasks=("ocr",))
    return own, shipped


def told(own):
    table, *sentences = screen.ending(collect(own, own / "none"), "ocr")
    return table, [sentence.text for sentence in sentences]


def mean(method, seed):
    return verdicts("ocr", method, seed)["reward"].mean()


def test_yours_the_shipped_and_the_papers_stand_side_by_side(places):
    own, _ = places
    table, (difference, effect, equal, *_) = told(own)
    assert [row[0] for row in table.rows] == ["base", "Flow-GRPO", "STAR"]
    star = table.rows[2]
    assert star[2] == f"{mean('star', 0):.4f} ± 0.0200" and star[4] == "0.9757"
    assert star[3].startswith(f"{np.mean([mean('star', seed) for seed in range(3)]):.4f} [") and star[3].endswith(", 3 seeds")
    gains = [mean("star", seed) - mean("flow_grpo", seed) for seed in range(3)]
    assert f"yours: {gains[0]:+.4f} [" in difference and "(seed 0;" in difference
    assert f"shipped: {np.mean(gains):+.4f} [" in difference and "(seeds 0, 1, 2;" in difference
    spread = np.std(gains, ddof=1)
    assert f"a standard deviation of {spread:.3f} over 3 seeds" in effect
    shown = float(re.search(r"80 % power: ([\d.]+) with 3 seeds, and ", effect)[1])
    low, high = map(float, re.search(r"shipped: \S+ \[(\S+), (\S+)\]", difference.replace("\N{MINUS SIGN}", "-")).groups())
    # As large as to leave the interval, which covers other prompts too, in four of five cases.
    assert shown >= round(detectable(spread, 3), 3) and shown > (high - low) / 2
    assert f", and {detectable(spread, 1, 2):.3f} with 1 seed by the spread of trainings alone." in effect
    images = 3 * len(verdicts("ocr", "star", 0))
    runs = "base, Flow-GRPO seed 0, STAR seed 0"
    assert equal.startswith(f"Equal to the shipped runs to the last digit: {runs}; 6 scores and {images:,} verdicts")


def test_a_difference_on_a_single_prompt_is_not_said_to_have_an_interval():
    gain = Comparison("star", "flow_grpo", "reward", Estimate(-0.005, None, None), (0,), (-0.005,), 1, 1, (16, 16))
    assert screen._difference(gain).endswith(
        "0.0050 on reward (seed 0; no interval, since one group of prompts has a single prompt)"
    )


def test_run_folders_of_the_shipped_results_are_looked_for_where_ones_own_are(places, tmp_path):
    own, shipped = places
    path = write_run(tmp_path / "other", "ocr", "star", 1)
    assert path in collect(own, tmp_path / "other").shipped.runs.values()


def test_rows_of_models_trained_for_another_task_alone_are_no_traceback(places):
    own, _ = places
    row = next(row for row in read(own / "ocr.csv") if row.method == "star")
    write([replace(row, method="star:geneval")], own / "ocr.csv")
    with pytest.raises(UserError, match="only rows of models that were trained for another"):
        screen.overview()


def test_another_verdict_or_digit_is_told(places):
    own, shipped = places
    table = pd.read_csv(own / "images.csv.gz", dtype=str)
    place = table.index[table["method"] == "star"][3]
    table.loc[place, "exact"] = "0.5"
    table.to_csv(own / "images.csv.gz", index=False)
    assert agreement("ocr", own, shipped).differing == (("star", 0),)
    rows = read(own / "ocr.csv")
    write([replace(row, value=0.1) if row.method == "base" else row for row in rows], own / "ocr.csv")
    assert agreement("ocr", own, shipped).differing == (("base", 1000), ("star", 0))
    assert "these came out differently here: base, STAR seed 0." in (text := told(own)[1][2])
    assert text.endswith("training amplifies that.")
    write([replace(row, machine="AMD EPYC") for row in read(own / "ocr.csv")], own / "ocr.csv")
    assert told(own)[1][2].endswith("amplifies that. Computed by: AMD EPYC; the shipped ones: not recorded.")


def test_runs_of_other_settings_are_not_called_equal(places):
    own, shipped = places
    write([replace(row, config_hash="other") for row in read(own / "ocr.csv")], own / "ocr.csv")
    found = agreement("ocr", own, shipped)
    assert (found.runs, found.figures, found.verdicts, found.differing) == ((), 0, 0, ())
    assert "No shipped run has your settings and seed, so there is none to match." in told(own)[1]


def test_without_shipped_results_nothing_is_claimed_of_others(places):
    own, shipped = places
    (shipped / "ocr.csv").unlink()
    table, (difference, effect, *_) = told(own)
    assert {row[3] for row in table.rows} == {"–"} and "shipped: none that can be compared" in difference
    assert effect == "One training seed says nothing about others: the spread between trainings is not known here."


def test_scores_of_another_protocol_do_not_stand_beside(places):
    own, shipped = places
    write([replace(row, protocol="ocr-v1/other/mini") for row in read(shipped / "ocr.csv")], shipped / "ocr.csv")
    assert {row[3] for row in told(own)[0].rows} == {"–"}


def test_both_means_of_geneval_are_shown(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own = write_matrix(tmp_path / "runs", arms=("flow_grpo", "star"), seeds=(0,), tasks=("geneval",))
    rows = read(own / "geneval.csv")
    macro = [row for row in rows if row.metric == "geneval_official_macro"]
    write([*rows, *(replace(row, metric="geneval_official_micro") for row in macro)], own / "geneval.csv")
    table = screen.ending(collect(own, own), "geneval")[0]
    assert [row[1] for row in table.rows] == ["official macro"] * 3 + ["official micro"] * 3


def test_the_latest_results_are_found_or_their_absence_is_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="no results of yours in runs/results: run `star reproduce geneval`"):
        latest_own_results()
    own = write_matrix(tmp_path / "runs", arms=(), seeds=(), tasks=("ocr",))
    measured = own.with_name("paper")
    measured.mkdir()
    for name in ("gradient.csv", "mine.csv", "._ocr.csv"):  # of star bench, which makes no results, and of macOS
        (measured / name).touch()
    assert latest_own_results().resolve() == own


def test_programs_get_the_rows_of_all_tasks(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    own = write_matrix(tmp_path / "runs", arms=("flow_grpo", "star"), seeds=(0,), tasks=("ocr", "geneval"))
    code = screen.overview(as_json=True)
    document = json.loads(capsys.readouterr().out)
    assert {row["task"] for row in document["rows"]} == {"ocr", "geneval"} and document["exit_code"] == code
    assert screen.overview() == code and own.name in capsys.readouterr().out


def test_seeds_that_differ_by_the_same_tell_nothing_of_how_far_trainings_lie_apart(places):
    own, shipped = places
    gain = collect(shipped, shipped).difference("ocr", "star", "flow_grpo")
    same = replace(gain, per_seed=(0.3 - 0.2, 0.2 - 0.1, 0.1))
    assert screen._detectable(same, None) == (
        "All 3 seeds have the same difference: the spread between trainings is not known here."
    )


def test_other_budgets_and_protocols_are_named(places):
    own, _ = places
    rows = read(own / "ocr.csv")
    changed = [
        replace(r, images_seen=r.images_seen // 2, protocol=r.protocol + ("/steps=4" if r.method == "star" else ""))
        for r in rows
    ]
    write([r if r.method == "base" else new for r, new in zip(rows, changed, strict=True)], own / "ocr.csv")
    table, _ = told(own)
    assert [row[1].endswith("/steps=4") for row in table.rows] == [False, False, True]
    write([replace(r, images_seen=r.images_seen // 2) for r in rows], own / "ocr.csv")
    _, (_, budgets, *_) = told(own)
    seen = next(r.images_seen for r in rows if r.method == "star")
    assert budgets.startswith(f"Your trainings drew {seen // 2:,} images and the shipped ones {seen:,}")


def test_trainings_that_are_not_alike_are_said_to_be_so(places):
    own, _ = places
    rows = read(own / "ocr.csv")
    write([replace(r, images_seen=2 * r.images_seen) if r.method == "star" else r for r in rows], own / "ocr.csv")
    _, (difference, *_) = told(own)
    assert (
        "yours: +" in difference
        and "95 % interval; not trained alike, so more than the method differs); shipped" in difference
    )


def test_beside_the_papers_numbers_stands_what_they_are_worth(tmp_path, monkeypatch):
    """Of scores that can be held against them at all; the exit code is then no riddle."""
    monkeypatch.chdir(tmp_path)
    own = write_matrix(tmp_path / "runs", arms=("flow_grpo", "star"), seeds=(0,), tasks=("ocr",))
    assert "verdict" not in screen.ending(collect(own, own), "ocr")[0].head
    protocol = "ocr-v1/paddleocr-3.7.0+PP-OCRv4_mobile_det+en_PP-OCRv4_mobile_rec/paper"
    whole = {"protocol": protocol, "updates": 10_000, "images_seen": 5_760_000}
    write([replace(r, **whole) for r in read(own / "ocr.csv")], own / "ocr.csv")
    table = screen.ending(collect(own, own), "ocr")[0]
    assert table.head[-1] == "verdict" and {row[0]: row[-1] for row in table.rows}["STAR"] == "differs"
    write([replace(r, protocol="ocr-v1/rapidocr/paper") for r in read(own / "ocr.csv")], own / "ocr.csv")
    table = screen.ending(collect(own, own), "ocr")[0]
    assert {row[0]: row[-1] for row in table.rows}["STAR"] == "not comparable (protocol)"


def test_results_of_other_tasks_alone_that_came_out_otherwise_are_named():
    assert screen._named([("star:geneval", 0)]) == "STAR (trained for geneval) seed 0"
