"""The planned tests, against numbers worked out by hand, and the sentences that are made of them."""

import re
from dataclasses import replace
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest
from fake_results import EVALUATION_SEED, PRIMARY, curve, hashed, rows, write_matrix
from scipy import stats

from star.bench.gradient import COLUMNS
from star.bench.table import write
from star.common.numbers import p_value
from star.common.statistics import detectable, holm
from star.records.names import method_label
from star.records.results import PaperRow, read
from star.records.results import write as write_rows
from star.report import verdict as rules
from star.report.blocks import Text
from star.report.collection import collect
from star.report.opening import opening
from star.report.planned import (
    LEARNING,
    PLANNED,
    SCORE,
    Planned,
    corrected,
    planned,
    planned_tests,
    says_of_check,
    says_of_learning,
)
from star.report.sections import _findings
from star.report.uncertainty import _normalised, uncertainty

SEEDS = (0, 1, 2, 3)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("planned")
    return collect(write_matrix(folder, arms=("flow_grpo", "star", "star_shuffled"), seeds=SEEDS), folder)


def score(task, method, seed):
    return next(row.value for row in rows(task, method, seed) if (row.task, row.metric) == (task, PRIMARY[task]))


def test_both_measures_are_paired_by_seed(found):
    made = {(one.task, one.arm, one.reference, one.measure): one for one in planned(found)}
    learning, scored = (made["ocr", "star", "flow_grpo", measure] for measure in (LEARNING, SCORE))
    rewards = [curve("ocr", "star", s)["reward"].mean() - curve("ocr", "flow_grpo", s)["reward"].mean() for s in SEEDS]
    scores = [score("ocr", "star", s) - score("ocr", "flow_grpo", s) for s in SEEDS]
    assert learning.per_seed == pytest.approx(rewards) and scored.per_seed == pytest.approx(scores, abs=2e-6)
    error = stats.sem(rewards) * stats.t.ppf(0.975, 3)
    assert learning.delta.interval == pytest.approx((np.mean(rewards) - error, np.mean(rewards) + error))
    assert learning.detectable == pytest.approx(detectable(np.std(rewards, ddof=1), 4))
    assert learning.p == pytest.approx(stats.ttest_1samp(rewards, 0).pvalue)
    assert ("ocr", "star", "star_shuffled", SCORE) in made and ("ocr", "oracle_twins", "flow_grpo", SCORE) not in made


def test_verdicts_that_lack_for_a_seed_are_seen_beside_the_test(found):
    said = [block.text for block in _findings(replace(found, images=found.images.query("seed != 3"))).blocks]
    assert all("3 training seeds" in text for text in said if "The test over seeds 0, 1, 2, 3, corrected" in text)
    assert sum("The test over seeds 0, 1, 2, 3, corrected" in text for text in said) == len(PRIMARY)
    assert not any("The test over seeds 0" in block.text for block in _findings(found).blocks)


def test_the_question_alone_is_corrected_for_its_tests(found):
    p = corrected(planned(found))
    assert set(p) == {(task, measure) for task in PRIMARY for measure in (LEARNING, SCORE)}
    plain = {(o.task, o.measure): o.p for o in planned(found) if o.reference == "flow_grpo"}
    assert all(p[key] >= plain[key] for key in p) and min(p.values()) == pytest.approx(6 * min(plain.values()))
    heading, _, table, *_ = planned_tests(found).blocks
    assert heading.text.startswith(PLANNED)
    assert [row[-1] == "–" for row in table.rows] == [False, True, False, True, True, True, True]
    # What was planned and not run stays in sight.
    named = [(row[0].partition(" minus ")[0], row[2]) for row in table.rows[4:]]
    assert named == [(method_label(arm), "not run") for arm in ("oracle_twins", "background", "dense_uniform")]


