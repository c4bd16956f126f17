"""What is evaluated: which weights, from which noise, under which guidance."""

import gc
import shutil
import weakref
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fake_task import RedTask
from safetensors.torch import load_file

from evaluators.interface import Score
from star.common.errors import RunStopped, UserError
from star.common.files import alone_in
from star.common.noise import normal
from star.common.processes import together
from star.config import base_folder, identity, load
from star.models.lora import Lora
from star.models.sd3 import SD3
from star.tasks import load_task
from star.training import evaluation, guards, runs
from star.training.evaluation import Evaluation
from star.training.rollout import generate
from star.training.trainer import Trainer

CPU = torch.device("cpu")


@pytest.mark.parametrize("batches", [34, 33, 0])
def test_processes_meet_on_the_way_through_an_evaluation(monkeypatch, batches):
    """As often with a batch less, or none, or one would wait for the others forever."""
    made = []
    monkeypatch.setattr(evaluation, "wait", lambda accelerator: made.append("met"))
    for batch in evaluation._meeting(([(number, 0)] for number in range(batches)), 34, SimpleNamespace()):
        made.append(batch)
    assert [one for one in made if one != "met"] == [[(number, 0)] for number in range(batches)]
    assert made.count("met") == 2 and (not batches or made.index("met") == 16)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_the_autoencoder_keeps_all_bits_of_its_file(make_config, pipeline_folder, dtype):
    """Whatever the model computes in: pictures would be off by whole grey levels."""
    base = SD3(make_config(f"model.dtype={dtype}").model, CPU, 0)
    assert base.transformer.proj_out.weight.dtype == getattr(torch, dtype)
    kept = load_file(pipeline_folder / "vae" / "diffusion_pytorch_model.safetensors")
    assert {value.dtype for value in kept.values()} == {torch.float32}
    own = base.pipeline.vae.state_dict()
    assert own.keys() == kept.keys() and all(torch.equal(own[name].cpu(), value.cpu()) for name, value in kept.items())


@pytest.fixture
def seen(monkeypatch):
    """The trained parameters' values at every evaluation of a run, instead of scores."""
    values: list[dict[str, torch.Tensor]] = []

    def evaluate(base, task, config, images, accelerator, partial):
        values.append({name: parameter.detach().clone() for name, parameter in base.trained.items()})
        return Evaluation([Score("red", 0.5, None, 1, 1)], [{"prompt": "a", "image": 0, "reward": 0.5}], {})

    monkeypatch.setattr(runs, "evaluate", evaluate)
    return values


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name].cpu(), other[name].cpu()) for name in one)


def test_a_run_is_judged_by_the_average_that_it_saved(make_config, monkeypatch, seen):
    for module in ("star.training.runs", "star.training.trainer"):
        monkeypatch.setattr(f"{module}.load_task", lambda config, name, evaluator=None: RedTask())
    config = make_config("train.epochs=2", "train.lr=1e-2", "evaluation.cross_images=1")
    raw = {}
    finish = Trainer.run

    def run(trainer):
        summary = finish(trainer)
        raw.update({name: parameter.detach().clone() for name, parameter in trainer.base.trained.items()})
        return summary

    monkeypatch.setattr(Trainer, "run", run)
    runs.trained(config)
    saved = load_file(f"{config.run}/final/trained.safetensors")
    assert len(seen) == 3 and all(same(values, saved) for values in seen)  # its own task, and both others
    assert not same(raw, saved)


def test_one_judge_at_a_time_is_there_in_the_end(make_config, monkeypatch):
    made, there = [], []

    def judged(config, name, evaluator=None):
        task = RedTask()
        made.append(weakref.ref(task))
        return task

    def evaluate(base, task, config, images, accelerator, partial):
        gc.collect()  # this fake is its own evaluator
        there.append((images, sum(one() is not None for one in made)))
        return Evaluation([Score("red", 0.5, None, 1, 1)], [{"prompt": "a", "image": 0, "reward": 0.5}], {})

    for module in ("star.training.runs", "star.training.trainer"):
        monkeypatch.setattr(f"{module}.load_task", judged)
    monkeypatch.setattr(runs, "evaluate", evaluate)
    runs.trained(make_config("train.epochs=1", "evaluation.images=2", "evaluation.cross_images=3"))
    assert there == [(2, 1), (3, 1), (3, 1)]  # on a GPU two might have no room


def test_verdicts_that_were_deleted_are_made_again(make_config, monkeypatch, seen):
    for module in ("star.training.runs", "star.training.trainer"):
        monkeypatch.setattr(f"{module}.load_task", lambda config, name, evaluator=None: RedTask())
    config = make_config("train.epochs=1")
    rows = runs.trained(config)
    assert runs.trained(config) == rows and len(seen) == 1
    Path(config.run, "final", "images.csv").unlink()
    assert runs.trained(config) == rows and len(seen) == 2 and Path(config.run, "final", "images.csv").exists()


