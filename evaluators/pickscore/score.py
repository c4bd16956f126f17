"""PickScore: how well people would like an image for its prompt, by a CLIP trained on their choices.

Kirstain et al., Pick-a-Pic (arXiv 2305.01569). The model is any CLIP folder; the published one and a small one of the mini
world have names of their own.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import SafetensorError

# The PIL variant by name, whatever else is installed: torchvision's resizing gives other pixel values.
from transformers import CLIPImageProcessorPil

from evaluators.device import own_device
from evaluators.hub import (
    PUBLISHED_CLIP,
    Published,
    Source,
    check_published,
    load_clip,
    load_tokenizer,
    locate,
    model_name,
    text_features,
)
from star.common.errors import UserError, first_line
from star.common.shipped import MINI_PICKSCORE

BATCH = 32


MODEL = Published("yuvalkirstain/PickScore_v1", "a4e4367c6dfa7288a00c550414478f865b875800")
PROCESSOR = Published("laion/CLIP-ViT-H-14-laion2B-s32B-b79K", "1c2b8495b28150b8a4922ee1c8edee224c284c0c")

PUBLISHED: Mapping[str, Any] = PUBLISHED_CLIP | {
    "config.text_config.num_attention_heads": 16,
    "config.text_config.hidden_act": "gelu",
    "config.vision_config.num_attention_heads": 16,
    "config.vision_config.hidden_act": "gelu",
    "processor.size.shortest_edge": 224,
    "processor.crop_size.height": 224,
    "processor.crop_size.width": 224,
    "processor.image_mean": (0.48145466, 0.4578275, 0.40821073),
    "processor.image_std": (0.26862954, 0.26130258, 0.27577711),
    "processor.resample": Image.Resampling.BICUBIC,
}
"""See :func:`evaluators.hub.check_published`."""

# The processor's repository also holds gigabytes of weights that nothing here uses.
PROCESSOR_FILES = " --include '*.json' --include '*.txt'"


class PickScore:
    """Scores images for prompts.

    Attributes:
        name: of the model, with the commit of a hub's repository or the start of a folder's digest; part of the protocol.
    """

    def __init__(
        self,
        model: Source,
        processor: Source | None = None,
        device: str | torch.device = "cpu",
        name: str | None = None,
    ) -> None:
        """
        Args:
            model: a folder in transformers' format with a CLIP model, or the name of a repository in the hub's cache;
                nothing is downloaded.
            processor: likewise, with a tokenizer and an image processor; by default those of ``model``.
            device: where the model computes, in float32.
            name: what protocols call the model; by default :func:`evaluators.hub.model_name`.

        Raises:
            UserError: either is missing or is not what it should be.
        """
        folder = locate(model, "PickScore")
        beside = locate(processor or model, "PickScore", PROCESSOR_FILES if processor == PROCESSOR else "")
        self.device = torch.device(device)
        try:
            self.model = load_clip(folder)  # see evaluators/device.py
            self.tokenizer = load_tokenizer(beside, self.model)
            self.processor = CLIPImageProcessorPil.from_pretrained(beside)
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise UserError(
                f"PickScore cannot load its model from {folder} and its processor from {beside}: {first_line(error)}"
            ) from error
        self.name = name or model_name(model, folder, beside)

    @torch.no_grad()  # not inference_mode: weights that move to the GPU under it are useless to slopes' autograd
    def score(self, prompts: Sequence[str], images: Sequence[np.ndarray]) -> np.ndarray:
        """``exp(logit_scale) cos(text, image)`` of the projected embeddings, float32 (n,).

        It is around 20 with the published model, whose scale is near 100. Texts that are longer than the model's context (77
        tokens) are cut, as they are in Pick-a-Pic's code.

        Args:
            prompts: the text that image ``i`` is scored for.
            images: uint8 (H, W, 3) in RGB, as many, of any sizes.

        Raises:
            ValueError: their numbers differ, or an image is of another shape or type.
        """
        if len(prompts) != len(images):
            raise ValueError(f"{len(prompts)} prompts for {len(images)} images")
        for array in images:
            if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
                raise ValueError(f"an image must be uint8 (H, W, 3), not {array.dtype} {array.shape}")
        self.model.to(self.device)
        scores = [np.zeros(0, np.float32)]
        for start in range(0, len(images), BATCH):
            part = slice(start, start + BATCH)
            text, image = self._embed_texts(prompts[part]), self._embed_images(images[part])
            scores.append((self.model.logit_scale.exp() * (text * image).sum(dim=-1)).cpu().numpy())
        return np.concatenate(scores)

    def slopes(self, prompts: Sequence[str], images: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The gradient of :meth:`score` with respect to the pixels in [0, 1], float32 (H, W, 3) for each image.

        Images are resized by torch instead of PIL, so where their size is not the model's, values differ from :meth:`score`.

        Args:
            prompts, images: as for :meth:`score`; the images all of one size.
        """
        self.model.to(self.device)
        found: list[np.ndarray] = []
        for start in range(0, len(images), BATCH):
            part = slice(start, start + BATCH)
            with torch.no_grad():
                text = self._embed_texts(prompts[part])
            with torch.enable_grad():
                pixels = torch.from_numpy(np.stack(images[part])).to(self.device).float().div(255).requires_grad_()
                image = F.normalize(self.model.get_image_features(pixel_values=self._seen(pixels)).pooler_output, dim=-1)
                total = (self.model.logit_scale.detach().exp() * (text * image).sum(dim=-1)).sum()
                found.extend(torch.autograd.grad(total, pixels)[0].cpu().numpy())
        return found

    @torch.no_grad()
    def patches(self, images: Sequence[np.ndarray]) -> torch.Tensor:
        """The image encoder's features of every patch, after its last block, float32 (n, rows, columns, width).

        Args:
            images: uint8 (H, W, 3) in RGB, n of one size.
        """
        self.model.to(self.device)
        pixels = torch.from_numpy(np.stack(images)).to(self.device).float().div(255)
        tokens = self.model.vision_model(pixel_values=self._seen(pixels)).last_hidden_state[:, 1:]
        side = self.model.config.vision_config.image_size // self.model.config.vision_config.patch_size
        return tokens.unflatten(1, (side, side))

    def _seen(self, pixels: torch.Tensor) -> torch.Tensor:
        """The image processor's transform of pixels in [0, 1], (n, H, W, 3) -> (n, 3, side, side), differentiable."""
        processor = self.processor
        seen, edge = pixels.permute(0, 3, 1, 2), processor.size["shortest_edge"]
        height, width = seen.shape[2:]
        if min(height, width) != edge:
            size = [edge * side // min(height, width) for side in (height, width)]
            seen = F.interpolate(seen, size, mode="bicubic", antialias=True)
        height, width = seen.shape[2:]
        rows, columns = processor.crop_size["height"], processor.crop_size["width"]
        top, left = (height - rows) // 2, (width - columns) // 2
        seen = seen[:, :, top : top + rows, left : left + columns]
        mean, std = (torch.tensor(v, device=seen.device)[:, None, None] for v in (processor.image_mean, processor.image_std))
        return (seen - mean) / std

    def _embed_texts(self, prompts: Sequence[str]) -> torch.Tensor:
        return F.normalize(text_features(self.model, self.tokenizer, prompts), dim=-1)

    def _embed_images(self, images: Sequence[np.ndarray]) -> torch.Tensor:
        pixels = self.processor([Image.fromarray(image) for image in images], return_tensors="pt").pixel_values
        return F.normalize(self.model.get_image_features(pixel_values=pixels.to(self.device)).pooler_output, dim=-1)


def engine(name: str) -> PickScore:
    """The scorer for an engine's name, on the GPU if there is one.

    Args:
        name: ``pickscore``, the published model; ``mini``; or a folder with a CLIP model and its processor.

    Raises:
        UserError: there is none of that name, its weights are missing, or the published one is not as it was published.
    """
    device = own_device()
    if name == "pickscore":
        scorer = PickScore(MODEL, PROCESSOR, device)
        check_published(MODEL, PUBLISHED, scorer.tokenizer, config=scorer.model.config, processor=scorer.processor)
        return scorer
    if name == "mini":
        folder = MINI_PICKSCORE.folder
        if not (folder / "config.json").is_file():
            raise UserError(f"the small CLIP of the mini world is not in {folder}; `star mini taste` builds it")
        # Of its weights alone: results are older than digests of whole models. A test keeps watch over the files beside them.
        return PickScore(folder, device=device, name=f"{MINI_PICKSCORE.name}@{MINI_PICKSCORE.digest[:8]}")
    if Path(name).is_dir():
        return PickScore(name, device=device)
    raise UserError(f"no pickscore engine {name!r}; there are mini, pickscore and folders of CLIP models")
