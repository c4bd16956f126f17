"""The chapter on the noise of one token has what ``star bench influence`` wrote, and says where nothing was measured."""

import pandas as pd
from fake_results import write_matrix

from star.bench.table import write
from star.common.numbers import MISSING
from star.records.influence import COLUMNS
from star.report.collection import collect
from star.report.influence import influences


def test_figures_stand_step_by_step(tmp_path):
    results = write_matrix(tmp_path, arms=("flow_grpo", "star"), seeds=(0,), tasks=("geneval",))
    made = [
        ("geneval", "initial", part, metric, value, error, 24, 1080, "abc", "0123")
        for part, metric, value, error in (
            ("all", "on_over_off", 5.988, 1.463),
            ("step 0", "on_over_off", 4.3, 1.6),
            ("all", "in_3x3", 0.539, float("nan")),
        )
    ]
    write(pd.DataFrame(made, columns=COLUMNS), results / "influence.csv", "influence")
    meaning, table = influences(collect(results, tmp_path)).blocks
    assert "drawn anew" in meaning.text
    assert table.caption == "geneval, weights: initial, 24 prompts, 1,080 images, commit abc"
    rows = {row[0]: row[1:] for row in table.rows}
    assert table.head == ["figure", "all", "step 0"] and len(rows) == 12
    assert rows["objects: on over off"] == ["5.99 ± 1.46", "4.30 ± 1.60"]
    assert rows["image: in 3 x 3"] == ["0.54", MISSING] and rows["objects: tokens"] == [MISSING, MISSING]


def test_where_nothing_was_measured_the_chapter_says_so(tmp_path):
    results = write_matrix(tmp_path, arms=("flow_grpo", "star"), seeds=(0,), tasks=("geneval",))
    (text,) = influences(collect(results, tmp_path)).blocks
    assert text.missing and "star bench influence" in text.text
