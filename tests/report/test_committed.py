"""Numbers of the committed results, worked out again from their raw rows with nothing of this project."""

import csv
import gzip
import io
import math
from collections import Counter, defaultdict
from functools import cache
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import pytest
from scipy import stats

from star.config import load
from star.matrix.cells import expand
from star.records.first_updates import against_each, gains
from star.report.collection import collect
from star.report.first_updates import parts
from star.report.glance import panels
from star.report.planned import LEARNING, SCORE, planned
from star.tasks import held_out_prompts

MINI = Path(__file__).parents[2] / "results" / "mini"
PAGE = MINI.parents[1] / "docs" / "results_mini.md"
SCORES = {"geneval": "geneval_official_macro", "ocr": "ocr_accuracy", "pickscore": "pickscore"}


@cache
def lines(file: Path) -> list[dict[str, str]]:
    data = file.read_bytes()
    text = (gzip.decompress(data) if file.suffix == ".gz" else data).decode()
    return list(csv.DictReader(io.StringIO(text, newline="")))


def page_in_one_line():
    return " ".join(PAGE.read_text().split())


@cache
def trainings():
    """Of whole trainings: (task, method) -> seed -> held-out score, and (task, method, seed) -> the reward of each epoch."""
    scores, rewards = defaultdict(dict), defaultdict(list)
    for task, metric in SCORES.items():
        for row in lines(MINI / f"{task}.csv"):
            if row["metric"] == metric:
                scores[task, row["method"]][int(row["seed"])] = float(row["value"])
    for row in lines(MINI / "curves.csv"):
        rewards[row["task"], row["method"], int(row["seed"])].append(float(row["reward"]))
    return scores, rewards


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


@pytest.mark.parametrize("task", [*SCORES, "vivid"])
def test_shipped_results_are_of_these_settings(task):
    """Else nobody could set a run beside them: a new setting changed what settings are (see CONTRIBUTING.md on results)."""
    shipped = {(r["method"], int(r["seed"]), r["config_hash"]) for r in lines(MINI / f"{task}.csv") if ":" not in r["method"]}
    methods, seeds = {row[0] for row in shipped} - {"base"}, {row[1] for row in shipped if row[0] != "base"}
    assert len(methods) >= 4 and len(seeds) >= 3
    for method, seed, hashed in shipped:
        arm, *variant = method.replace("base", "star").split("+")
        base, *trained = expand([f"task={task}", f"method={arm}", f"seed={seed}", *(f"variant={name}" for name in variant)])
        assert (base if method == "base" else trained[0]).config_hash(task) == hashed


def test_shipped_images_are_of_these_prompts():
    """A protocol tells others by its name, and NumPy could draw them without one."""
    shown = defaultdict(set)
    for row in lines(MINI / "images.csv.gz"):
        shown[row["task"]].add(row["prompt"])
    assert shown == {task: {prompt.text for prompt in held_out_prompts(load([]), task)} for task in shown}
    assert shown.keys() >= SCORES.keys()


@pytest.mark.parametrize("task", SCORES)
def test_planned_differences_are_those_of_the_rows(found, task):
    scores, rewards = trainings()
    values = {
        LEARNING: {key: mean(own) for key, own in rewards.items()},
        SCORE: {(*key, seed): value for key, by_seed in scores.items() for seed, value in by_seed.items()},
    }
    made = [one for one in planned(found) if one.task == task]
    assert [one.measure for one in made if (one.arm, one.reference) == ("star", "flow_grpo")] == [LEARNING, SCORE]
    for one in made:
        own = values[one.measure]
        apart = [own[task, one.arm, seed] - own[task, one.reference, seed] for seed in one.seeds]
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


@pytest.mark.parametrize("task", [*SCORES, "vivid"])
def test_paired_differences_are_those_of_the_scores(found, task):
    scores = {
        (row.method, row.seed): row.value for row in found.rows if (row.task, row.metric) == (task, found.main_metric(task))
    }
    for arm in ("star", "oracle_twins"):
        gain = found.difference(task, arm, "flow_grpo")
        apart = [scores[arm, seed] - scores["flow_grpo", seed] for seed in gain.seeds]
        assert len(apart) >= 3 and gain.per_seed == pytest.approx(apart, abs=2e-6)  # of six digits


