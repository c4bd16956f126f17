"""``star bench first_updates`` trains as ``star train`` does, and its figures are what the formulas say."""

import csv
import json
import math
import shutil
import sys
from pathlib import Path
from statistics import mean, stdev
from types import SimpleNamespace

import pandas as pd
import pytest
from filelock import FileLock, Timeout
from scipy import stats

from star import config as settings
from star.bench import first_updates
from star.cli import main
from star.common.errors import UserError
from star.common.files import alone_in
from star.common.machine import machine
from star.common.statistics import detectable
from star.records.code import commit
from star.records.first_updates import COLUMNS, UNTRAINED, gains, gains_by_seed
from star.training.trainer import Trainer

ARMS = ("flow_grpo", "star@mix=1")
COMMAND, WORDS = first_updates, ("task=pickscore", f"arms={','.join(ARMS)}", "epochs=3", "train.epochs=4", "seed=0,2")
EXTENDING = Path(__file__).parents[1] / "extending"


def table(file="runs/results/mini/first_updates.csv"):
    with open(file) as lines:
        return list(csv.DictReader(lines))


def trained(words, arm, seed):
    """The rewards that the trainer itself logs."""
    name, *own = arm.split("@")
    outside = ("arms=", "epochs=", "seed=")
    left = [word for word in words if not word.startswith(outside)]
    config = settings.load(
        [*left, f"method={name}", *(f"method.{one}" for one in own), f"seed={seed}", f"run={arm}-{seed}-{len(words)}"]
    )
    trainer = Trainer(config)
    trainer.run()
    return [json.loads(line)["reward"] for line in (Path(config.run) / "metrics.jsonl").read_text().splitlines()]


def test_rewards_are_those_of_the_trainings(measured):
    words = measured
    first_updates.run(words)
    rows = table()
    assert list(rows[0]) == [*COLUMNS, "machine"]
    found = {(row["arm"], int(row["seed"])): [] for row in rows}
    for row in rows:
        found[row["arm"], int(row["seed"])].append(float(row["reward"]))
    assert list(found) == [(arm, seed) for seed in (0, 2) for arm in (UNTRAINED, *ARMS)]
    for seed in (0, 2):
        assert len({found[arm, seed][0] for arm in (UNTRAINED, *ARMS)}) == 1  # drawn before the first update
        assert len({found[arm, seed][2] for arm in (UNTRAINED, *ARMS)}) == 3
    assert found["star@mix=1", 2] == trained(words, "star@mix=1", 2)[:3]
    # Of no rate that moves a weight the trainer's rewards are the untrained model's.
    still = trained([*words, "train.lr=1e-30"], "flow_grpo", 2)[:3]
    assert found[UNTRAINED, 2] == pytest.approx(still, rel=1e-6) and still[1] != still[0]
    assert [(row["updates"], row["lr"]) for row in rows[:6]] == [("0", "0.002")] * 4 + [("2", "0.002"), ("4", "0.002")]
    assert {(row["commit"], row["machine"]) for row in rows} == {(commit(), machine())}
    assert len({row["config_hash"] for row in rows}) == 1


def test_what_is_there_is_not_trained_again_and_more_is_added(measured, monkeypatch):
    words = measured
    first_updates.run([*words, "seed=2"])
    epoch, begun = Trainer.epoch, []

    def counted(self, number, *given):
        begun.append((self.config.seed, self.config.method.name, type(self).__name__, number))
        return epoch(self, number, *given)

    monkeypatch.setattr(Trainer, "epoch", counted)
    before = table()
    with pytest.raises(UserError, match="say epochs=3, or name another table"):
        first_updates.run([*words, "seed=2", "epochs=2"])
    shown = first_updates.run([*words, "seed=2", "epochs=2", "out=short.csv"])
    assert not begun and table() == before  # fewer epochs take none away
    assert {row[1] for row in shown.rows} == {"1 x 2"}
    assert set(pd.read_csv("short.csv")["epoch"]) == {1, 2}
    first_updates.run([*words, "seed=2", "arms=flow_grpo,temporal"])
    assert begun == [(2, "temporal", "Trainer", number) for number in range(3)]
    begun.clear()
    first_updates.run([*words, "seed=3", "epochs=2", "arms=flow_grpo"])
    assert begun == [(3, "flow_grpo", kind, number) for kind in ("Untrained", "Trainer") for number in range(2)]
    assert {(row["arm"], row["seed"]) for row in table()} == {
        *((arm, "2") for arm in (UNTRAINED, *ARMS, "temporal")),
        *((arm, "3") for arm in (UNTRAINED, "flow_grpo")),
    }
    begun.clear()
    first_updates.run([*words, "seed=3", "epochs=3", "arms=flow_grpo"])
    assert [number for *_, number in begun] == [0, 1, 2] * 2