def test_reward_and_score_that_part_ways_are_told_together(found):
    def told(learning, score):
        made = [
            replace(one, per_seed=tuple((learning if one.measure == LEARNING else score) + 0.001 * s for s in range(4)))
            for one in planned(found)
        ]
        return says_of_learning("ocr", made, corrected(made)).text

    apart = "The score on held-out prompts has the opposite sign, −0.0485 [−0.0506, −0.0464]: neither tells the whole story."
    assert apart in told(0.05, -0.05)
    assert "opposite sign" not in told(0.05, 0.05) and "opposite sign" not in told(0.05, -0.0015)


def test_differences_that_are_all_the_same_pass_no_test(found):
    same = [replace(one, per_seed=(0.1,) * len(one.seeds)) for one in planned(found)]
    assert set(corrected(same).values()) == {1.0} and {one.detectable for one in same} == {None}
    assert corrected([replace(one, seeds=(0,), per_seed=(0.1,)) for one in same]) == {}


def test_tests_that_are_not_made_yet_count(tmp_path):
    results = write_matrix(tmp_path, arms=("flow_grpo", "star"), seeds=SEEDS, tasks=("ocr",))
    made = planned(collect(results, tmp_path))
    ps = sorted(one.p for one in made)
    assert len(ps) == 2 and sorted(corrected(made).values()) == pytest.approx([min(1, 6 * ps[0]), max(6 * ps[0], 5 * ps[1])])


def differences(measure, lead, *, over_shuffled, seeds):
    """On signs: STAR's lead over Flow-GRPO and over maps of other prompts, alike in all seeds but by little."""
    leads = {"flow_grpo": lead, "star_shuffled": over_shuffled}
    return [
        Planned(
            "ocr", "star", other, measure, tuple(range(seeds)), tuple(apart + 0.001 * (-1) ** seed for seed in range(seeds))
        )
        for other, apart in leads.items()
    ]


@pytest.mark.parametrize(
    ("lead", "over_shuffled", "seeds", "said"),
    [
        (0.02, 0.02, 8, rules.GAIN),
        (0.02, 0.0, 8, rules.SHARED),
        (0.0, 0.02, 8, rules.UNCLEAR),
        (-0.02, 0.0, 8, rules.LOSS),
        (
            0.001,
            0.02,
            8,
            rules.UNCLEAR,
        ),  # an interval above 0, and p not after the correction
        (0.02, 0.02, 3, rules.FEW_SEEDS),
        (-0.02, 0.02, 3, rules.FEW_SEEDS_LOSS),
    ],
)
def test_the_training_reward_has_a_verdict_of_its_own(lead, over_shuffled, seeds, said):
    made = differences(LEARNING, lead, over_shuffled=over_shuffled, seeds=seeds)
    made += differences(SCORE, 0.0, over_shuffled=0.0, seeds=seeds)
    text = says_of_learning("ocr", made, corrected(made))
    assert text.strong == f"ocr, training reward: {said}"
    assert f"{seeds} training seeds" in text.text and "STAR minus star_shuffled" in text.text and "gives p = " in text.text
    shown = detectable(np.std(made[0].per_seed, ddof=1), seeds)
    assert f" This many trainings detect {shown:.4f} with 80 % power in one test at 5 %." in text.text
    assert says_of_learning("geneval", made, corrected(made)) is None


def test_the_report_says_it_beside_the_score(found):
    said = [block for block in _findings(found).blocks if block.strong]
    assert [block.strong.split(":")[0] for block in said] == [
        name
        for task in found.tasks
        for name in (task, f"{task}, training reward{' (PickScore / 26)' * (task == 'pickscore')}")
    ]
    p = corrected(planned(found))
    values = [p_value(p[task, measure]) for task in found.tasks for measure in (SCORE, LEARNING)]
    assert [re.search(r"gives p = ((< )?\S+)[.:] ", block.text)[1] for block in said] == values
    assert not set(values[::2]) & set(values[1::2])


def test_a_task_beside_the_plan_is_told_without_a_test(found):
    plain = corrected(planned(found))
    made = [*planned(found), replace(planned(found)[0], task="vivid")]
    assert corrected(made) == plain