def test_what_was_evaluated_otherwise_is_evaluated_again(monkeypatch, tmp_path):
    seen = []

    def measure(task, images, partial):
        seen.append(images)
        return Evaluation([Score("red", 0.5, None, 1, 1)], [{"prompt": "a", "image": 0, "reward": 0.5}], {})

    def row(*words):
        config = load(list(words))
        kept = runs.Kept(config, runs.UNTRAINED | {"commit": "abc"}, 0, measure)
        (one,) = kept.rows(RedTask(), "star", tmp_path, config.evaluation.images, identity(config, "geneval"))
        return one

    first = row()
    assert row() == first and len(seen) == 1
    more = row("evaluation.images=3")
    assert seen[1:] == [3] and more.protocol == first.protocol and more.config_hash != first.config_hash
    guided = row("evaluation.guidance=3")
    assert len(seen) == 3 and guided.protocol.endswith("/guidance=3.0")
    monkeypatch.setattr(RedTask, "protocol", "red-v2")
    other = row("evaluation.guidance=3")
    assert len(seen) == 4 and other.protocol.startswith("red-v2/") and other.config_hash == guided.config_hash


def test_a_run_that_lost_its_settings_is_told_so(make_config, monkeypatch, seen):
    for module in ("star.training.runs", "star.training.trainer"):
        monkeypatch.setattr(f"{module}.load_task", lambda config, name, evaluator=None: RedTask())
    config = make_config("train.epochs=1")
    runs.trained(config)
    for content in ("", "train: {epochs: 1}\n"):
        Path(config.run, "config.yaml").write_text(content)
        with pytest.raises(UserError, match="config.yaml is damaged, its first line is not '# training settings'"):
            runs.trained(config)


def test_a_missing_model_leaves_no_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="model.path=missing"):
        runs.base(load(["model.path=missing"]))
    assert not list(tmp_path.iterdir())


def test_a_base_model_that_changed_since_it_was_measured_is_refused(make_config, monkeypatch, pipeline_folder, tmp_path, seen):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runs, "load_task", lambda config, name, evaluator=None: RedTask())
    model = tmp_path / "model"
    shutil.copytree(pipeline_folder, model)
    config = make_config(f"model.path={model}")
    rows = runs.base(config)
    tokenizer = model / "tokenizer_3" / "tokenizer.json"
    before = tokenizer.read_bytes()
    tokenizer.write_bytes(before + b"\n")
    folder = base_folder(config)
    with pytest.raises(UserError, match=f"model.path={model} is another model than when {folder} was measured; .* delete the"):
        runs.base(config)
    tokenizer.write_bytes(before)
    assert runs.base(config) == rows and len(seen) == 1
    tokenizer.write_bytes(before + b"\n")
    shutil.rmtree(folder)
    runs.base(config)
    assert len(seen) == 2


def test_a_lora_from_elsewhere_is_judged_with_its_own_weights(make_config, monkeypatch, tmp_path, seen):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runs, "load_task", lambda config, name, evaluator=None: RedTask())
    config = make_config()
    base = SD3(config.model, CPU, 0)
    weights = {name.replace(".default.", "."): torch.randn_like(value) for name, value in base.trained.items()}
    runs.released(config, Lora(rank=4, alpha=8, weights=weights, digest="0"), "lora")
    assert same({name.replace(".default.", "."): value for name, value in seen[0].items()}, weights)


def test_images_are_those_of_the_configured_noise_and_guidance(make_config):
    config = make_config("evaluation.images=2", "evaluation.guidance=3", "evaluation.seed=5", "train.micro_batch=4")
    drawn = []
    task = RedTask(lambda images: drawn.extend(images) or [0.0] * len(images))
    trainer = Trainer(config, task)
    with torch.no_grad():  # so that the weights are others than their average, which is what is judged
        for weight in trainer.base.trained.values():
            weight.add_(0.3)
    trainer.evaluate(2)
    texts = [prompt.text for prompt in task.test for _ in range(2)]
    keys = [(5, "test", text, number % 2) for number, text in enumerate(texts)]
    with trainer.base.weights(trainer.ema.values):
        expected = generate(trainer.base, texts, keys, config.evaluation.steps, 3.0).numpy()
    assert len(drawn) == 4 and np.abs(np.stack(drawn).astype(int) - expected).max() <= 1
    assert np.abs(expected[0].astype(int) - expected[1]).max() > 5
    moved = generate(trainer.base, texts, keys, config.evaluation.steps, 3.0).numpy()
    assert np.abs(moved.astype(int) - expected).max() > 5


