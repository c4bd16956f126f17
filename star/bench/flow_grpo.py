"""Flow-GRPO's training loop as its published scripts run it, to time ours against (``star bench speed``).

It was written from a description of the code of November 2025 (commit 9745241), and keeps what costs time there: frozen
weights in float32 under autocast, texts encoded anew for every rollout, a look-up of the step for every sample, and one
forward pass per micro-batch and trained step. Noise and advantages are inputs, so that it computes the same as our trainer. No
run is trained with it.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import StableDiffusion3Pipeline
from torch import Tensor

from star.common.errors import UserError
from star.config import Config, ModelConfig, get
from star.models.ema import EMA
from star.models.pipeline import load_pipeline
from star.models.sd3 import add_lora
from star.models.sources import pipeline_folder, told
from star.models.text import EMPTY

SETTINGS: dict[str, Any] = {
    "method.arm": "uniform",
    "method.reduction": "image",
    "method.steps": "as_sampled",
    "method.clip": "ratio",
    "model.kind": None,
    "model.parameters": "lora",
    "rewards.others": {},
    "sampling.kind": "sde",
    "train.schedule": "constant",
    "train.kl": "flow_grpo",
    "train.guard": False,
}
"""The settings with which this loop is the published one."""

Figures = dict[str, list[Tensor]]


@dataclass
class Rollouts:
    """One micro-batch of B rollouts with T kept steps: all of them, or those of the window.

    Attributes:
        latents: (T + 1, B, C, H, W) float32, before each kept step and after the last.
        log_probs: under the policy that sampled, (T, B).
        timesteps: the transformer's time input at the kept steps, (T, B).
        embeds, pooled: text embeddings of each rollout, (B, columns, width) and (B, width).
        images: uint8 (B, H, W, 3), on the CPU.
        advantages: (B,), once they are known.
    """

    latents: Tensor
    log_probs: Tensor
    timesteps: Tensor
    embeds: Tensor
    pooled: Tensor
    images: Tensor
    advantages: Tensor = field(default_factory=lambda: torch.zeros(0))


def load(config: ModelConfig) -> StableDiffusion3Pipeline:
    """The configured pipeline as diffusers loads it, float32, with new adapters in its transformer.

    Raises:
        UserError: it cannot be loaded, or a LoRA target fits no module.
    """
    with told(config):
        pipeline = load_pipeline(pipeline_folder(config), torch.float32)
    add_lora(pipeline.transformer.requires_grad_(False), config)
    return pipeline


def check(config: Config) -> None:
    """Refuse settings with which this is not the published loop.

    Raises:
        UserError: names the first such setting.
    """
    for name, value in SETTINGS.items():
        if (given := get(config, name)) != value:
            wanted = "null" if value is None else str(value).lower()
            raise UserError(f"{name}={given}: the published loop is there for {name}={wanted} only")


class FlowGRPO:
    """Rollouts and updates of Flow-GRPO on one device.

    Attributes:
        pipeline: the model.
        trained: name -> trained parameter, float32.
        optimizer: AdamW.
    """

    def __init__(self, pipeline: StableDiffusion3Pipeline, config: Config, device: torch.device) -> None:
        """
        Args:
            pipeline: with adapters in its transformer; frozen parameters must not require gradients.
            config: the settings.
            device: where everything computes.

        Raises:
            UserError: settings with which this is not the published loop.
        """
        check(config)
        self.pipeline, self.config, self.device = pipeline, config, device
        self.dtype = getattr(torch, config.model.dtype)
        for encoder in (pipeline.text_encoder, pipeline.text_encoder_2, pipeline.text_encoder_3):
            encoder.requires_grad_(False).to(device, self.dtype).eval()
        pipeline.vae.requires_grad_(False).to(device).float().eval()
        self.transformer = pipeline.transformer.to(device).float()
        if config.model.gradient_checkpointing:
            self.transformer.enable_gradient_checkpointing()
        self.trained = {name: p for name, p in self.transformer.named_parameters() if p.requires_grad}
        train = config.train
        first, second = train.betas
        self.optimizer = torch.optim.AdamW(
            self.trained.values(), train.lr, betas=(first, second), weight_decay=train.weight_decay
        )
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype == torch.float16)
        self.ema = EMA(self.trained, train.ema_decay, train.ema_every)
        self.negative = self._encode([EMPTY])

    @torch.no_grad()
    def rollout(self, texts: Sequence[str], start: Tensor, noises: Sequence[Tensor], steps: Sequence[int]) -> Rollouts:
        """Draw one micro-batch.

        Args:
            texts: B prompts.
            start: latents to start from, (B, C, H, W) float32 on the device.
            noises: one for every step, each like ``start``.
            steps: the window; if there is none, every step is stochastic and kept, whichever are trained later.
        """
        sampling, scheduler = self.config.sampling, self.pipeline.scheduler
        self.transformer.eval()
        scheduler.set_timesteps(sampling.steps, device=self.device)
        kept = list(steps) if sampling.window else list(range(sampling.steps))
        embeds, pooled = self._encode(texts)
        x, latents, log_probs = start, [start], []
        for index, timestep in enumerate(scheduler.timesteps):
            if index == kept[0]:
                latents = [x]
            v = self._velocity(x, timestep.expand(len(x)), embeds, pooled)
            noise_level = sampling.noise_level if index in kept else 0.0
            mean, std, root = self._moments(v, timestep[None], x, noise_level)
            x = mean + std * root * noises[index]
            log_prob = _log_prob(x, mean, std * root)  # at deterministic steps it is meaningless and not kept
            if index in kept:
                latents.append(x)
                log_probs.append(log_prob)
        return Rollouts(
            latents=torch.stack(latents),
            log_probs=torch.stack(log_probs),
            timesteps=scheduler.timesteps[kept][:, None].repeat(1, len(x)),
            embeds=embeds,
            pooled=pooled,
            images=self._decode(x),
        )

    def update(self, shares: Sequence[Sequence[Rollouts]]) -> list[dict[str, float]]:
        """One optimizer step on each share of the micro-batches, whose advantages must be set; returns each step's figures."""
        self.transformer.train()
        return [self._update(share) for share in shares]

    def _update(self, share: Sequence[Rollouts]) -> dict[str, float]:
        figures: Figures = defaultdict(list)
        trained = self.config.sampling.trained
        for batch in share:
            for row in range(trained):
                loss = self._loss(batch, row, figures)
                self.scaler.scale(loss / (len(share) * trained)).backward()
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.transformer.parameters(), self.config.train.max_grad_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        self.ema.update(self.trained)
        return {name: torch.stack(values).mean().item() for name, values in figures.items()} | {"grad_norm": norm.item()}

    def _loss(self, batch: Rollouts, row: int, figures: Figures) -> Tensor:
        """The loss of a micro-batch at one trained step, a scalar."""
        train, method = self.config.train, self.config.method
        clip_range = method.clip_range or train.clip_range
        x, timestep = batch.latents[row], batch.timesteps[row]
        v = self._velocity(x, timestep, batch.embeds, batch.pooled)
        mean, std, root = self._moments(v, timestep, x, self.config.sampling.noise_level)
        moved = _log_prob(batch.latents[row + 1], mean, std * root) - batch.log_probs[row]
        gain = batch.advantages.to(self.device).clamp(-train.adv_clip, train.adv_clip)
        ratio = moved.exp()
        policy = torch.maximum(-gain * ratio, -gain * ratio.clamp(1 - clip_range, 1 + clip_range)).mean()
        loss = policy
        if train.beta:
            penalty = self._kl(batch, x, timestep, mean, std)
            loss = policy + train.beta * penalty
            figures["kl_loss"].append(penalty.detach())
        figures["approx_kl"].append(moved.detach().square().mean() / 2)
        figures["clipfrac"].append(((ratio - 1).abs() > clip_range).float().mean())
        figures["clipfrac_gt_one"].append((ratio - 1 > clip_range).float().mean())
        figures["clipfrac_lt_one"].append((1 - ratio > clip_range).float().mean())
        figures["policy_loss"].append(policy.detach())
        figures["loss"].append(loss.detach())
        return loss

    def _kl(self, batch: Rollouts, x: Tensor, timestep: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        """The published code's KL penalty, a scalar, whose std lacks the factor ``sqrt(-dt)``."""
        self.transformer.disable_adapters()
        with torch.no_grad():
            v = self._velocity(x, timestep, batch.embeds, batch.pooled)
            reference, *_ = self._moments(v, timestep, x, self.config.sampling.noise_level)
        self.transformer.enable_adapters()
        return ((mean - reference).square().mean((1, 2, 3), keepdim=True) / (2 * std.square())).mean()

    def _velocity(self, x: Tensor, timestep: Tensor, embeds: Tensor, pooled: Tensor) -> Tensor:
        """The velocity of latents (B, C, H, W) at timesteps (B,), with guidance in one forward pass of twice the batch."""
        guidance = self.config.sampling.guidance
        if guidance != 1:
            negative, negative_pooled = self.negative
            embeds = torch.cat([negative.repeat(len(x), 1, 1), embeds])
            pooled = torch.cat([negative_pooled.repeat(len(x), 1), pooled])
            x, timestep = torch.cat([x, x]), torch.cat([timestep, timestep])
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            v = self.transformer(x, embeds, pooled, timestep, return_dict=False)[0].float()
        if guidance == 1:
            return v
        unconditional, conditional = v.chunk(2)
        return unconditional + guidance * (conditional - unconditional)

    def _moments(self, v: Tensor, timestep: Tensor, x: Tensor, noise_level: float) -> tuple[Tensor, Tensor, Tensor]:
        """Mean of the next latents, their std as published, without the factor ``sqrt(-dt)``, and that factor."""
        sigmas = self.pipeline.scheduler.sigmas.to(self.device)
        index = self.step_indices(timestep)
        here = sigmas[index].view(-1, 1, 1, 1)
        dt = sigmas[[i + 1 for i in index]].view(-1, 1, 1, 1) - here
        std = torch.sqrt(here / (1 - torch.where(here == 1, sigmas[1], here))) * noise_level
        mean = x * (1 + std.square() / (2 * here) * dt) + v * (1 + std.square() * (1 - here) / (2 * here)) * dt
        return mean, std, torch.sqrt(-dt)

    def step_indices(self, timestep: Tensor) -> list[int]:
        """The step index of each timestep (n,), looked up one by one by equality, as published."""
        return [self.pipeline.scheduler.index_for_timestep(t) for t in timestep]

    @torch.no_grad()
    def _encode(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        length = self.config.model.text_length
        embeds, _, pooled, _ = self.pipeline.encode_prompt(
            list(texts), None, None, do_classifier_free_guidance=False, max_sequence_length=length, device=self.device
        )
        return embeds, pooled

    def _decode(self, latents: Tensor) -> Tensor:
        autoencoder = self.pipeline.vae
        scaled = latents / autoencoder.config.scaling_factor + (autoencoder.config.shift_factor or 0.0)
        images = self.pipeline.image_processor.postprocess(autoencoder.decode(scaled).sample, output_type="pt")
        return (images * 255).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).cpu()


def _log_prob(following: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """The log-prob of the next latents (B, C, H, W), averaged over C, H and W: (B,)."""
    squared = (following.detach() - mean).square()
    return (-squared / (2 * std.square()) - std.log() - math.log(math.sqrt(2 * math.pi))).mean((1, 2, 3))
