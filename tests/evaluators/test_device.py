"""Evaluators compute on the GPU of their process, whichever thread asks them."""

from types import SimpleNamespace

import pytest

from evaluators.device import own_device
from evaluators.geneval.official import engines
from evaluators.pickscore import score


def test_a_gpu_is_told_by_its_number(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert own_device() == "cpu"
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.current_device", lambda: 3)
    assert own_device() == "cuda:3"
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")  # the model is on the CPU then, too
    assert own_device() == "cpu"


class Made:
    """A scorer that knows what it was made with, and nothing else."""

    def __init__(self, *given, device=None, **named):
        self.given, self.tokenizer, self.processor = (*given, device), None, None
        self.model = SimpleNamespace(config=None)


@pytest.mark.parametrize("name", ["pickscore", "mini"])
def test_engines_are_made_there(monkeypatch, name):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.current_device", lambda: 3)
    monkeypatch.setattr(score, "PickScore", Made)
    monkeypatch.setattr(score, "check_published", lambda *given, **parts: None)
    assert "cuda:3" in score.engine(name).given
    monkeypatch.setitem(engines.ENGINES, "mask2former", lambda device: device)
    assert engines.make("mask2former") == "cuda:3"
