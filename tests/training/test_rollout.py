"""What a rollout draws and captures, against the same thing done by hand."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from fake_task import RedTask

from star.common.noise import generator
from star.method.attention import Relevance
from star.method.sampling import sigmas, transition
from star.mini.build import untrained_pipeline
from star.models.sd3 import SD3
from star.training import rollout
from star.training.rollout import Sample, alike_runs, diversity, sample, thumbnails

CPU = torch.device("cpu")
SAMPLES = [Sample(0, 0), Sample(1, 1)]
PROMPTS = RedTask().train


@pytest.fixture
def base(make_config):
    return SD3(make_config().model, CPU, 0)


def draw(base, config, steps, relevance=None, seed=0, epoch=0):
    method, train = replace(config.method, reduction="position"), replace(config.train, guard=True)  # which keeps the means
    return sample(base, SAMPLES, PROMPTS, replace(config, seed=seed, method=method, train=train), steps, epoch, relevance)


def test_guidance_does_not_change_whose_maps_are_taken(base, make_config):
    plain, guided = (make_config(f"sampling.guidance={scale}") for scale in (1, 3))
    ours, theirs = (draw(base, config, [0], config.relevance) for config in (plain, guided))
    assert torch.allclose(ours.relevance, theirs.relevance, rtol=1e-4)
    assert not torch.allclose(ours.latents[1], theirs.latents[1], atol=1e-3)


def test_the_configured_blocks_heads_columns_and_softmax_are_read(make_config):
    words = ["relevance.blocks=[1]", "relevance.heads=[0]", "relevance.columns=both", "relevance.softmax_over=text"]
    words += ["relevance.columns_count=equally"]
    config = make_config(*words)
    torch.manual_seed(0)
    base = SD3(config.model, CPU, 0, untrained_pipeline(width=64, blocks=2))  # two heads, two blocks
    trajectory = draw(base, config, [0], config.relevance)
    texts, spans = ([getattr(PROMPTS[s.prompt], name) for s in SAMPLES] for name in ("text", "spans"))
    options = {"heads": [0], "softmax_over": "text", "columns_count": "equally"}
    direct = Relevance(base.transformer, [1], base.core_columns(texts, spans, "both"), **options)
    with torch.no_grad(), direct:
        base.velocity(trajectory.latents[0], sigmas(config.sampling.steps)[0], texts, config.sampling.guidance)
    expected = direct.take()
    assert torch.allclose(trajectory.relevance[0], expected)
    others = ["relevance.blocks=[0]", "relevance.heads=[]", "relevance.columns=clip", "relevance.softmax_over=joint"]
    for other in [*others, "relevance.columns_count=as_attended"]:
        changed = make_config(*words, other)
        assert not torch.allclose(draw(base, changed, [0], changed.relevance).relevance[0], expected), other


def test_steps_outside_the_window_are_deterministic(base, make_config):
    """The images follow from the latents after the window by the flow alone, and the window's start from the noise."""
    config = make_config("sampling.window=2", "sampling.window_range=[1,3]")
    trajectory = draw(base, config, [1, 2])
    schedule, texts = sigmas(config.sampling.steps), [PROMPTS[s.prompt].text for s in SAMPLES]

    def flow(x, step):
        return transition(x, base.velocity(x, schedule[step], texts, 1.0), schedule, step, "ode").mean

    start = draw(base, config, [0]).latents[0]
    with torch.no_grad():
        assert torch.allclose(trajectory.latents[0], flow(start, 0), atol=1e-5)
        last = base.decode(flow(trajectory.latents[-1], 3)).int()
    assert (last - trajectory.images.int()).abs().max() <= 1


def test_the_noise_of_a_step_does_not_depend_on_where_the_window_lies(base, make_config):
    """Noise is (next - mean) / std, whichever window a step is in; and it is that of the step's key."""
    config = make_config("sampling.window=2", "sampling.window_range=[0,3]")
    schedule, noises = sigmas(config.sampling.steps), []
    for steps in ([0, 1], [1, 2]):
        trajectory = draw(base, config, steps)
        row = steps.index(1)
        std = transition(trajectory.latents[row], trajectory.latents[row], schedule, 1, "sde", config.sampling.noise_level).std
        noises.append((trajectory.latents[row + 1] - trajectory.means[row]) / std)
    source = generator(0, 0, "steps", SAMPLES[0].prompt, SAMPLES[0].index)
    drawn = [torch.randn(base.latent_shape, generator=source) for _ in range(2)]
    for noise in noises:
        assert torch.allclose(noise[0], drawn[1], atol=1e-3)


