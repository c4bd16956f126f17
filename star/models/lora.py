"""LoRA: adapters in a transformer, and the folders that hold them, whether trained here or released by others.

Two layouts are read: diffusers' (``pytorch_lora_weights.safetensors``, for ``pipeline.load_lora_weights(folder)``), which is
also written here, and peft's (``adapter_config.json`` with ``adapter_model.safetensors``), in which Flow-GRPO's are released.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from diffusers import StableDiffusion3Pipeline
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from star.common.errors import UserError
from star.common.files import parse_json, replacing
from star.common.weights import blank
from star.config import ModelConfig
from star.models.interface import BaseModel
from star.models.sources import located, remedy, source

DIFFUSERS_FILE = "pytorch_lora_weights.safetensors"
PEFT_FILES = ("adapter_config.json", "adapter_model.safetensors")
PREFIXES = {"diffusers": "transformer.", "peft": "base_model.model."}
SUFFIX = ".safetensors"
METADATA, METADATA_KEY = "lora_adapter_metadata", "__metadata__"
ADAPTER = ".default."
"""Within a model, a weight's name also contains the adapter's name: ``...to_q.lora_A.default.weight``."""

SUFFIXES = (".lora_A.weight", ".lora_B.weight")

PLAIN = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    # The others (pissa, olora, corda, loftq, ...) change the base model's own weights, which adapters do not hold.
    "init_lora_weights": (True, False, "gaussian", "eva", "orthogonal"),
}
"""Settings of peft that may have these values, and no others."""

FREE = (
    *("r", "lora_alpha", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "lora_dropout"),
    *("base_model_name_or_path", "revision", "task_type", "auto_mapping", "inference_mode", "peft_version", "eva_config"),
    *("megatron_core", "qalora_group_size"),
)
"""Settings that may have any value: they say what the weights themselves show, or matter to training alone. All settings that
are in neither list, among them those of later versions, must be off or empty."""


@dataclass(frozen=True)
class Lora:
    """A LoRA of an SD3 transformer.

    Attributes:
        rank, alpha: of all its adapters.
        weights: by name within the transformer: ``transformer_blocks.0.attn.to_q.lora_A.weight``.
        digest: start of the sha256 of its file.
    """

    rank: int
    alpha: int
    weights: dict[str, Tensor]
    digest: str

    def model_config(self, config: ModelConfig) -> ModelConfig:
        """The settings of a model that has exactly these adapters."""
        targets = sorted({name.partition(".lora_")[0] for name in self.weights})
        return replace(config, parameters="lora", lora_rank=self.rank, lora_alpha=self.alpha, lora_targets=targets)

    def values(self, base: BaseModel) -> dict[str, Tensor]:
        """The weights as values of a model's trained parameters, for :meth:`star.models.interface.BaseModel.weights`.

        Raises:
            UserError: the LoRA does not fit the model.
        """
        named = {name.replace(".weight", f"{ADAPTER}weight"): value for name, value in self.weights.items()}
        own = base.trained
        if named.keys() != own.keys() or any(named[name].shape != own[name].shape for name in named):
            raise UserError(
                f"the LoRA does not fit {source(base.config)}: it has other modules, another rank, or is of another base "
                "model (model.lora_targets, model.lora_rank, model.path)"
            )
        return {name: value.to(own[name].device, own[name].dtype) for name, value in named.items()}


def write(folder: Path, trained: Mapping[str, Tensor], config: ModelConfig) -> None:
    """Write trained adapters so that ``pipeline.load_lora_weights(folder)`` of diffusers takes them.

    Args:
        folder: is created.
        trained: by their names in the model, as :attr:`star.models.interface.BaseModel.trained` has them.
        config: gives rank, alpha and target modules.
    """
    StableDiffusion3Pipeline.save_lora_weights(
        folder,
        transformer_lora_layers={name.replace(ADAPTER, "."): value.detach().cpu() for name, value in trained.items()},
        transformer_lora_adapter_metadata={
            "r": config.lora_rank,
            "lora_alpha": config.lora_alpha,
            "target_modules": list(config.lora_targets),
        },
    )
    _sort_metadata(folder / DIFFUSERS_FILE)


def _sort_metadata(file: Path) -> None:
    """Sort a safetensors file's metadata, whose order its writer leaves to chance, so that equal runs have equal bytes."""
    content = file.read_bytes()
    size = int.from_bytes(content[:8], "little")  # of the header, a JSON object padded with spaces
    header = json.loads(content[8 : 8 + size])
    header = {METADATA_KEY: dict(sorted(header.pop(METADATA_KEY).items())), **header}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(size)
    with replacing(file) as part:
        part.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + size :])


def locate(source: str) -> Path:
    """The folder or file of a LoRA, from its path or the name of a repository in the hub's cache; nothing is downloaded.

    Raises:
        UserError: there is no such path or repository.
    """
    if Path(source).is_file() and Path(source).suffix == SUFFIX:
        return Path(source)
    folder = located(source)
    if folder is None:
        raise UserError(f"lora={source}: no LoRA is there; {remedy(source, 'LoRA')}")
    return folder


