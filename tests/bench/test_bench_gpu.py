"""``star bench gpu``: every step on toy sizes, and what becomes of steps that fail, hang, die or do not fit."""

import json
import multiprocessing
import os
import signal
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import forked
import pytest
import torch
from test_cli import star  # noqa: F401 (a fixture)
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    T5Config,
    T5EncoderModel,
)

from star.bench.gpu import compiled, judges, run, worker
from star.bench.gpu.bench import Bench
from star.bench.gpu.figures import FAILED, NO_MEMORY, Figure, attempt
from star.bench.gpu.model import ONE_GROUP, REDUCTIONS, ratio_error
from star.bench.gpu.sizes import SHRUNKEN, TRUE
from star.bench.gpu.steps import STEPS, Step
from star.common.errors import UserError
from star.models.memory import TEXT_ENCODER_PARAMETERS
from star.models.sd3 import compile_blocks

HERE = "test_bench_gpu"


def fine(bench):
    yield Figure("answer", 42.0, "s")


def raising(bench):
    yield Figure("before", 1.0)
    raise ValueError("no such\nkernel")


def dying(bench):
    yield Figure("before", 2.0)
    os._exit(7)


def hanging(bench):
    yield Figure("before", 3.0)
    time.sleep(60)


def endless(bench):
    yield Figure("before", 5.0)
    yield Figure("no number", float("nan"), "GiB")
    yield Figure("no interval", 6.0, "s", 1.0, float("inf"))


def losing(bench):
    def lost():
        raise RuntimeError("CUDA error: an illegal memory access")

    worker.free = lost  # in this process alone
    yield Figure("before", 4.0)
    lost()


def lines(folder):
    return [json.loads(line) for line in (folder / "shrunken.jsonl").read_text().splitlines()]


@pytest.fixture
def steps(monkeypatch):
    """Lets the command have other steps, in forked processes, which start at once."""
    monkeypatch.setattr(worker, "CONTEXT", multiprocessing.get_context("fork"))
    monkeypatch.setattr(worker, "END_SECONDS", 0.1)

    def choose(*functions, seconds=1.0):
        chosen = tuple(Step(one.__name__, seconds, f"{HERE}:{one.__name__}", "a test") for one in functions)
        monkeypatch.setattr(run, "STEPS", chosen)
        return chosen

    return choose


