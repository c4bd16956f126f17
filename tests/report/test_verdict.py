"""The rules of what may be said, one by one."""

from dataclasses import replace

import numpy as np
import pytest

from star.common.statistics import Estimate, detectable
from star.records.comparison import Comparison
from star.report import verdict as rules
from star.report.verdict import says, verdict


def made(low, high, seeds=8, reference="flow_grpo", trained_on=(5760, 5760)):
    delta = Estimate((low + high) / 2, 0.01, (low, high)) if low is not None else Estimate(0.1, None, None)
    return Comparison("star", reference, "accuracy", delta, tuple(range(seeds)), (0.0,) * seeds, 20, 80, trained_on)


ABOVE, AROUND, BELOW = (0.01, 0.05), (-0.01, 0.05), (-0.05, -0.01)
TOUCHING, TOUCHING_BELOW = (0.0, 0.05), (-0.05, 0.0)


@pytest.mark.parametrize(
    "interval, p, expected",
    [
        (ABOVE, 0.049, rules.GAIN),
        (ABOVE, 0.05, rules.UNCLEAR),
        (ABOVE, None, rules.GAIN),
        (BELOW, 0.01, rules.LOSS),
        (BELOW, 0.2, rules.UNCLEAR),
        (AROUND, 0.2, rules.UNCLEAR),
    ],
)
def test_nothing_is_claimed_that_the_planned_test_does_not_show(interval, p, expected):
    assert verdict(made(*interval), made(*ABOVE), p=p) == expected
    few = verdict(made(*interval, seeds=2), made(*ABOVE), p=p)
    assert few in (rules.FEW_SEEDS, rules.FEW_SEEDS_LOSS, rules.UNCLEAR)
    told = says("ocr", made(*interval), made(*ABOVE), None, [], mini=False, p=p).text
    assert ("The test over seeds" in told) == (p is not None)
    assert "but perhaps not on others" not in told


def test_a_test_on_other_seeds_than_the_difference_names_them():
    for gain in (made(*ABOVE), made(*AROUND)):
        same, other = (says("ocr", gain, None, None, [], False, p=0.01, tested=seeds) for seeds in (range(8), (0, 1)))
        assert "The test over seeds, corrected for" in same.text and same.strong == other.strong
        assert "The test over seeds 0, 1, corrected for multiple testing, gives p = 0.0100. " in other.text


def test_trainings_that_differ_by_less_than_prompts_do_are_said_to():
    text = says("ocr", made(*AROUND), made(*ABOVE), None, [], mini=False, p=0.001).text
    assert "gives p = 0.0010: the trainings differ on these prompts, but perhaps not on others." in text


@pytest.mark.parametrize(
    "gain, control, expected",
    [
        (made(*ABOVE), made(*ABOVE), rules.GAIN),
        (made(*ABOVE), made(*AROUND), rules.SHARED),
        (made(*ABOVE), made(*TOUCHING), rules.SHARED),
        (made(*ABOVE), made(*BELOW), rules.SHARED),
        (made(*ABOVE), None, rules.NO_CONTROL),
        (made(*ABOVE), made(None, None), rules.NO_CONTROL),
        (made(*ABOVE, seeds=2), made(*ABOVE), rules.FEW_SEEDS),
        (made(*ABOVE, seeds=1), None, rules.FEW_SEEDS),
        (made(*ABOVE), made(*ABOVE, seeds=1), rules.FEW_SEEDS),
        (made(*AROUND), made(*ABOVE), rules.UNCLEAR),
        (made(*TOUCHING), made(*ABOVE), rules.UNCLEAR),
        (made(*TOUCHING_BELOW), None, rules.UNCLEAR),
        (made(*TOUCHING_BELOW, seeds=2), None, rules.UNCLEAR),
        (made(None, None), made(*ABOVE), rules.UNCLEAR),
        (made(*BELOW), made(*ABOVE), rules.LOSS),
        (made(*BELOW, seeds=2), made(*ABOVE), rules.FEW_SEEDS_LOSS),
        (made(*ABOVE, trained_on=(23_040, 5760)), made(*ABOVE), rules.UNEQUAL),
        (made(*ABOVE, trained_on=(5760, 0)), made(*ABOVE), rules.GAIN),
        (made(*ABOVE), made(*ABOVE, trained_on=(5760, 23_040)), rules.NO_CONTROL),
        (None, made(*ABOVE), rules.NOT_MEASURED),
        (None, None, rules.NOT_MEASURED),
    ],
)
def test_verdict(gain, control, expected):
    assert verdict(gain, control) == expected
    text = says("ocr", gain, control, None, [], mini=False)
    assert text.strong == f"ocr: {expected}"
    assert ("the map has to match the prompt" in text.text) == (expected == rules.GAIN)