@pytest.mark.parametrize(("control", "told"), [(8, False), (3, True)])
def test_a_control_of_fewer_seeds_is_told_where_the_claim_is_withheld(control, told):
    made = [one for one in differences(LEARNING, 0.02, over_shuffled=0.02, seeds=8) if one.reference == "flow_grpo"]
    made += [one for one in differences(LEARNING, 0.02, over_shuffled=0.02, seeds=control) if one.reference != "flow_grpo"]
    text = says_of_learning("ocr", made, corrected(made)).text
    assert ("] (3 training seeds). The control has fewer than 8 training seeds." in text) == told
    assert ("The control has fewer" in text) == told
    alone = says_of_learning("ocr", made[:1], corrected(made))
    assert alone.strong.endswith(rules.NO_CONTROL) and "STAR minus star_shuffled, the control, is not known." in alone.text


def test_scores_of_unequal_numbers_of_images_are_not_subtracted(tmp_path):
    folder = write_matrix(tmp_path, arms=("flow_grpo", "star"), seeds=(0, 1), tasks=("ocr",))
    before = {one.measure: one.seeds for one in planned(collect(folder, tmp_path))}
    rows_of = read(folder / "ocr.csv")
    fewer = [replace(row, images=row.images // 2) if (row.method, row.seed) == ("star", 1) else row for row in rows_of]
    write_rows(fewer, folder / "ocr.csv")
    after = {one.measure: one.seeds for one in planned(collect(folder, tmp_path))}
    assert before[SCORE] == (0, 1) and after[SCORE] == (0,) and after[LEARNING] == before[LEARNING]


def test_seeds_that_were_trained_otherwise_are_left_out(tmp_path):
    results = write_matrix(tmp_path, arms=("flow_grpo", "star"), seeds=SEEDS, tasks=("ocr",))
    curves = pd.read_csv(results / "curves.csv")
    last = curves["epoch"] == curves["epoch"].max()
    curves[~(last & (curves["seed"] == SEEDS[1]))].to_csv(results / "curves.csv", index=False)  # of both arms
    (learning,) = (one for one in planned(collect(results, tmp_path)) if one.measure == LEARNING)
    assert learning.seeds == tuple(seed for seed in SEEDS if seed != SEEDS[1])


def test_scores_of_two_protocols_are_not_subtracted(tmp_path):
    results = write_matrix(tmp_path, arms=("flow_grpo", "star"), seeds=SEEDS, tasks=("ocr",))
    plain = planned(collect(results, tmp_path))
    own = read(results / "ocr.csv")
    guided = [
        replace(r, protocol=f"{r.protocol}/guidance=2.0", value=0.99, config_hash="0" * 12) for r in own if r.method == "star"
    ]
    write_rows([*own, *guided], results / "ocr.csv")
    assert [one.per_seed for one in planned(collect(results, tmp_path)) if one.measure == SCORE] == [
        one.per_seed for one in plain if one.measure == SCORE
    ]


def test_what_flow_grpo_gains_is_of_one_protocol(tmp_path):
    results = write_matrix(tmp_path, arms=("flow_grpo", "star"), seeds=SEEDS, tasks=("ocr",))
    own = read(results / "ocr.csv")
    papers, normalised = collect(results, tmp_path).papers_gain("ocr"), _normalised(collect(results, tmp_path))
    # More seeds of the base by another protocol, and better.
    guided = [
        replace(r, protocol=f"{r.protocol}/guidance=2.0", value=r.value + 0.1, config_hash="0" * 12, seed=r.seed + more)
        for r in own
        if r.method == "base"
        for more in range(6)
    ]
    write_rows([*own, *guided], results / "ocr.csv")
    both = collect(results, tmp_path)
    assert both.summary("ocr", PRIMARY["ocr"], "base").protocol.endswith("guidance=2.0")
    assert both.papers_gain("ocr") == papers and papers > 0 and _normalised(both) == normalised and normalised[0]["ocr"]
    write_rows([*(r for r in own if r.method != "base"), *guided], results / "ocr.csv")
    assert collect(results, tmp_path).papers_gain("ocr") is None


def test_the_papers_gain_is_a_share_of_what_flow_grpo_gains(found):
    published = {"base": "0.5", "flow_grpo": "0.9", "star": "0.95"}
    paper = [
        PaperRow("ocr", PRIMARY["ocr"], "OCR", method, Decimal(value), None, None, None, None, "a paper", "")
        for method, value in published.items()
    ]
    beside = replace(found, paper=paper)
    gained = np.mean([score("ocr", "flow_grpo", seed) for seed in SEEDS]) - score("ocr", "base", EVALUATION_SEED)
    assert beside.papers_gain("ocr") == pytest.approx(0.05 / 0.4 * gained, abs=1e-6)
    better = [replace(row, value=0.99) if row.method == "base" else row for row in found.rows]
    assert replace(beside, rows=better).papers_gain("ocr") is None


def test_trainings_that_are_not_alike_are_not_paired(tmp_path):
    results = write_matrix(tmp_path, arms=("flow_grpo", "star"), seeds=SEEDS, tasks=("ocr",))
    curves = pd.read_csv(results / "curves.csv", dtype={"config_hash": str})
    longer = (curves["method"] == "star") & (curves["seed"] == 2) & (curves["epoch"] > 3)
    curves[~longer].to_csv(results / "curves.csv", index=False)
    own = [
        replace(r, images_seen=r.images_seen + 1) if (r.method, r.seed) == ("star", 1) else r
        for r in read(results / "ocr.csv")
    ]
    write_rows(own, results / "ocr.csv")
    found = collect(results, tmp_path)
    assert {one.measure: one.seeds for one in planned(found)} == {LEARNING: (0, 1, 3), SCORE: (0, 2, 3)}
    cells = ("star", 0, "one"), ("flow_grpo", 0, "another"), ("star", 3, "one")
    found.terms = {("ocr", method, seed, hashed("ocr", method, seed)): terms for method, seed, terms in cells}
    assert {one.measure: one.seeds for one in planned(found)} == {LEARNING: (1, 3), SCORE: (2, 3)}


def test_holm_by_hand():
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.9, 0.6]) == [1.0, 1.0] and holm([]) == [] and holm([0.02]) == [0.02]


