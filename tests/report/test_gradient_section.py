"""The chapter on gradients has what ``star bench gradient`` wrote, and says where nothing was measured."""

import pandas as pd
from fake_results import write_matrix

from star.bench.gradient import COLUMNS
from star.bench.table import write
from star.common.numbers import MISSING
from star.report.collection import collect
from star.report.gradient import gradients


def test_figures_of_whole_gradients_stand_task_by_task(tmp_path):
    results = write_matrix(tmp_path, arms=("flow_grpo", "star"), seeds=(0,), tasks=("geneval",))
    facts = ("geneval", "initial")
    made = [
        (*facts, arm, part, metric, value, 0.01, 12, 2304, "abc", "0123")
        for arm, part, metric, value in (
            ("flow_grpo", "all", "self_cosine", 0.17),
            ("flow_grpo", "all", "ratio", 1.0),
            ("star", "all", "ratio", 1.13),
            ("star", "step 0", "ratio", 9.0),
            ("star - flow_grpo", "all", "ratio", 0.13),
        )
    ]
    write(pd.DataFrame(made, columns=COLUMNS), results / "gradient.csv", "gradient")
    meaning, drawing, table = gradients(collect(results, tmp_path)).blocks
    ((title, svg),) = drawing.svgs
    assert "relative to Flow-GRPO&#x27;s: star 1.130 ± 0.010." in svg  # neither Flow-GRPO nor differences of arms
    assert "oracle" in meaning.text
    assert table.caption == "geneval, weights: initial, commit abc"
    assert [row[0] for row in table.rows] == ["flow_grpo", "star", "star - flow_grpo"]
    assert table.rows[1] == ["star", "12", "2,304", MISSING, "1.130 ± 0.010", MISSING, MISSING]


def test_where_nothing_was_measured_the_chapter_says_so(tmp_path):
    results = write_matrix(tmp_path, arms=("flow_grpo", "star"), seeds=(0,), tasks=("geneval",))
    (text,) = gradients(collect(results, tmp_path)).blocks
    assert text.missing and "star bench gradient" in text.text