def test_the_numbers_behind_a_claim_are_in_it():
    text = says("ocr", made(*ABOVE), made(0.02, 0.04, reference="star_shuffled"), made(*BELOW), ["spatial"], mini=True).text
    assert (
        "STAR minus Flow-GRPO is +0.030 [+0.010, +0.050] on the accuracy (80 images of 20 prompts, 8 training seeds)" in text
    )
    assert "STAR minus star_shuffled is +0.030 [+0.020, +0.040]" in text
    assert "Flow-GRPO minus base is −0.030 [−0.050, −0.010]: training made it worse." in text
    assert "Not run: spatial." in text and "not comparable with the paper's numbers" in text


@pytest.mark.parametrize(
    "interval, told",
    [(ABOVE, "lies above"), (AROUND, "includes"), (TOUCHING, "includes"), (TOUCHING_BELOW, "includes"), (BELOW, "lies below")],
)
def test_the_side_of_an_interval_is_said(interval, told):
    text = says("ocr", made(*interval), made(*ABOVE), None, [], False, papers=0.06).text
    assert f"; the interval {told} 0." in text
    # How large the gain would have to be is told where none is seen.
    assert ("The paper's gain" in text) == (told == "includes")


def test_terms_that_differ_are_said():
    longer = says("ocr", made(*ABOVE, trained_on=(23_040, 5760)), None, None, [], mini=False).text
    assert "but STAR was trained on 23,040 images and Flow-GRPO on 5,760." in longer
    control = made(*ABOVE, reference="star_shuffled", trained_on=(5760, 23_040))
    text = says("ocr", made(*ABOVE), control, None, [], mini=False).text
    assert "+0.050], but STAR was trained on 5,760 images and star_shuffled on 23,040." in text
    other = says("ocr", replace(made(*ABOVE), same_terms=False), None, None, [], mini=False)
    assert other.strong == "ocr: Not trained alike." and "but Flow-GRPO was trained with different settings." in other.text
    worse = says("ocr", made(*ABOVE), made(*BELOW, reference="star_shuffled"), None, [], mini=False).text
    assert "below 0: maps of other prompts do better." in worse
    few = says("ocr", made(*ABOVE), made(*ABOVE, seeds=1), None, [], mini=False).text
    assert "+0.050] (1 training seed)." in few and "The control has fewer than 8 training seeds." in few


def test_what_is_missing_is_said():
    text = says("ocr", made(*ABOVE, seeds=1), None, made(*AROUND, seeds=1), ["star_shuffled"], mini=False).text
    assert "(star_shuffled) was not run, so the gain cannot be attributed to the map" in text
    assert "With one training seed, the interval does not cover the spread between trainings" in text
    assert "training has no measurable effect" in text and "not comparable" not in text
    assert "has no images to compare with" in says("ocr", made(*ABOVE), None, None, [], mini=False).text
    assert "two seeds is too wide to tell" in says("ocr", None, None, made(*AROUND, seeds=2), [], mini=False).text
    for absent, told in (
        (["star"], "STAR was not run here, so they cannot be compared."),
        (["flow_grpo", "star"], "STAR and Flow-GRPO were not run here"),
        (["star_random"], "STAR and Flow-GRPO have no images here of the same prompts, noise and seeds"),
    ):
        assert told in says("ocr", None, None, None, absent, mini=False).text
    assert "there is no interval" in says("ocr", made(None, None), None, None, [], mini=False).text
    assert "A claim needs 8 training seeds, not 2." in says("ocr", made(*BELOW, seeds=2), None, None, [], mini=False).text


