"""How much memory and disk a run needs, estimated from the model's shape before anything is loaded."""

from dataclasses import dataclass, replace

import torch
from diffusers import SD3Transformer2DModel

from star.config import Config
from star.models.sd3 import add_lora
from star.models.shapes import CLIP_LENGTH, Shape
from star.models.text import KEPT_TEXTS

BLOCK_KEEPS = 15.5
DUAL_BLOCK_KEEPS = 20.5
"""What a block saves for the backward pass on a GPU, in units of its hidden states; 1, these alone, with checkpointing.

Counted in half precision with torch.autograd.graph.saved_tensors_hooks on blocks of SD3.5 Medium's width and on narrow ones
(14.6 and 15.6; dual blocks 19.7 and 20.6), with norms that keep what a GPU's kernel does; a test counts the narrow ones again.
"""

TRAINED_BYTES = 24
"""Per trained parameter, in float32: itself, its gradient, two moments, its average, and a flat copy of the gradient."""

GPU_OVERHEAD = 1.5 * 2**30
"""CUDA's context and what the allocator holds back: a rule of thumb."""

CHECKPOINT_BYTES = 20
"""Per trained parameter: itself, two moments, and its average twice, the second time for other software to load."""

RESULTS_BYTES = 2 * 2**30
"""Sample images, verdicts and logs of a run at 512 pixels: a rule of thumb."""

PROCESS_OVERHEAD = 4 * 2**30
"""Libraries and images: a rule of thumb."""

PINNED = 1.41
"""Factor for what rests in main memory for a GPU, because torch rounds pinned tensors up to powers of two: SD3's text encoders
grow from 12.3 to 17.3 GiB."""

TEXT_ENCODER_PARAMETERS = 123.7e6 + 694.7e6 + 4_762e6
AUTOENCODER_PARAMETERS = 84e6
T5_OUTPUT_PARAMETERS = 24 * 10240 * 4096
"""The feed-forward output weights of T5-XXL, which transformers keeps in float32 in a float16 model."""

EVALUATOR_PARAMETERS = {"geneval": 428e6 + 69e6, "pickscore": 986e6}
"""Of evaluators on the GPU, in float32, during training too: CLIP-L and Mask2Former; PickScore's CLIP-H. OCR needs none. Other
tasks' evaluators follow one by one at the end, each when the one before it is freed and the texts are encoded."""

SIZES = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True)
class Need:
    """What a run needs; all but ``parameters`` in bytes.

    Attributes:
        parameters: how many the transformer has with its adapters.
        gpu: peak of one GPU, reached in an update rather than a rollout; a lower bound with ``model.offload=null``.
        process: main memory of one process; an upper bound with ``model.offload=null``.
        pipeline: the model's files.
        checkpoint: one checkpoint of the run.
    """

    parameters: int
    gpu: float
    process: float
    pipeline: float
    checkpoint: float