def test_seeds_may_be_trained_side_by_side_and_one_seed_may_not(measured):
    words = measured
    shutil.rmtree(next(Path("runs").rglob("seed2")))
    first_updates.run([*words, "seed=0", "arms=flow_grpo", "epochs=2"])
    (folder,) = Path("runs/first_updates/mini/pickscore").iterdir()
    with alone_in(folder / "seed0"):
        first_updates.run([*words, "seed=2", "arms=flow_grpo", "epochs=2"])
        first_updates.run([*words, "arms=flow_grpo", "epochs=2"])  # both are there
        (folder / "seed0" / "flow_grpo.json").write_text('{"rewards"')
        with pytest.raises(UserError, match="another process works in .*seed0"):
            first_updates.run([*words, "seed=0", "arms=flow_grpo", "epochs=2"])
    before = table()
    first_updates.run([*words, "arms=flow_grpo", "epochs=2"])  # what is damaged is made again
    assert table() == before


class Overflowing:
    """A trainer in float16 whose first updates overflow."""

    commit, machine = "abc", "a machine"

    def __init__(self, config, task, base):
        self.config = config

    def epoch(self, number):
        made = {} if self.config.method.name == "flow_grpo" else {"skipped_updates": (1.0, 0.5, 0.0, 1.0)[number]}
        return {"reward": 0.5 + number / 8} | made


@pytest.fixture
def overflowing(monkeypatch):
    monkeypatch.setattr(first_updates, "loaded", lambda config: SimpleNamespace(trained={}))
    monkeypatch.setattr(first_updates, "check_maps", lambda *given: None)
    monkeypatch.setattr(first_updates, "Trainer", Overflowing)
    monkeypatch.setattr(first_updates, "Untrained", Overflowing)


@pytest.mark.usefixtures("overflowing")
def test_seeds_that_begin_side_by_side_choose_kernels_one_after_another(words, monkeypatch):
    """Or each would time them for itself, and arms of two seeds be trained with unequal ones."""
    begun = []

    def watched(config, folder):
        with pytest.raises(Timeout):
            FileLock(folder / ".kernels.txt.lock").acquire(timeout=0)
        begun.append(config.seed)
        return config

    monkeypatch.setattr(first_updates, "as_begun", watched)
    first_updates.run([*words, "arms=flow_grpo", "epochs=2"])
    assert begun == [0, 2]


@pytest.mark.usefixtures("overflowing")
def test_skipped_updates_are_not_counted_and_told(words, capsys):
    first_updates.run([*words, "arms=flow_grpo,star", "epochs=4", "seed=2"])
    found = {arm: [row["updates"] for row in table() if row["arm"] == arm] for arm in (UNTRAINED, "flow_grpo", "star")}
    assert found == {UNTRAINED: ["0"] * 4, "flow_grpo": ["0", "2", "4", "6"], "star": ["0", "0", "1", "3"]}
    (told,) = [line for line in capsys.readouterr().err.splitlines() if "caution" in line]
    assert "seed 2, star: updates skipped because float16 overflowed: 3; arms that" in told
    (file,) = Path("runs").rglob("star.json")
    older = json.loads(file.read_text())
    assert older.pop("updates") == [0, 0, 1, 3]
    file.write_text(json.dumps(older))  # as it was written before it said how many were made
    first_updates.run([*words, "arms=flow_grpo,star", "epochs=4", "seed=2"])
    assert [row["updates"] for row in table() if row["arm"] == "star"] == ["0", "2", "4", "6"]
    file.write_text(json.dumps(older | {"updates": [0, 0]}))
    first_updates.run([*words, "arms=flow_grpo,star", "epochs=4", "seed=2"])
    assert "star.json is damaged (a number of updates is missing)" in capsys.readouterr().err


