"""A loop of one's own, made of the parts that docs/extending.md names, computes what the trainer does."""

from collections import defaultdict

import own_loop
import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from fake_task import RedTask

from star.common.shipped import MINI_BASE
from star.config import load
from star.training.rollout import plan, starts, step_noise
from star.training.trainer import Trainer


@pytest.fixture
def trainer(tmp_path):
    small = "train.groups=2 train.group_size=3 train.micro_batch=6 train.updates_per_epoch=1"
    return Trainer(load(["task=pickscore", "method=star", *small.split(), f"run={tmp_path / 'run'}"]), RedTask())


def test_its_rollouts_and_its_gradient_are_the_trainers(trainer):
    config, prompts = trainer.config, trainer.task.train
    samples, rewards = plan(len(prompts), 2, 3, config.seed, 0), [0.1, 0.5, 0.4, 0.9, 0.2, 0.3]
    groups = [sample.prompt for sample in samples]
    (batch,) = trainer.rollouts(samples, own_loop.TRAINED, 0, lambda: None)
    batch.advantages = own_loop.advantages(rewards, groups)
    trainer.allocate([batch], groups, 0)
    trainer.backward(batch, len(samples), defaultdict(list), on_policy=True)

    pipe = StableDiffusion3Pipeline.from_pretrained(MINI_BASE.folder, dtype=torch.float32)
    trained = own_loop.adapted(pipe, config.seed)
    texts, spans = [prompts[s.prompt].text for s in samples], [prompts[s.prompt].spans for s in samples]
    x = starts(trainer.base, samples, config.sampling.same_latent, config.seed, 0)
    known = own_loop.encoded(pipe, texts, spans)
    drawn = own_loop.rollout(pipe, known, x, step_noise(trainer.base, samples, config.seed, 0))
    torch.testing.assert_close(drawn.latents, batch.trajectory.latents, rtol=0, atol=1e-4)
    torch.testing.assert_close(drawn.relevance, batch.trajectory.relevance, rtol=1e-4, atol=0)
    own_loop.backward(pipe, known, drawn, own_loop.advantages(rewards, groups))
    for parameter, theirs in zip(trained, trainer.base.trained.values(), strict=True):
        assert torch.equal(parameter, theirs)
        torch.testing.assert_close(parameter.grad, theirs.grad, rtol=0, atol=1e-4 * theirs.grad.abs().max().item())
    # At the start LoRA's B alone has a gradient, and in the last block the text asks for nothing.
    assert sum(parameter.grad.any().item() for parameter in trained) == len(trained) // 2 - 1