def read(place: Path) -> Lora:
    """Read a LoRA in either layout.

    Args:
        place: its folder, or its weights file, which in peft's layout needs the settings file beside it.

    Raises:
        UserError: there is none, it cannot be read, or it is not a plain LoRA with a single rank and alpha.
    """
    file, layout = _weights_file(place)
    folder = file.parent
    prefix = PREFIXES[layout]
    try:
        with safe_open(file, "pt") as opened:
            about = opened.metadata() or {}
            weights = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (no mapping)
    except SafetensorError as error:
        raise UserError(f"{file} cannot be read: {error}") from None
    settings = _diffusers_settings(file, about) if layout == "diffusers" else _peft_settings(folder)
    foreign = [name for name in weights if not (name.startswith(prefix) and name.endswith(SUFFIXES))]
    if foreign or not weights:
        raise UserError(f"{file} holds {foreign[0] if foreign else 'nothing'}; expected adapters of an SD3 transformer alone")
    odd = [name for name, value in settings.items() if not _is_plain(name, value)]
    strength = settings.get("r", 0), settings.get("lora_alpha", 0)
    if odd or not all(type(value) in (int, float) and float(value).is_integer() and value > 0 for value in strength):
        wrong = f"it has {odd[0]}" if odd else f"its rank and alpha are {strength[0]} and {strength[1]}, not whole numbers"
        raise UserError(f"{folder}: {wrong}; only plain LoRA is read")
    _check_weights(file, weights, int(strength[0]))
    return Lora(
        rank=int(strength[0]),
        alpha=int(strength[1]),
        weights={name.removeprefix(prefix): value for name, value in weights.items()},
        digest=hashlib.sha256(file.read_bytes()).hexdigest()[:12],
    )


def _is_plain(name: str, value: Any) -> bool:
    """Whether a setting leaves a LoRA what is read here: B A of one rank, times one number."""
    return name in FREE or (value in PLAIN[name] if name in PLAIN else not value)


def _check_weights(file: Path, weights: Mapping[str, Tensor], rank: int) -> None:
    """Check that adapters have the rank that their settings say, and are not the zeros of a broken download."""
    down, up = ({name: value for name, value in weights.items() if name.endswith(suffix)} for suffix in SUFFIXES)
    shapes = [value.shape for value in down.values()] + [value.shape[::-1] for value in up.values()]
    if other := next((shape for shape in shapes if len(shape) != 2 or shape[0] != rank), None):
        raise UserError(f"{file} has an adapter of shape {tuple(other)}, but its settings say rank {rank}")
    # Adapters begin with random A and with B of zeros, which stay where no gradient comes, as in a model's last block.
    empty = [name for name, value in down.items() if blank(value)]
    empty += [] if any(value.any() for value in up.values()) else list(up)
    if empty:
        raise UserError(f"{file} has nothing but zeros in {empty[0]}: it was not trained, or is damaged; get it again")


def _weights_file(place: Path) -> tuple[Path, str]:
    """The file of a LoRA's weights, and its layout."""
    if place.is_file():
        return place, "peft" if place.name != DIFFUSERS_FILE and (place.parent / PEFT_FILES[0]).exists() else "diffusers"
    for folder in (place, place / "lora", place / "final" / "lora"):  # as released, in a checkpoint, in a run folder
        for name, layout in ((DIFFUSERS_FILE, "diffusers"), (PEFT_FILES[1], "peft")):
            if (folder / name).exists():
                return folder / name, layout
    raise UserError(f"{place} holds no LoRA: neither {DIFFUSERS_FILE} nor {PEFT_FILES[1]}")


def _diffusers_settings(file: Path, about: Mapping[str, str]) -> dict:
    if METADATA not in about:
        raise UserError(f"{file} does not say its alpha (it has no {METADATA}), without which its strength is unknown")
    prefix = PREFIXES["diffusers"]
    return {name.removeprefix(prefix): value for name, value in _parsed(about[METADATA], file).items()}


def _peft_settings(folder: Path) -> dict:
    file = folder / PEFT_FILES[0]
    if not file.exists():
        raise UserError(f"{folder} has {PEFT_FILES[1]} but no {PEFT_FILES[0]}, which says its rank and alpha")
    return _parsed(file.read_text(encoding="utf-8", errors="replace"), file)


def _parsed(text: str, file: Path) -> dict:
    try:
        return {**parse_json(text)}
    except (ValueError, TypeError):
        raise UserError(f"{file}: its settings are not a JSON object; download it again") from None


@contextmanager
def folded(transformer: nn.Module) -> Iterator[None]:
    """Inside, a transformer's adapters are merged into the weights that they adapt, W + s B A, which saves their own products.

    Disabled adapters stay disabled. Afterwards the weights are bit for bit what they were.
    """
    layers = [module for module in transformer.modules() if isinstance(module, LoraLayer) and not module.disable_adapters]
    weights = [layer.get_base_layer().weight for layer in layers]
    before = [weight.data for weight in weights]
    try:
        for layer, weight in zip(layers, weights, strict=True):
            for name in layer.active_adapters:
                weight.data = weight.data + layer.get_delta_weight(name).detach()
                layer.merged_adapters.append(name)
        yield
    finally:
        for layer, weight, data in zip(layers, weights, before, strict=True):
            weight.data = data
            layer.merged_adapters.clear()