def test_gains_are_worked_out_by_hand():
    rewards = {  # arm -> seed -> epochs
        UNTRAINED: {0: [0.5, 0.4, 0.6], 1: [0.5, 0.6, 0.4], 4: [0.5, 0.5, 0.7]},
        "flow_grpo": {0: [0.5, 0.5, 0.8], 1: [0.5, 0.7, 0.5], 4: [0.5, 0.6, 1.0]},
        "star": {0: [0.5, 0.6, 0.8], 1: [0.5, 0.6, 0.6], 4: [0.5, 0.7, 1.0]},
        "star@mix=1": {0: [0.5, 0.5, 0.8], 1: [0.5, 0.7, 0.5]},  # has no seed 4
    }
    rows = pd.DataFrame(
        [
            (arm, seed, epoch, reward)
            for arm, by_seed in rewards.items()
            for seed, own in by_seed.items()
            for epoch, reward in enumerate(own, 1)
        ],
        columns=["arm", "seed", "epoch", "reward"],
    )
    both, epochs = gains_by_seed(rows, ["star@mix=1", "flow_grpo"])
    assert list(both.index) == [0, 1] and both["flow_grpo"].tolist() == pytest.approx([0.15, 0.1]) and epochs == 3
    flow, star, further = gains(rows)
    assert [(one.arm, one.seeds, one.epochs) for one in (flow, star, further)] == [
        ("flow_grpo", 3, 3),
        ("star", 3, 3),
        ("star@mix=1", 2, 3),
    ]
    assert further.ratio == pytest.approx(1) and further.gain.value == pytest.approx(0.125)
    of_flow, of_star = [0.15, 0.1, 0.2], [0.2, 0.1, 0.25]
    apart = [own - other for own, other in zip(of_star, of_flow, strict=True)]
    assert (flow.arm, flow.ratio, flow.stderr, flow.difference, flow.p) == ("flow_grpo", 1.0, 0.0, None, None)
    assert flow.gain.value == pytest.approx(mean(of_flow)) and star.gain.value == pytest.approx(mean(of_star))
    assert star.difference.value == pytest.approx(mean(apart))
    reach = stats.t.ppf(0.975, 2) * stdev(apart) / math.sqrt(3)
    assert star.difference.interval == pytest.approx((mean(apart) - reach, mean(apart) + reach))
    assert star.p == pytest.approx(2 * stats.t.sf(mean(apart) / (stdev(apart) / math.sqrt(3)), 2))
    assert star.detectable == pytest.approx(detectable(stdev(apart), 3)) and flow.detectable is None
    assert star.ratio == pytest.approx(0.55 / 0.45)
    left_out = [0.35 / 0.30, 0.45 / 0.35, 0.30 / 0.25]
    assert star.stderr == pytest.approx(math.sqrt(2 / 3 * sum((one - mean(left_out)) ** 2 for one in left_out)))


def test_an_arm_of_other_seeds_or_epochs_changes_nothing_of_the_others():
    def rows_of(arm, seeds, epochs):
        reward = 0.5 + 0.01 * (arm != UNTRAINED) + 0.02 * (arm == "star")
        return [(arm, seed, epoch, reward * (1 + 0.01 * seed * epoch)) for seed in seeds for epoch in range(1, epochs + 1)]

    columns = ["arm", "seed", "epoch", "reward"]
    full = [row for arm in (UNTRAINED, "flow_grpo", "star") for row in rows_of(arm, range(8), 6)]
    before = gains(pd.DataFrame(full, columns=columns))
    for seeds, epochs in (((0, 1), 6), (range(8), 2)):
        reference, spatial, star = gains(pd.DataFrame([*full, *rows_of("spatial", seeds, epochs)], columns=columns))
        assert [reference, star] == before and (spatial.seeds, spatial.epochs) == (len(seeds), epochs)
    assert gains(pd.DataFrame([*full, *rows_of("spatial", (9,), 6)], columns=columns)) == before
    # A seed of STAR's with fewer epochs than most is left out of STAR's row alone.
    short = [row for row in full if not (row[0] == "star" and row[1] == 3 and row[2] > 4)]
    flow, star = gains(pd.DataFrame(short, columns=columns))
    assert flow == before[0] and (star.seeds, star.epochs) == (7, 6)


@pytest.mark.parametrize(
    ("lengths", "seeds", "epochs"), [((4, 6, 4), [0, 1, 2], 4), ((6, 3, 6), [0, 2], 6), ((4, 6), [1], 6), ((6, 4), [0], 6)]
)
def test_seeds_count_as_far_as_most_of_them_go(lengths, seeds, epochs):
    """Flow-GRPO's lead is the number of the epoch."""
    rows = [
        (arm, seed, epoch, 0.5 + epoch * (arm == "flow_grpo"))
        for arm in (UNTRAINED, "flow_grpo")
        for seed, length in enumerate(lengths)
        for epoch in range(1, length + 1)
    ]
    found, count = gains_by_seed(pd.DataFrame(rows, columns=["arm", "seed", "epoch", "reward"]), ["flow_grpo"])
    assert list(found.index) == seeds and count == epochs
    assert found["flow_grpo"].tolist() == pytest.approx([mean(range(2, epochs + 1))] * len(seeds))


