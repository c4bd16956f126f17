"""Stable Diffusion 3 and 3.5 as a base model: loading a pipeline, what is trained in it, text embeddings and decoding."""

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import deepcopy
from pathlib import Path

import torch
from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from star.common.errors import RunStopped, UserError, first_line
from star.common.machine import torch_for_gpu
from star.config import ModelConfig, RelevanceConfig
from star.method.attention import Relevance, check_known, default_kernel, install, may_have
from star.method.choices import Span
from star.method.sampling import TRAIN_TIMESTEPS, sigmas
from star.method.tokens import token_columns
from star.models import kernels, lora
from star.models.ema import swapped
from star.models.pipeline import load_pipeline, loading, stated
from star.models.sharding import several_processes, shard
from star.models.sources import pipeline_folder, source, told
from star.models.text import EMPTY, TextCache, visiting

CPU_PARAMETERS = 100e6
"""Larger models are not run without a GPU: a step would take minutes."""


class SD3:
    """A frozen SD3 pipeline with trainable parameters in its transformer; see :class:`star.models.interface.BaseModel`.

    Attributes:
        pipeline: the ``StableDiffusion3Pipeline``.
        transformer: its transformer, with adapters if ``parameters`` is ``lora``.
        trained: name -> trained parameter, float32.
        sharded: whether the frozen weights are split over processes, so that all must call :meth:`velocity` equally often.
        encode: texts -> embeddings (B, columns, width) and pooled embeddings (B, width).
    """

    def __init__(
        self, config: ModelConfig, device: torch.device, seed: int, pipeline: StableDiffusion3Pipeline | None = None
    ) -> None:
        """
        Args:
            config: which model and what to train in it.
            device: where everything computes.
            seed: of the adapters' initial values.
            pipeline: the model itself; by default it is loaded from where the settings say.

        Raises:
            UserError: the model folder is missing or is no SD3 pipeline, or a setting such as a LoRA target does not fit it.
        """
        self.config, self.device = config, device
        self.pipeline = pipeline or _load(config, device)
        self.transformer = self.pipeline.transformer
        self.sharded = config.shard and several_processes()
        self._rest = torch.device("cpu") if config.offload else device
        self._freeze()
        self._check_supported()
        self.trained = self._made_trainable(seed)
        self._choose_computation()
        # As the reference, full fine-tuning needs a copy of the initial weights; adapters can be switched off.
        self._initial = {} if config.parameters == "lora" else {n: p.detach().clone() for n, p in self.trained.items()}
        self.encode = TextCache(self.encoded, self.encoders, device, self._rest)

    def _freeze(self) -> None:
        """Freeze all weights, and put each part where it rests."""
        # A sharded transformer need not fit on the device as a whole.
        start = torch.device("cpu") if self.sharded else self.device
        # A half-precision decoder is off by whole grey levels; text encoders stay in the model's precision. On a GPU torch
        # computes float32 convolutions in TF32 by default, and Flow-GRPO's code leaves it at that.
        self.pipeline.vae.to(memory_format=torch.channels_last).float()
        for name, module in self._modules():
            module.requires_grad_(False).to(start if name == "transformer" else self._rest).eval()
            if self.device.type == "cuda" and self.config.offload and name != "transformer":
                module._apply(torch.Tensor.pin_memory)  # copies from pinned memory are several times as fast

    def _check_supported(self) -> None:
        config = self.config
        self._check_schedule()
        token = self.pipeline.vae_scale_factor * self.patch
        most = self.transformer.config.pos_embed_max_size * token
        if config.resolution > most:
            raise UserError(f"model.resolution={config.resolution} is more than this model has positions for: {most}")
        if config.resolution % token:
            raise UserError(f"model.resolution={config.resolution} must be a multiple of {token}, the side of an image token")

    def _check_schedule(self) -> None:
        """Refuse a scheduler with other noise levels than :meth:`schedule`, by which the model would be trained and judged."""
        scheduler, place = deepcopy(self.pipeline.scheduler), f"model.path={source(self.config)}"
        if scheduler.config.get("use_dynamic_shifting"):
            raise UserError(f"{place}: its scheduler shifts by resolution, which is not supported")
        scheduler.set_timesteps(8)
        ours, theirs = self.schedule(8), scheduler.sigmas.cpu()
        times = TRAIN_TIMESTEPS * ours[:-1], scheduler.timesteps.cpu()
        if any(one.shape != other.shape or not torch.allclose(one, other) for one, other in ((ours, theirs), times)):
            raise UserError(
                f"{place}: its scheduler ({type(scheduler).__name__}) has other noise levels than a shift of "
                f"{scheduler.config.shift} alone gives, which is not supported"
            )

    def _made_trainable(self, seed: int) -> dict[str, nn.Parameter]:
        """The trained parameters, in float32: adapters, which are added here, or all of the transformer."""
        torch.manual_seed(seed)
        if self.config.parameters == "lora":
            add_lora(self.transformer, self.config)
        else:
            self.transformer.float().requires_grad_(True)
        trained = {name: p for name, p in self.transformer.named_parameters() if p.requires_grad}
        for parameter in trained.values():
            parameter.data = parameter.data.to(self.device, torch.float32)
        return trained

    def _choose_computation(self) -> None:
        """Set how the transformer computes: attention kernel, products, compilation, sharding and gradient checkpointing."""
        config = self.config
        if config.attention and not may_have(self.device.type, config.attention, config.dtype):
            raise UserError(
                f"model.attention={config.attention} does not compute in {config.dtype} on a {self.device.type} device; leave "
                "it out for the usual one"
            )
        check_known(config.attention or default_kernel(self.device.type, self.dtype))
        install(self.transformer, config.attention)
        if self.device.type == "cpu":
            kernels.use(self.transformer, kernels.faster() if config.kernels == "auto" else config.kernels)
        if config.compile:
            compile_blocks(self.transformer, self.device)
        if self.sharded:
            shard(self.transformer, self.trained.values(), self.device)
        if config.gradient_checkpointing:
            self.transformer.enable_gradient_checkpointing()

    @property
    def encoders(self) -> list[nn.Module]:
        """The pipeline's three text encoders."""
        return [self.pipeline.text_encoder, self.pipeline.text_encoder_2, self.pipeline.text_encoder_3]

    def encoded(self, text: str) -> tuple[Tensor, Tensor]:
        """Embeddings (columns, width) and pooled embedding (width) of a text; the encoders must be on the device."""
        embeds, _, pooled, _ = self.pipeline.encode_prompt(
            text,
            None,
            None,
            do_classifier_free_guidance=False,
            max_sequence_length=self.config.text_length,
            device=self.device,
        )
        return embeds[0], pooled[0]

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image's latents."""
        side = self.config.resolution // self.pipeline.vae_scale_factor
        return self.transformer.config.in_channels, side, side

    @property
    def patch(self) -> int:
        """Side of an image token, in latent positions."""
        return self.transformer.config.patch_size

    @property
    def blocks(self) -> int:
        """Number of the transformer's joint blocks."""
        return len(self.transformer.transformer_blocks)

    def schedule(self, steps: int) -> Tensor:
        """The sigmas of a sampling schedule, float32 (steps + 1) on the CPU, with the shift of the pipeline's scheduler."""
        return sigmas(steps, self.pipeline.scheduler.config.shift)

    def relevance(self, config: RelevanceConfig, mask: Tensor) -> Relevance:
        """The configured capture for the core words' columns, bool (B, columns).

        Raises:
            UserError: blocks or heads that the transformer does not have.
        """
        return configured(self.transformer, config, mask)

    def core_columns(self, prompts: Sequence[str], spans: Sequence[Sequence[Span]], columns: str) -> Tensor:
        """Which text columns hold core words, bool (B, columns); see :func:`star.method.tokens.token_columns`."""
        return token_columns(
            (self.pipeline.tokenizer, self.pipeline.tokenizer_2, self.pipeline.tokenizer_3),
            prompts,
            spans,
            clip_length=self.pipeline.tokenizer_max_length,
            t5_length=self.config.text_length,
            columns=columns,
        )

    def prepare(self, prompts: Sequence[str], guidance: float) -> None:
        """Encode all that :meth:`velocity` will need, so that resting encoders come to the device once, not batch by batch."""
        self.encode.prepare(prompts if guidance == 1 else [EMPTY, *prompts])

    def velocity(self, latents: Tensor, sigma: Tensor, prompts: Sequence[str], guidance: float) -> Tensor:
        """The model's velocity, float32 like ``latents``; with guidance g != 1 it is v_0 + g (v - v_0).

        Args:
            latents: (B, C, H, W).
            sigma: noise level of all samples, a scalar.
            prompts: B texts.
            guidance: classifier-free guidance scale.
        """
        texts = list(prompts) if guidance == 1 else [EMPTY] * len(prompts) + list(prompts)
        embeds, pooled = self.encode(texts)
        inputs = latents if guidance == 1 else torch.cat([latents, latents])
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            velocity = self.transformer(
                inputs.to(self.dtype),
                encoder_hidden_states=embeds.to(self.dtype),
                pooled_projections=pooled.to(self.dtype),
                timestep=torch.full((len(inputs),), (TRAIN_TIMESTEPS * sigma).item(), device=self.device),
                return_dict=False,
            )[0].float()
        if guidance == 1:
            return velocity
        unconditional, conditional = velocity.chunk(2)
        return unconditional + guidance * (conditional - unconditional)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, C, H, W) to uint8 images (B, H, W, 3).

        Raises:
            RunStopped: pixels are not finite; converted to uint8 they would be black or white.
        """
        autoencoder = self.pipeline.vae
        scaled = latents.float() / autoencoder.config.scaling_factor + (autoencoder.config.shift_factor or 0.0)
        with visiting([autoencoder], self.device, self._rest):
            # A few at a time: at 512 pixels nine need 7 GiB, which is not free throughout an epoch.
            parts = [autoencoder.decode(part).sample for part in scaled.split(self.config.decode_batch)]
        images = torch.cat(parts) / 2 + 0.5
        if not images.isfinite().all():
            raise RunStopped(
                f"model.path={source(self.config)}: the autoencoder gives pixels that are not finite, so its weights are "
                "damaged; download them again"
            )
        return (images.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1)

    @property
    def dtype(self) -> torch.dtype:
        """The precision that the transformer computes in."""
        return getattr(torch, self.config.dtype)

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Inside, the transformer is the untrained base: adapters are off, or its initial weights are back."""
        if not self._initial:
            self.transformer.disable_adapters()
            try:
                yield
            finally:
                self.transformer.enable_adapters()
            return
        with self.weights(self._initial):
            yield

    def sampling(self) -> AbstractContextManager[None]:
        """Inside, adapters are folded into the weights if these are float32 and not sharded."""
        # Half precision would round small adapters away, and no process holds all of a sharded weight.
        whole = self.config.parameters == "lora" and self.dtype == torch.float32 and not self.sharded
        return lora.folded(self.transformer) if whole else nullcontext()

    def weights(self, values: Mapping[str, Tensor]) -> AbstractContextManager[None]:
        """Inside, the trained parameters have other values, e.g. an average's."""
        return swapped(self.trained, values)

    def export(self, folder: Path, values: Mapping[str, Tensor]) -> None:
        """Write trained adapters in diffusers' layout: ``pipeline.load_lora_weights(folder)`` takes them."""
        lora.write(folder, values, self.config)

    def _modules(self) -> Iterator[tuple[str, nn.Module]]:
        return ((name, part) for name, part in self.pipeline.components.items() if isinstance(part, nn.Module))


