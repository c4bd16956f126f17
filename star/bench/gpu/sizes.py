"""The sizes of everything that is measured: SD3.5 Medium and its judges on a GPU, toy versions of them on a CPU."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from evaluators.geneval.official.names import Sizes as DetectorSizes
from star.models.shapes import AUTOENCODER, SD35_MEDIUM, Shape

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Sizes:
    """The sizes of models and inputs, and how often things are repeated.

    Attributes:
        words: settings of all runs, over which those of a command take precedence.
        transformer, autoencoder: of the base model.
        clip_l, clip_g, t5: the configurations of its text encoders, without the ids of special tokens.
        clip_h: text and vision configuration of PickScore's CLIP, and the width that both are projected to.
        detector: of GenEval's Mask2Former.
        attention: (B, heads, tokens, d) of the attention that is measured alone.
        product: side of the square matrices that are multiplied.
        copied: bytes that are copied.
        micro_batches: sizes at which the pace is measured.
        micro_batch: the usual size of other measurements; on a GPU the published one.
        published: rounds of the comparison with the published loop.
        epoch: groups, rollouts of each, and the size of a micro-batch, in the measurement of an epoch.
        warm, repeats: of every timing: how many calls do not count, and of how many the median is taken.
        pairs: of steps with and without relevance.
        judged: images that are judged at once.
        backend: of ``torch.compile``.
    """

    words: tuple[str, ...]
    transformer: Shape
    autoencoder: Shape
    clip_l: Settings
    clip_g: Settings
    t5: Settings
    clip_h: tuple[Settings, Settings, int]
    detector: DetectorSizes
    attention: tuple[int, int, int, int]
    product: int
    copied: int
    micro_batches: tuple[int, ...]
    micro_batch: int
    published: int
    epoch: tuple[int, int, int]
    warm: int
    repeats: int
    pairs: int
    judged: int
    backend: str


# bfloat16 is as fast as the published float16, and nothing overflows whatever the random weights are. The tolerance is large
# because ratios off 1 are measured here, and must not end other measurements.
WORDS = ("scale=paper", "model.dtype=bfloat16", "model.offload=false", "evaluators.geneval=mini", "train.ratio_tolerance=1")

TRUE = Sizes(
    words=WORDS,
    transformer=SD35_MEDIUM,
    autoencoder=AUTOENCODER,
    clip_l={
        "vocab_size": 49408,
        "hidden_size": 768,
        "intermediate_size": 3072,
        "projection_dim": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
    },
    clip_g={
        "vocab_size": 49408,
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "projection_dim": 1280,
        "num_hidden_layers": 32,
        "num_attention_heads": 20,
        "hidden_act": "gelu",
    },
    t5={
        "vocab_size": 32128,
        "d_model": 4096,
        "d_kv": 64,
        "d_ff": 10240,
        "num_layers": 24,
        "num_heads": 64,
        "feed_forward_proj": "gated-gelu",
    },
    clip_h=(
        {
            "vocab_size": 49408,
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "hidden_act": "gelu",
        },
        {
            "hidden_size": 1280,
            "intermediate_size": 5120,
            "num_hidden_layers": 32,
            "num_attention_heads": 16,
            "image_size": 224,
            "patch_size": 14,
            "hidden_act": "gelu",
        },
        1024,
    ),
    detector=DetectorSizes(96, (2, 2, 18, 2), (3, 6, 12, 24), 7, 256, 8, 6, 1024, 9, 2048, 100, 80),
    attention=(18, 24, 1229, 64),
    product=8192,
    copied=2**31,
    micro_batches=(8, 9, 16),
    micro_batch=9,
    published=2,
    epoch=(4, 4, 8),
    warm=3,
    repeats=10,
    pairs=30,
    judged=8,
    backend="inductor",
)

SMALL_CLIP = {
    "vocab_size": 2000,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
}

SHRUNKEN = Sizes(
    words=(
        *WORDS,
        "model.resolution=64",
        "model.text_length=16",
        "model.lora_rank=2",
        "model.kernels=torch",
        "relevance.blocks=[0]",
        "sampling.steps=3",
        "sampling.window_range=[0,2]",
    ),
    transformer={
        **SD35_MEDIUM,
        "num_layers": 2,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 64,
        "caption_projection_dim": 32,
        "pooled_projection_dim": 64,
        "pos_embed_max_size": 8,
        "dual_attention_layers": (0,),
    },
    autoencoder={**AUTOENCODER, "block_out_channels": (8, 8, 8, 8), "norm_num_groups": 8, "layers_per_block": 1},
    clip_l={**SMALL_CLIP, "hidden_size": 24, "projection_dim": 24},
    clip_g={**SMALL_CLIP, "hidden_size": 40, "projection_dim": 40},
    t5={"vocab_size": 2000, "d_model": 64, "d_kv": 8, "d_ff": 8, "num_layers": 1, "num_heads": 1},
    clip_h=(
        {**SMALL_CLIP, "hidden_size": 16},
        {
            "hidden_size": 16,
            "intermediate_size": 8,
            "num_hidden_layers": 1,
            "num_attention_heads": 1,
            "image_size": 28,
            "patch_size": 14,
        },
        16,
    ),
    detector=DetectorSizes(16, (1, 1, 1, 1), (1, 2, 4, 8), 7, 32, 2, 1, 16, 2, 16, 4, 80),
    attention=(2, 2, 29, 16),
    product=64,
    copied=2**20,
    micro_batches=(2,),
    micro_batch=2,
    published=1,
    epoch=(2, 2, 2),
    warm=1,
    repeats=3,
    pairs=3,
    judged=2,
    backend="eager",
)