def needed(config: Config, shape: Shape, others: float | None = None, processes: int = 1) -> Need:
    """What a run of these settings needs with a model of this shape.

    Args:
        config: the settings.
        shape: of the transformer.
        others: bytes of text encoders and autoencoder; by default those of the SD3 family.
        processes: how many share the images of an epoch, and the weights if the settings say so.
    """
    size = SIZES[config.model.dtype]
    total, trained = _parameters(config, shape)
    # The position table is a buffer, not a parameter, and every GPU holds all of it.
    table = size * shape["pos_embed_max_size"] ** 2 * shape["num_attention_heads"] * shape["attention_head_dim"]
    transformer = size * total + table
    # Full training keeps the initial weights beside the trained ones, and autocast a copy in half precision.
    full = config.model.parameters == "full"
    frozen = (4 + (size if size < 4 else 0)) * total if full else size * total
    # With sharding a GPU holds its part and two whole blocks: the one that computes and the next, which is being gathered.
    part = min(1, 1 / processes + 2 / shape["num_layers"]) if config.model.shard else 1
    if others is None:
        others = size * TEXT_ENCODER_PARAMETERS + 4 * AUTOENCODER_PARAMETERS
    kept = T5_OUTPUT_PARAMETERS / TEXT_ENCODER_PARAMETERS if config.model.dtype == "float16" else 0
    resident = others * (1 + kept)
    rewards = [config.task.name, *config.rewards.others]
    # Which evaluator judges a user's own prompts is known only once their class is imported; assume the largest.
    sizes = EVALUATOR_PARAMETERS | ({config.task.name: max(EVALUATOR_PARAMETERS.values())} if config.task.prompts else {})
    judges = 4 * sum(sizes.get(name, 0) for name in rewards if config.evaluators.get(name) != "mini")
    # Offloaded text encoders are on the GPU only while no activations are, so the larger of the two counts.
    activations = activation_bytes(config, shape)
    beside = activations + resident if config.model.offload is False else max(activations, resident)
    resting = 0.0 if config.model.offload is False else PINNED * resident
    embeddings = KEPT_TEXTS * size * (CLIP_LENGTH + config.model.text_length) * shape["joint_attention_dim"]
    return Need(
        parameters=total,
        gpu=part * frozen
        + table
        + TRAINED_BYTES * trained
        + beside
        + trajectory_bytes(config, shape, processes)
        + judges
        + GPU_OVERHEAD,
        # The whole pipeline is loaded first; what then moves on to the GPU makes room for embeddings.
        process=max(transformer + resident, resting + embeddings) + PROCESS_OVERHEAD,
        pipeline=transformer + others,
        checkpoint=CHECKPOINT_BYTES * trained,
    )


def left_on_disk(config: Config, need: Need) -> float:
    """The most bytes that a run takes on disk: beside ``keep`` checkpoints one being written, and one kept in bad epochs."""
    return (config.train.keep + 2) * need.checkpoint + RESULTS_BYTES * (config.model.resolution / 512) ** 2


SAFE_SHARE = 0.9
"""The share of a GPU's memory up to which an estimate is trusted."""


def must_offload(config: Config, shape: Shape, total: float, processes: int) -> bool:
    """Whether text encoders and autoencoder have to rest in main memory, where the settings leave that open.

    Args:
        config: the settings.
        shape: of the transformer.
        total: bytes of one GPU.
        processes: how many share the images of an epoch.
    """
    resident = replace(config, model=replace(config.model, offload=False))
    return needed(resident, shape, processes=processes).gpu > SAFE_SHARE * total


def trajectory_bytes(config: Config, shape: Shape, processes: int) -> float:
    """What an epoch's rollouts leave on a GPU: latents before and after trained steps, and means if updates need them."""
    images = -(-config.train.rollouts // processes)
    steps = config.sampling.trained
    return (
        images
        * (steps + 1 + steps * config.keep_means)
        * shape["in_channels"]
        * (config.model.resolution // 8) ** 2
        * SIZES["float32"]
    )


def activation_bytes(config: Config, shape: Shape) -> float:
    """What the forward pass of one micro-batch keeps for the backward pass, both branches of the guidance included."""
    side = config.model.resolution // 8 // shape["patch_size"]
    tokens = side**2 + CLIP_LENGTH + config.model.text_length
    rows = config.train.micro_batch * (1 if config.sampling.guidance == 1 else 2)
    hidden = rows * tokens * shape["num_attention_heads"] * shape["attention_head_dim"] * SIZES[config.model.dtype]
    dual, blocks = len(shape["dual_attention_layers"]), shape["num_layers"]
    if not config.model.gradient_checkpointing:
        return hidden * (dual * DUAL_BLOCK_KEEPS + (blocks - dual) * BLOCK_KEEPS)
    # The inputs of all blocks, and for one block at a time what it saves, and the gradients of that.
    return hidden * (blocks + 2 * (DUAL_BLOCK_KEEPS if dual else BLOCK_KEEPS))


def _parameters(config: Config, shape: Shape) -> tuple[int, int]:
    """Parameters of the transformer with its adapters: how many in all, and how many are trained."""
    with torch.device("meta"):
        transformer = SD3Transformer2DModel(**shape)
        if config.model.parameters == "lora":
            transformer.requires_grad_(False)
            add_lora(transformer, config.model)
    counts = [(p.numel(), p.numel() * p.requires_grad) for p in transformer.parameters()]
    return sum(count for count, _ in counts), sum(count for _, count in counts)