def test_every_step_runs_on_a_cpu_and_stands_in_the_table(star, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(worker, "CONTEXT", forked.SERVER)
    code, out, err = star("bench", "gpu", "out=there", "budget=3000")  # enough for a busy machine
    assert code == 0, out + err
    found = lines(tmp_path / "there")
    assert [line["step"] for line in found] == [step.name for step in STEPS]
    assert {line["state"] for line in found} == {"done"} and {line["run"] for line in found} == {1}
    for line in found:
        assert (
            line["figures"] and line["machine"]["device"].startswith("CPU") and line["machine"]["torch"] == torch.__version__
        )
        for figure in line["figures"]:
            assert not str(figure["value"]).startswith((FAILED, NO_MEMORY)), (line["step"], figure)
    measured = {(line["step"], figure["what"]): figure["value"] for line in found for figure in line["figures"]}
    assert measured["on_policy", "float32, cpu, per image, largest |ratio - 1|"] < 1e-5
    assert measured["resume", "default, a run and one that was cut off"].startswith("the same weights")
    assert measured["sharded", "whole and sharded, gradients"] == "equal to the bit"
    assert measured["published", "epoch, ratio ours / published"] > 0
    assert measured["compile", "graphs"] > 4
    table = (tmp_path / "there" / "shrunken.md").read_text()
    assert "A CPU run of a model of toy size" in table and not (tmp_path / "there" / "bench.md").exists()
    for part in ("| capture | with relevance / without |", "diffusers ", "`star bench gpu out=there budget=3000`", "commit "):
        assert part in table
    assert "no GPU: a model of toy size" in out and run.CUDA_TESTS in out


def test_what_fails_costs_its_own_figures_alone(steps, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run, "START", 0.0)
    monkeypatch.setattr(run, "CPU_PACE", 1.0)
    chosen = steps(raising, dying, hanging, fine, seconds=60)
    monkeypatch.setattr(run, "STEPS", tuple(replace(step, seconds=0.5) if step.name == "hanging" else step for step in chosen))
    assert run.run([f"out={tmp_path}"]) == 1
    found = {line["step"]: line for line in lines(tmp_path)}
    assert {name: line["reason"] for name, line in found.items()} == {
        "raising": "ValueError: no such kernel",
        "dying": "its process died with exit code 7",
        "hanging": "stopped, because it took too long",
        "fine": "",
    }
    assert [line["state"] for line in found.values()] == ["failed"] * 3 + ["done"]
    assert [line["figures"][0]["value"] for line in found.values()] == [1.0, 2.0, 3.0, 42.0]
    assert "failed: ValueError: no such kernel" in capsys.readouterr().out
    assert "| dying | failed | its process died with exit code 7 |" in (tmp_path / "shrunken.md").read_text()


def test_a_device_that_is_lost_costs_no_other_step(steps, tmp_path, monkeypatch):
    steps(fine, losing, raising)
    assert run.run([f"out={tmp_path}"]) == 1
    found = lines(tmp_path)
    assert [line["reason"] for line in found] == [
        "",
        "RuntimeError: CUDA error: an illegal memory access",
        "ValueError: no such kernel",
    ]


def test_what_does_not_fit_is_skipped(steps, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "CPU_PACE", 1.0)
    short, long = steps(fine, raising, seconds=1.0)
    monkeypatch.setattr(run, "STEPS", (Step(long.name, 1000.0, long.measure, ""), short))
    assert run.run([f"out={tmp_path}", "budget=100"]) == 0
    skipped, done = lines(tmp_path)
    assert (skipped["state"], done["state"]) == ("skipped", "done") and not skipped["figures"]
    assert skipped["reason"].startswith("1000 s expected, ")
    assert run.run([f"out={tmp_path}", "budget=0"]) == 0
    assert [line["state"] for line in lines(tmp_path)[2:]] == ["skipped", "skipped"]
    table = (tmp_path / "shrunken.md").read_text()
    assert "| fine | answer | 42 | s | 1 |" in table, "a step that is left out is not forgotten"


def test_a_figure_that_is_no_number_costs_no_other(steps, tmp_path):
    steps(endless)
    assert run.run([f"out={tmp_path}"]) == 0
    (line,) = lines(tmp_path)
    assert [figure["value"] for figure in line["figures"]] == [5.0, "nan", "6.0"]
    table = (tmp_path / "shrunken.md").read_text()
    assert "| endless | no number | nan | GiB | 1 |" in table and "| endless | no interval | 6.0 | s | 1 |" in table


def test_only_some_steps_and_the_latest_figures(steps, tmp_path):
    steps(raising, fine)
    assert run.run([f"out={tmp_path}", "only=fine"]) == 0
    assert run.run([f"out={tmp_path}", "only=fine"]) == 0
    first, second = lines(tmp_path)
    assert (first["run"], second["run"], second["step"]) == (1, 2, "fine")
    table = (tmp_path / "shrunken.md").read_text()
    assert "| fine | answer | 42 | s | 2 |" in table and "| 1 |" not in table and "* run 1" not in table


def test_an_interruption_leaves_what_was_measured(steps, tmp_path, monkeypatch):
    steps(fine, hanging, raising, seconds=30)
    told = run.told

    def ended(figure):
        if figure["value"] == 3.0:
            os.kill(os.getpid(), signal.SIGTERM)
        return told(figure)

    monkeypatch.setattr(run, "told", ended)
    with pytest.raises(KeyboardInterrupt, match="ended by SIGTERM"):
        run.run([f"out={tmp_path}"])
    done, cut = lines(tmp_path)
    assert (done["state"], cut["step"], cut["state"]) == ("done", "hanging", "interrupted")
    assert cut["figures"][0]["value"] == 3.0
    assert "| hanging | interrupted |" in (tmp_path / "shrunken.md").read_text()


def test_every_step_is_written_down_before_the_next_begins(steps, tmp_path, monkeypatch):
    steps(fine, raising)
    seen = []

    class Looking(run.Worker):
        def measure(self, step, limit):
            file = tmp_path / "shrunken.jsonl"
            seen.append(len(file.read_text().splitlines()) if file.exists() else 0)
            yield from super().measure(step, limit)

    monkeypatch.setattr(run, "Worker", Looking)
    run.run([f"out={tmp_path}"])
    assert seen == [0, 1]


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("only=pace,speed", "only=pace,speed: there is no step 'speed'; there are: machine, attention, build"),
        ("only=", "only= has no value; write one"),
        ("out= ", "out= has no value; write one"),
        ("budget=soon", "budget=soon is not allowed; write seconds, e.g. budget=600"),
        ("budget=-1", "budget=-1 is not allowed"),
        ("budget=nan", "budget=nan is not allowed"),
        ("budgte=3", "budgte"),
        ("fast", "'fast' is no setting"),
        ("model.dtype=int8", "model.dtype=int8"),
        ("model=sd35_large", "model.path=stabilityai/stable-diffusion-3.5-large: star bench gpu measures SD3.5"),
        ("scale=mini", "model.path=null: star bench gpu measures SD3.5 Medium's shape alone"),
    ],
)
def test_bad_words_are_one_line(star, word, told):  # noqa: F811
    code, _, err = star("bench", "gpu", word)
    assert code == 2 and told in err and len(err.strip().splitlines()) == 1


