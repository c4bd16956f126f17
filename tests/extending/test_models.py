"""A base model of one's own: a module that ``model.kind`` names."""

import json
from pathlib import Path

import pytest
import torch
from fake_task import RedTask

from star import models
from star.common.errors import UserError
from star.config import load
from star.models.sd3 import SD3
from star.training.trainer import Trainer

WORDS = """model.kind=own_model:Toy model.name=toy model.path=toy model.resolution=64 train.epochs=8 train.groups=4
train.group_size=8 train.micro_batch=16 train.lr=0.3 train.beta=0.001 sampling.steps=4 sampling.window=0 sampling.guidance=1
evaluation.steps=4""".split()  # noqa: SIM905


@pytest.fixture
def toy(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(Path(__file__).parent)
    (tmp_path / "toy").mkdir()


@pytest.mark.parametrize("method", ["flow_grpo", "star", "star_shuffled"])
def test_a_model_of_another_kind_trains(toy, method):
    trainer = Trainer(load([*WORDS, f"method={method}", f"run={method}"]), RedTask())
    before = trainer.base.trained["colour"].detach().clone()
    trainer.run()
    lines = [json.loads(line) for line in Path(method, "metrics.jsonl").read_text().splitlines()]
    assert type(trainer.base).__name__ == "Toy" and lines[0]["ratio_error"] < 1e-5
    # Redder: more of the first channel than of the last.
    assert lines[-1]["reward"] > lines[0]["reward"] + 0.05
    after = trainer.ema.values["colour"]
    assert (after[0] - after[2]) > (before[0] - before[2])
    assert Path(method, "final", "lora", "colour.safetensors").exists()
    if method == "star":
        assert lines[0]["weight_max"] > 1.2  # the upper half counts more
    assert [score.metric for score in trainer.evaluate(1)] == ["red"]


def gives(value):
    """A method that gives a value, whatever it is asked."""
    return lambda model, *_: value


def with_a_list(model, config, device, seed):
    model.config, model.device, model.trained = config, device, ["colour"]


@pytest.mark.parametrize(
    ("member", "replaced", "told"),
    [
        ("decode", gives(torch.zeros(2, 64, 64, 3)), r"`decode` must give \(2, 64, 64, 3\) of torch.uint8 .*torch.float32"),
        ("decode", gives(torch.zeros(2, 3, 64, 64, dtype=torch.uint8)), r"`decode` must give \(2, 3, 64, 3\) of torch.uint8"),
        ("velocity", gives(torch.zeros(2, 2, 8, 8)), r"`velocity` must give \(2, 3, 8, 8\) of .*, not \(2, 2, 8, 8\)"),
        ("velocity", gives(torch.zeros(2, 3, 8, 8)), "`velocity` has no gradient with respect to `trained`"),
        ("velocity", gives(None), "`velocity` must give a tensor, not None"),
        ("core_columns", gives(None), "`core_columns` must give a tensor, not None"),
        ("core_columns", gives(torch.ones(2, 4)), r"`core_columns` must give \(2, 4\) of torch.bool here, not .*float32"),
        ("schedule", gives(torch.linspace(0, 1, 5)), r"`schedule` must fall from 1 to 0, not go by \[0.0, 0.25"),
        ("schedule", gives(torch.ones(4)), r"`schedule` must give \(5,\) of torch.float32"),
        ("__init__", with_a_list, "`trained` must be a dict of torch.nn.Parameter, not list"),
        ("take", gives(torch.ones(2, 16)), r"`relevance\(...\).take` must give \(2, 4, 4\) of .*, not \(2, 16\)"),
        ("reference", None, "has no 'reference'; star/models/interface.py says"),
    ],
)
def test_a_model_that_does_otherwise_than_it_must_is_told_before_anything_is_drawn(toy, monkeypatch, member, replaced, told):
    words = [*WORDS, "run=here", "method=star"]
    place = f"own_model.{'UpperHalf' if member == 'take' else 'Toy'}.{member}"
    if replaced:
        monkeypatch.setattr(place, replaced)
    else:
        monkeypatch.delattr(place)
    with pytest.raises(UserError, match=f"^model.kind=own_model:Toy:? {told}"):
        Trainer(load(words), RedTask())
    assert not Path("here").exists()


def test_a_model_of_an_unknown_kind_is_told_before_its_weights_are_loaded(tmp_path):
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline"}))
    with pytest.raises(UserError, match="is a FluxPipeline; there are: StableDiffusion3Pipeline"):
        models.load(load([f"model.path={tmp_path}"]).model, torch.device("cpu"), 0)
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(UserError, match="is a folder without a pipeline"):
        models.find(load([f"model.path={tmp_path}"]).model)


def test_the_shift_is_the_loaded_schedulers(make_config):
    base = SD3(make_config().model, torch.device("cpu"), 0)
    third = base.schedule(8)
    base.pipeline.scheduler.register_to_config(shift=1.0)
    assert third[1] > base.schedule(8)[1] and base.schedule(1).tolist() == third[[0, -1]].tolist() == [1, 0]
