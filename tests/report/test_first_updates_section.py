"""The chapter on first updates has what ``star bench first_updates`` wrote, and so has the first screen."""

import re
from dataclasses import replace

import pandas as pd
import pytest
from fake_results import write_first_updates, write_matrix

from star.bench.table import write
from star.common.numbers import MISSING
from star.common.statistics import detectable_among
from star.records.first_updates import COLUMNS, UNTRAINED, leads
from star.report.collection import collect
from star.report.first_updates import first_updates
from star.report.opening import opening

KEYS = ("task", "arm", "seed", "config_hash")
REWARDS = {UNTRAINED: (0.5, 0.4), "flow_grpo": (0.5, 0.5), "star": (0.5, 0.52)}


def measured(results, seeds, arms=tuple(REWARDS), rewards=REWARDS, name="first_updates.csv"):
    """What the command writes: at every second seed STAR's lead is twice as large."""
    write_first_updates(results, {arm: rewards[arm] for arm in arms}, seeds, name, lead=0.02)


@pytest.fixture
def results(tmp_path):
    return write_matrix(tmp_path, arms=("flow_grpo", "star"), seeds=(0,), tasks=("geneval",))


def test_gains_stand_task_by_task(results, tmp_path):
    measured(results, 4)
    meaning, drawing, table = first_updates(collect(results, tmp_path)).blocks
    ((title, svg),) = drawing.svgs
    assert title == "geneval" and "minus Flow-GRPO&#x27;s, with 95 % intervals: star +0.0" in svg
    assert "background should lose" in meaning.text
    assert table.caption == "geneval: learning rate 0.0005, 2 updates at most, commit 41972e6739"
    reference, star = table.rows
    assert reference == ["flow_grpo", "4", "2 to 2", "+0.1000 [+0.1000, +0.1000]", *[MISSING] * 4]
    assert star[0] == "star" and star[4].startswith("+0.0300 [+0.0116, +0.0484]") and star[7] == "1.30 ± 0.06"


def test_star_stands_beside_each_other_arm_on_the_seeds_of_both(results, tmp_path):
    rewards = {**REWARDS, "temporal": (0.5, 0.51)}
    measured(results, 4, arms=tuple(rewards), rewards=rewards)
    *_, beside = first_updates(collect(results, tmp_path)).blocks
    assert beside.caption == "geneval: STAR's gain minus that of other arms"
    ((other, seeds, epochs, difference, *_),) = beside.rows
    assert (other, seeds, epochs) == ("temporal", "4", "2 to 2")
    # By the fixture STAR leads by 0.01 and 0.03 in turn.
    assert difference.startswith("+0.0200 [+0.0016, +0.0384]")
    where = opening(collect(results, tmp_path)).blocks[-2]
    assert where.strong == "Does it matter where, or when?"
    assert "minus temporal, whose maps have no places: geneval +0.0200 [+0.0016, +0.0384] (80 % power at" in where.text


def test_longer_trainings_tell_whether_leads_last(results, tmp_path):
    measured(results, 2)
    assert not first_updates(collect(results, tmp_path)).parts
    rewards = {UNTRAINED: [0.5] * 9, "flow_grpo": [0.5, *[0.6] * 5, *[0.8] * 3], "star": [0.5, *[0.7] * 5, *[0.75] * 3]}
    measured(results, 2, rewards=rewards, name="lasting.csv")
    (part,) = first_updates(collect(results, tmp_path)).parts
    meaning, drawing, whole, third = part.blocks
    assert "what is left of a lead" in meaning.text
    ((title, svg),) = drawing.svgs
    assert title == "geneval" and "over epochs, mean over seeds; in epoch 9: star +0.0300." in svg
    assert [row[:3] for row in whole.rows] == [["flow_grpo", "2", "2 to 9"], ["star", "2", "2 to 9"]]
    assert [row[2] for row in third.rows] == ["7 to 9"] * 2 and third.rows[0][3].startswith("+0.3000")
    # By the fixture STAR's second seed is 0.02 further ahead with each epoch: by 0.14 on average here.
    assert third.rows[1][4].startswith("+0.0200 [")


def test_longer_trainings_alone_are_told_too(results, tmp_path):
    rewards = {UNTRAINED: [0.5] * 9, "flow_grpo": [0.6] * 9, "star": [0.7] * 9}
    measured(results, 2, rewards=rewards, name="lasting.csv")
    found = collect(results, tmp_path)
    found = replace(found, rows=[row for row in found.rows if row.method == "base"], curves=None)
    training = next(block for block in opening(found).blocks if getattr(block, "strong", "").startswith("Do trainings gain"))
    assert "Late in longer trainings of that kind: geneval" in training.text and "not trained alike" not in training.text


