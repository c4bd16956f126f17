"""Arms whose maps are made of where the verdict comes from, in the trainer."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_task import RedTask

from star.common.errors import UserError
from star.method.arms import needing
from star.training.rollout import MicroBatch, Sample, Trajectory
from star.training.trainer import Trainer


class PlacedTask(RedTask):
    """The verdict comes from the first rows of each picture, as many as its first pixel says, modulo 65."""

    def places(self, prompts, images):
        rows = np.arange(64)[:, None] < np.array([int(image[0, 0, 0]) % 65 for image in images])[:, None, None]
        return list(np.broadcast_to(rows, (len(images), 64, 64)))


def batches_of(heights, size):
    """Micro-batches of pictures of 64 x 64 whose places are so many rows."""
    images = torch.zeros(len(heights), 64, 64, 3, dtype=torch.uint8)
    images[:, 0, 0, 0] = torch.tensor(heights)
    made = []
    for number, start in enumerate(range(0, len(heights), size)):
        part = images[start : start + size]
        samples = [Sample((start + i) // 2, i) for i in range(len(part))]
        maps = torch.rand(2, len(part), 8, 8)
        made.append(MicroBatch(number, Trajectory(samples, [0, 1], *[torch.empty(0)] * 3, maps, part)))
    return made


def test_tokens_get_the_share_that_is_covered(make_config):
    trainer = Trainer(make_config("method=oracle", "method.mix=1", "method.cap=null", "train.micro_batch=4"), PlacedTask())
    heights = [32, 12, 64, 0, 8, 4, 20, 1]
    batches = batches_of(heights, 4)
    trainer.allocate(batches, [0, 0, 1, 1, 2, 2, 3, 3], 0)
    weights = torch.cat([batch.weights for batch in batches], dim=1)
    for i, height in enumerate(heights):
        share = torch.tensor([min(max(height - 8 * row, 0), 8) / 8 for row in range(8)])
        share = share + 1e-3 * (1 - share)
        expected = (share / share.mean())[:, None].expand(8, 8)
        torch.testing.assert_close(weights[0, i], expected)
        torch.testing.assert_close(weights[1, i], expected)


def test_a_map_of_ones_own_may_need_places_and_the_whole_epoch(make_config, monkeypatch):
    seen = []

    @needing("whole_epoch", "places")
    def own(relevance, rollouts):
        seen.append((relevance.shape[1], rollouts.places[:, 0, 0].tolist()))
        return relevance

    monkeypatch.setattr("star.method.allocation.map_maker", lambda arm: own)
    monkeypatch.setattr("star.training.credit.map_maker", lambda arm: own)
    trainer = Trainer(make_config("train.micro_batch=4"), PlacedTask())
    trainer.allocate(batches_of([4, 2, 64, 0, 8, 4, 20, 1], 4)[::-1], [0, 0, 1, 1, 2, 2, 3, 3], 0)
    tried, made = seen
    assert tried == (8, [0.5] * 8) and made == (8, [0.5, 0.25, 1, 0, 1, 0.5, 1, 0.125])  # in the order of the epoch


def test_nobody_asks_for_places_who_does_not_need_them(make_config, monkeypatch):
    monkeypatch.setattr(PlacedTask, "places", lambda *_: pytest.fail("asked"))
    for method in ("star", "star_shuffled", "star_shifted"):
        trainer = Trainer(make_config(f"method={method}", "train.micro_batch=4"), PlacedTask())
        trainer.allocate(batches_of([4, 2, 64, 0], 4), [0, 0, 1, 1], 0)


@pytest.mark.parametrize("method", ["oracle", "oracle_twins", "background", "star_shifted"])
def test_the_arms_train(make_config, method):
    config = make_config(f"method={method}", "train.epochs=1")
    Trainer(config, PlacedTask()).run()
    (line,) = [json.loads(text) for text in (Path(config.run) / "metrics.jsonl").read_text().splitlines()]
    assert line["ratio_error"] <= 1e-5 and line["updates"] == 2 and line["weight_max"] > 1


@pytest.mark.parametrize("method", ["oracle", "oracle_twins", "background"])
def test_an_evaluator_without_places_is_refused_before_a_model_is_loaded(make_config, monkeypatch, method):
    monkeypatch.setattr("star.models.load", lambda *_: pytest.fail("a model is loaded"))
    config = make_config(f"method={method}")
    with pytest.raises(UserError, match=f"method.arm={method} needs to know where .*, which red-v1 does not tell") as caught:
        Trainer(config, RedTask())
    assert "\n" not in str(caught.value) and not Path(config.run).exists()