def gained_first(task):
    """What each arm gained in the first updates: arm -> a number for each seed, in their order."""
    rewards = defaultdict(lambda: defaultdict(list))
    for row in lines(MINI / "first_updates.csv"):
        if row["task"] == task and row["epoch"] != "1":
            rewards[row["arm"]][int(row["seed"])].append(float(row["reward"]))
    untrained = {seed: mean(own) for seed, own in rewards.pop("untrained").items()}
    return {arm: [mean(by_seed[seed]) - untrained[seed] for seed in sorted(by_seed)] for arm, by_seed in rewards.items()}


@pytest.mark.parametrize("task", sorted({row["task"] for row in lines(MINI / "first_updates.csv")}))
def test_gains_of_first_updates_are_those_of_the_rewards(found, task):
    by_arm = gained_first(task)
    (part,) = (part for part in parts(found.first_updates) if part["task"].iloc[0] == task)
    assert len(by_arm) >= 5
    for one in gains(part):
        own, reference = by_arm[one.arm], by_arm["flow_grpo"]
        assert len(own) == len(reference) == 8 and one.gain.value == pytest.approx(mean(own), abs=1e-9)
        assert one.ratio == pytest.approx(sum(own) / sum(reference), abs=1e-9)
        if one.arm == "flow_grpo":
            continue
        apart = [a - b for a, b in zip(own, reference, strict=True)]
        t = mean(apart) / (stdev(apart) / math.sqrt(8))
        reach = stats.t.ppf(0.975, 7) * mean(apart) / t
        assert one.difference.interval == pytest.approx((mean(apart) - reach, mean(apart) + reach), abs=1e-9)
        assert one.p == pytest.approx(2 * stats.t.sf(abs(t), 7), abs=1e-9)
    for arm, one in against_each(part, "star").items():
        apart = [a - b for a, b in zip(by_arm["star"], by_arm[arm], strict=True)]
        assert one.difference.value == pytest.approx(mean(apart), abs=1e-9) and one.per_seed == pytest.approx(apart, abs=1e-9)
        assert one.p == pytest.approx(stats.ttest_1samp(apart, 0).pvalue, abs=1e-9)


def test_the_pages_ablation_is_that_of_the_rewards():
    page = PAGE.read_text()
    gains_of = {task: gained_first(task) for task in ("geneval", "pickscore", "ocr")}
    for arm in ("temporal", "spatial", "star_shifted"):
        cells = []
        for by_arm in gains_of.values():
            own, reference, star = by_arm[arm], by_arm["flow_grpo"], by_arm["star"]
            pairs = list(zip(own, reference, strict=True))
            ratio, stderr = jackknifed(lambda kept: sum(a for a, _ in kept) / sum(b for _, b in kept), pairs)
            cells += [f"{ratio:.2f} ± {stderr:.2f}", told([a - b for a, b in zip(star, own, strict=True)], 4, "+")]
        assert f"| `{arm}` | {' | '.join(cells)} |" in page


def test_what_is_left_of_the_leads_is_that_of_the_rewards(found):
    """The planned test, of epochs 21 to 30, and the control, of 2 to 30; the page has both."""
    rewards = defaultdict(lambda: defaultdict(dict))
    for row in lines(MINI / "lasting.csv"):
        rewards[row["arm"]][row["seed"]][int(row["epoch"])] = float(row["reward"])
    page = PAGE.read_text()
    for since in (2, 21):
        known = {one.arm: one for one in gains(found.lasting, since)}
        means = {
            arm: [mean(value for epoch, value in own[seed].items() if epoch >= since) for seed in sorted(own)]
            for arm, own in rewards.items()
        }
        for arm in ("star", "oracle_twins", "background"):
            apart = [a - b for a, b in zip(means[arm], means["flow_grpo"], strict=True)]
            t = mean(apart) / (stdev(apart) / math.sqrt(8))
            assert len(apart) == 8 and known[arm].difference.value == pytest.approx(mean(apart), abs=1e-9)
            assert known[arm].p == pytest.approx(2 * stats.t.sf(abs(t), 7), abs=1e-9)
            assert f"{told(apart, 4, '+')}" in page