def test_one_seed_has_no_interval_and_none_in_common_no_figures():
    rows = [
        (arm, 0, epoch, reward) for arm, reward in ((UNTRAINED, 0.5), ("flow_grpo", 0.6), ("star", 0.7)) for epoch in (1, 2)
    ]
    table = pd.DataFrame(rows, columns=["arm", "seed", "epoch", "reward"])
    _, star = gains(table)
    assert star.ratio == pytest.approx(2) and math.isnan(star.stderr)
    assert star.difference.interval is star.p is star.detectable is None
    table.loc[table["arm"] == "star", "seed"] = 1
    assert [one.arm for one in gains(table)] == ["flow_grpo"]


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("epochs=1", "epochs=1 must be a number from 2 on: the first is drawn before"),
        ("epochs=5", r"epochs=5 are more than the 4 of a training \(train.epochs\)"),
        ("arms=star", "arms=star: flow_grpo is missing"),
        ("arms=flow_grpo,moon", "no arm 'moon'; there are: flow_grpo"),
        ("seed=3..1", r"seed=3..1: the range 3..1 is empty"),
        ("seed=x", "'x' is no seed"),
        (f"seed=0,{2**63}", r"seed=9223372036854775808 must be less than 2\^63"),
        ("seed=", "seed= has no value"),
        ("method=star", "method=star: arms=A,B says which arms are trained"),
        ("run=here", "what they gain is kept in runs/first_updates"),
        ("train.lr=fast", "train.lr"),
        ("evaluators.pickscore=own_reward:Brightness", "method.arm=oracle needs to know .* brightness-v1 does not tell"),
    ],
)
def test_bad_words_are_one_line_before_a_model_is_loaded(words, word, message, monkeypatch):
    monkeypatch.syspath_prepend(EXTENDING)
    monkeypatch.setattr("star.models.load", lambda *given: pytest.fail("loaded"))
    with pytest.raises(UserError, match=message) as caught:
        first_updates.run([*words, "arms=flow_grpo,oracle", word])
    assert "\n" not in str(caught.value) and not Path("runs").exists()


def test_a_map_that_cannot_be_made_is_refused_before_any_training(words, monkeypatch):
    monkeypatch.syspath_prepend(EXTENDING)
    monkeypatch.setattr("own_arm.peaks", lambda relevance, rollouts: relevance[:, :1])
    monkeypatch.setattr(Trainer, "epoch", lambda *given: pytest.fail("trained"))
    with pytest.raises(UserError, match="own_arm:peaks"):
        first_updates.run([*words, "arms=flow_grpo,star,own_arm:peaks"])


def test_a_table_of_more_epochs_is_not_replaced_by_fewer(measured, monkeypatch):
    """Where the trainings themselves are gone."""
    words = measured
    first_updates.run([*words, "epochs=3", "arms=flow_grpo"])
    shutil.rmtree("runs/first_updates")
    monkeypatch.setattr("star.models.load", lambda *given: pytest.fail("loaded"))
    told = "epochs=2: .*first_updates.csv has 3 of (untrained|flow_grpo), seed ., with these settings; say epochs=3, or name"
    with pytest.raises(UserError, match=told):
        first_updates.run([*words, "epochs=2", "arms=flow_grpo,star"])


def test_another_table_is_not_overwritten(words):
    Path("other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="other.csv is no table of star bench first_updates; name another file"):
        first_updates.run([*words, "out=other.csv"])
    assert Path("other.csv").read_text() == "a,b\n1,2\n"


def test_the_command_prints_its_table(measured, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["star", "bench", "first_updates", *measured, "arms=flow_grpo,star", "epochs=2"])
    with pytest.raises(SystemExit) as exit:
        main()
    out = capsys.readouterr().out
    assert (
        not exit.value.code and "after the first epoch" in out and "2 x 2" in out and "results/mini/first_updates.csv" in out
    )
    monkeypatch.setattr(sys, "argv", ["star", "bench", "first_updates", "--help"])
    with pytest.raises(SystemExit) as exit:
        main()
    assert "Example: star bench first_updates" in capsys.readouterr().out
