"""Text embeddings are made once per text, whatever the batch, and encoders that are out of use leave the device."""

import gc
import weakref
from contextlib import contextmanager

import pytest
import torch
from fake_task import RedTask

from star.models import text
from star.models.sd3 import SD3
from star.models.text import TextCache, visiting
from star.training.trainer import Trainer

CPU = torch.device("cpu")


def counted(base, monkeypatch) -> list[str]:
    """The texts that the encoders of a model see from now on."""
    seen: list[str] = []
    original = base.pipeline.encode_prompt

    def encode_prompt(prompt, *given, **named):
        seen.append(prompt)
        return original(prompt, *given, **named)

    monkeypatch.setattr(base.pipeline, "encode_prompt", encode_prompt)
    return seen


def test_each_text_is_encoded_once_and_shared(make_config, monkeypatch):
    base = SD3(make_config().model, CPU, 0)
    seen = counted(base, monkeypatch)
    embeds, pooled = base.encode(["a ring", "a star", "a ring"])
    again, _ = base.encode(["a star"])
    assert seen == ["a ring", "a star"]
    assert torch.equal(embeds[0], embeds[2]) and torch.equal(pooled[0], pooled[2])
    assert torch.equal(again[0], embeds[1]) and not torch.equal(embeds[0], embeds[1])


def test_an_epoch_encodes_every_prompt_once(make_config, monkeypatch):
    config = make_config("train.epochs=1", "sampling.guidance=2")
    trainer = Trainer(config, RedTask())
    seen = counted(trainer.base, monkeypatch)
    trainer.epoch(0)
    assert sorted(seen) == ["", *sorted(prompt.text for prompt in trainer.task.train)]


def test_the_texts_used_last_are_kept(make_config, monkeypatch):
    monkeypatch.setattr(text, "KEPT_TEXTS", 2)
    base = SD3(make_config().model, CPU, 0)
    seen = counted(base, monkeypatch)
    for texts in (["a"], ["b"], ["a"], ["c"], ["a", "c"], ["b"]):
        base.encode(texts)
    assert seen == ["a", "b", "c", "b"]
    assert len(base.encode(["a", "b", "c"])[0]) == 3
    base.prepare(["d"], guidance=1.0)
    assert seen[-1] == "d" and len(base.encode._kept) == 2


def test_resting_parts_are_on_the_device_only_while_they_work(monkeypatch):
    """There are copies of them there, and afterwards they are what they were: nothing is copied back."""
    device, moved = torch.device("meta"), []
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, place, **_: moved.append(place) or tensor.clone())
    part = torch.nn.BatchNorm1d(2)
    before = {name: (tensor.data_ptr(), tensor.clone()) for name, tensor in part.state_dict().items()}
    with pytest.raises(KeyError), visiting([part], device, CPU):
        assert moved == [device] * len(before)
        assert all(tensor.data_ptr() != before[name][0] for name, tensor in part.state_dict().items())
        raise KeyError
    for name, tensor in part.state_dict().items():
        assert tensor.data_ptr() == before[name][0] and torch.equal(tensor, before[name][1])
    with visiting([part], CPU, CPU):
        assert part.weight.data_ptr() == before["weight"][0]


def test_resting_encoders_come_once_for_all_texts(make_config, monkeypatch):
    visits = []

    @contextmanager
    def visiting(modules, device, rest):
        visits.append((len(modules), device, rest))
        yield

    monkeypatch.setattr(text, "visiting", visiting)
    meta = torch.device("meta")
    base = SD3(make_config().model, CPU, 0)
    cache = TextCache(base.encoded, base.encoders, CPU, meta)
    cache.prepare(["a ring", "a star"])
    cache(["a star"])
    assert visits == [(3, CPU, meta)]


def test_the_embeddings_of_a_micro_batch_travel_once(make_config):
    base = SD3(make_config().model, CPU, 0)
    cache = base.encode
    first = cache(["a ring", "a star"])
    assert cache(("a ring", "a star")) is first
    other = cache(["a star", "a ring"])
    assert torch.equal(other[0], first[0].flip(0)) and torch.equal(other[1], first[1].flip(0))


def test_a_model_that_nobody_has_goes_at_once(make_config):
    """Whatever the garbage collector is doing: two of the paper's do not fit on a GPU."""
    base = SD3(make_config().model, CPU, 0)
    base.encode(["a ring"])
    left = [weakref.ref(part) for part in (base.transformer, base.pipeline.text_encoder_3, base.pipeline.vae)]
    gc.disable()
    try:
        del base
        assert [part() for part in left] == [None] * 3
    finally:
        gc.enable()