def leads(file, task, arm, reference):
    """One arm's reward minus another's: epoch -> a number for each seed, in their order."""
    rewards = {(r["arm"], int(r["epoch"]), r["seed"]): float(r["reward"]) for r in lines(MINI / file) if r["task"] == task}
    seeds, epochs = sorted({seed for *_, seed in rewards}), sorted({epoch for _, epoch, _ in rewards})
    return {e: [rewards[arm, e, seed] - rewards[reference, e, seed] for seed in seeds] for e in epochs}


def test_what_the_page_says_of_leads_by_epoch():
    page = page_in_one_line()
    for task in ("geneval", "pickscore", "ocr", "vivid"):
        lead = leads("first_updates.csv", task, "star", "flow_grpo")
        assert len(lead[2]) == 8 and max(lead) == 6
        slopes = [sum((epoch - 4) * lead[epoch][seed] for epoch in range(2, 7)) / 10 for seed in range(8)]
        assert told(slopes, 4, "+") in page, task
    late = {arm: leads("lasting.csv", "geneval", arm, "background") for arm in ("star", "oracle_twins")}
    for arm in late.values():
        assert told([mean(arm[epoch][seed] for epoch in range(21, 31)) for seed in range(8)], 4, "+") in page


def corrected(p):
    """Holm's p of tests, by their names."""
    ordered, highest = sorted(p, key=p.get), {}
    for place, name in enumerate(ordered):
        highest[name] = min(1.0, max([*highest.values(), p[name] * (len(p) - place)]))
    return highest


def test_what_the_page_says_of_tests_of_first_updates():
    page, p = page_in_one_line(), {}
    for task in ("geneval", "pickscore"):
        gained = gained_first(task)
        for arm in ("flow_grpo", "temporal", "spatial"):
            p[task, arm] = stats.ttest_rel(gained["star"], gained[arm]).pvalue
    first = corrected({name: value for name, value in p.items() if name[1] == "flow_grpo"})
    assert f"{first['geneval', 'flow_grpo']:.3f} and {first['pickscore', 'flow_grpo']:.4f} after Holm" in page
    later = corrected({name: value for name, value in p.items() if name[1] != "flow_grpo"})
    assert f"p = {later['geneval', 'temporal']:.3f} and {later['pickscore', 'temporal']:.4f} after Holm" in page
    assert f"p = {later['geneval', 'spatial']:.1f} and {later['pickscore', 'spatial']:.1f})" in page
    six = corrected(p)
    both = f"p = {six['geneval', 'temporal']:.3f} (minus `temporal`) and {six['geneval', 'flow_grpo']:.3f} (minus Flow-GRPO)"
    assert both in page
    for task in ("geneval", "pickscore"):
        gained = gained_first(task)
        assert told([a - b for a, b in zip(gained["spatial"], gained["flow_grpo"], strict=True)], 4, "+") in page


def test_the_page_has_what_half_the_rate_gives():
    """On the seeds that both arms have at both rates."""
    page = PAGE.read_text()
    scores, rewards = trainings()
    for rate, suffix in (("1e-3", "+lr1e-3"), ("2e-3", "")):
        cells = []
        for task, of_reward, of_score in (("geneval", 3, 3), ("pickscore", 4, 2)):
            seeds = sorted(scores[task, "star+lr1e-3"])
            learnt = [mean(rewards[task, f"star{suffix}", s]) - mean(rewards[task, f"flow_grpo{suffix}", s]) for s in seeds]
            scored = [scores[task, f"star{suffix}"][s] - scores[task, f"flow_grpo{suffix}"][s] for s in seeds]
            assert len(seeds) >= 3 and seeds == sorted(scores[task, "flow_grpo+lr1e-3"])
            cells += [told(learnt, of_reward, "+"), told(scored, of_score, "+")]
        assert f"| STAR minus Flow-GRPO, {rate} | {' | '.join(cells)} |" in page


README_ROWS = {
    "**STAR**": "star",
    "`spatial`, STAR's maps without time": "spatial",
    "`temporal`, without places": "temporal",
    "`star_shuffled`, maps of other prompts": "star_shuffled",
    "`oracle_twins`, a map that knows where things are": "oracle_twins",
    "`background`, a map of all but these": "background",
}