def test_runs_without_a_partner_of_their_seed_do_not_count(tmp_path):
    results = write_matrix(tmp_path, arms=("flow_grpo", "star"), seeds=(0,), tasks=("ocr",))
    one = planned(collect(results, tmp_path))[0]
    assert one.seeds == (0,) and one.delta.interval is None and one.detectable is None and one.p is None
    alone = collect(write_matrix(tmp_path / "alone", arms=("star",), seeds=(0,), tasks=("ocr",)), tmp_path)
    assert planned(alone) == [] and planned_tests(alone).blocks[0].missing


def test_five_sentences(tmp_path):
    results = write_matrix(tmp_path, arms=("flow_grpo", "star"), seeds=SEEDS, tasks=("geneval", "ocr"))
    arms = {"star": 1.13, "star_shifted": 0.99, "star_shuffled": 1.03, "oracle_twins": 1.15, "oracle": 1.51}
    arms |= {"background": 0.66}
    facts = (0.03, 12, 2304, "abc", "0123")
    made = [("geneval", "initial", arm, "all", "ratio", value, *facts) for arm, value in arms.items()]
    made += [("geneval", "runs/half.safetensors", "star", "all", "ratio", 9.0, *facts)]
    made += [("geneval", "initial", arm, "step 0", "ratio", 9.0, *facts) for arm in arms]
    made += [("geneval", "initial", arm, "all", "adam_ratio", 9.0, *facts) for arm in arms]
    write(pd.DataFrame(made, columns=COLUMNS), results / "gradient.csv", "gradient")
    _, signal, nothing, ceiling, training, reach = opening(collect(results, tmp_path)).blocks
    assert "gains more on geneval (1.13 ± 0.03)." in signal.text
    assert (
        "STAR's maps moved by half the canvas (star_shifted) gain undecided on geneval (0.99 ± 0.03); its maps of"
        in nothing.text
    )
    assert nothing.text.endswith("other prompts (star_shuffled) gain undecided on geneval (1.03 ± 0.03).")
    assert "other rollouts come from (oracle_twins) gains more on geneval (1.15 ± 0.03); one of where" in ceiling.text
    assert "afterwards, gains more on geneval (1.51 ± 0.03); one of where the verdict does not come" in ceiling.text
    assert ceiling.text.endswith("which should lose, gains less on geneval (0.66 ± 0.03).")
    assert "geneval (4 seeds): training reward +" in training.text and "(80 % power at " in training.text
    assert "Anything about SD3.5" in reach.text


