"""The picture of gains has each stage's numbers, in multiples of Flow-GRPO's gain, and leaves out what has two meanings."""

import pandas as pd
import pytest
from fake_results import write_first_updates, write_matrix
from PIL import Image

from star.records.first_updates import UNTRAINED
from star.records.folder import GRADIENT, NEEDED
from star.report import report
from star.report.collection import collect
from star.report.glance import glance, panels, write_picture

REWARDS = {UNTRAINED: (0.5, 0.4), "flow_grpo": (0.5, 0.5), "star": (0.5, 0.53), "background": (0.5, 0.45)}


def gradient(results, *hashes):
    row = dict.fromkeys(NEEDED[GRADIENT], "0123") | {"task": "geneval", "weights": "initial", "part": "all", "metric": "ratio"}
    rows = [row | {"arm": "star", "value": 1.2, "stderr": 0.1, "config_hash": hashed} for hashed in hashes]
    pd.DataFrame(rows).assign(epochs=4, images=768).to_csv(results / GRADIENT, index=False)


@pytest.fixture
def results(tmp_path):
    return write_matrix(tmp_path, arms=("flow_grpo", "star"), seeds=(0,), tasks=("geneval",))


def test_every_stage_is_a_multiple_of_flow_grpos_gain(results, tmp_path):
    gradient(results, "41972e6739")
    write_first_updates(results, REWARDS, seeds=2)
    late = {arm: [*own, *[own[1]] * 7] for arm, own in REWARDS.items()} | {"star": [0.5, *[0.7] * 5, *[0.51] * 3]}
    write_first_updates(results, late, seeds=2, name="lasting.csv")
    found = collect(results, tmp_path)
    star, background = panels(found)["geneval"].values()
    assert list(star) == ["a small step, predicted", "the first updates", "long after them", "whole trainings"]
    assert star["a small step, predicted"].interval == pytest.approx((1.2 - 0.196, 1.2 + 0.196), abs=1e-4)
    first, wrong = star["the first updates"], background["the first updates"]
    assert first.value == pytest.approx(1.3) and first.interval == pytest.approx((1.3, 1.3))  # the seeds are alike
    assert wrong.value == pytest.approx(0.5)
    assert star["long after them"].value == pytest.approx(1.1)  # the last third alone
    gain, learnt = found.difference("geneval", "star", "flow_grpo"), found.difference("geneval", "flow_grpo", "base")
    assert star["whole trainings"].value == pytest.approx(1 + gain.delta.value / learnt.delta.value)
    assert star["whole trainings"].interval is None  # of one seed
    ((title, svg),) = glance(found)[0].svgs
    assert title == "geneval" and "background: the first updates 0.50 [0.50, 0.50], long after them 0.50" in svg


def test_it_stands_first_on_the_page_and_in_a_file_of_its_own(results, tmp_path):
    page, _ = report(results, tmp_path)
    text = page.read_text()
    assert text.index("In short") < text.index("Reward gained, in multiples of") < text.index("Do STAR&#39;s maps carry")
    assert Image.open(results / "figures/gains.png").size[0] > 400


def test_what_was_measured_under_two_settings_is_left_out(results, tmp_path):
    gradient(results, "41972e6739", "0000000000")
    assert "a small step, predicted" not in panels(collect(results, tmp_path))["geneval"]["star"]


def test_without_gains_of_flow_grpos_there_is_no_picture(tmp_path):
    folder = write_matrix(tmp_path, arms=("star",), seeds=(0,), tasks=("geneval",))
    write_first_updates(folder, REWARDS | {"flow_grpo": (0.5, 0.3)}, seeds=2)
    found = collect(folder, tmp_path)
    assert panels(found) == {} and glance(found) == []
    write_picture(found, folder / "figures" / "gains.png")
    assert not (folder / "figures").exists()