def test_the_readmes_gains_are_those_of_the_files(found):
    """Of small steps (gradient.csv) and of the first updates (first_updates.csv), in units of Flow-GRPO's."""
    steps = {
        (row["task"], row["arm"]): f"{float(row['value']):.2f} ± {float(row['stderr']):.2f}"
        for row in lines(MINI / "gradient.csv")
        if (row["weights"], row["part"], row["metric"]) == ("initial", "all", "ratio")
    }
    updates = {
        (part["task"].iloc[0], one.arm): f"{one.ratio:.2f} ± {one.stderr:.2f}"
        for part in parts(found.first_updates)
        for one in gains(part)
    }
    wanted = {label: [] for label in README_ROWS}
    for label, arm in README_ROWS.items():
        for task in ("geneval", "pickscore", "ocr"):
            wanted[label] += [steps[task, arm], updates[task, arm]]
    text = (MINI.parents[1] / "README.md").read_text()
    for label, cells in wanted.items():
        assert f"| {label} | {' | '.join(cells)} |" in text


def test_the_pictures_multiples_are_those_of_the_files(found):
    """STAR's and the background's on GenEval: of a small step, of the first updates, and of whole trainings."""
    made = panels(found)["geneval"]
    steps = {
        row["arm"]: (float(row["value"]), float(row["stderr"]))
        for row in lines(MINI / "gradient.csv")
        if (row["task"], row["weights"], row["part"], row["metric"]) == ("geneval", "initial", "all", "ratio")
    }
    scores, rewards = defaultdict(dict), defaultdict(list)
    for row in lines(MINI / "geneval.csv"):
        if row["metric"] == SCORES["geneval"]:
            scores[row["method"]][row["seed"]] = float(row["value"])
    for row in lines(MINI / "first_updates.csv"):
        if row["task"] == "geneval" and int(row["epoch"]) > 1:
            rewards[row["arm"], row["seed"]].append(float(row["reward"]))
    seeds = sorted(seed for arm, seed in rewards if arm == "flow_grpo")
    for arm in ("star", "background"):
        value, stderr = steps[arm]
        wanted = {"a small step, predicted": (value, value - 1.959964 * stderr, value + 1.959964 * stderr)}
        apart = [mean(rewards[arm, seed]) - mean(rewards["flow_grpo", seed]) for seed in seeds]
        gained = mean(mean(rewards["flow_grpo", seed]) - mean(rewards["untrained", seed]) for seed in seeds)
        wanted["the first updates"] = multiples(apart, gained)
        apart = [score - scores["flow_grpo"][seed] for seed, score in scores[arm].items()]
        wanted["whole trainings"] = multiples(apart, mean(scores["flow_grpo"].values()) - mean(scores["base"].values()))
        for stage, numbers in wanted.items():
            assert (made[arm][stage].value, *made[arm][stage].interval) == pytest.approx(numbers, abs=1e-5)


def student(values):
    """Mean and the ends of Student's interval."""
    reach = stats.t.ppf(0.975, len(values) - 1) * stdev(values) / math.sqrt(len(values))
    return [mean(values) + end for end in (0, -reach, reach)]


def multiples(differences, gain):
    """One more than the mean difference and its interval, over a gain."""
    return tuple(1 + number / gain for number in student(differences))


THREE_SEEDS = ("temporal", "spatial", "dense_uniform", "background", "star_random", "star_shifted")
TRAINED = {"flow_grpo": "Flow-GRPO", "star": "**STAR**", "star_shuffled": "`star_shuffled`", "oracle_twins": "`oracle_twins`"}


def told(values, digits, sign=""):
    """Mean and Student's interval, in words."""
    middle, low, high = (f"{number:{sign}.{digits}f}" for number in student(values))
    return f"{middle} [{low}, {high}]"