def test_a_seed_that_was_cut_off_is_in_no_epochs_mean():
    rows = [
        ("geneval", arm, seed, epoch, 0, 5e-4, 0.5 + lead * (arm == "star"), "c", "0")
        for seed, lead, epochs in ((0, 0.1, 4), (1, 0.3, 4), (2, -0.4, 2))
        for arm in ("flow_grpo", "star")
        for epoch in range(1, epochs + 1)
    ]
    assert leads(pd.DataFrame(rows, columns=COLUMNS))["star"].tolist() == pytest.approx([0.2] * 4)


NOT_SEEN = "but a map that should lose (background) is not seen to over epochs 2 to "
NOT_THERE = "but no map that should lose (background) was trained beside it, so "


@pytest.mark.parametrize(("wrong", "told"), [(0.55, ""), (0.6, f"{NOT_SEEN}9, +0.0000 ["), (None, NOT_THERE)])
def test_the_first_screen_tells_what_is_left_of_a_lead_and_whether_that_says_anything(results, tmp_path, wrong, told):
    """It does not, where the map that should lose does not, or was not trained."""
    loses = {**REWARDS, "background": (0.5, 0.4)}
    measured(results, 4, arms=tuple(loses), rewards=loses)
    rewards = {UNTRAINED: [0.5] * 9, "flow_grpo": [0.6] * 9, "star": [*[0.7] * 6, *[0.55] * 3]}
    rewards |= {"background": [wrong] * 9} if wrong else {}
    measured(results, 4, arms=tuple(rewards), rewards=rewards, name="lasting.csv")
    training = opening(collect(results, tmp_path)).blocks[-2].text
    # By the fixture STAR's second and fourth seed are further ahead by 0.02 with each epoch, on average here by 0.07.
    assert "Late in longer trainings of that kind: geneval (4 seeds, epochs 7 to 9) +0.0200 [" in training
    assert told in training and training.count("so this tells nothing of maps") == bool(told)
    assert "no gain here" not in training


@pytest.mark.parametrize(("wrong", "told"), [(0.45, ""), (0.5, f"{NOT_SEEN}2, +0.0000 ["), (None, NOT_THERE)])
def test_no_gain_in_first_updates_says_something_only_where_a_wrong_map_loses(results, tmp_path, wrong, told):
    rewards = REWARDS | ({"background": (0.5, wrong)} if wrong else {})
    measured(results, 4, arms=tuple(rewards), rewards=rewards)
    training = opening(collect(results, tmp_path)).blocks[-2].text
    assert told in training and training.count("so no gain here would tell nothing of maps") == bool(told)


def test_where_no_test_and_no_ratio_can_be_made_there_is_a_dash(results, tmp_path):
    """All seeds lead by the same, and Flow-GRPO loses."""
    rewards = {UNTRAINED: 0.4, "flow_grpo": 0.375, "star": 0.5}
    rows = [
        ("geneval", arm, seed, epoch, 0, 5e-4, reward if epoch > 1 else 0.5, "c", "0")
        for seed in range(3)
        for arm, reward in rewards.items()
        for epoch in (1, 2)
    ]
    write(pd.DataFrame(rows, columns=COLUMNS), results / "first_updates.csv", "first_updates", KEYS)
    *_, table = first_updates(collect(results, tmp_path)).blocks
    assert table.rows[1][4:] == ["+0.1250 [+0.1250, +0.1250]", *[MISSING] * 3]


def test_a_p_that_is_hardly_anything_is_not_called_0(results, tmp_path, monkeypatch):
    measured(results, 200)
    assert first_updates(collect(results, tmp_path)).blocks[-1].rows[1][6] == "< 0.0001"


def test_the_first_screen_has_the_first_updates_before_whole_trainings(results, tmp_path):
    measured(results, 2)
    *_, training, reach = opening(collect(results, tmp_path)).blocks
    first = r"Gain over the untrained model in the first updates: geneval \(2 seeds\) \+0\.0300 \[[^]]+\]"
    power = f"{detectable_among([0.02, 0.04]):.4f}"
    after = rf"1\.30 ± 0\.10 times Flow-GRPO's gain, {re.escape(NOT_THERE)}[^.]+\. In whole trainings: geneval \(1 seed\): "
    assert re.search(rf"{first} \(80 % power at {power}\), {after}", training.text)
    assert "Anything about SD3.5" in reach.text


def test_where_nothing_was_measured_the_chapter_says_so(results, tmp_path):
    (text,) = first_updates(collect(results, tmp_path)).blocks
    assert text.missing and "star bench first_updates" in text.text
    measured(results, 2, arms=(UNTRAINED, "flow_grpo"))
    assert "in the first updates" not in opening(collect(results, tmp_path)).blocks[-2].text