def _load(config: ModelConfig, device: torch.device) -> StableDiffusion3Pipeline:
    if device.type == "cpu":
        _check_size(config)
    with told(config):
        return load_pipeline(pipeline_folder(config), getattr(torch, config.dtype))


def _check_size(config: ModelConfig) -> None:
    """Refuse a model that is too large for a CPU, before its weights are loaded."""
    with told(config), loading("transformer"):
        shape = SD3Transformer2DModel.load_config(stated(pipeline_folder(config)), subfolder="transformer")
        with torch.device("meta"):
            count = SD3Transformer2DModel.from_config(shape).num_parameters()
    if count > CPU_PARAMETERS:
        raise UserError(
            f"no GPU: with {count / 1e6:,.0f} M parameters a step takes minutes here. If there is one, torch cannot use it: "
            f"{torch_for_gpu()}"
        )


def add_lora(transformer: SD3Transformer2DModel, config: ModelConfig) -> None:
    """Add the configured adapters, in the precision of what they adapt.

    Raises:
        UserError: a target fits no module.
    """
    adapters = LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        init_lora_weights="gaussian",
        target_modules=config.lora_targets,
    )
    names = [name for name, _ in transformer.named_modules()]
    if lost := [end for end in config.lora_targets if not any(f".{name}".endswith(f".{end}") for name in names)]:
        more = f" and {len(lost) - 1} more" * (len(lost) > 1)
        raise UserError(f"model.lora_targets: the transformer has no module {lost[0]}{more}")
    try:
        transformer.add_adapter(adapters)
    except ValueError as error:
        raise UserError(f"model.lora_targets={config.lora_targets}: {first_line(error)}") from None
    if config.dtype != "float32":
        for module in transformer.modules():
            if isinstance(module, LoraLayer):
                # Autocast would only round the input back to what it was, and both copies would be kept for the backward pass.
                module.cast_input_dtype_enabled = False