def test_the_pages_tables_of_whole_trainings_are_those_of_the_files():
    scores, rewards = trainings()
    readme = (MINI.parents[1] / "README.md").read_text()
    page = PAGE.read_text()
    digits = {"geneval": 3, "ocr": 3, "pickscore": 2}
    for arm, label in TRAINED.items():
        own = {task: [scores[task, arm][seed] for seed in sorted(scores[task, arm])] for task in SCORES}
        assert f"| {label} | {' | '.join(told(own[task], digits[task]) for task in SCORES)} |" in readme
        each = (", ".join(f"{value:.{digits[task]}f}" for value in own[task]) for task in SCORES)
        assert f"| {label} | {' | '.join(each)} |" in page
    for arm, other, label in (
        ("star", "flow_grpo", "STAR minus Flow-GRPO"),
        ("oracle_twins", "flow_grpo", "`oracle_twins` minus Flow-GRPO"),
        ("star", "star_shuffled", "STAR minus `star_shuffled`"),
        *((arm, "flow_grpo", f"`{arm}` minus Flow-GRPO") for arm in THREE_SEEDS),
    ):
        learnt, scored = [], []
        for task in SCORES:
            pairs = [(seed, scores[task, arm][seed] - scores[task, other][seed]) for seed in sorted(scores[task, arm])]
            gained = [mean(rewards[task, arm, seed]) - mean(rewards[task, other, seed]) for seed, _ in pairs]
            learnt.append(told(gained, 4 if task == "pickscore" else 3, "+"))
            scored.append(told([value for _, value in pairs], digits[task], "+"))
        if other == "flow_grpo" and arm == "star":
            assert f"| {label} | {' | '.join(scored)} |" in readme
        for measure, cells in (("training reward", learnt), ("held-out score", scored)):
            (line,) = (line for line in page.splitlines() if line.startswith(f"| {label} | {measure} |"))
            assert [cell.strip().rpartition(", ")[0] for cell in line.split("|")[3:-1]] == cells


def error_of(without):
    """The jackknife's standard error, from the values without each part in turn."""
    return (len(without) - 1) / math.sqrt(len(without)) * stdev(without)


def jackknifed(statistic, parts):
    """(value, standard error) of a statistic of all parts, by leaving out each in turn."""
    without = [statistic([part for part in parts if part != left]) for left in parts]
    return statistic(parts), error_of(without)


def leaving_each_out(cosines):
    """The mean cosine of different epochs, of all and without each epoch in turn, from (epochs, epochs)."""
    apart = np.where(np.eye(len(cosines), dtype=bool), 0, cosines)
    count, total = len(apart), apart.sum()
    without = (total - apart.sum(0) - apart.sum(1)) / ((count - 1) * (count - 2))
    return np.array([total / (count * (count - 1)), *without])


@cache
def cosines_of_gradients():
    """(measurement, arm, other arm) -> the mean cosine, of all epochs and without each in turn."""
    pairs = defaultdict(lambda: np.full((96, 96), np.nan))
    for row in lines(MINI / "gradient_cosines.csv.gz"):
        key = (row["task"], row["weights"], row["config_hash"]), row["arm"], row["other"]
        places, cosine = (int(row["epoch"]), int(row["other_epoch"])), float(row["cosine"])
        pairs[key][places] = cosine
        if row["arm"] == row["other"]:
            pairs[key][places[::-1]] = cosine
    sizes = {key: np.isfinite(found).any(0).sum() for key, found in pairs.items()}
    return {key: leaving_each_out(found[: sizes[key], : sizes[key]]) for key, found in pairs.items()}


def test_figures_of_gradients_are_those_of_the_cosines():
    found = cosines_of_gradients()
    told = {
        ((row["task"], row["weights"], row["config_hash"]), row["arm"], row["metric"]): row
        for row in lines(MINI / "gradient.csv")
        if row["part"] == "all"
    }
    sizes = Counter()
    for measured, arm in dict.fromkeys((measured, arm) for measured, arm, _ in found):
        across, base = found[measured, arm, "flow_grpo"], found[measured, "flow_grpo", "flow_grpo"]
        for metric, (value, *without) in {"self_cosine": found[measured, arm, arm], "ratio": across / base}.items():
            row = told[measured, arm, metric]
            assert int(row["epochs"]) == len(without)
            assert float(row["value"]) == pytest.approx(value, rel=1e-3, abs=1e-6)
            assert float(row["stderr"]) == pytest.approx(error_of(without), rel=1e-3, abs=1e-6)
        sizes[measured[0], measured[1] == "initial", len(without)] += 1
    assert sizes["geneval", True, 24] >= 12 and sizes["ocr", True, 24] >= 12 and sizes["pickscore", True, 24] >= 12


def mid_training(task, seed):
    """The measurement at the weights of Flow-GRPO's run at half the rate after 20 epochs."""
    (found,) = {
        measured
        for measured, *_ in cosines_of_gradients()
        if measured[0] == task and f"flow_grpo+lr1e-3/seed{seed}-" in measured[1] and "epoch-000020" in measured[1]
    }
    return found


