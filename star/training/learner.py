"""One epoch of reinforcement learning: sample groups of rollouts, score them, allocate their advantages, update.

One for every method: Flow-GRPO is the uniform allocation with one ratio per image. Groups and noise are drawn from keys, and
micro-batches are the same on any number of processes.
"""

import math
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

import torch
from accelerate import Accelerator
from torch import Tensor

from evaluators.interface import Evaluator, check_verdicts
from star.common import processes
from star.common.devices import sent
from star.common.errors import UserError
from star.common.noise import generator
from star.config import Config
from star.config.schema import MethodConfig
from star.method.allocation import effective_sample_share, upsample
from star.method.arms import map_maker
from star.method.objective import (
    Bound,
    PolicyLoss,
    advantages,
    clip_range_for,
    divergence_map,
    guarded,
    kl,
    kl_limit_for,
    log_prob_map,
    mixed_rewards,
    policy_loss,
    ratio_tolerance_for,
    zero_std_share,
)
from star.method.sampling import Transition, score_size, transition
from star.models.ema import EMA
from star.models.interface import BaseModel
from star.tasks import Task
from star.training import guards
from star.training.credit import check_maps, overlaps, weigh
from star.training.judging import Beside
from star.training.rollout import MicroBatch, Sample, diversity, plan, sample, thumbnails, trained_steps, velocity
from star.training.trial import try_model

LARGEST = ("ratio_error", "weight_max")
"""Of these figures an epoch reports the largest value, of the others the mean."""


