"""What is not finite is never scored and never kept: a run stops at the first such number, and names it."""

import json
import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_task import RedTask
from tiny import small_pipeline

from evaluators.interface import Score, check_verdicts
from star import cli
from star.common.errors import RunStopped
from star.models.sd3 import SD3
from star.training import runs
from star.training.guards import bad_epochs
from star.training.trainer import Trainer


@pytest.fixture
def red(monkeypatch):
    for module in ("star.training.runs", "star.training.trainer"):
        monkeypatch.setattr(f"{module}.load_task", lambda config, name, evaluator=None: RedTask())


@pytest.fixture
def damaged(tmp_path):
    """Saves the tiny pipeline with one value of one weight that is not a number."""

    def save(part: str, name: str) -> Path:
        torch.manual_seed(0)
        pipeline = small_pipeline()
        with torch.no_grad():
            getattr(pipeline, part).get_parameter(name).view(-1)[0] = math.nan
        pipeline.save_pretrained(tmp_path / "damaged")
        return tmp_path / "damaged"

    return save


@pytest.mark.parametrize(
    ("part", "name", "told"),
    [
        ("transformer", "proj_out.weight", "the model's velocity in denoising step 0 is not finite: its weights"),
        ("text_encoder_3", "shared.weight", "the model's velocity in denoising step 0 is not finite"),
        ("vae", "decoder.conv_out.bias", "the autoencoder gives pixels that are not finite"),
    ],
)
def test_a_damaged_model_gets_no_score(make_config, monkeypatch, tmp_path, red, damaged, part, name, told):
    monkeypatch.chdir(tmp_path)
    path = f"model.path={damaged(part, name)}"
    with pytest.raises(RunStopped, match=told):
        runs.base(make_config(path))
    for method in ("flow_grpo", "star"):
        config = make_config(path, f"method={method}", f"run={tmp_path / method}")
        with pytest.raises(RunStopped, match=told):
            runs.trained(config)
        assert not Path(config.run, "metrics.jsonl").exists()
    assert not list(tmp_path.rglob("rows.json")) and not list(tmp_path.rglob("trained.safetensors"))


@pytest.mark.parametrize("value", [math.nan, math.inf, np.float32("nan")])
def test_an_evaluator_that_gives_no_number_stops_the_run(make_config, monkeypatch, tmp_path, value):
    trainer = Trainer(make_config(), RedTask(lambda images: [0.5, *[value] * (len(images) - 1)]))
    with pytest.raises(RunStopped, match="the evaluator of geneval gives reward=(nan|inf)"):
        trainer.run()
    with pytest.raises(RunStopped, match="red-v1 gives reward=(nan|inf)"):
        trainer.evaluate(1)
    task = RedTask()
    task.summarise = lambda prompts, verdicts: [Score("red", float(value), None, 2, 2)]
    monkeypatch.setattr(runs, "load_task", lambda config, name, evaluator=None: task)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RunStopped, match="red-v1 gives red=(nan|inf)"):
        runs.base(make_config())
    assert not list(tmp_path.rglob("rows.json"))


def test_a_reward_that_is_no_float_becomes_one():
    given = [True, np.bool_(False), 0.25, 3, np.int64(2), Fraction(1, 2)]
    verdicts = check_verdicts("red-v1", [{"reward": reward, "right": True} for reward in given])
    assert [verdict["reward"] for verdict in verdicts] == [1.0, 0.0, 0.25, 3.0, 2.0, 0.5] and verdicts[0]["right"] is True
    assert {type(verdict["reward"]) for verdict in verdicts} == {float}


def test_an_epoch_may_have_whole_numbers_as_rewards(make_config):
    task = RedTask(lambda images: [int(image[..., 0].mean() > image[..., 2].mean()) for image in images])
    assert Trainer(make_config(), task).epoch(0)["reward"] in (number / 16 for number in range(17))


@pytest.mark.parametrize(("what", "told"), [("trained", "the weight"), ("ema", "the average of")])
def test_weights_that_are_not_finite_are_not_kept(make_config, monkeypatch, what, told):
    """Whatever made them so; the checkpoints before stay."""
    trainer = Trainer(make_config("train.keep=1"), RedTask())
    step = trainer.step

    def spoilt(epoch: int) -> float:
        norm = step(epoch)
        if epoch == 1:
            values = trainer.base.trained if what == "trained" else trainer.ema.values
            values[next(iter(values))].data.view(-1)[0] = math.inf
        return norm

    monkeypatch.setattr(trainer, "step", spoilt)
    with pytest.raises(RunStopped, match=f"{told} .*lora_.* is not finite after epoch 2" if what == "ema" else "not finite"):
        trainer.run()
    assert [folder.name for folder in trainer.folder.checkpoints()] == ["epoch-000001"]
    assert not (trainer.folder.path / "final").exists()
    monkeypatch.setattr(trainer, "step", step)
    assert Trainer(trainer.config, RedTask()).run()["epoch"] == 3


def test_the_exit_code_is_that_of_a_run_that_stopped(make_config, monkeypatch, tmp_path, capsys, damaged):
    monkeypatch.chdir(tmp_path)
    words = ["star", "train", "method=star", f"model.path={damaged('transformer', 'proj_out.weight')}", "model.lora_rank=4"]
    monkeypatch.setattr("sys.argv", [*words, "relevance.blocks=[0]", "train.epochs=1"])
    with pytest.raises(SystemExit) as exit:
        cli.main()
    told = capsys.readouterr().err.splitlines()[-1]
    assert exit.value.code == 1 and "velocity" in told and "core words" not in told


def test_pictures_that_are_alike_from_the_start_are_a_collapse():
    first = {"reward": 0.0, "diversity": 0.0}
    assert bad_epochs(first, first, 0, 2) == 1
    with pytest.raises(RunStopped, match="collapsed: for 2 epochs the diversity within groups is 0, at the start 0"):
        bad_epochs(first, first, 1, 2)


@pytest.mark.parametrize(
    ("first", "now", "bad"), [(1.0, 0.51, 0), (1.0, 0.49, 3), (0.0, -1.0, 0), (-1.0, -0.6, 0), (-1.0, -3.0, 0)]
)
def test_a_reward_collapses_below_half_of_a_first_one_above_0(first, now, bad):
    assert bad_epochs({"reward": first, "diversity": 1.0}, {"reward": now, "diversity": 1.0}, 2, 9) == bad


def test_a_velocity_that_overflows_late_is_named_by_its_step(make_config, monkeypatch):
    base = SD3(make_config().model, torch.device("cpu"), 0)
    trainer = Trainer(make_config(), RedTask(), base)
    velocity = base.velocity

    def overflowing(latents, sigma, prompts, guidance):
        return velocity(latents, sigma, prompts, guidance) * (math.inf if sigma < 0.9 else 1)

    monkeypatch.setattr(base, "velocity", overflowing)
    late = int((trainer.schedule < 0.9).nonzero()[0])
    with pytest.raises(RunStopped, match=f"velocity in denoising step {late} is not finite"):
        trainer.epoch(0)
    assert json.dumps(late) != "0"
