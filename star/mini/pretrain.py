"""Pretraining of the mini base: the autoencoder, then text encoders and transformer together by flow matching.

Everything lives in one work folder. Each stage saves its state as it goes and continues where it was cut off; a stage that is
done is skipped. ``metrics.jsonl`` there holds the losses and the base's scores.
"""

import hashlib
import math
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, StableDiffusion3Pipeline
from torch import Tensor, nn

from star.common.errors import UserError
from star.common.files import append_jsonl
from star.common.shipped import MINI_BASE
from star.mini.build import untrained_pipeline
from star.mini.score import score
from star.mini.work import METRICS, Checkpoint, loads_in_single, optimizers, pixels, save, set_lr, steps, whole, working_in
from star.mini.world import example
from star.models.ema import EMA, swapped
from star.models.pipeline import load_pipeline
from star.models.sources import reason
from star.models.tokenizers import TEXT_LENGTH


@dataclass(frozen=True)
class Recipe:
    """A recipe like those that made the shipped base (``star/weights/base/README.md``); from random weights it is untested.
    Batch sizes are in images, learning rates are AdamW's peak."""

    seed: int = 0
    autoencoder_steps: int = 1600
    autoencoder_batch: int = 32
    autoencoder_lr: float = 2e-3
    kl_weight: float = 3e-4
    bank: int = 60_000
    flow_batch: int = 64
    flow_steps: int = 20_000
    flow_lr: float = 9e-4
    warmup: int = 200
    caption_dropout: float = 0.1
    ema: float = 0.999
    score_every: int = 1000
    save_every: int = 500
    compile: bool = False


def pretrain(folder: Path, recipe: Recipe, start: Path | None = None) -> Path:
    """Train the base and save it as a diffusers folder, in half precision.

    Args:
        folder: work folder; created, or continued if it holds a run that was cut off.
        recipe: sizes, lengths and rates.
        start: a pipeline to train further instead of starting from random weights; its autoencoder stays as it is.

    Returns:
        the folder of the finished pipeline, ``folder / "pipeline"``.

    Raises:
        UserError: the folder cannot be written to or holds something else, or there is no pipeline to start from.
    """
    begun = _read(start) if start is not None else None
    with working_in(folder, ("bank.pt", "autoencoder.pt", "flow.pt", "pipeline")):
        torch.manual_seed(recipe.seed)
        if begun is None:
            pipeline = untrained_pipeline()
            zero_modulation(pipeline.transformer)
            train_autoencoder(pipeline.vae, folder, recipe)
        else:
            pipeline = begun
            pipeline.vae.requires_grad_(False)
        bank = encode_world(pipeline.vae, folder, recipe)
        train_flow(pipeline, bank, folder, recipe)
        return export(pipeline, folder / "pipeline")


def _read(start: Path) -> StableDiffusion3Pipeline:
    try:
        return load_pipeline(start)
    except ValueError as error:
        raise UserError(f"--start {start} is no folder of a diffusers pipeline of SD3's kind: {reason(error)}") from None


def export(pipeline: StableDiffusion3Pipeline, folder: Path) -> Path:
    """Save in half precision, but to be loaded in single."""
    pipeline.to(torch.float16).save_pretrained(folder)
    for file in folder.glob("text_encoder*/config.json"):
        loads_in_single(file)
    return folder


