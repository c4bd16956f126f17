"""Text embeddings are made once per text, whatever the batch, and encoders that are out of use leave the device."""

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


def test_resting_parts_are_on_the_device_only_while_they_work(make_config):
    """The rest here is the meta device: whoever works there fails, and whoever comes back from it has no weights."""
    places = []

    class Part(torch.nn.Linear):
        def to(self, device):
            places.append(str(device))
            return self

    meta = torch.device("meta")
    with visiting([Part(1, 1)], CPU, meta):
        assert places == ["cpu"]
    assert places == ["cpu", "meta"]
    base = SD3(make_config().model, CPU, 0)
    moves: list[tuple[str, torch.device]] = []
    for name in ("text_encoder", "text_encoder_2", "text_encoder_3"):
        part = getattr(base.pipeline, name)
        part.to = lambda device, name=name: moves.append((name, device))
    cache = TextCache(base.pipeline, 16, CPU, meta)
    cache.prepare(["a ring", "a star"])
    cache(["a star"])
    encoders = ["text_encoder", "text_encoder_2", "text_encoder_3"]
    assert moves == [(name, CPU) for name in encoders] + [(name, meta) for name in encoders]
