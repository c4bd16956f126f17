"""The published loop that ours is timed against: it must compute what our trainer computes."""

import pytest
import torch
from fake_task import RedTask

from star.bench.flow_grpo import FlowGRPO, load
from star.bench.speed import Epoch, Ours, Published
from star.common.errors import UserError
from star.training.trainer import Trainer

CPU = torch.device("cpu")
SMALL = ("method=flow_grpo", "train.schedule=constant", "train.groups=2", "train.group_size=3", "train.micro_batch=3")


def pair(config):
    """Our trainer and the published loop with equal adapters that are not 0, and a first epoch."""
    trainer = Trainer(config, RedTask())
    loop = FlowGRPO(load(config.model), config, trainer.base.device)
    torch.manual_seed(1)
    for name, parameter in trainer.base.trained.items():
        parameter.data = 0.1 * torch.randn_like(parameter)
        loop.trained[name].data.copy_(parameter)
    return Ours(trainer), Published(loop), Epoch.drawn(trainer, 0)


def close(own, other, share=1e-5):
    return torch.allclose(own, other, rtol=0, atol=share * other.abs().max().item())


@pytest.mark.parametrize(
    "words",
    [
        ("sampling.window=2", "sampling.same_latent=true"),
        ("sampling.window=0", "sampling.same_latent=false"),
        ("sampling.window=2", "sampling.guidance=3", "train.beta=0.3"),
        ("sampling.window=0", "sampling.guidance=3", "train.beta=0.3", "model.gradient_checkpointing=true"),
    ],
    ids=["window", "all steps", "window, guidance, KL", "all steps, guidance, KL, checkpointing"],
)
def test_it_samples_and_learns_as_our_trainer_does(make_config, monkeypatch, words):
    off_policy = ("train.updates_per_epoch=1", "train.ratio_tolerance=10", "train.clip_range=5e-4", "train.max_grad_norm=1e-3")
    ours, published, epoch = pair(make_config(*SMALL, *off_policy, *words))
    ours.rollouts(epoch)
    published.rollouts(epoch)
    for own, other in zip(ours.batches, published.batches, strict=True):
        kept = len(own.trajectory.latents)
        assert close(own.trajectory.latents, other.latents[:kept])
        assert close(own.trajectory.log_probs, other.log_probs[: kept - 1])
        assert (own.trajectory.images.int() - other.images.int()).abs().max() <= 1

    torch.manual_seed(2)
    sides = (ours.trainer.optimizer, ours.trainer.base.trained), (published.loop.optimizer, published.loop.trained)
    given = []
    for optimizer, trained in sides:
        step = lambda trained=trained: given.append({name: p.grad.clone() for name, p in trained.items()})  # noqa: E731
        monkeypatch.setattr(optimizer, "step", step)
    for name, parameter in ours.trainer.base.trained.items():
        parameter.data += 0.1 * torch.randn_like(parameter)
        published.loop.trained[name].data.copy_(parameter)
    ours.update(epoch)
    published.update(epoch)
    largest = max(grad.abs().max().item() for grad in given[1].values())
    assert largest > 0 and given[0].keys() == given[1].keys()
    for name, grad in given[0].items():
        assert torch.allclose(grad, given[1][name], rtol=0, atol=1e-4 * largest), name


def test_it_keeps_all_steps_or_those_of_the_window(make_config):
    for window, steps in ((0, 4), (2, 2)):
        _, published, epoch = pair(make_config(*SMALL, f"sampling.window={window}"))
        published.rollouts(epoch)
        batch = published.batches[0]
        assert len(batch.latents) == steps + 1 and batch.log_probs.shape == batch.timesteps.shape == (steps, 3)
        assert batch.log_probs.isfinite().all() and batch.embeds.shape[0] == batch.pooled.shape[0] == 3
        first = epoch.steps[0]
        assert published.loop.step_indices(batch.timesteps[:, 0]) == list(range(first, first + steps))


def test_a_step_is_looked_up_by_its_timestep(make_config):
    _, published, _ = pair(make_config(*SMALL))
    scheduler = published.loop.pipeline.scheduler
    scheduler.set_timesteps(4)
    assert published.loop.step_indices(scheduler.timesteps[[3, 0, 2]]) == [3, 0, 2]
    with pytest.raises(IndexError):
        published.loop.step_indices(scheduler.timesteps[:1] + 1e-3)


def test_its_figures_are_those_of_each_update(make_config):
    _, published, epoch = pair(make_config(*SMALL, "train.beta=0.3"))
    published.rollouts(epoch)
    for batch, gains in zip(published.batches, epoch.advantages.split(3), strict=True):
        batch.advantages = gains
    first, second = published.loop.update([[published.batches[number] for number in share] for share in epoch.shares])
    assert first.keys() == second.keys() == {
        "approx_kl", "clipfrac", "clipfrac_gt_one", "clipfrac_lt_one", "grad_norm", "kl_loss", "loss", "policy_loss"
    }  # fmt: skip
    assert first["approx_kl"] < 1e-2 * second["approx_kl"]  # the second is an update after its rollouts
    assert first["clipfrac"] == 0 and first["kl_loss"] > 0 and first["grad_norm"] > 0
    assert second["clipfrac"] == pytest.approx(second["clipfrac_gt_one"] + second["clipfrac_lt_one"])
    assert first["loss"] == pytest.approx(first["policy_loss"] + 0.3 * first["kl_loss"], abs=1e-6)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("sampling.kind=cps",), "sampling.kind=cps: the published loop is there for sampling.kind=sde only"),
        (
            ("model.kind=my:Model", "model.name=mine"),
            "model.kind=my:Model: the published loop is there for model.kind=null only",
        ),
        (("train.guard=true",), "train.guard=True: the published loop is there for train.guard=false only"),
        (("train.kl=paper",), "train.kl=paper"),
        (("train.schedule=linear",), "train.schedule=linear"),
        (("method=star",), "method.arm=star"),
        (("method=dense_uniform",), "method.reduction=position"),
        (("method=tempflow",), "method.steps=equal"),
        (("method.clip=kl", "method=flow_grpo"), "method.clip=kl"),
        (("method=flow_dppo",), "method.clip=kl"),
        (("model.parameters=full",), "model.parameters=full"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_settings_without_a_published_loop_are_refused(make_config, words, told):
    with pytest.raises(UserError, match=told):
        FlowGRPO(None, make_config(*SMALL, *words), CPU)
