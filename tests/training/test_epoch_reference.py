"""A whole epoch against an independent, naive implementation in float64: same loss, same gradient."""

import copy
import math
from collections import defaultdict

import pytest
import torch
from fake_task import RedTask

from star.method.objective import advantages
from star.training.rollout import plan, trained_steps
from star.training.trainer import Trainer


def naive_step(sigma, step, sampling):
    """The mean's factors of x and v, and the standard deviation, of a step's transition."""
    s, following, level = sigma[step], sigma[step + 1], sampling.noise_level
    if sampling.kind == "cps":  # (1 - s') (x - s v) + s' cos(angle) (x + (1 - s) v)
        kept = following * math.cos(level * math.pi / 2)
        return 1 - following + kept, (1 - s) * kept - s * (1 - following), following * math.sin(level * math.pi / 2)
    dt, tilde = following - s, sigma[1] if step == 0 else s
    std = level * math.sqrt(s / (1 - tilde))
    return 1 + std**2 * dt / (2 * s), (1 + std**2 * (1 - s) / (2 * s)) * dt, std * math.sqrt(-dt)


def naive_shares(sigma, steps, sampling, equal):
    """What each step counts for: 1, or the inverse of its score's size over the mean of those of all trained steps."""
    inverse = []
    for step in steps:
        _, of_v, tau = naive_step(sigma, step, sampling)
        inverse.append(1 / abs(of_v * (tau if sampling.kind == "cps" else 1 / tau)))
    return [value / (sum(inverse) / len(inverse)) if equal else 1.0 for value in inverse]


def exact(values):
    """In float64 on the CPU, whatever computed them."""
    return values.cpu().double()


