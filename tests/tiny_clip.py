"""A tiny random CLIP with its processor, in transformers' folder format."""

import math
from pathlib import Path

import torch
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPProcessor

from star.models.tokenizers import TEXT_LENGTH, clip_tokenizer

SIDE = 32


def save_tiny_clip(path: Path, activation: str = "quick_gelu") -> Path:
    """A random CLIP with CLIP's own normalisation, and its processor."""
    tokenizer = clip_tokenizer()
    torch.manual_seed(3)
    text = {"vocab_size": len(tokenizer), "hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 2}
    ids = {f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id") for kind in ("bos", "eos", "pad")}
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "image_size": SIDE, "patch_size": 8}
    both = {"hidden_act": activation}
    model = CLIPModel(
        CLIPConfig(
            text_config=text | ids | both | {"num_attention_heads": 3, "max_position_embeddings": TEXT_LENGTH},
            vision_config=vision | both | {"num_attention_heads": 2},
            projection_dim=12,
            logit_scale_init_value=math.log(37),
        )
    )
    with torch.no_grad():  # embeddings that CLIP's small initial values would leave all alike
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
    model.save_pretrained(path)
    processor = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    CLIPProcessor(processor, tokenizer).save_pretrained(path)
    return path