class Learner:
    """Samples and updates a model, an epoch at a time.

    Attributes:
        config: all settings, with nothing left to the machine.
        accelerator: this process's place among those of the run, and its device.
        task, others: what is rewarded, and the judges of the rewards that are mixed in, by name.
        base: the model, whose trained weights are updated.
        schedule: the sigmas of the denoising steps.
        clip_range, ratio_tolerance: how far a ratio may be from 1 before it is clipped, or in a first update stops the run.
        optimizer, ema, scaler: what a checkpoint holds besides the weights.
    """

    def __init__(
        self, config: Config, accelerator: Accelerator, task: Task, others: Mapping[str, Evaluator], base: BaseModel
    ) -> None:
        """
        Args:
            config, accelerator, task, others, base: the attributes.

        Raises:
            UserError: settings that the model or the prompts cannot meet.
        """
        self.config = config
        self.accelerator = accelerator
        self.task = task
        self.others = others
        self.base = base
        self.beside = Beside(accelerator.device)
        self._check_model()
        self.schedule = self.base.schedule(config.sampling.steps)
        method, train, positions = config.method, config.train, math.prod(self.base.latent_shape[1:])
        clip = method.clip_range
        self.clip_range = clip_range_for(method.reduction, train.clip_range, positions) if clip is None else clip
        rounding = ratio_tolerance_for(method.reduction, config.model.dtype, self.clip_range, positions)
        self.ratio_tolerance = rounding if train.ratio_tolerance is None else train.ratio_tolerance
        first, second = train.betas
        self.optimizer = torch.optim.AdamW(
            self.base.trained.values(), train.lr, betas=(first, second), weight_decay=train.weight_decay, fused=True
        )
        self.ema = EMA(self.base.trained, train.ema_decay, train.ema_every)
        # torch's 2^16 suits Flow-GRPO's processes, which average over a quarter as many samples as one of 8 does here.
        self.scaler = torch.amp.GradScaler(self.base.device.type, 2.0**18, enabled=config.model.dtype == "float16")

    def _check_model(self) -> None:
        """Refuse, before anything is written, settings that the model or the prompts cannot meet.

        Raises:
            UserError: blocks or heads that are not there, a model of one's own that does otherwise than it must, an arm whose
                maps cannot be made, prompts whose core words the text encoders never see, or unequal shares for processes that
                share weights.
        """
        config = self.config
        if self.base.sharded:
            self._check_shares()
        self.base.relevance(config.relevance, torch.ones(1, 1, dtype=torch.bool))
        if config.model.kind:
            try_model(self.base, config, self.task.train[0])
        check_maps([config], self.task, self.base)

    def _check_shares(self) -> None:
        """Refuse sharded weights if processes would call the model unequally often, and so wait for each other forever."""
        train, ranks = self.config.train, self.accelerator.num_processes
        if train.micro_batches != ranks * sum(self._turns()):
            updates = train.updates_per_epoch
            raise UserError(
                f"model.shard=true: {train.micro_batches} micro-batches in {updates} updates are no equal shares for "
                f"{ranks} processes; use another number of processes, another train.micro_batch or model.shard=false"
            )

    def epoch(self, epoch: int, tick: Callable[[], None] = lambda: None) -> dict:
        """Sample, score and update once; gives the epoch's figures."""
        started = time.monotonic()
        train = self.config.train
        samples = plan(len(self.task.train), train.groups, train.group_size, self.config.seed, epoch)
        steps = trained_steps(self.config.sampling, self.config.seed, epoch)
        batches = self.rollouts(samples, steps, epoch, tick)
        scores, spread = self.score(batches)
        sampled = time.monotonic()
        # All samples of one text in an epoch are one group, as in Flow-GRPO.
        ids = {text: number for number, text in enumerate(dict.fromkeys(self._text(s) for s in samples))}
        groups = [ids[self._text(s)] for s in samples]
        rewards = scores[self.config.task.name]
        gains = advantages(self._mixed(scores, groups), groups, train.std)
        for batch in batches:
            batch.advantages = gains[batch.span]
        self.allocate(batches, groups, epoch)
        figures = self.update(batches, len(samples) // train.micro_batch, epoch, tick)
        return {
            "reward": rewards.mean().item(),
            "reward_std": rewards.std(correction=0).item(),
            "zero_std_share": zero_std_share(rewards, groups),
            "diversity": spread,
            **{f"reward/{name}": values.mean().item() for name, values in scores.items() if name in self.others},
            "images": len(samples),
            "sampling_seconds": sampled - started,
            "update_seconds": time.monotonic() - sampled,
            "first_step": steps[0],
            **figures,
        }

    def rollouts(
        self, samples: Sequence[Sample], steps: Sequence[int], epoch: int, tick: Callable[[], None]
    ) -> list[MicroBatch]:
        """Sample this process's micro-batches, in the order of their numbers, and start to judge them."""
        size, config = self.config.train.micro_batch, self.config
        rank, ranks = self.accelerator.process_index, self.accelerator.num_processes
        # Each update's share is spread over all processes, so that none waits for the others.
        mine = sorted(number for share in self.shares(len(samples) // size, epoch) for number in share[rank::ranks])
        capture = config.relevance if map_maker(config.method.arm) else None
        judges: dict[str, Evaluator] = {config.task.name: self.task.evaluator, **self.others}
        drawn = {number: samples[number * size : (number + 1) * size] for number in mine}
        self.base.prepare([self._text(s) for batch in drawn.values() for s in batch], config.sampling.guidance)
        batches = []
        for number, batch in drawn.items():
            trajectory = sample(self.base, batch, self.task.train, config, steps, epoch, capture)
            prompts, images = [self.task.train[s.prompt] for s in batch], list(trajectory.images.numpy())
            verdicts = {name: self.beside(judge.submit(prompts, images)) for name, judge in judges.items()}
            batches.append(MicroBatch(number, trajectory, verdicts))
            tick()
        return batches

    def score(self, batches: Sequence[MicroBatch]) -> tuple[dict[str, Tensor], float]:
        """All rewards of the epoch by name, in the order of its samples, and the diversity of the images of a drawn entry."""
        scored = []
        for batch in batches:
            prompts = [s.prompt for s in batch.trajectory.samples]
            rewards = {
                name: [verdict["reward"] for verdict in check_verdicts(f"the evaluator of {name}", wait(), len(prompts))]
                for name, wait in batch.verdicts.items()
            }
            scored.append((batch.number, rewards, prompts, thumbnails(batch.trajectory.images)))
        scored = sorted(self._gather(scored), key=lambda item: item[0])
        names = [self.config.task.name, *self.others]
        together = {name: torch.tensor([reward for _, part, *_ in scored for reward in part[name]]) for name in names}
        # A group may lie in several micro-batches, on several processes.
        groups = [prompt for _, _, prompts, _ in scored for prompt in prompts]
        return together, diversity(torch.cat([rows for *_, rows in scored]), groups)

    def _mixed(self, scores: dict[str, Tensor], groups: Sequence[int]) -> Tensor:
        """The reward that is optimised: the task's own, or its sum with others."""
        config = self.config.rewards
        if not config.others:
            return scores[self.config.task.name]
        return mixed_rewards(scores, {self.config.task.name: 1.0, **config.others}, groups, config.normalise)

    def allocate(self, batches: Sequence[MicroBatch], groups: Sequence[int], epoch: int) -> None:
        """Give this process's micro-batches their weights, see :func:`star.training.credit.weigh`."""
        weigh(batches, groups, epoch, self.config, self.task, self._gather)

    def update(self, batches: Sequence[MicroBatch], count: int, epoch: int, tick: Callable[[], None] = lambda: None) -> dict:
        """Take the optimizer steps of an epoch, each on its share of the micro-batches; returns their figures.

        Args:
            batches: this process's.
            count: number of micro-batches of all processes.
            epoch: decides the order.
            tick: called after every micro-batch.
        """
        figures: dict[str, list[float]] = defaultdict(list)
        own = {batch.number: batch for batch in batches}
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate(epoch)
        for update, share in enumerate(self.shares(count, epoch)):
            samples = len(share) * self.config.train.micro_batch / self.accelerator.num_processes
            found: dict[str, list[Tensor]] = defaultdict(list)
            for batch in [own[number] for number in share if number in own]:
                self.backward(batch, samples, found, on_policy=update == 0)
                tick()
            shares = found.pop("beyond", [])
            for name, values in found.items():
                figures[name] += torch.stack(values).tolist()
            beyond = torch.stack(shares).mean().item() if shares else 0.0
            guards.check_update(figures, beyond, self.ratio_tolerance, epoch + 1)
            norm = self.step(epoch)
            made = math.isfinite(norm)
            if made:
                figures["grad_norm"].append(norm)
            if self.scaler.is_enabled():  # its scale starts too high, and updates are skipped until none overflows
                figures["skipped_updates"].append(float(not made))
        for batch in batches:
            if batch.weights is not None:
                evenness = effective_sample_share(batch.weights)
                figures["effective_share"].append(evenness.mean().item())
                figures["uniform_share"].append((evenness > 1 - 1e-6).float().mean().item())
                figures["weight_max"].append(batch.weights.max().item())
                figures["overlap"] += overlaps(self.config.method, batch)
        pooled: dict[str, list[float]] = defaultdict(list)
        for part in self._gather([dict(figures)]):
            for name, values in part.items():
                pooled[name] += values
        return {name: (max if name in LARGEST else _mean)(values) for name, values in pooled.items() if values}

    def _learning_rate(self, epoch: int) -> float:
        train = self.config.train
        return train.lr if train.schedule == "constant" else train.lr * (1 - epoch / train.epochs)

    def shares(self, count: int, epoch: int) -> list[list[int]]:
        """The micro-batches of each update of an epoch, of all processes."""
        order = torch.randperm(count, generator=generator(self.config.seed, "order", epoch))
        return [share.tolist() for share in order.tensor_split(self.config.train.updates_per_epoch)]

    def _turns(self) -> list[int]:
        """For each update of an epoch, the most micro-batches of its share that a process has."""
        ranks = self.accelerator.num_processes
        return [math.ceil(len(share) / ranks) for share in self.shares(self.config.train.micro_batches, 0)]

    def backward(self, batch: MicroBatch, samples: float, figures: dict[str, list[Tensor]], on_policy: bool) -> None:
        """Add the gradient of one micro-batch, as its part of the mean over ``samples`` samples and the trained steps.

        ``samples`` counts one process's: dividing by those of all would make the gradient smaller, which half precision loses
        sooner. Figures stay on the device, so that nothing waits for it before the whole update is queued.
        """
        trajectory, train, method = batch.trajectory, self.config.train, self.config.method
        if train.beta == 0 and not batch.advantages.any():
            if not self.base.sharded:
                return
            # Its gradient is 0 and its figures do not count, but other processes need this one's part of the weights.
            figures = defaultdict(list)
        shares = self._step_shares(trajectory.steps)
        for row in range(len(trajectory.steps)):
            moved = self.moved(batch, row)
            weights = None if batch.weights is None else upsample(batch.weights[row], self.base.patch)
            policy, loss = self.policy(batch, row, moved, method, weights)
            loss = loss * shares[row]
            if train.beta:
                with torch.no_grad(), self.base.reference():
                    reference = self.moved(batch, row).mean
                penalty = kl(moved.mean, reference, moved.std, moved.dt, train.kl)
                if method.weighted_kl and weights is not None:
                    penalty = penalty * weights
                figures["kl"].append(penalty.detach().mean())
                loss = loss + train.beta * penalty.mean((1, 2))
            self.scaler.scale(loss.sum() / (samples * len(trajectory.steps))).backward()
            figures["loss"].append(loss.detach().mean())
            figures["clip_fraction"].append(policy.clip_fraction)
            figures["approx_kl"].append(policy.approx_kl)
            figures["image_kl"].append(policy.image_kl)
            if on_policy:
                figures["ratio_error"].append(policy.ratio_error)
                figures["beyond"].append((policy.distance > self.ratio_tolerance).float().mean())

    def moved(self, batch: MicroBatch, row: int) -> Transition:
        """The transition of a trained step from the latents that were sampled, under the model as it is now."""
        trajectory, sampling = batch.trajectory, self.config.sampling
        x, step = trajectory.latents[row], trajectory.steps[row]
        # Rows are equal until the first trained step adds noise, and the rollout computed them once, too.
        alike = trajectory.alike if row == 0 else None
        texts = [self._text(s) for s in trajectory.samples]
        v = velocity(self.base, x, self.schedule[step], texts, sampling.guidance, alike)
        return transition(x, v, self.schedule, step, sampling.kind, sampling.noise_level)

    def policy(
        self,
        batch: MicroBatch,
        row: int,
        moved: Transition,
        method: MethodConfig,
        weights: Tensor | None,
        by_itself: bool = False,
    ) -> tuple[PolicyLoss, Tensor]:
        """The :class:`PolicyLoss` of a trained step, and its loss (B,), which GRPO-Guard divides by the time step's length.

        Args:
            batch: with its advantages set.
            row: index of the step among the trained ones.
            moved: its transition, see :meth:`moved`.
            method: reduction and map.
            weights: of the step, (B, H, W); None for 1 everywhere.
            by_itself: compare the policy with itself instead of the one that sampled, so that every ratio is 1.
        """
        trajectory, train, sampling = batch.trajectory, self.config.train, self.config.sampling
        new = log_prob_map(trajectory.latents[row + 1], moved.mean, moved.std, sampling.kind, method.reduction)
        old = new.detach() if by_itself else trajectory.log_probs[row]
        means = trajectory.means
        assert by_itself or means is not None or not (train.guard or method.clip == "kl")
        before = moved.mean.detach() if means is None or by_itself else means[row]
        bound = None
        if method.clip == "kl":
            apart = divergence_map(moved.mean, before, moved.std, method.reduction)
            bound = Bound(apart, kl_limit_for(method.reduction, self.clip_range, self.base.latent_shape))
        if train.guard:
            new, old = guarded(new, old, moved.mean, before, moved.std, method.reduction)
        per_ratio = weights.mean((1, 2)) if weights is not None and method.reduction == "image" else weights
        gains = sent(batch.advantages, self.base.device)
        policy = policy_loss(new, old, gains, per_ratio, self.clip_range, train.adv_clip, method.reduction, bound)
        return policy, policy.loss / -moved.dt if train.guard else policy.loss

    def _step_shares(self, steps: Sequence[int]) -> list[float]:
        """The weight of each trained step's policy loss, 1 on average."""
        sampling = self.config.sampling
        if self.config.method.steps == "as_sampled":
            return [1.0] * len(steps)
        sizes = torch.stack([score_size(self.schedule, step, sampling.kind, sampling.noise_level) for step in steps])
        return (1 / sizes / (1 / sizes).mean()).tolist()

    def step(self, epoch: int) -> float:
        """One optimizer step on the mean of the processes' gradients."""
        trained = list(self.base.trained.values())
        flat = torch.cat([(p.grad if p.grad is not None else torch.zeros_like(p)).flatten() for p in trained])
        for parameter in trained:
            parameter.grad = None  # its memory is for the sum, which is another copy
        flat = processes.total(self.accelerator, flat)
        flat /= self.accelerator.num_processes
        for parameter, grad in zip(trained, flat.split([p.numel() for p in trained]), strict=True):
            parameter.grad = grad.view_as(parameter)
        # A process all of whose advantages are 0 has scaled nothing yet, and unscaling would fail.
        self.scaler.scale(torch.zeros((), device=self.base.device))
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(trained, self.config.train.max_grad_norm).item()
        scale = self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        guards.check_gradient(norm, scale, epoch + 1)
        self.optimizer.zero_grad()
        self.ema.update(self.base.trained)
        return norm

    def _gather(self, items: list) -> list:
        """The items of all processes."""
        return processes.gather(self.accelerator, items)

    def _text(self, s: Sample) -> str:
        return self.task.train[s.prompt].text


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
