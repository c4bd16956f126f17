"""FLUX.1 as a base model of one's own: what docs/extending.md says of attention that is not SD3's, in one file.

It takes from :class:`star.models.sd3.SD3` what is the same, and gives what differs: text comes first and positions are rotated
into queries and keys, most blocks have one stream for text and image, latents are packed by 2 x 2, guidance is an input, noise
levels are shifted by resolution, and attention sees T5 alone.
"""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from diffusers import FluxPipeline
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from torch import Tensor, nn

from star.common.errors import UserError
from star.config import ModelConfig, RelevanceConfig
from star.method.attention import KERNELS, JointAttention, Relevance, default_kernel
from star.method.tokens import Span, token_columns
from star.models import kernels
from star.models.sd3 import SD3, configured
from star.models.sources import pipeline_folder, told


class FluxAttention(JointAttention):
    """The attention of a FLUX block as a diffusers processor.

    Attributes:
        text: how many columns are text, in blocks of one stream, which are not told.
    """

    def __init__(self, kernel: str | None = None, text: int = 0) -> None:
        super().__init__(kernel)
        self.text = text

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """See :meth:`star.method.attention.JointAttention.__call__`; tokens here are (B, text and image, width)."""

        def heads(tokens: Tensor, projection: nn.Module, norm: nn.Module | None) -> Tensor:
            split = projection(tokens).unflatten(-1, (attn.heads, -1))
            return split if norm is None else norm(split)

        own = ((attn.to_q, attn.norm_q), (attn.to_k, attn.norm_k), (attn.to_v, None))
        parts = [heads(hidden_states, *part) for part in own]
        text = self.text
        if encoder_hidden_states is not None:
            text = encoder_hidden_states.shape[1]
            added = ((attn.add_q_proj, attn.norm_added_q), (attn.add_k_proj, attn.norm_added_k), (attn.add_v_proj, None))
            parts = [
                torch.cat([heads(encoder_hidden_states, *more), part], 1) for more, part in zip(added, parts, strict=True)
            ]
        query, key, value = parts
        query, key = (apply_rotary_emb(part, image_rotary_emb, sequence_dim=1) for part in (query, key))
        query, key, value = (part.transpose(1, 2) for part in (query, key, value))
        if torch.is_autocast_enabled(query.device.type):
            query, key, value = (part.to(torch.get_autocast_dtype(part.device.type)) for part in (query, key, value))
        attend = KERNELS[self.kernel or default_kernel(query.device.type, query.dtype)]
        output, normaliser = attend(query, key, value)
        if self.watch is not None:
            self.seen = self.watch(query[:, :, text:], key[:, :, :text], normaliser[:, :, text:])
        output = output.transpose(1, 2).flatten(2)
        if encoder_hidden_states is None:
            return output  # a block of one stream projects it itself
        linear, dropout = attn.to_out
        of_text, of_image = (part.contiguous() for part in (output[:, :text], output[:, text:]))  # as JointAttention says
        return dropout(linear(of_image)), attn.to_add_out(of_text)


class AllBlocks(nn.Module):
    """The two kinds of blocks in a row, as :class:`star.method.attention.Relevance` counts them."""

    def __init__(self, transformer: nn.Module) -> None:
        super().__init__()
        self.transformer_blocks = nn.ModuleList([*transformer.transformer_blocks, *transformer.single_transformer_blocks])