def test_figures_of_mid_training_are_those_of_the_cosines():
    """The page's table, the second plan's three tests, what is left of the signal and how the runs differ."""
    found, page = cosines_of_gradients(), page_in_one_line()
    ratio, left = {}, []
    for task, name, seed in (*(("geneval", "GenEval", seed) for seed in range(3)), ("pickscore", "PickScore", 0)):
        measured = mid_training(task, seed)
        base = found[measured, "flow_grpo", "flow_grpo"]
        assert base[0] > 3 * error_of(base[1:])
        cells = [f"{base[0]:.3f} ± {error_of(base[1:]):.3f}"]
        for arm in ("star", "star_shifted", "oracle_twins", "background"):
            ratio[task, seed, arm] = value, *without = found[measured, arm, "flow_grpo"] / base
            cells.append(f"{value:.2f} ± {error_of(without):.2f}")
        assert f"| {name}, seed {seed} | {' | '.join(cells)} |" in page
        (first,) = {measured for measured, *_ in found if measured[:2] == (task, "initial")}
        late, early = base[0], found[first, "flow_grpo", "flow_grpo"][0]
        left.append(192 * late / (1 - late) * (1 - early) / early)
    assert f"as much signal as {min(left):.0f} to {max(left):.0f} of them did" in page
    told, p = [], []
    for arm, other in (("oracle_twins", None), ("star", None), ("background", "oracle_twins")):
        apart = [ratio["geneval", seed, arm] - (ratio["geneval", seed, other] if other else 1) for seed in (1, 2)]
        value, error = mean(one[0] for one in apart), math.hypot(*(error_of(one[1:]) for one in apart)) / 2
        told.append(f"{value:+.2f} ± {error:.2f}")
        p.append(2 * stats.norm.sf(abs(value / error)))
    assert f"are {told[0]} (`oracle_twins`) and {told[1]} (STAR), and `background` less `oracle_twins` is {told[2]}" in page
    assert min(p) * 3 == pytest.approx(0.62, abs=0.005) and sorted(p)[1] * 2 > 1 and "p = 1, 0.6 and 1 after Holm" in page
    for arm, expected in {"star": 0.003, "oracle_twins": 0.004, "background": 0.007, "star_shifted": 0.9}.items():
        runs = [ratio["geneval", seed, arm] for seed in (0, 1, 2)]
        weights = [error_of(one[1:]) ** -2 for one in runs]
        middle = sum(w * one[0] for w, one in zip(weights, runs, strict=True)) / sum(weights)
        chi2 = sum(w * (one[0] - middle) ** 2 for w, one in zip(weights, runs, strict=True))
        assert float(f"{stats.chi2.sf(chi2, 2):.1g}") == expected


@pytest.mark.parametrize("task", sorted({row["task"] for row in lines(MINI / "influence_draws.csv.gz")}))
def test_figures_of_influence_are_those_of_the_draws(task):
    draws = defaultdict(list)
    for row in lines(MINI / "influence_draws.csv.gz"):
        if row["task"] == task:
            draws[row["prompt"]].append((float(row["reward"]) ** 2, float(row["place"]) > 0.5, row["quartile"] == "3"))

    def squared(kept, wanted=lambda on, highest: True):
        return mean(change for prompt in kept for change, on, highest in draws[prompt] if wanted(on, highest))

    def on_over_off(kept):
        """Within prompts that have tokens on objects and off them, weighted as in a stratified comparison."""
        sums = [0.0, 0.0]
        for prompt in kept:
            on, off = ([change for change, there, _ in draws[prompt] if there is side] for side in (True, False))
            if on and off:
                share = len(on) * len(off) / (len(on) + len(off))
                sums = [total + share * mean(part) for total, part in zip(sums, (on, off), strict=True)]
        return sums[0] / sums[1]

    told = {
        row["metric"]: (float(row["value"]), float(row["stderr"]))
        for row in lines(MINI / "influence.csv")
        if (row["task"], row["weights"], row["part"]) == (task, "initial", "all")
    }
    for metric, statistic in {
        "reward_change": lambda kept: math.sqrt(squared(kept)),
        "on_over_off": on_over_off,
        "quartile_4": lambda kept: squared(kept, lambda _, highest: highest) / squared(kept),
    }.items():
        assert told[metric] == pytest.approx(jackknifed(statistic, list(draws)), rel=1e-3)
