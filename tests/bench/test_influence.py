"""One token's noise is drawn anew and nothing else, and what is said of it is what the formulas say."""

import csv
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from fake_task import RedTask
from typer.testing import CliRunner

from star import config as settings
from star import models
from star.bench import influence
from star.bench.influence import Change
from star.cli import app
from star.common.errors import RunStopped, UserError
from star.common.noise import generator, normal
from star.method.sampling import transition
from star.records.code import commit
from star.tasks import load_task
from star.training.rollout import Sample, plan, trained_steps

DRAWN = Sample(2, 0)
CHANGES = [Change(0, 3, 4), Change(1, 0, 0), Change(1, 7, 7), Change(0, 7, 1), Change(1, 5, 2)]


class PlacedTask(RedTask):
    """The upper half is judged."""

    def places(self, prompts, images):
        return [np.arange(64)[:, None].repeat(64, 1) < 32] * len(images)


@pytest.fixture
def made(make_config):
    def make(*words):
        config = make_config("method=star", "model.kernels=torch", "sampling.window_range=[0,2]", *words)
        return config, models.load(config.model, torch.device("cpu"), config.seed)

    return make


def measured(config, base, changes=CHANGES, task=None):
    steps = trained_steps(config.sampling, config.seed, 0)
    return list(influence.influences(base, task or PlacedTask(), config, DRAWN, steps, changes))


def by_hand(config, base, change=None):
    """The image of the rollout, or of one change of it, by the formulas: one row, step by step."""
    task, sampling, seed = PlacedTask(), config.sampling, config.seed
    text, schedule = [task.train[DRAWN.prompt].text], base.schedule(sampling.steps)
    x = normal(base.latent_shape, seed, 0, "start", DRAWN.prompt, 0)[None]
    source, stochastic = generator(seed, 0, "steps", DRAWN.prompt, 0), trained_steps(sampling, seed, 0)
    with torch.no_grad():
        for step in range(sampling.steps):
            noise = torch.randn(base.latent_shape, generator=source)
            if change and change.step == step:
                new = normal((base.latent_shape[0], 2, 2), seed, "influence", DRAWN.prompt, *change)
                for y in range(2):
                    for u in range(2):
                        noise[:, 2 * change.row + y, 2 * change.column + u] = new[:, y, u]
            kind = "sde" if step in stochastic or not sampling.window else "ode"
            velocity = base.velocity(x, schedule[step], text, sampling.guidance)
            moved = transition(x, velocity, schedule, step, kind, sampling.noise_level)
            x = moved.mean + moved.std * noise
        return base.decode(x)[0].numpy()