VARIANTS = 64
"""How many variants of a block's code may be compiled: with and without gradients, adapters and relevance, for each shape.
torch's default of 8 would leave the rest to the interpreter without a word."""


def compile_blocks(transformer: SD3Transformer2DModel, device: torch.device, backend: str = "inductor") -> None:
    """Compile every block on its own: blocks are alike, so the code compiled for a few serves all.

    Args:
        transformer: its blocks are compiled in place.
        device: where they will compute.
        backend: of ``torch.compile``; ``eager`` and ``aot_eager`` trace the same graphs in seconds and compile nothing.

    Raises:
        UserError: there is no compiler.
    """
    if backend == "inductor" and device.type == "cpu" and not shutil.which(os.environ.get("CXX", "g++")):
        raise UserError(
            "model.compile=true needs a C++ compiler for a CPU, g++ or $CXX; install one or use model.compile=false"
        )
    from torch._inductor import config as inductor

    torch._dynamo.config.recompile_limit = VARIANTS
    # Beyond the limit a run stops: interpreted blocks would compute other digits than compiled ones.
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    # Fused operators would skip roundings, and other ones with gradients than without: ratios would leave 1.
    inductor.emulate_precision_casts = True
    # Kernels chosen by timing or by their use of registers would sum in another order in another process or another pass.
    if hasattr(inductor, "deterministic"):  # torch 2.9 may lack it
        inductor.deterministic = True
    for block in transformer.transformer_blocks:
        block.compile(backend=backend)


def configured(transformer: nn.Module, config: RelevanceConfig, mask: Tensor) -> Relevance:
    """A :class:`Relevance` as configured; arguments and errors are those of :meth:`SD3.relevance`."""
    return Relevance(
        transformer,
        config.blocks,
        mask,
        heads=config.heads or "mean",
        softmax_over=config.softmax_over,
        columns_count=config.columns_count,
    )