@pytest.mark.parametrize(
    "gain, oracle, papers, expected",
    [
        (made(*AROUND), made(*ABOVE), 0.06, rules.SMALLER),
        (made(*AROUND), made(*ABOVE), 0.04, rules.UNCLEAR),
        (made(*AROUND), made(*AROUND), 0.06, rules.UNCLEAR),
        (made(*AROUND), replace(made(*ABOVE), same_terms=False), 0.06, rules.UNCLEAR),
        (made(*AROUND), made(*ABOVE, seeds=7), 0.06, rules.UNCLEAR),
        (made(*AROUND), None, 0.06, rules.UNCLEAR),
        (made(*AROUND), made(*ABOVE), None, rules.UNCLEAR),
        (made(*AROUND, seeds=7), made(*ABOVE), 0.06, rules.UNCLEAR),
        (made(*ABOVE), made(*ABOVE), 0.06, rules.NO_CONTROL),
        (made(*BELOW), made(*ABOVE), 0.06, rules.LOSS),
    ],
)
def test_smaller_than_the_papers_needs_seeds_and_an_oracle_that_gains(gain, oracle, papers, expected):
    assert verdict(gain, None, oracle, papers) == expected


def test_below_zero_without_a_test_that_shows_it_is_smaller_too():
    assert verdict(made(*BELOW), None, made(*ABOVE), 0.06, p=0.2) == rules.SMALLER


def test_a_difference_that_does_not_show_says_what_could_have():
    gain = replace(made(*AROUND), per_seed=tuple(0.01 * (-1) ** seed for seed in range(8)))
    text = says("ocr", gain, None, None, [], False, made(*ABOVE), 0.027).text
    of_trainings, of_prompts = detectable(np.std(gain.per_seed, ddof=1), 8), 0.03 + 0.84162 * 0.01  # half the interval
    assert of_trainings < of_prompts and f"a difference of {of_prompts:.3f} with 80 % power in one test at 5 %. The" in text
    assert "at 5 %; after correction" in says("ocr", gain, None, None, [], False, made(*ABOVE), 0.027, p=0.5).text
    apart = replace(gain, per_seed=tuple(0.05 * (-1) ** seed for seed in range(8)))
    shown = detectable(np.std(apart.per_seed, ddof=1), 8)
    assert f"detect a difference of {shown:.3f} with 80 % power" in says("ocr", apart, None, None, [], False).text
    assert "Flow-GRPO's gain, would be +0.027 here." in text
    assert "oracle_twins minus Flow-GRPO is +0.030 [+0.010, +0.050] (8 training seeds): a map can help measurably." in text
    one = says("ocr", gain, None, None, [], False, made(*ABOVE, seeds=1)).text
    assert "(1 training seed): too few to say whether any map helps measurably." in one
    few = says("ocr", gain, None, None, [], False, made(*ABOVE, seeds=7)).text
    assert "(7 training seeds): too few to say whether any map helps measurably." in few
    for other in (replace(made(*ABOVE), same_terms=False), made(*ABOVE, trained_on=(5760, 23_040))):
        assert "oracle" not in says("ocr", gain, None, None, [], False, other).text
    assert "not even this map helps measurably, so this" in says("ocr", gain, None, None, [], False, made(*AROUND)).text
    # Where no map helps measurably, a loss says no more of STAR's than a null. A gain stands, and says something of it.
    for found in (gain, made(*BELOW)):
        assert "should help loses, so this" in says("ocr", found, None, None, [], False, made(*BELOW)).text
    for control in (None, made(*ABOVE), made(*AROUND), made(*ABOVE, seeds=3)):
        text = says("ocr", made(*ABOVE), control, None, [], False, made(*BELOW)).text
        assert "(8 training seeds): a map that should help loses. " in text and "says nothing" not in text
        text = says("ocr", made(*ABOVE), control, None, [], False, made(*AROUND)).text
        assert "(8 training seeds): not even this map helps measurably. " in text and "says nothing" not in text
    assert "There is no oracle (oracle_twins) to compare" in says("ocr", gain, None, None, [], False).text
    assert "80 % power" not in says("ocr", made(*ABOVE), None, None, [], False).text