@pytest.mark.parametrize("changed", [{"epoch": 1}, {"seed": 1}])
def test_every_epoch_and_every_seed_has_its_own_noise(base, make_config, changed):
    config = make_config()
    ours, theirs = draw(base, config, [0, 1]), draw(base, config, [0, 1], **changed)
    noises = [trajectory.latents[1:] - trajectory.means for trajectory in (ours, theirs)]
    assert not torch.allclose(ours.latents[0], theirs.latents[0], atol=1e-1)
    assert not torch.allclose(*noises, atol=1e-1)


GROUPS = [Sample(0, 0), Sample(0, 1), Sample(0, 2), Sample(1, 0), Sample(2, 0), Sample(2, 1)]


@pytest.mark.parametrize(
    ("words", "steps", "seen"),
    [
        (["sampling.window=2", "sampling.window_range=[0,3]"], [0, 1], [3, 6, 6, 6]),
        (["sampling.window=1", "sampling.window_range=[2,3]"], [2], [3, 3, 3, 6]),
        (["sampling.window=0"], [0, 1, 2], [3, 6, 6, 6]),
        (["sampling.window=0", "sampling.same_latent=false"], [0, 1, 2], [6, 6, 6, 6]),
        (["sampling.window=0", "sampling.guidance=3"], [0, 1, 2], [3, 6, 6, 6]),
    ],
    ids=str,
)
def test_the_model_sees_rows_that_are_alike_once(base, make_config, monkeypatch, words, steps, seen):
    config = make_config("sampling.same_latent=true", "method.reduction=position", *words)
    rows, compute = [], base.velocity

    def velocity(latents, sigma, prompts, guidance):
        assert len(latents) == len(prompts)
        rows.append(len(latents))
        return compute(latents, sigma, prompts, guidance)

    monkeypatch.setattr(base, "velocity", velocity)

    def drawn():
        return sample(base, GROUPS, PROMPTS, config, steps, 0, config.relevance)

    shared = drawn()
    assert rows == seen
    assert shared.alike == ([3, 1, 2] if seen[0] == 3 else None)
    monkeypatch.setattr(rollout, "alike_runs", lambda samples, same_latent: None)
    single = drawn()
    for name in ("latents", "log_probs", "relevance"):
        torch.testing.assert_close(getattr(shared, name), getattr(single, name), rtol=1e-4, atol=1e-5)
    assert (shared.images.int() - single.images.int()).abs().max() <= 1


def test_runs_of_rows_that_are_alike():
    assert alike_runs(GROUPS, True) == [3, 1, 2]
    assert alike_runs(GROUPS[2:5], True) is None and alike_runs(GROUPS, False) is None
    rows = torch.arange(6.0).reshape(3, 2).requires_grad_()
    spread = rollout._spread(rows, [3, 1, 2])
    assert spread[:, 0].tolist() == [0, 0, 0, 2, 4, 4] and rollout._first([3, 1, 2]) == [0, 3, 4]
    (grad,) = torch.autograd.grad((spread[:, 0] * torch.arange(6)).sum(), rows)
    assert grad[:, 0].tolist() == [3, 3, 9]


def test_the_autoencoder_decodes_in_parts(make_config, monkeypatch):
    base = SD3(make_config("model.decode_batch=2").model, CPU, 0)
    latents = torch.randn(5, *base.latent_shape, generator=torch.Generator().manual_seed(0))
    sizes, decode = [], base.pipeline.vae.decode
    monkeypatch.setattr(base.pipeline.vae, "decode", lambda part: sizes.append(len(part)) or decode(part))
    parts = base.decode(latents)
    assert sizes == [2, 2, 1] and parts.shape == (5, 64, 64, 3)
    base.config = make_config("model.decode_batch=9").model
    assert (base.decode(latents).int() - parts.int()).abs().max() <= 1 and sizes[3:] == [5]


def test_diversity_is_the_mean_distance_within_groups():
    """Flat pictures of grey 0, 51 and 102 differ by 0.2, 0.2 and 0.4; a lone picture by nothing."""
    images = torch.from_numpy(np.stack([np.full((16, 16, 3), grey, np.uint8) for grey in (0, 51, 102, 255)]))
    assert diversity(thumbnails(images), [7, 7, 7, 3]) == pytest.approx((0.8 / 3 + 0) / 2, abs=1e-6)
