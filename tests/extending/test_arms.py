"""An arm of one's own by its path."""

import json
from pathlib import Path

import pytest
import torch
from fake_task import RedTask

from star.common.errors import UserError
from star.config import identity, label, load
from star.method.allocation import allocate, try_map
from star.method.arms import needing, needs
from star.training.trainer import Trainer


def test_an_arm_of_ones_own_trains_under_its_own_name(make_config, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent)
    config = make_config("method=star", "method.name=star_peaks", "method.arm=own_arm:peaks", "train.epochs=1")
    assert label(config, config.method.name) == "star_peaks" and identity(config)["method"]["arm"] == "own_arm:peaks"
    Trainer(config, RedTask()).run()
    (line,) = [json.loads(text) for text in (Path(config.run) / "metrics.jsonl").read_text().splitlines()]
    plain = make_config("method=star", "train.epochs=1", f"run={config.run}-plain")
    Trainer(plain, RedTask()).run()
    (star,) = [json.loads(text) for text in (Path(plain.run) / "metrics.jsonl").read_text().splitlines()]
    # Cutting off what is below the mean leaves fewer positions with more weight each.
    assert line["reward"] == star["reward"] and line["effective_share"] < star["effective_share"]
    assert line["overlap"] < star["overlap"] == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("arm", ["peaks", "flow_grpo", "own arm:peaks", "own_arm:"])
def test_what_is_no_arm_is_told_with_what_there_is(arm):
    with pytest.raises(UserError, match="method.arm=.* is not known; it is one of uniform, spatial, .* my_module:my_map"):
        load([f"method.arm='{arm}'"])


def test_a_function_that_is_not_there_is_told_before_a_model_is_loaded(make_config, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent)
    monkeypatch.setattr("star.models.load", lambda *_: pytest.fail("a model is loaded"))
    config = make_config("method.name=mine", "method.arm=own_arm:nope")
    with pytest.raises(UserError, match="method.arm=own_arm:nope: the module own_arm has no 'nope'"):
        Trainer(config, RedTask())
    assert not Path(config.run).exists()


@pytest.mark.parametrize(
    ("made", "told"),
    [
        (lambda relevance, rollouts: None, "must give a tensor like its first argument, not NoneType"),
        (lambda relevance, rollouts: relevance.numpy(), "must give a tensor like its first argument, not ndarray"),
        (lambda relevance, rollouts: relevance[0], r"gives maps of shape \(8, 8, 8\), but it must keep \(2, 8, 8, 8\)"),
    ],
)
def test_what_gives_no_maps_is_told_before_anything_is_drawn(make_config, monkeypatch, made, told):
    monkeypatch.syspath_prepend(Path(__file__).parent)
    monkeypatch.setattr("own_arm.peaks", made)
    config = make_config("method.name=mine", "method.arm=own_arm:peaks")
    with pytest.raises(UserError, match=f"method.arm=own_arm:peaks {told}"):
        Trainer(config, RedTask())
    assert not Path(config.run).exists()


def test_a_mask_is_a_map(make_config, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent)
    monkeypatch.setattr("own_arm.peaks", lambda relevance, rollouts: relevance > relevance.mean((0, 2, 3), keepdim=True))
    relevance = torch.linspace(0.1, 1, 64).reshape(2, 2, 4, 4)
    weights = allocate(relevance, "own_arm:peaks", cap=None, mix=1.0)
    assert weights.dtype == torch.float32 and set(weights[:, 0].unique().tolist()) == {0.0, 2.0}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["method=vipo", "model.resolution=32"], "method.arm=vipo sees by the mini world's CLIP, images of 64 x 64 pixels"),
        (["method=star_shuffled", "train.groups=1", "train.micro_batch=2"], "star_shuffled: 4 of 4 rollouts share one prompt"),
    ],
)
def test_maps_that_cannot_be_made_are_told_before_anything_is_drawn(make_config, words, told):
    config = make_config(*words)
    with pytest.raises(UserError, match=told):
        Trainer(config, RedTask())
    assert not Path(config.run).exists()


def test_a_map_of_ones_own_may_ask_for_all_that_there_is(make_config, monkeypatch):
    """All of it is there already where it is tried out."""
    monkeypatch.syspath_prepend(Path(__file__).parent)
    seen = []

    @needing("whole_epoch", "places", "images", "slopes")
    def curious(relevance, rollouts):
        seen.append([tuple(one.shape) for one in (relevance, rollouts.places, rollouts.images, rollouts.slopes)])
        seen.append((list(rollouts.prompts), list(rollouts.keys)))
        return relevance

    monkeypatch.setattr("own_arm.peaks", curious)
    try_map("own_arm:peaks", 2, 2, 2, (4, 4), 64)
    assert seen == [[(2, 4, 4, 4), (4, 4, 4), (4, 64, 64, 3), (4, 64, 64, 3)], ([0, 0, 1, 1], [0, 1, 2, 3])]


def test_a_map_named_as_a_method_or_by_its_file_is_told_how(make_config):
    with pytest.raises(UserError, match="a map of your own: method=star method.name=NAME method.arm=own_arm:peaks"):
        load(["method=own_arm:peaks"])
    with pytest.raises(UserError, match="the name of a module, not of its file: own_arm:peaks"):
        Trainer(make_config("method.name=mine", "method.arm=own_arm.py:peaks"), RedTask())


def test_a_map_gets_what_it_asked_for_and_whole_groups(make_config, monkeypatch):
    """Where it is tried out as where it is made: one that forgot to ask fails at once, and one may count on its group."""
    monkeypatch.syspath_prepend(Path(__file__).parent)
    monkeypatch.setattr("own_arm.peaks", lambda relevance, rollouts: relevance * rollouts.places)
    with pytest.raises(TypeError):
        try_map("own_arm:peaks", 2, 2, 3, (4, 4), 64)
    grouped = needing("whole_epoch")(
        needing("places")(lambda relevance, rollouts: relevance.unflatten(1, (-1, 3)).flatten(1, 2))
    )
    assert needs(grouped, "places") and needs(grouped, "whole_epoch")
    monkeypatch.setattr("own_arm.peaks", grouped)
    try_map("own_arm:peaks", 2, 2, 3, (4, 4), 64)


def test_what_no_map_can_need_is_refused():
    with pytest.raises(ValueError, match="a map may need whole_epoch, places, images, slopes, and not place"):
        needing("places", "place")
