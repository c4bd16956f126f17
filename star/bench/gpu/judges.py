"""The networks besides the transformer: those of the judges and the autoencoder, in several precisions."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    Mask2FormerForUniversalSegmentation,
)

from evaluators.geneval.official.convert import config as detector_config
from star.bench.gpu.bench import Bench, built
from star.bench.gpu.figures import Figure, attempt, free, median_seconds, products

WAYS = {
    "float32": (torch.float32, False),
    "TF32": (torch.float32, False),
    "bfloat16": (torch.bfloat16, False),
    "float32, channels last": (torch.float32, True),
    "bfloat16, channels last": (torch.bfloat16, True),
}
"""How a network is run -> precision of its weights, and whether the channels of its images come last in memory."""


@dataclass(frozen=True)
class Judge:
    """A network to time: a judge's, or the autoencoder.

    Attributes:
        network: in float32.
        prepare: makes the network's input, on the CPU, in float32.
        look: the network's forward pass.
        preprocesses: whether ``prepare`` is a part of judging, and so is timed too.
    """

    network: Any
    prepare: Callable[[], Tensor]
    look: Callable[[Any, Tensor], Any]
    preprocesses: bool = True


def judges(bench: Bench) -> Iterator[Figure]:
    """Images per second of PickScore's CLIP-H, GenEval's Mask2Former and the autoencoder, and of the preprocessing."""
    images = np.random.default_rng(0).integers(
        0, 256, (bench.sizes.judged, *[bench.config().model.resolution] * 2, 3), np.uint8
    )
    for name, make in {"CLIP-H": _clip, "Mask2Former": _detector, "autoencoder": _autoencoder}.items():
        yield from attempt(name, partial(_judge, bench, name, make, images))
        free()


def _judge(bench: Bench, name: str, make: Callable[[Bench, np.ndarray], Judge], images: np.ndarray) -> Iterator[Figure]:
    judge = make(bench, images)
    yield Figure(f"{name}, parameters", sum(p.numel() for p in judge.network.parameters()) / 1e6, "M")
    prepared = judge.prepare()
    if judge.preprocesses:
        taken = median_seconds(judge.prepare, torch.device("cpu"), 0, bench.sizes.repeats)
        yield Figure(f"{name}, preprocessing on the CPU", len(images) / taken, "images/s")
    for way in WAYS:
        yield from attempt(f"{name}, {way}", partial(_way, bench, judge, prepared, f"{name}, {way}", way))


def _way(bench: Bench, judge: Judge, prepared: Tensor, label: str, way: str) -> Iterator[Figure]:
    dtype, channels_last = WAYS[way]
    order = torch.channels_last if channels_last else torch.contiguous_format
    network = judge.network.to(bench.device, dtype).to(memory_format=order)

    @torch.inference_mode()
    def look() -> None:
        judge.look(network, prepared.to(bench.device, dtype).contiguous(memory_format=order))

    with products(way.partition(",")[0]):
        taken = median_seconds(look, bench.device, bench.sizes.warm, bench.sizes.repeats)
    yield Figure(label, len(prepared) / taken, "images/s")


def _clip(bench: Bench, images: np.ndarray) -> Judge:
    text, vision, width = bench.sizes.clip_h
    ends = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    config = CLIPConfig(text_config={**text, **ends}, vision_config=dict(vision), projection_dim=width)
    side = vision["image_size"]
    processor = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    length = config.text_config.max_position_embeddings
    tokens = torch.ones(len(images), length, dtype=torch.long, device=bench.device)

    def prepare() -> Tensor:
        return processor([Image.fromarray(image) for image in images], return_tensors="pt").pixel_values

    def look(model: Any, pixels: Tensor) -> None:
        model.get_image_features(pixel_values=pixels)
        model.get_text_features(input_ids=tokens)

    return Judge(built(CLIPModel, config, bench.device), prepare, look)


def _detector(bench: Bench, images: np.ndarray) -> Judge:
    share = bench.config().model.resolution / 512
    long, short = int(1333 * share), int(800 * share)

    def look(model: Any, pixels: Tensor) -> None:
        model(pixel_values=pixels)

    network = built(Mask2FormerForUniversalSegmentation, detector_config(bench.sizes.detector), bench.device)
    if find_spec("cv2") is None:  # a machine with little installed: the network's pace does not depend on the pixels
        return Judge(network, lambda: torch.randn(len(images), 3, short, short), look, preprocesses=False)
    from evaluators.geneval.official import preprocess  # imports cv2

    return Judge(network, lambda: torch.stack([preprocess.prepare(image, long, short).pixels for image in images]), look)


def _autoencoder(bench: Bench, images: np.ndarray) -> Judge:
    config = bench.config()
    pipeline = bench.pipeline(config.model.dtype)
    side = config.model.resolution // pipeline.vae_scale_factor
    latents = torch.randn(len(images), pipeline.transformer.config.in_channels, side, side)
    autoencoder = pipeline.vae.requires_grad_(False).eval()
    return Judge(autoencoder, lambda: latents, lambda model, given: model.decode(given).sample, preprocesses=False)