class Flux(SD3):
    """A frozen FLUX.1 pipeline with adapters in its transformer; see :class:`star.models.interface.BaseModel`."""

    patch = 2

    def __init__(self, config: ModelConfig, device: torch.device, seed: int) -> None:
        if config.parameters != "lora" or config.shard or config.compile:
            raise UserError("model.parameters=full, model.shard and model.compile are not for this model")
        dtypes = {"default": getattr(torch, config.dtype), "vae": torch.float32}
        with told(config):
            pipeline = FluxPipeline.from_pretrained(pipeline_folder(config), dtype=dtypes)
        super().__init__(config, device, seed, pipeline)

    def _check_supported(self) -> None:
        token = self.pipeline.vae_scale_factor * self.patch
        if self.config.resolution % token:
            raise UserError(
                f"model.resolution={self.config.resolution} must be a multiple of {token}, the side of an image token"
            )

    def _choose_computation(self) -> None:
        config, transformer = self.config, self.transformer
        for block in transformer.transformer_blocks:
            block.attn.processor = FluxAttention(config.attention)
        for block in transformer.single_transformer_blocks:
            block.attn.processor = FluxAttention(config.attention, config.text_length)
        self._all = AllBlocks(transformer)
        if self.device.type == "cpu":
            kernels.use(transformer, kernels.faster() if config.kernels == "auto" else config.kernels)
        if config.gradient_checkpointing:
            transformer.enable_gradient_checkpointing()

    @property
    def encoders(self) -> list[nn.Module]:
        """What texts are encoded by."""
        return [self.pipeline.text_encoder, self.pipeline.text_encoder_2]

    def encoded(self, text: str) -> tuple[Tensor, Tensor]:
        """The embeddings (columns, width) of a text, of T5, and the pooled one (width), of CLIP."""
        length = self.config.text_length
        embeds, pooled, _ = self.pipeline.encode_prompt(text, None, device=self.device, max_sequence_length=length)
        return embeds[0], pooled[0]

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image's latents, before they are packed."""
        side = self.config.resolution // self.pipeline.vae_scale_factor
        return self.transformer.config.in_channels // self.patch**2, side, side

    @property
    def blocks(self) -> int:
        """Of two streams, then of one."""
        return len(self._all.transformer_blocks)

    def schedule(self, steps: int) -> Tensor:
        """The noise levels, with the shift for the number of image tokens."""
        scheduler = deepcopy(self.pipeline.scheduler)
        known, tokens = scheduler.config, (self.latent_shape[1] // self.patch) ** 2
        shift = calculate_shift(tokens, known.base_image_seq_len, known.max_image_seq_len, known.base_shift, known.max_shift)
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=shift)
        return scheduler.sigmas.float().cpu()

    def relevance(self, config: RelevanceConfig, mask: Tensor) -> Relevance:
        """The configured capture."""
        return configured(self._all, config, mask)

    def core_columns(self, prompts: Sequence[str], spans: Sequence[Sequence[Span]], columns: str) -> Tensor:
        """Which T5 columns hold core words."""
        if columns != "t5":
            raise UserError(f"relevance.columns={columns}: this model's attention sees T5 alone; use relevance.columns=t5")
        tokenizers, length = (None, None, self.pipeline.tokenizer_2), self.config.text_length
        return token_columns(tokenizers, prompts, spans, clip_length=0, t5_length=length, columns="t5")

    def prepare(self, prompts: Sequence[str], guidance: float) -> None:
        """Encode the prompts; guidance needs no empty text here."""
        self.encode.prepare(prompts)

    def velocity(self, latents: Tensor, sigma: Tensor, prompts: Sequence[str], guidance: float) -> Tensor:
        """The model's velocity, of which guidance is an input where it was distilled."""
        embeds, pooled = self.encode(list(prompts))
        rows, channels, height, width = latents.shape
        given = torch.full((rows,), float(guidance), device=self.device) if self.transformer.config.guidance_embeds else None
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            packed = self.transformer(
                FluxPipeline._pack_latents(latents.contiguous(), rows, channels, height, width).to(self.dtype),
                encoder_hidden_states=embeds.to(self.dtype),
                pooled_projections=pooled.to(self.dtype),
                timestep=torch.full((rows,), float(sigma), device=self.device),
                img_ids=FluxPipeline._prepare_latent_image_ids(rows, height // 2, width // 2, self.device, self.dtype),
                txt_ids=torch.zeros(embeds.shape[1], 3, device=self.device, dtype=self.dtype),
                guidance=given,
                return_dict=False,
            )[0].float()
        factor = self.pipeline.vae_scale_factor
        return FluxPipeline._unpack_latents(packed, height * factor, width * factor, factor)
