"""CLIP ViT-L/14 as GenEval uses it, in transformers or in open_clip: pictures and texts to vectors.

OpenAI trained it with QuickGELU, x * sigmoid(1.702 x). From 2.29 on, open_clip builds it with the ordinary GELU unless told
otherwise, and Flow-GRPO's reward server does not tell it. GenEval itself used 2.20.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from huggingface_hub import hf_hub_download
from safetensors import SafetensorError
from transformers import CLIPConfig

from evaluators import hub
from evaluators.geneval.official.checkpoint import sha256
from evaluators.hub import Published
from star.common.errors import UserError, one_line

FOLDER_VARIABLE = "STAR_GENEVAL_CLIP"
PUBLISHED = Published("openai/clip-vit-large-patch14", "32bd64288804d66eefd0ccbe215aa642df71cc41")
VALUES = hub.PUBLISHED_CLIP | {
    "config.text_config.num_attention_heads": 12,
    "config.vision_config.num_attention_heads": 16,
}
"""See :func:`evaluators.hub.check_published`."""
FILES = " --include '*.json' --include '*.txt' --include model.safetensors"
OPEN_CLIP = "timm/vit_large_patch14_clip_224.openai"
OPEN_CLIP_FILE = "open_clip_model.safetensors"
OPEN_CLIP_SHA256 = "9ce2e8a8ebfff3793d7d375ad6d3c35cb9aebf3de7ace0fc7308accab7cd207e"
ACTIVATION_MODULES = {"QuickGELU": "quick_gelu", "GELU": "gelu"}


class Clip(Protocol):
    """Texts and pictures in one space.

    Attributes:
        name: implementation, weights, activation and precision, part of the protocol.
        side: side length of the pictures it takes, in pixels.
        device: where it computes.
    """

    name: str
    side: int
    device: torch.device

    def texts(self, texts: Sequence[str]) -> torch.Tensor:
        """(n, d), not normalised."""
        ...

    def pictures(self, pixels: torch.Tensor) -> torch.Tensor:
        """(n, d), not normalised, of float32 (n, 3, side, side)."""
        ...


class TransformersClip:
    """A CLIP folder in transformers' format (see :class:`Clip`)."""

    def __init__(
        self, source: hub.Source = PUBLISHED, device: str | torch.device = "cpu", activation: str = "quick_gelu"
    ) -> None:
        """
        Args:
            source: a folder, or a repository in the hub's cache.
            device: where it computes.
            activation: ``gelu`` replaces ``quick_gelu``, which the model's own configuration must name in any case.

        Raises:
            UserError: it is missing, no CLIP, not one with QuickGELU, or OpenAI's own is not as it was published.
        """
        folder = hub.locate(source, f"the colours of GenEval ({FOLDER_VARIABLE})", FILES)
        self.device = torch.device(device)
        try:
            config = CLIPConfig.from_pretrained(folder, local_files_only=True)
            _check_activations({config.text_config.hidden_act, config.vision_config.hidden_act}, str(folder))
            config.text_config.hidden_act = config.vision_config.hidden_act = activation
            self.model = hub.load_clip(folder, config)  # see evaluators/device.py
            self._tokenizer = hub.load_tokenizer(folder, self.model)
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            reason = one_line(error)[:300]
            raise UserError(f"the colours of GenEval cannot load their CLIP from {folder}: {reason}") from error
        if source == PUBLISHED:
            hub.check_published(PUBLISHED, VALUES, self._tokenizer, config=self.model.config)
        self.side = self.model.config.vision_config.image_size
        self.name = _name(hub.model_name(source, folder), activation, self.device)

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> torch.Tensor:
        """Embeddings (n, width) of texts."""
        with mixed_precision(self.device):
            return hub.text_features(self.model.to(self.device), self._tokenizer, texts)

    @torch.inference_mode()
    def pictures(self, pixels: torch.Tensor) -> torch.Tensor:
        """Embeddings (n, width) of pixels (n, 3, side, side)."""
        with mixed_precision(self.device):
            return self.model.to(self.device).get_image_features(pixel_values=pixels.to(self.device)).pooler_output


class OpenClip:
    """A model of open_clip (see :class:`Clip`)."""

    def __init__(self, model: Any, tokenizer: Any, name: str, device: str | torch.device = "cpu") -> None:
        """
        Args:
            model: a model of open_clip.
            tokenizer: its tokenizer, which gives token ids (n, context).
            name: what its weights are called.
            device: where it computes.

        Raises:
            UserError: its activation is not QuickGELU.
        """
        self.device = torch.device(device)
        self.model, self._tokenizer = model.to(self.device).eval(), tokenizer
        kinds = {type(module).__name__ for module in model.modules()}
        _check_activations({ACTIVATION_MODULES[kind] for kind in kinds & ACTIVATION_MODULES.keys()}, name)
        size = model.visual.image_size
        self.side = size if isinstance(size, int) else size[0]
        self.name = _name(name, "quick_gelu", self.device)

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> torch.Tensor:
        """Embeddings (n, width) of texts."""
        with mixed_precision(self.device):
            return self.model.encode_text(self._tokenizer(list(texts)).to(self.device))

    @torch.inference_mode()
    def pictures(self, pixels: torch.Tensor) -> torch.Tensor:
        """Embeddings (n, width) of pixels (n, 3, side, side)."""
        with mixed_precision(self.device):
            return self.model.encode_image(pixels.to(self.device))


def published_open_clip(device: str | torch.device) -> OpenClip:
    """OpenAI's weights in open_clip, from the hub's cache.

    Raises:
        UserError: open_clip or the weights are missing, or the weights are not OpenAI's.
    """
    try:
        import open_clip
    except ImportError as error:
        raise UserError(f"open_clip cannot be used ({error}): pip install 'star-rl[open-clip]'") from None
    try:
        file = Path(hf_hub_download(OPEN_CLIP, OPEN_CLIP_FILE, local_files_only=True))
    except (OSError, ValueError):
        raise UserError(
            f"the colours of GenEval by open_clip need {OPEN_CLIP}, which is not in the hub's cache; "
            f"`hf download {OPEN_CLIP} {OPEN_CLIP_FILE}` gets it"
        ) from None
    if sha256(file) != OPEN_CLIP_SHA256:
        raise UserError(f"{file} is not OpenAI's ViT-L/14: its sha256 is {sha256(file)}, expected {OPEN_CLIP_SHA256}")
    model = open_clip.create_model("ViT-L-14-quickgelu", pretrained=str(file))
    return OpenClip(model, open_clip.get_tokenizer("ViT-L-14-quickgelu"), f"open_clip-{OPEN_CLIP_SHA256[:8]}", device)


def mixed_precision(device: torch.device) -> torch.autocast:
    """Autocast to float16 on a GPU, as GenEval computes; float32 on a CPU."""
    return torch.autocast(device.type, torch.float16, enabled=device.type == "cuda")


def _check_activations(found: set[str], where: str) -> None:
    if found != {"quick_gelu"}:
        raise UserError(
            f"the CLIP in {where} has the activation {' and '.join(sorted(found)) or 'unknown'}, but OpenAI's has quick_gelu"
        )


def _name(weights: str, activation: str, device: torch.device) -> str:
    return "-".join([weights, activation, "fp16" if device.type == "cuda" else "fp32"])