def test_a_part_that_fails_is_a_figure():
    def out_of_memory():
        yield Figure("before", 1.0)
        raise torch.OutOfMemoryError("CUDA out of memory")

    def wrong():
        raise UserError("no such\nthing")

    assert [figure.value for figure in attempt("part", out_of_memory)] == [1.0, NO_MEMORY]
    assert list(attempt("part", wrong)) == [Figure("part", FAILED + "UserError: no such thing")]


def test_without_opencv_only_the_detectors_preprocessing_is_left_out(monkeypatch):
    bench = Bench(torch.device("cpu"))
    whole = {figure.what for figure in judges.judges(bench)}
    monkeypatch.delitem(sys.modules, "evaluators.geneval.official.preprocess", raising=False)
    monkeypatch.setitem(sys.modules, "cv2", None)  # importing it raises an error
    monkeypatch.setattr(judges, "find_spec", lambda name: None)
    found = list(judges.judges(bench))
    assert whole - {figure.what for figure in found} == {"Mask2Former, preprocessing on the CPU"}
    assert all(isinstance(figure.value, float | int) for figure in found)


@pytest.mark.parametrize("setting", ["train.guard=true", "method.clip=kl"])
def test_ratios_are_measured_with_settings_that_need_the_means_of_rollouts(setting):
    bench = Bench(torch.device("cpu"), (setting,))
    off, spread, allowed = ratio_error(bench, bench.base(bench.config()), "here", REDUCTIONS["position"], rows=2)
    assert 0 <= spread.value <= 1.01 * off.value <= 1.01 * allowed.value


def test_compiling_for_a_step_leaves_the_compiler_as_it_was():
    """Its settings are the process's, and later steps are measured as a run would compute."""
    configs = torch._dynamo.config, torch._inductor.config
    before = [config.get_config_copy() for config in configs]
    with compiled._compiler():
        compile_blocks(SimpleNamespace(transformer_blocks=[]), torch.device("cpu"), "eager")
        assert [config.get_config_copy() for config in configs] != before
    assert [config.get_config_copy() for config in configs] == before


def test_sizes_of_a_gpu_are_those_of_the_published_models():
    """Parameters in millions, as their cards say; nothing is allocated."""
    with torch.device("meta"):
        clip = [CLIPTextModelWithProjection(CLIPTextConfig(**shape)) for shape in (TRUE.clip_l, TRUE.clip_g)]
        t5 = T5EncoderModel(T5Config(**TRUE.t5))
        text, vision, width = TRUE.clip_h
        judge = CLIPModel(CLIPConfig(text_config=dict(text), vision_config=dict(vision), projection_dim=width))
    assert [round(model.num_parameters() / 1e6, 1) for model in (*clip, t5, judge)] == [123.7, 694.7, 4762.3, 986.1]
    assert sum(model.num_parameters() for model in (*clip, t5)) == pytest.approx(TEXT_ENCODER_PARAMETERS, rel=1e-4)


def test_the_settings_of_a_gpu_can_be_used():
    bench = Bench(torch.device("cuda"))
    assert bench.sizes is TRUE and SHRUNKEN.transformer != TRUE.transformer
    config = bench.config("method=star")
    assert (config.model.resolution, config.sampling.steps, config.model.dtype) == (512, 10, "bfloat16")
    for name in bench.sizes.micro_batches:
        assert bench.config(*ONE_GROUP, f"train.group_size={name}", f"train.micro_batch={name}").train.micro_batch == name