@pytest.mark.parametrize(
    "words",
    [[], ["sampling.same_latent=false", "sampling.guidance=2", "train.micro_batch=2"], ["sampling.window=0"]],
    ids=["default", "small batches", "every step"],
)
def test_changes_are_those_of_rollouts_by_hand(made, words):
    config, base = made(*words)
    before, task = by_hand(config, base), PlacedTask()
    rows = measured(config, base)
    assert [(row["step"], row["row"], row["column"]) for row in rows] == CHANGES
    for change, row in zip(CHANGES, rows, strict=True):
        after = by_hand(config, base, change)
        was, now = (verdict["reward"] for verdict in task.judge([], [before, after]))
        assert row["reward"] == pytest.approx(now - was, abs=5e-6) and abs(row["reward"]) > 2e-5
        squared, own, near = ((after / 255.0 - before / 255.0) ** 2).sum(-1), 0.0, 0.0
        for y in range(64):
            for u in range(64):
                own += squared[y, u] * ((y // 8, u // 8) == (change.row, change.column))
                near += squared[y, u] * (abs(y // 8 - change.row) <= 1 and abs(u // 8 - change.column) <= 1)
        expected = {"image": squared.sum(), "own": own, "near": near}
        assert {name: row[name] for name in expected} == pytest.approx(expected, rel=0.02)
        assert row["place"] == (change.row < 4)


def test_relevance_is_that_of_the_unchanged_rollout(made):
    """Which does not depend on the changes beside it, and is relative to the mean of its step's map."""
    config, base = made()
    every = [Change(1, row, column) for row in range(8) for column in range(8)]
    rows = measured(config, base, every)
    relevance = [row["relevance"] for row in rows]
    assert np.mean(relevance) == pytest.approx(1) and min(relevance) > 0
    assert [row["quartile"] for row in rows] == [sum(other < own for other in relevance) // 16 for own in relevance]
    assert measured(config, base, [Change(1, 0, 0)])[0]["relevance"] == pytest.approx(relevance[0])
    assert measured(config, base, [Change(0, 0, 0)])[0]["relevance"] != pytest.approx(relevance[0])


def test_the_same_noise_changes_nothing(made, monkeypatch):
    """Drawn anew with the key of the rollout's own noise it is that noise, and so is the image."""
    config, base = made()
    source = generator(config.seed, 0, "steps", DRAWN.prompt, 0)
    own = [torch.randn(base.latent_shape, generator=source) for _ in range(config.sampling.steps)]
    monkeypatch.setattr(
        influence,
        "normal",
        lambda shape, *key: own[key[3]][:, 2 * key[4] : 2 * key[4] + 2, 2 * key[5] : 2 * key[5] + 2],
    )
    for row in measured(config, base):
        assert row["reward"] == row["image"] == row["own"] == row["near"] == 0


def test_it_is_the_same_every_time_and_depends_on_the_seed(made):
    config, base = made()
    first = measured(config, base)
    assert measured(config, base) == first
    assert [row["reward"] for row in measured(*made("seed=1"))] != [row["reward"] for row in first]


def test_an_evaluator_without_places_has_no_figures_of_objects(made):
    config, base = made()
    rows = pd.DataFrame(measured(config, base, task=RedTask())).assign(prompt=0)
    assert rows["place"].isna().all()
    names = {figure.metric for figure in influence.figures(rows)}
    assert {"reward_change", "in_token"} <= names and not names & {"with_objects", "on_objects", "carried", "on_over_off"}


def test_rewards_are_checked_as_in_training(made):
    config, base = made()
    bright = PlacedTask(lambda images: [image.mean() > 1 for image in images])  # each is a np.bool_
    assert [row["reward"] for row in measured(config, base, task=bright)] == [0.0] * len(CHANGES)
    with pytest.raises(RunStopped, match="the evaluator of red gives reward=nan"):
        measured(config, base, task=PlacedTask(lambda images: [float("nan")] * len(images)))


def test_a_model_at_paper_scale_is_measured(made):
    config, base = made("scale=paper", "model.resolution=64", "model.text_length=16", "sampling.window=0", "train.beta=0")
    rows = measured(config, base, [Change(0, 1, 1), Change(2, 6, 6)])
    assert [row["step"] for row in rows] == [0, 2] and all(row["image"] > 0 and 0 < row["own"] < row["near"] for row in rows)


# What is said of them.


@pytest.fixture
def draws():
    rng = np.random.default_rng(0)
    count = 240
    table = pd.DataFrame(
        {
            "prompt": np.arange(count) // 40,
            "step": np.arange(count) % 2,
            "relevance": rng.gamma(2, size=count),
            "quartile": rng.integers(4, size=count),
            "place": rng.choice([0.0, 0.3, 0.6, 1.0], size=count),
            "reward": rng.normal(size=count),
            "image": rng.gamma(3, size=count),
        }
    )
    table["near"] = table["image"] * rng.uniform(0.3, 0.9, count)
    table["own"] = table["near"] * rng.uniform(0.1, 0.5, count)
    return table


def naive(rows):
    """Every figure by loops over plain dicts."""

    def mean(values):
        values = list(values)
        return sum(values) / len(values)

    def square(of):
        return mean(row["reward"] ** 2 for row in of)

    prompts = [[row for row in rows if row["prompt"] == prompt] for prompt in sorted({row["prompt"] for row in rows})]
    parted = [([row for row in own if row["place"] > 0.5], [row for row in own if row["place"] <= 0.5]) for own in prompts]
    parted = [(on, off) for on, off in parted if on and off]
    every_on, both = [row for on, _ in parted for row in on], [row for part in parted for rows in part for row in rows]
    shares = [len(on) * len(off) / (len(on) + len(off)) for on, off in parted]
    relevance, squares = [row["relevance"] for row in rows], [row["reward"] ** 2 for row in rows]
    a, b = [x - mean(relevance) for x in relevance], [x - mean(squares) for x in squares]
    product = sum(x * y for x, y in zip(a, b, strict=True))
    return {
        "reward_change": math.sqrt(square(rows)),
        "with_objects": len(parted) / len(prompts),
        "on_objects": len(every_on) / len(both),
        "carried": square(every_on) * len(every_on) / (square(both) * len(both)),
        "on_over_off": sum(share * square(on) for share, (on, _) in zip(shares, parted, strict=True))
        / sum(share * square(off) for share, (_, off) in zip(shares, parted, strict=True)),
        **{f"quartile_{q + 1}": square([row for row in rows if row["quartile"] == q]) / square(rows) for q in range(4)},
        "correlation": product / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b)),
        "in_token": sum(row["own"] for row in rows) / sum(row["image"] for row in rows),
        "in_3x3": sum(row["near"] for row in rows) / sum(row["image"] for row in rows),
    }


def test_figures_and_their_errors_are_those_of_loops(draws):
    found = {(figure.part, figure.metric): (figure.value, figure.stderr) for figure in influence.figures(draws)}
    rows = draws.to_dict("records")
    for part, own in {"all": rows, **{f"step {step}": [r for r in rows if r["step"] == step] for step in (0, 1)}}.items():
        whole = naive(own)
        without = [naive([row for row in own if row["prompt"] != prompt]) for prompt in range(6)]
        for metric, value in whole.items():
            left = [figures[metric] for figures in without]
            error = math.sqrt(5 / 6 * sum((x - sum(left) / 6) ** 2 for x in left))
            assert found[part, metric] == pytest.approx((value, error)), (part, metric)
    assert len(found) == 3 * len(influence.LABELS)


def test_a_reward_that_never_changes_has_no_ratios(draws):
    names = {figure.metric for figure in influence.figures(draws.assign(reward=0.0))}
    assert names == {"reward_change", "with_objects", "on_objects", "in_token", "in_3x3"}


def test_a_prompt_without_objects_says_nothing_of_them(draws):
    """However much its rewards move: else they would count as moved by tokens off objects."""
    other = draws[draws["prompt"] == 0].assign(prompt=6, place=0.0, reward=100.0)
    before, after = (influence.statistics(table) for table in (draws, pd.concat([draws, other])))
    assert before["on_over_off"] == after["on_over_off"] and before["carried"] == after["carried"]
    assert after["with_objects"] == pytest.approx(before["with_objects"] * 6 / 7)


# The command.


WORDS = ("task=pickscore", "prompts=3", "tokens=4")


def table():
    with open("runs/results/mini/influence.csv") as lines:
        return list(csv.DictReader(lines))


def test_the_table_says_what_was_measured(words):
    shown = influence.run(words)
    rows = table()
    assert list(rows[0]) == [*influence.COLUMNS, "machine"]
    assert {(row["task"], row["weights"], row["prompts"], row["images"], row["commit"]) for row in rows} == {
        ("pickscore", "initial", "3", "24", commit())
    }
    config = settings.load([word for word in words if not word.startswith(("prompts", "tokens"))])
    assert {row["part"] for row in rows} == {"all", *(f"step {step}" for step in trained_steps(config.sampling, 0, 0))}
    assert {"reward_change", "in_token", "in_3x3", "correlation"} <= {row["metric"] for row in rows}
    assert shown.title.startswith("pickscore, weights: initial; 3 prompts, 24 images") and "influence.csv" in shown.below
    assert all(len(row) == len(shown.columns) for row in shown.rows)
    # Beside it are the draws that it is made of.
    raw = pd.read_csv("runs/results/mini/influence_draws.csv.gz")
    assert list(raw) == [*influence.DRAWS, "machine"] and len(raw) == 24 and sorted(set(raw["prompt"])) == [0, 1, 2]
    told = {(row["part"], row["metric"]): float(row["value"]) for row in rows}
    assert told["all", "reward_change"] == pytest.approx((raw["reward"] ** 2).mean() ** 0.5, rel=1e-5)
    assert told["all", "in_token"] == pytest.approx(raw["own"].sum() / raw["image"].sum(), rel=1e-5)


def test_what_was_interrupted_goes_on_and_prompts_are_added(words, monkeypatch):
    influence.run([*words, "prompts=2"])
    files = {file: file.read_bytes() for file in Path("runs").rglob("rollout-*.csv")}
    assert len(files) == 2
    seen, measure = [], influence.influences

    def counted(base, task, config, drawn, *given):
        seen.append(drawn)
        return measure(base, task, config, drawn, *given)

    monkeypatch.setattr(influence, "influences", counted)
    influence.run(words)
    config = settings.load([word for word in words if not word.startswith(("prompts", "tokens"))])
    assert seen == plan(len(load_task(config, "pickscore").train), 3, 1, 0, 0)[2:]
    assert all(file.read_bytes() == before for file, before in files.items())
    assert {row["prompts"] for row in table()} == {"3"}  # in the place of those of two
    monkeypatch.setattr("star.models.load", lambda *given: pytest.fail("loaded"))
    influence.run(words)
    with pytest.raises(pytest.fail.Exception, match="loaded"):
        influence.run([*words, "tokens=5"])
    next(iter(files)).write_text("step,row\n")
    with pytest.raises(pytest.fail.Exception, match="loaded"):
        influence.run(words)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("prompts=0", "prompts=0 must be a number from 1 on"),
        ("tokens=many", "tokens=many must be a number from 1 on"),
        ("prompts=100000", "prompts=100000, but task=pickscore has only .* for training"),
        ("method=star", "method=star: nothing is trained here"),
        ("run=here", "draws are kept in runs/influence"),
        ("weights=missing", "weights=missing: there is no trained.safetensors"),
        ("token=3", "token is no setting"),
    ],
)
def test_bad_words_are_one_line_before_a_model_is_loaded(words, word, message, monkeypatch):
    monkeypatch.setattr("star.models.load", lambda *given: pytest.fail("loaded"))
    with pytest.raises(UserError, match=message) as caught:
        influence.run([*words, word])
    assert "\n" not in str(caught.value) and not Path("runs").exists()


def test_more_tokens_than_there_are_are_refused(words):
    with pytest.raises(UserError, match="tokens=65, but an image has only 64"):
        influence.run([*words, "tokens=65"])


def test_the_command_prints_its_table(words):
    found = CliRunner().invoke(app, ["bench", "influence", *words])
    assert found.exit_code == 0 and "3 prompts, 24 images" in found.output and "in 3 x 3" in found.output
    assert "Example: star bench influence task=geneval" in CliRunner().invoke(app, ["bench", "influence", "--help"]).output