def train_autoencoder(autoencoder: AutoencoderKL, folder: Path, recipe: Recipe) -> None:
    """Train on absolute error plus a small KL term, then set the shift and scale that give latents mean 0 and deviation 1."""
    optimizer = torch.optim.AdamW(autoencoder.parameters(), lr=recipe.autoencoder_lr, weight_decay=1e-4)
    state = Checkpoint(folder / "autoencoder.pt", {"model": autoencoder, "optimizer": optimizer})
    total, batch = recipe.autoencoder_steps, recipe.autoencoder_batch
    for step in steps("autoencoder", state, total, folder, recipe.save_every):
        set_lr(optimizer, recipe.autoencoder_lr, step, total, recipe.warmup)
        images = pixels([example(recipe.seed, step * batch + i)[0] for i in range(batch)])
        posterior = autoencoder.encode(images).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=keyed(recipe.seed, 1, step))
        decoded = autoencoder.decode(posterior.mean + posterior.std * noise).sample
        loss = F.l1_loss(decoded, images) + recipe.kl_weight * posterior.kl().mean() / posterior.mean[0].numel()
        loss.backward()
        nn.utils.clip_grad_norm_(autoencoder.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        state.log(step, loss=loss)
    autoencoder.eval().requires_grad_(False)
    images = pixels([example(recipe.seed + 1, i)[0] for i in range(512)])
    with torch.no_grad():
        latents = torch.cat([autoencoder.encode(part).latent_dist.mean for part in images.split(64)])
    autoencoder.register_to_config(shift_factor=latents.mean().item(), scaling_factor=1 / latents.std().item())


def encode_world(autoencoder: AutoencoderKL, folder: Path, recipe: Recipe) -> tuple[Tensor, list[str]]:
    """The first ``recipe.bank`` pictures of the world as scaled latents (N, 4, 16, 16) in half precision, and captions.

    Raises:
        UserError: the folder holds pictures of another autoencoder or recipe, or a damaged file.
    """
    file = folder / "bank.pt"
    source = f"{recipe.seed} {recipe.bank} {digest(autoencoder)}"
    if not file.exists():
        latents, captions, config = [], [], autoencoder.config
        started = time.monotonic()
        for start in range(0, recipe.bank, 128):
            pairs = [example(recipe.seed, index) for index in range(start, min(start + 128, recipe.bank))]
            with torch.no_grad():
                mean = autoencoder.encode(pixels([image for image, _ in pairs])).latent_dist.mean
            latents.append(((mean - config.shift_factor) * config.scaling_factor).half())
            captions += [caption for _, caption in pairs]
            if start % 12800 == 0:
                print(f"bank {start}/{recipe.bank} {time.monotonic() - started:.0f} s", flush=True)
        save({"latents": torch.cat(latents), "captions": captions, "source": source}, file)
    with whole(file):
        bank = torch.load(file)
        made_for, latents, captions = bank["source"], bank["latents"], bank["captions"]
    if made_for != source:
        raise UserError(f"{file} holds pictures of another autoencoder or recipe; delete it or name another folder")
    return latents, captions


def train_flow(pipeline: StableDiffusion3Pipeline, bank: tuple[Tensor, list[str]], folder: Path, recipe: Recipe) -> None:
    """Rectified-flow matching: x_s = (1 - s) x0 + s eps, target eps - x0, s logit-normal; some captions empty.

    s is shifted towards noise as much as in sampling, because the layout of a picture is decided there. The pipeline ends up
    with the average of the weights.

    Args:
        pipeline: what is trained, in place.
        bank: scaled latents (N, 4, 16, 16) and captions.
    """
    latents, captions = bank
    total, lr = recipe.flow_steps, recipe.flow_lr
    modules = flow_modules(pipeline)
    start = digest(modules)
    parameters = dict(modules.named_parameters())
    ema = EMA(parameters, recipe.ema)
    muon, adam = optimizers(parameters, lr)
    state = Checkpoint(folder / "flow.pt", {"model": modules, "muon": muon, "adam": adam, "ema": ema}, start)
    transformer = torch.compile(pipeline.transformer) if recipe.compile else pipeline.transformer
    for step in steps("flow", state, total, folder, recipe.save_every):
        for optimizer in (muon, adam):
            set_lr(optimizer, lr, step, total, recipe.warmup)
        generator = keyed(recipe.seed, 2, step)
        rows = torch.randint(len(latents), (recipe.flow_batch,), generator=generator)
        dropped = torch.rand(recipe.flow_batch, generator=generator) < recipe.caption_dropout
        texts = ["" if drop else captions[row] for row, drop in zip(rows.tolist(), dropped.tolist(), strict=True)]
        clean = latents[rows].float()
        noise = torch.randn(clean.shape, generator=generator)
        sigma = (torch.randn(recipe.flow_batch, generator=generator) + math.log(pipeline.scheduler.config.shift)).sigmoid()
        noisy = torch.lerp(clean, noise, sigma[:, None, None, None])
        velocity = transformer(noisy, *encode(pipeline, texts), 1000 * sigma, return_dict=False)[0]
        loss = F.mse_loss(velocity, noise - clean)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(modules.parameters(), 1.0)
        for optimizer in (muon, adam):
            optimizer.step()
        modules.zero_grad()
        ema.update(parameters)
        state.log(step, loss=loss, grad_norm=norm)
        if (step + 1) % recipe.score_every == 0 or step + 1 == total:
            with swapped(parameters, ema.values):
                line = {"stage": "score", "step": step + 1, **score(pipeline)}
            append_jsonl(folder / METRICS, line)
            print(" ".join(f"{k} {v:.2f}" if isinstance(v, float) else f"{v}" for k, v in line.items()), flush=True)
    modules.load_state_dict(ema.values, strict=False)


def encode(pipeline: StableDiffusion3Pipeline, texts: list[str]) -> tuple[Tensor, Tensor]:
    """Captions as the transformer takes them: embeddings (B, tokens, width) and pooled (B, width)."""
    embeds, _, pooled, _ = pipeline.encode_prompt(
        texts, texts, texts, do_classifier_free_guidance=False, max_sequence_length=TEXT_LENGTH
    )
    return embeds, pooled


def zero_modulation(transformer: nn.Module) -> None:
    """Start every block as the identity (adaLN-Zero, as in DiT, arXiv 2212.09748); diffusers starts at random."""
    for name, module in transformer.named_modules():
        if name.endswith((".norm1.linear", ".norm1_context.linear", "norm_out.linear")) or name == "proj_out":
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)


def install_base(pipeline: Path) -> None:
    """Put a finished pipeline in place of the one that ships with the package; the model card stays."""
    for part in pipeline.iterdir():
        if part.is_dir():
            shutil.rmtree(MINI_BASE.folder / part.name, ignore_errors=True)
            shutil.copytree(part, MINI_BASE.folder / part.name)
        else:
            shutil.copy(part, MINI_BASE.folder / part.name)


def flow_modules(pipeline: StableDiffusion3Pipeline) -> nn.ModuleList:
    """All that flow matching trains: the transformer and the three text encoders."""
    return nn.ModuleList([pipeline.transformer, pipeline.text_encoder, pipeline.text_encoder_2, pipeline.text_encoder_3])


def keyed(*key: int) -> torch.Generator:
    """A generator that depends on the key alone, so that a resumed run draws what an uninterrupted one would."""
    seed = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1)
    return torch.Generator().manual_seed(seed)


def digest(module: nn.Module) -> str:
    """A sha256 of a module's weights."""
    total = hashlib.sha256()
    for tensor in module.state_dict().values():
        total.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return total.hexdigest()
