"""What ``star reproduce`` writes from the results of several seeds, which may come from several machines."""

from dataclasses import replace

import numpy as np
import pytest
from fake_results import verdicts, write_matrix
from PIL import Image

from star.common.errors import UserError
from star.records.results import read, write
from star.report.brief import write_brief
from star.report.collection import collect
from star.reproduce import reproduce

SEEDS = (0, 2, 5)


@pytest.mark.parametrize("task, score", [("geneval", "correct"), ("pickscore", "score")])
def test_all_seeds_of_the_results_count(tmp_path, task, score):
    results = write_matrix(tmp_path, arms=("flow_grpo", "star"), seeds=SEEDS, tasks=(task,))
    write_brief(collect(results, tmp_path), task)
    text = (results / f"{task}.md").read_text()
    sentence = next(line for line in text.splitlines() if line.startswith("STAR minus"))

    def mean(method: str, seed: int) -> float:
        return verdicts(task, method, seed).groupby("stratum")[score].mean().mean()

    expected = [mean("star", seed) - mean("flow_grpo", seed) for seed in SEEDS]
    told = ", ".join(f"{gain:+.4f}" for gain in expected).replace("-", "\N{MINUS SIGN}")
    assert "STAR minus Flow-GRPO, seeds 0, 2, 5," in sentence and "new prompts and trainings" in sentence
    assert f" {np.mean(expected):+.4f} [" in sentence and f"(by seed {told})" in sentence
    assert "| STAR | this project, **mini** | 3 |" in text and f"({task}.png)" in text
    with Image.open(results / f"{task}.png") as curves:
        assert curves.width > 500


def test_other_methods_and_tasks_are_for_the_matrix():
    for word in ("method=spatial", "task=ocr"):
        with pytest.raises(UserError, match=f"{word}: star reproduce geneval is flow_grpo and star on one task; star matrix"):
            reproduce("geneval", [word])


@pytest.mark.parametrize("tasks", ["all", "geneval,ocr"])
def test_several_tasks_are_for_the_matrix_too(tasks):
    with pytest.raises(
        UserError, match=f"task={tasks}: star reproduce runs one task; star matrix task={tasks} runs geneval and"
    ):
        reproduce(tasks, [])


def test_one_seed_says_that_it_is_one(tmp_path):
    results = write_matrix(tmp_path, arms=("flow_grpo", "star"), seeds=(3,), tasks=("ocr",))
    write_brief(collect(results, tmp_path), "ocr")
    sentence = (results / "ocr.md").read_text()
    assert (
        "Flow-GRPO, seed 3," in sentence
        and "one training seed says nothing about others" in sentence
        and "by seed" not in sentence
    )
    assert "not trained alike" not in sentence
    longer = [replace(r, images_seen=1 + r.images_seen) if r.method == "star" else r for r in read(results / "ocr.csv")]
    write(longer, results / "ocr.csv")
    (results / "curves.csv").unlink()
    write_brief(collect(results, tmp_path), "ocr")
    assert "They were not trained alike, so more than the method differs." in (results / "ocr.md").read_text()
