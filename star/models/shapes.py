"""The shapes of the SD3 family, and pipelines of such a shape with random weights, which need no download."""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer, T5Config, T5EncoderModel

from star.common.errors import UserError
from star.common.files import read_json
from star.models.pipeline import loading, stated
from star.models.sources import located
from star.models.tokenizers import clip_tokenizer, t5_tokenizer

Shape = Mapping[str, Any]

CLIP_LENGTH = 77

SD35_MEDIUM: Shape = {
    "sample_size": 128,
    "patch_size": 2,
    "in_channels": 16,
    "out_channels": 16,
    "num_layers": 24,
    "attention_head_dim": 64,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "caption_projection_dim": 1536,
    "pooled_projection_dim": 2048,
    "pos_embed_max_size": 384,
    "dual_attention_layers": tuple(range(13)),
    "qk_norm": "rms_norm",
}
SD35_LARGE: Shape = {
    **SD35_MEDIUM,
    "num_layers": 38,
    "num_attention_heads": 38,
    "caption_projection_dim": 2432,
    "pos_embed_max_size": 192,
    "dual_attention_layers": (),
}
SD3_MEDIUM: Shape = {**SD35_MEDIUM, "pos_embed_max_size": 192, "dual_attention_layers": (), "qk_norm": None}

TRANSFORMERS = {
    "stabilityai/stable-diffusion-3.5-medium": SD35_MEDIUM,
    "stabilityai/stable-diffusion-3.5-large": SD35_LARGE,
    "stabilityai/stable-diffusion-3-medium-diffusers": SD3_MEDIUM,
}
"""Published model -> the configuration of its transformer (its transformer/config.json)."""

AUTOENCODER: Shape = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 16,
    "norm_num_groups": 32,
    "scaling_factor": 1.5305,
    "shift_factor": 0.0609,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}
"""The configuration of the autoencoder that all of them share."""


def shape_of(model: str) -> Shape:
    """The transformer's configuration of a model: a published one's name, a folder, or a repository in the hub's cache.

    Raises:
        UserError: it is neither a published model nor a complete diffusers folder.
    """
    return TRANSFORMERS.get(model) or _shape(model, "transformer", SD3Transformer2DModel)


def autoencoder_of(model: str) -> Shape:
    """The autoencoder's configuration of a model; arguments and errors are those of :func:`shape_of`."""
    return AUTOENCODER if model in TRANSFORMERS else _shape(model, "vae", AutoencoderKL)


def _shape(model: str, part: str, kind: type) -> Shape:
    """All constructor arguments of a module's class, from a folder's ``config.json`` and the class's defaults."""
    try:
        if (folder := located(model)) is None:
            raise FileNotFoundError("it is not on this machine")
        config = read_json(stated(folder) / part / "config.json")
        # Configurations written by older versions of diffusers lack arguments that were added later.
        defaults = {name: p.default for name, p in inspect.signature(kind).parameters.items()}
        shape = {name: config.get(name, default) for name, default in defaults.items()}
        with loading(f"{part}/config.json"), torch.device("meta"):
            kind(**shape)  # fails if there can be no such module
    except (OSError, ValueError) as error:
        known = ", ".join(TRANSFORMERS)
        raise UserError(
            f"model.path={model}: its shape is not known ({error}); there are {known} and whole diffusers folders"
        ) from None
    return shape


def random_pipeline(
    shape: Shape, dtype: torch.dtype, autoencoder: Shape = AUTOENCODER, device: str | torch.device = "cpu"
) -> StableDiffusion3Pipeline:
    """A pipeline with random weights (from torch's global generator of the device).

    The transformer has the given shape and inputs of the true sizes, but each text encoder is a single thin layer, and the
    tokenizers are those of the mini world.

    Args:
        shape: of the transformer.
        dtype: of its weights.
        autoencoder: configuration of the autoencoder.
        device: where the weights are created and stay.
    """
    # Weights are drawn here, because diffusers takes minutes to draw so many.
    with torch.device("meta"):
        transformer = SD3Transformer2DModel(**shape).to(dtype)
    transformer.to_empty(device=device)
    with torch.no_grad():
        for name, tensor in transformer.state_dict().items():
            if "norm" in name and name.endswith("weight") and tensor.dim() == 1:
                tensor.fill_(1.0)
            else:
                tensor.normal_(std=0.02)
    # CLIP-L and CLIP-G, side by side, are as wide as the pooled embedding: 768 + 1280.
    pooled = shape["pooled_projection_dim"]
    narrow = pooled * 3 // 8
    clip, t5 = clip_tokenizer(CLIP_LENGTH), t5_tokenizer()
    width = shape["joint_attention_dim"]
    with torch.device(device):
        parts = {
            "vae": AutoencoderKL(**autoencoder),
            "text_encoder": _thin_clip(clip, narrow),
            "text_encoder_2": _thin_clip(clip, pooled - narrow),
            "text_encoder_3": T5EncoderModel(
                T5Config(vocab_size=len(t5), d_model=width, d_kv=8, d_ff=8, num_layers=1, num_heads=1, dropout_rate=0.0)
            ),
        }
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        tokenizer=clip,
        tokenizer_2=clip_tokenizer(CLIP_LENGTH),
        tokenizer_3=t5,
        **parts,
    )


def _thin_clip(tokenizer: CLIPTokenizer, width: int) -> CLIPTextModelWithProjection:
    shape = {"hidden_size": width, "intermediate_size": 8, "projection_dim": width}
    more = {"num_hidden_layers": 1, "num_attention_heads": 1, "max_position_embeddings": CLIP_LENGTH}
    return CLIPTextModelWithProjection(clip_config(tokenizer, shape | more))


def clip_config(tokenizer: CLIPTokenizer, shape: Shape) -> CLIPTextConfig:
    """A text encoder's, for what a tokenizer gives; its vocabulary is the tokenizer's unless ``shape`` has another size."""
    tokens = {f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id") for kind in ("bos", "eos", "pad")}
    return CLIPTextConfig(**{"vocab_size": len(tokenizer), **shape, **tokens})