def test_diversity_is_that_of_each_prompts_own_images(monkeypatch):
    """Greys 0, 51 and 102 for a ring, 153, 204 and 255 for a cross: 0.2, 0.2 and 0.4 apart."""

    def flat(base, texts, keys, steps, guidance):
        greys = [153 * text.endswith("cross") + 51 * key[-1] for text, key in zip(texts, keys, strict=True)]
        return torch.stack([torch.full((16, 16, 3), grey, dtype=torch.uint8) for grey in greys])

    monkeypatch.setattr(evaluation, "generate", flat)
    base = SimpleNamespace(device=CPU, sharded=False, prepare=lambda prompts, guidance: None)
    alone = SimpleNamespace(is_main_process=True, process_index=0, num_processes=1)
    scores = evaluation.evaluate(base, RedTask(), load(["train.micro_batch=4"]), 3, alone).scores
    assert scores[1].metric == "diversity" and scores[1].value == pytest.approx(0.8 / 3)


@pytest.mark.parametrize(("compiled", "sizes"), [("false", [4, 2]), ("true", [4, 4])])
def test_compiled_code_meets_batches_of_one_size(monkeypatch, compiled, sizes):
    drawn = []

    def numbered(base, texts, keys, steps, guidance):
        drawn.append(len(texts))
        return torch.stack([torch.full((16, 16, 3), 10 * key[-1], dtype=torch.uint8) for key in keys])

    monkeypatch.setattr(evaluation, "generate", numbered)
    judged = []
    task = RedTask(lambda images: judged.extend(int(image[0, 0, 0]) for image in images) or [0.0] * len(images))
    base = SimpleNamespace(device=CPU, sharded=False, prepare=lambda prompts, guidance: None)
    alone = SimpleNamespace(is_main_process=True, process_index=0, num_processes=1)
    evaluation.evaluate(base, task, load(["train.micro_batch=4", f"model.compile={compiled}"]), 3, alone)
    assert drawn == sizes and judged == [0, 10, 20, 0, 10, 20]


def test_latents_are_scaled_as_diffusers_does(make_config):
    base = SD3(make_config().model, CPU, 0)
    vae = base.pipeline.vae
    assert (vae.config.scaling_factor, vae.config.shift_factor) == (0.8, 0.1)
    latents = normal((2, *base.latent_shape), 3)
    with torch.no_grad():
        theirs = base.pipeline.image_processor.postprocess(vae.decode(latents / 0.8 + 0.1).sample, output_type="np")
    assert np.abs(base.decode(latents).numpy() - theirs * 255).max() <= 0.51


def test_the_shipped_base_draws_what_it_is_asked_for(make_config):
    """It is right on 0.72 of the pictures of single objects, and with guidance on almost all."""
    config = make_config("model.path=null", "relevance.blocks=[5]")
    base = SD3(config.model, CPU, 0)
    with base.reference():
        task = load_task(config, "geneval")
        prompts = [prompt for prompt in task.test if prompt.target["tag"] == "single_object"]
        texts = [prompt.text for prompt in prompts]
        images = generate(base, texts, [(0, "shipped", text) for text in texts], 8, 3.0)
    right = [verdict["correct"] for verdict in task.evaluator.submit(prompts, list(images.numpy()))()]
    assert len(right) == 8 and sum(right) >= 5


def test_two_processes_do_not_work_in_one_run_folder(make_config, monkeypatch, seen):
    monkeypatch.setattr("star.training.runs.load_task", lambda config, name, evaluator=None: RedTask())
    monkeypatch.setattr("star.training.trainer.load_task", lambda config, name: RedTask())
    config = make_config("train.epochs=1")
    with alone_in(Path(config.run)), pytest.raises(UserError, match="another process works in .*; wait until it is done"):
        runs.trained(config)
    assert not (Path(config.run) / "metrics.jsonl").exists()
    runs.trained(config)


def test_a_gpu_without_memory_is_told_with_the_settings_that_need_less(make_config, monkeypatch):
    monkeypatch.setattr("star.training.runs.load_task", lambda config, name, evaluator=None: RedTask())
    monkeypatch.setattr("star.training.trainer.load_task", lambda config, name: RedTask())

    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.1 GiB")

    for stage in ("epoch", "_gather"):
        monkeypatch.setattr(Trainer, stage, full)
        with pytest.raises(RunStopped) as caught:
            runs.trained(make_config())
        assert str(caught.value).startswith(
            "CUDA out of memory. Tried to allocate 2.00 GiB; set model.gradient_checkpointing=true or model.offload=true or "
            "train.micro_batch below 8 (another micro-batch"
        )


def test_what_saves_memory_already_is_not_advised(make_config, monkeypatch):
    """Where the machine decides, by what it decided."""
    monkeypatch.setattr("star.training.guards.placed", lambda config, *_: replace(config.model, offload=True))
    told = pytest.raises(RunStopped, match="set model.gradient_checkpointing=true or train.micro_batch below 8 ")
    with told, guards.limits(make_config()):
        raise torch.OutOfMemoryError("CUDA out of memory")


def test_memory_that_runs_out_while_processes_talk_is_not_taken_for_a_dead_one():
    with pytest.raises(torch.OutOfMemoryError), together():
        raise torch.OutOfMemoryError("CUDA out of memory")