@pytest.mark.parametrize(
    ("signal", "star", "background", "said"),
    [
        (0.05, 1.1, None, ": 1.10 ± 0.02 (0.050 ± 0.020; no such map was measured, so this tells nothing)."),
        (0.05, 1.1, 0.97, ": 1.10 ± 0.02 (0.050 ± 0.020; 0.97 ± 0.02 is not seen to lose, so this tells nothing)."),
        (0.05, 1.1, 0.95, ": 1.10 ± 0.02 (0.050 ± 0.020; 0.95 ± 0.02)."),
        (0.04, 1.1, 0.95, ": too little signal is left (0.040 ± 0.020)."),
        (None, 1.1, 0.95, ""),
        (0.05, None, 0.95, ""),
    ],
)
def test_gradients_during_a_training_are_told_if_there_is_signal_and_the_control_loses(
    tmp_path, signal, star, background, said
):
    results = write_matrix(tmp_path, arms=("flow_grpo", "star"), seeds=(0,), tasks=("ocr",))
    figures = [("flow_grpo", "self_cosine", signal), ("star", "ratio", star), ("background", "ratio", background)]
    weights, facts = "runs/mini/ocr/star/seed0/checkpoints/epoch-000020/trained.safetensors", (0.02, 96, 18432, "abc", "0123")
    made = [("ocr", weights, arm, "all", metric, value, *facts) for arm, metric, value in figures if value is not None]
    write(pd.DataFrame(made, columns=COLUMNS), results / "gradient.csv", "gradient")
    texts = [block.text for block in opening(collect(results, tmp_path)).blocks if isinstance(block, Text)]
    told = [text for text in texts if text.startswith("STAR's ratio at the weights of trainings; ")]
    assert len(told) == bool(said) and all(text.endswith(f"(background): ocr, star/seed0/epoch-000020{said}") for text in told)


def first_sentence(tmp_path, made):
    """What the first screen says of gradients: task, arm, ratio (or of Flow-GRPO the signal), its error and the settings."""
    results = write_matrix(tmp_path, arms=("flow_grpo", "star"), seeds=(0,), tasks=("geneval",))
    rows = [
        (task, "initial", arm, "all", "ratio" if arm != "flow_grpo" else "self_cosine", value, error, 2, 384, "abc", own)
        for task, arm, value, error, own in made
    ]
    write(pd.DataFrame(rows, columns=COLUMNS), results / "gradient.csv", "gradient")
    return opening(collect(results, tmp_path)).blocks[1].text