def naive_loss(trainer, trajectories, rewards, prompts, relevance, beta, clip):
    """Loops over everything, in float64, from the formulas as the papers print them."""
    config = trainer.config
    model = copy.deepcopy(trainer.base.transformer).cpu().double()
    embed = {text: [exact(part) for part in trainer.base.encode([text])] for text in set(prompts)}
    steps = config.sampling.steps
    low = 3 * 0.001 / (1 + 2 * 0.001)
    u = [1 + (low - 1) * i / (steps - 1) for i in range(steps)]
    sigma = [3 * x / (1 + 2 * x) for x in u] + [0.0]
    groups = defaultdict(list)
    for reward, prompt in zip(rewards, prompts, strict=True):
        groups[prompt].append(reward)
    mean_all = sum(rewards) / len(rewards)
    spread = {prompt: math.sqrt(sum((r - sum(g) / len(g)) ** 2 for r in g) / len(g)) for prompt, g in groups.items()}
    if config.train.std == "batch":
        spread = dict.fromkeys(groups, math.sqrt(sum((r - mean_all) ** 2 for r in rewards) / len(rewards)))
    reduction, position = config.method.reduction, config.method.reduction != "image"
    total, terms, place = 0.0, 0, 0
    for trajectory in trajectories:
        for row, _ in enumerate(trajectory.samples):
            prompt, reward = prompts[place], rewards[place]
            advantage = (reward - sum(groups[prompt]) / len(groups[prompt])) / (spread[prompt] + 1e-4)
            advantage = max(-config.train.adv_clip, min(config.train.adv_clip, advantage))
            maps = None if relevance is None else exact(relevance[:, place])
            shares = naive_shares(sigma, trajectory.steps, config.sampling, config.method.steps == "equal")
            for k, step in enumerate(trajectory.steps):
                dt = sigma[step + 1] - sigma[step]
                of_x, of_v, tau = naive_step(sigma, step, config.sampling)
                x, after = exact(trajectory.latents[k, row]), exact(trajectory.latents[k + 1, row])

                def mean(x=x, s=sigma[step], of_x=of_x, of_v=of_v, prompt=prompt):
                    embeds, pooled = embed[prompt]
                    time = torch.tensor([1000 * s], dtype=torch.float64)
                    v = model(x[None], embeds, pooled, time, return_dict=False)[0][0]
                    return x * of_x + v * of_v

                mu = mean()
                with torch.no_grad():
                    model.disable_adapters()
                    mu_ref = mean()
                    model.enable_adapters()
                logp = -((after - mu) ** 2)
                if config.sampling.kind == "sde":
                    logp = logp / (2 * tau**2) - math.log(tau) - math.log(math.sqrt(2 * math.pi))
                logp = logp.mean(0) if position else logp.mean()
                difference = logp - exact(trajectory.log_probs[k, row])
                if config.train.guard:
                    squared = (mu - exact(trajectory.means[k, row])) ** 2
                    difference = (difference + (squared.mean(0) if position else squared.mean()) / (2 * tau**2)) * tau
                weight = torch.ones_like(difference)
                if maps is not None:
                    whole = maps[k].mean() if config.method.normalise == "step" else maps.mean()
                    weight = (maps[k] / whole).repeat_interleave(2, 0).repeat_interleave(2, 1)
                ratio, gain = difference.exp(), advantage * weight
                if reduction == "image_weighted":
                    ratio, gain = (weight * difference).mean().exp(), torch.tensor(advantage)
                if reduction == "detached":
                    ratio = difference.mean().exp().detach() * torch.exp(difference - difference.detach())
                clipped = ratio.clamp(1 - clip, 1 + clip)
                surrogate = torch.where(ratio * gain < clipped * gain, ratio * gain, clipped * gain)
                variance = tau**2 / (-dt if config.train.kl == "flow_grpo" else 1)
                penalty = (((mu - mu_ref) ** 2) / (2 * variance) * (weight if config.method.weighted_kl else 1)).mean()
                total = total - shares[k] * surrogate.mean() / (-dt if config.train.guard else 1) + beta * penalty
                terms += 1
            place += 1
    loss = total / terms
    loss.backward()
    return loss.item(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


FORMS = [
    ["method=flow_grpo"],
    ["method=flow_grpo", "train.guard=true"],
    ["method=flow_grpo", "method.steps=equal"],
    ["method=flow_grpo", "method.steps=equal", "sampling.kind=cps", "train.kl=paper"],
    ["method=star", "method.reduction=image"],
    ["method=star", "method.reduction=position", "method.clip_range=4e-3"],
    ["method=star", "method.reduction=position", "method.clip_range=4e-3", "train.guard=true"],
    ["method=star", "method.reduction=image_weighted"],
    ["method=star", "method.reduction=image_weighted", "method.normalise=step", "method.steps=equal"],
    ["method=star", "method.reduction=image_weighted", "train.guard=true"],
    ["method=star", "method.reduction=detached"],
    ["method=star", "method.reduction=detached", "method.normalise=step", "train.adv_clip=0.5"],
]


@pytest.mark.parametrize("words", FORMS, ids=" ".join)
def test_epoch_is_the_naive_one(make_config, words):
    beta = 0.3
    config = make_config(
        "sampling.window=0",
        "train.groups=2",
        "train.group_size=3",
        "train.micro_batch=3",
        f"train.beta={beta}",
        "train.clip_range=5e-4",  # so that some ratios are clipped
        "method.mix=1",
        "method.cap=null",
        *words,
    )
    trainer = Trainer(config, RedTask())
    train = config.train
    samples = plan(len(trainer.task.train), train.groups, train.group_size, config.seed, 0)
    batches = trainer.rollouts(samples, trained_steps(config.sampling, config.seed, 0), 0, lambda: None)
    trajectories = [batch.trajectory for batch in batches]
    scores, _ = trainer.score(batches)
    rewards = scores[config.task.name]
    prompts = [trainer.task.train[s.prompt].text for s in samples]
    torch.manual_seed(1)  # off policy, so that ratios, clipping and the penalty all count
    for parameter in trainer.base.trained.values():
        parameter.data += 0.1 * torch.randn_like(parameter)

    groups = [s.prompt for s in samples]
    gains = advantages(rewards, groups, "batch")
    trainer.allocate(batches, groups, 0)
    figures = defaultdict(list)
    for batch in batches:
        batch.advantages = gains[3 * batch.number : 3 * batch.number + 3]
        trainer.backward(batch, len(samples), figures, on_policy=False)
    assert 0 < sum(figures["clip_fraction"]) / len(figures["clip_fraction"]) < 1

    relevance = None if config.method.name == "flow_grpo" else torch.cat([t.relevance for t in trajectories], dim=1)
    loss, grads = naive_loss(
        trainer,
        trajectories,
        rewards.tolist(),
        prompts,
        relevance,
        beta=beta,
        clip=trainer.clip_range,
    )
    assert sum(figures["loss"]) / len(figures["loss"]) == pytest.approx(loss, abs=1e-5)
    assert grads.keys() == trainer.base.trained.keys()
    largest = max(grad.abs().max().item() for grad in grads.values())
    for name, parameter in trainer.base.trained.items():
        assert torch.allclose(exact(parameter.grad), grads[name], atol=1e-5 * largest), name


@pytest.mark.parametrize(("std", "weighted_kl"), [("batch", False), ("group", True)])
def test_the_optimizer_steps_on_the_clipped_naive_gradient(make_config, monkeypatch, std, weighted_kl):
    """The whole of an epoch with one update, from its samples to what the optimizer is given."""
    config = make_config(
        "method=star",
        f"method.weighted_kl={weighted_kl}",
        "method.mix=1",
        "method.cap=null",
        f"train.std={std}",
        "train.groups=2",
        "train.group_size=3",
        "train.micro_batch=3",
        "train.updates_per_epoch=1",
        "train.beta=0.3",
        "train.max_grad_norm=1e-4",
    )
    trainer = Trainer(config, RedTask())
    torch.manual_seed(1)  # away from the reference, so that the penalty counts
    for parameter in trainer.base.trained.values():
        parameter.data += 0.1 * torch.randn_like(parameter)
    drawn, scored, given = [], [], {}
    draw, score = trainer.rollouts, trainer.score
    monkeypatch.setattr(trainer, "rollouts", lambda *words: drawn.append(draw(*words)) or drawn[0])
    monkeypatch.setattr(trainer, "score", lambda *words: scored.append(score(*words)) or scored[0])
    step = lambda: given.update({name: p.grad.clone() for name, p in trainer.base.trained.items()})  # noqa: E731
    monkeypatch.setattr(trainer.optimizer, "step", step)
    figures = trainer.epoch(0)

    trajectories, rewards = [batch.trajectory for batch in drawn[0]], scored[0][0][config.task.name].tolist()
    prompts = [trainer.task.train[s.prompt].text for trajectory in trajectories for s in trajectory.samples]
    relevance = torch.cat([trajectory.relevance for trajectory in trajectories], dim=1)
    loss, grads = naive_loss(trainer, trajectories, rewards, prompts, relevance, 0.3, trainer.clip_range)
    norm = math.sqrt(sum(grad.square().sum().item() for grad in grads.values()))
    assert norm > 2e-4  # so that clipping counts
    assert figures["grad_norm"] == pytest.approx(norm, rel=1e-4) and figures["loss"] == pytest.approx(loss, abs=1e-5)
    clip = 1e-4 / (norm + 1e-6)  # torch's own rule
    largest = clip * max(grad.abs().max().item() for grad in grads.values())
    for name, grad in given.items():
        assert torch.allclose(exact(grad), clip * grads[name], atol=1e-4 * largest), name
