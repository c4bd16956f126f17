"""Numbers of the committed results, worked out again from their raw rows with nothing of this project."""

import csv
import gzip
import io
import math
from collections import defaultdict
from pathlib import Path
from statistics import mean, stdev

import pytest
from scipy import stats

from star.report.collection import collect
from star.report.planned import LEARNING, SCORE, planned

MINI = Path(__file__).parents[2] / "results" / "mini"
SCORES = {"geneval": "geneval_official_macro", "ocr": "ocr_accuracy", "pickscore": "pickscore"}


def lines(file: Path) -> list[dict[str, str]]:
    data = file.read_bytes()
    text = (gzip.decompress(data) if file.suffix == ".gz" else data).decode()
    return list(csv.DictReader(io.StringIO(text, newline="")))


@pytest.fixture(scope="module")
def found():
    return collect(MINI, Path("nowhere"))


@pytest.mark.parametrize("task", SCORES)
def test_ratios_of_gradients_are_quotients_of_cosines(task):
    own = [row for row in lines(MINI / "gradient.csv") if (row["task"], row["part"]) == (task, "all")]
    value = {(row["weights"], row["config_hash"], row["arm"], row["metric"]): float(row["value"]) for row in own}
    checked = 0
    for (*place, arm, metric), ratio in value.items():
        prefix = "adam_" if metric.startswith("adam_") else ""
        if " - " in arm or metric != f"{prefix}ratio":
            continue
        base, c = value[*place, "flow_grpo", f"{prefix}self_cosine"], value[*place, arm, f"{prefix}self_cosine"]
        assert ratio == pytest.approx(value[*place, arm, f"{prefix}cosine"] / base, rel=1e-4)
        direction, images = (value.get((*place, arm, f"{prefix}{name}")) for name in ("direction", "effective_images"))
        assert direction == pytest.approx(ratio * math.sqrt(base / c), rel=1e-4) if base * c > 0 else direction is None
        assert images == pytest.approx(c / (1 - c) * (1 - base) / base, rel=1e-4)
        if ("star - flow_grpo", metric) in {(row["arm"], row["metric"]) for row in own} and arm == "star":
            assert value[*place, "star - flow_grpo", metric] == pytest.approx(ratio - 1, abs=1e-5)  # of six digits each
        checked += 1
    assert checked >= 6


@pytest.mark.parametrize("task", SCORES)
def test_planned_differences_are_those_of_the_rows(found, task):
    rewards = defaultdict(list)
    for row in lines(MINI / "curves.csv"):
        rewards[row["task"], row["method"], row["seed"]].append(float(row["reward"]))
    scores = {
        (task, row["method"], row["seed"]): float(row["value"])
        for row in lines(MINI / f"{task}.csv")
        if row["metric"] == SCORES[task]
    }
    for one in (one for one in planned(found) if one.task == task):
        values = {LEARNING: {key: mean(own) for key, own in rewards.items()}, SCORE: scores}[one.measure]
        apart = [values[task, one.arm, str(seed)] - values[task, one.reference, str(seed)] for seed in one.seeds]
        assert one.per_seed == pytest.approx(apart, abs=1e-9) and apart
        if len(apart) == 1:
            assert one.delta.interval is None and one.p is None
            continue
        reach = stats.t.ppf(0.975, len(apart) - 1) * stdev(apart) / math.sqrt(len(apart))
        assert one.delta.interval == pytest.approx((mean(apart) - reach, mean(apart) + reach))


@pytest.mark.parametrize("task, column", [("geneval", "correct"), ("ocr", "reward"), ("pickscore", "score")])
def test_paired_differences_are_those_of_the_images(found, task, column):
    gain = found.difference(task, "star", "flow_grpo")
    by_stratum = defaultdict(lambda: defaultdict(list))
    for row in lines(MINI / "images.csv.gz"):
        if (row["task"], row["method"]) in ((task, "star"), (task, "flow_grpo")):
            number = {"True": 1.0, "False": 0.0}.get(row[column])
            by_stratum[row["stratum"]][row["method"]].append(float(row[column]) if number is None else number)
    apart = mean(mean(own["star"]) - mean(own["flow_grpo"]) for own in by_stratum.values())
    assert gain.delta.value == pytest.approx(apart, abs=1e-9)
