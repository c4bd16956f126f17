"""Maps after other works, against their formulas by hand, and arms that train on them."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_task import RedTask

from baselines import neighbours
from baselines.neighbours import gradient_map, saliency
from evaluators.geneval.prompts import single_object, two_object
from evaluators.interface import Text, slopes_of
from evaluators.pickscore.evaluator import Preference
from star import config as settings
from star.common.errors import UserError
from star.common.noise import normal
from star.config import config_hash, identity, terms
from star.method.allocation import allocate
from star.method.arms import ARMS, Rollouts
from star.method.sampling import score_size
from star.mini.scenes import draw_scene
from star.training.trainer import Trainer

NEIGHBOURS = [name for name, arm in ARMS.items() if arm.neighbour]


class SlopedTask(RedTask):
    """Redness rises where there is little red, and only in the left half."""

    def slopes(self, prompts, images):
        rising = np.stack(images).astype(np.float32) / 255
        rising[:, :, 32:] = 0
        return list(1 - rising)


def test_saliency_is_the_first_component_between_its_ends():
    features = normal((3, 4, 5, 7), "features") * torch.linspace(3, 0.1, 7)
    found = saliency(features)
    assert found.shape == (3, 4, 5)
    for image, own in zip(features.double().numpy(), found.numpy(), strict=True):
        rows = image.reshape(20, 7)
        covariance = np.cov(rows, rowvar=False)
        direction = np.linalg.eigh(covariance)[1][:, -1]
        along = (rows - rows.mean(0)) @ direction
        if sum(value**3 for value in along) < 0:
            along = -along
        np.testing.assert_allclose(own.reshape(20), (along - along.min()) / (along.max() - along.min()), atol=1e-9)


def test_what_stands_out_is_the_smaller_part_and_of_equal_patches_none_does():
    features = torch.zeros(2, 4, 4, 3)
    features[0, 1, 2] = features[0, 1, 3] = torch.tensor([0.0, -5.0, 1.0])
    expected = torch.zeros(4, 4, dtype=torch.float64)
    expected[1, 2:] = 1
    found = saliency(features + 2)
    torch.testing.assert_close(found[0], expected)
    assert torch.equal(found[1], torch.ones(4, 4, dtype=torch.float64))


def test_the_extractor_sees_objects_on_a_plain_ground():
    """The shipped CLIP, on a picture whose one object is known."""
    images = torch.full((1, 64, 64, 3), 128, dtype=torch.uint8)
    images[0, 16:40, 16:40] = torch.tensor([215, 35, 35], dtype=torch.uint8)
    weights = allocate(torch.ones(2, 1, 8, 8), "vipo", images=images)
    assert torch.equal(weights[0], weights[1]) and weights[0, 0, 2:5, 2:5].mean() > 1.5
    with pytest.raises(UserError, match="method.arm=vipo sees by the mini world's CLIP, images of 64 x 64 pixels"):
        allocate(torch.ones(2, 1, 8, 8), "vipo", images=images[:, :32])


@pytest.mark.parametrize("sign", [-1, 1])
def test_the_gradients_map_is_the_published_one(sign):
    slopes = normal((2, 6, 4, 3), "slopes")
    found = gradient_map(slopes, sign, (3, 2))
    for image, own in zip(slopes.double().tolist(), found.tolist(), strict=True):
        lengths = [[math.sqrt(sum(x * x for x in pixel)) for pixel in row] for row in image]
        ordered = sorted(sum(lengths, []))
        median = ordered[(len(ordered) - 1) // 2]
        mad = sorted(abs(value - median) for value in ordered)[(len(ordered) - 1) // 2]
        gates = [[1 / (1 + math.exp(-sign * (value - median) / mad / 0.1)) for value in row] for row in lengths]
        tokens = [
            [sum(gates[2 * y + i][2 * u + j] for i in range(2) for j in range(2)) / 4 for u in range(2)] for y in range(3)
        ]
        top = max(max(row) for row in tokens)
        assert own == [pytest.approx([value + 1 - top for value in row]) for row in tokens]


def test_as_published_a_large_gradient_gets_less_and_flipped_more():
    slopes = normal((1, 64, 64, 3), "slopes")
    slopes[:, :, 32:] *= 10
    maps = torch.ones(3, 1, 8, 8)
    published, flipped = (allocate(maps, arm, slopes=slopes)[1, 0] for arm in ("sga", "sga_flipped"))
    assert published[:, :4].mean() > 1.5 > 0.7 > published[:, 4:].mean()
    assert flipped[:, 4:].mean() > 1.5 > 0.7 > flipped[:, :4].mean()
    for maker, sign in ((neighbours.sga, -1), (neighbours.sga_flipped, 1)):
        made = maker(maps, Rollouts(prompts=(), keys=(), seed=0, slopes=slopes))
        assert torch.equal(made, gradient_map(slopes, sign, (8, 8)).to(maps).expand_as(maps))


def test_an_image_without_a_gradient_has_equal_weights():
    assert torch.equal(gradient_map(torch.zeros(1, 8, 8, 3), -1, (4, 4)), torch.ones(1, 4, 4, dtype=torch.float64))


def test_pickscores_slopes_are_those_of_its_score():
    judge = Preference("mini")
    records = single_object("circle"), two_object("star", "ring")
    images = [draw_scene(record, np.random.default_rng(i), haze=0.6)[0] for i, record in enumerate(records)]
    prompts = [Text(record["prompt"]) for record in records]
    slopes = slopes_of(judge)(prompts, images)
    assert [slope.shape for slope in slopes] == [(64, 64, 3)] * 2 and slopes[0].dtype == np.float32
    for prompt, image, slope in zip(prompts, images, slopes, strict=True):
        uphill = np.sign(slope).astype(np.int16)
        moved = [np.clip(image + step * uphill, 0, 255).astype(np.uint8) for step in (1, -1)]
        up, down = judge.scorer.score([prompt.text] * 2, moved)
        assert up - down == pytest.approx(2 * np.abs(slope).sum() / 255, rel=0.1)


def test_weights_that_came_to_the_device_with_a_score_still_have_slopes():
    judge = Preference("mini")
    record = single_object("circle")
    image = draw_scene(record, np.random.default_rng(0))[0]
    model = judge.scorer.model.double()
    model.to = lambda device: model.float()  # as on a GPU, new tensors
    judge.scorer.score([record["prompt"]], [image])
    assert not any(parameter.is_inference() for parameter in model.parameters())
    (slope,) = slopes_of(judge)([Text(record["prompt"])], [image])
    assert np.abs(slope).sum() > 0


def test_only_evaluators_with_slopes_are_asked(make_config, monkeypatch):
    monkeypatch.setattr("star.models.load", lambda *_: pytest.fail("a model is loaded"))
    for method in ("sga", "sga_flipped"):
        config = make_config(f"method={method}")
        with pytest.raises(UserError, match=f"method.arm={method} needs to know how the reward rises.*red-v1 does not tell"):
            Trainer(config, RedTask())
        assert not Path(config.run).exists()


@pytest.mark.parametrize("maker", [neighbours.vipo, neighbours.sga, neighbours.sga_flipped])
def test_a_maker_that_is_not_told_says_so(maker):
    with pytest.raises(ValueError, match=f"{maker.__name__} needs the (images|slopes) of each rollout"):
        allocate(torch.ones(1, 1, 2, 2), maker.__name__)


@pytest.mark.parametrize("method", NEIGHBOURS)
def test_the_arms_train(make_config, method):
    config = make_config(f"method={method}", "train.epochs=1")
    Trainer(config, SlopedTask()).run()
    (line,) = [json.loads(text) for text in (Path(config.run) / "metrics.jsonl").read_text().splitlines()]
    assert line["ratio_error"] <= 1e-5 and line["updates"] == 2


def test_tempflow_is_flow_grpo_with_steps_by_the_size_of_their_score(make_config):
    config, flow = make_config("method=tempflow"), make_config("method=flow_grpo", "method.steps=equal")
    own, other = (Trainer(one, RedTask()) for one in (config, flow))
    own.epoch(0), other.epoch(0)
    for name, parameter in own.base.trained.items():
        assert torch.equal(parameter, other.base.trained[name])
    sizes = [score_size(own.schedule, step, "sde", config.sampling.noise_level).item() for step in (0, 1)]
    shares = own._step_shares([0, 1])
    assert shares[0] / shares[1] == pytest.approx(sizes[1] / sizes[0])


def test_flow_dppo_is_flow_grpo_with_another_trust_region():
    known, own = (settings.load(["task=geneval", f"method={name}"]) for name in ("flow_grpo", "flow_dppo"))
    assert own.method.clip == "kl" and own.method == replace(known.method, name="flow_dppo", clip="kl")
    assert terms(own) == terms(known)  # its trust region is the arm's own, and so no difference to declare
    renamed = settings.load(["task=geneval", "method=flow_grpo", "method.clip=kl", "method.name=own"])
    assert terms(renamed) == terms(own)
    plain = settings.load(["task=geneval", "method=flow_dppo", "method.clip=ratio", "method.name=own"])
    assert terms(plain) == terms(known)


def test_a_setting_that_came_later_is_no_part_of_a_run_that_does_not_use_it():
    """The identity of a run that was made before there was one."""
    known = identity(settings.load(["task=geneval", "method=star"]))
    assert "clip" not in known["method"]
    bounded = identity(settings.load(["task=geneval", "method=star", "method.clip=kl"]))
    assert bounded["method"].pop("clip") == "kl" and bounded == known and config_hash(bounded) == config_hash(known)