@pytest.mark.parametrize(
    ("made", "said"),
    [
        ([("geneval", "spatial", 1.2, 0.1, "01")], "STAR's gradient at the base's weights was not measured here."),
        ([("geneval", "star", 1.2, float("nan"), "01")], "gains an amount of unknown error on geneval (1.20). "),
        (
            [("geneval", "star", 1.13, 0.06, "01"), ("ocr", "star", 1.11, 0.06, "02"), ("pickscore", "star", 0.89, 0.06, "3")],
            "gains more on geneval (1.13 ± 0.06), undecided on ocr (1.11 ± 0.06) and pickscore (0.89 ± 0.06). ",
        ),
        (
            [("geneval", "star", 1.2, 0.05, "01"), ("geneval", "star", 1.5, 0.4, "02"), ("ocr", "star", 0.8, 0.05, "03")],
            "gains more on geneval with settings 01 (1.20 ± 0.05), less on ocr (0.80 ± 0.05), undecided on geneval "
            "with settings 02 (1.50 ± 0.40). ",
        ),
        (
            [("geneval", "star", 1.5, 0.1, "1"), ("ocr", "star", 1.5, 0.1, "2"), ("geneval", "flow_grpo", 0.02, 0.011, "1")]
            + [("ocr", "flow_grpo", 0.1, 0.01, "2")],
            "gains more on ocr (1.50 ± 0.10), too little signal to tell on geneval (1.50 ± 0.10). ",
        ),
    ],
)
def test_what_gradients_do_not_tell_is_not_said(tmp_path, made, said):
    assert said in first_sentence(tmp_path, made)


def with_check(tmp_path, lead):
    """Results of signs, and of the check ``vivid`` where the background's reward lies so far ahead of Flow-GRPO's."""
    results = write_matrix(tmp_path, arms=("flow_grpo", "star"), seeds=SEEDS, tasks=("ocr",))
    named = {"flow_grpo": "flow_grpo", "star": "background", "base": "base"}
    own = [row for row in read(results / "ocr.csv") if row.method in named and row.metric == PRIMARY["ocr"]]
    vivid = [replace(row, task="vivid", metric="vivid", protocol="vivid-v1/mini", method=named[row.method]) for row in own]
    write_rows(vivid, results / "vivid.csv")
    curves = pd.read_csv(results / "curves.csv", dtype={"config_hash": str})
    checked = curves.assign(task="vivid", method=curves["method"].map(named))
    first = checked[checked["method"] == "flow_grpo"].set_index(["seed", "epoch"])["reward"]
    other = checked["method"] == "background"
    ahead = first.loc[list(zip(checked[other]["seed"], checked[other]["epoch"], strict=True))].to_numpy()
    checked.loc[other, "reward"] = ahead + lead + 0.001 * checked[other]["seed"]
    pd.concat([curves, checked]).to_csv(results / "curves.csv", index=False)
    return collect(results, tmp_path)


@pytest.mark.parametrize("lead, seen", [(-0.05, "tell maps apart"), (-0.0025, "do not tell maps apart")])
def test_a_check_is_told_by_its_background_and_no_claim_is_made_of_it(tmp_path, lead, seen):
    found = with_check(tmp_path, lead)
    assert found.checks == ["vivid"] and found.tasks == ["ocr", "vivid"]
    said = _findings(found).blocks
    text = next(block for block in said if block.strong.startswith("vivid"))
    table = next(block for block in planned_tests(found).blocks if getattr(block, "caption", "").startswith("vivid"))
    assert {(row[0], row[2]) for row in table.rows} >= {("background minus Flow-GRPO", LEARNING)}
    assert all(row[2] in (LEARNING, "not run") and row[0].endswith("minus Flow-GRPO") for row in table.rows)
    assert text.strong == f"vivid, a check: 4 trainings of each arm {seen}."
    mean = f"{lead + 0.001 * np.mean(SEEDS):+.4f}".replace("-", "\N{MINUS SIGN}")
    assert f"all epochs: background minus Flow-GRPO {mean} [" in text.text and "] (4 seeds)" in text.text
    assert any("On ocr no arm has more" in block.text for block in said)
    assert not any("On vivid" in block.text for block in said)
    assert corrected(planned(found)).keys() == {("ocr", LEARNING), ("ocr", SCORE)}
    across = uncertainty(found).parts[0].blocks
    assert any(block.text == "vivid is left out: it checks measurements and is not a benchmark." for block in across)


def test_a_check_without_its_background_is_not_made(found):
    assert says_of_check("vivid", planned(found)).strong == "vivid, a check: not made."
