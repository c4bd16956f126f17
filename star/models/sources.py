"""Where base models and LoRAs lie: a folder, or a repository in the hub's cache. Nothing is downloaded."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

from star.common.errors import UserError, first_line
from star.common.files import read_json
from star.common.hub import cached
from star.common.shipped import MINI_BASE
from star.config import ModelConfig

REVISIONS = {
    "stabilityai/stable-diffusion-3.5-medium": "b940f670f0eda2d07fbb75229e779da1ad11eb80",
    "stabilityai/stable-diffusion-3.5-large": "ceddf0a7fdf2064ea28e2213e3b84e4afa170a0f",
    "stabilityai/stable-diffusion-3-medium-diffusers": "ea42f8cef0f178587cf766dc8129abd379c90671",
}
"""Published model -> the commit that its name stands for; to use another commit, give its folder instead."""


def source(config: ModelConfig) -> str:
    """The diffusers folder or hub name of the configured base: by default the mini base's folder."""
    return config.path or str(MINI_BASE.folder)


def located(model: str) -> Path | None:
    """The folder of a model or LoRA: a path, or a repository in the hub's cache. None if it is not on this machine."""
    if Path(model).is_dir():
        return Path(model)
    try:
        return cached(model, REVISIONS.get(model))
    except (LocalEntryNotFoundError, HFValidationError):
        return None


def pipeline_folder(config: ModelConfig) -> Path:
    """The folder of the configured pipeline.

    Raises:
        OSError: it is not on this machine.
    """
    folder = located(source(config))
    if folder is None:
        raise FileNotFoundError("it is not on this machine")
    return folder


def pipeline_class(config: ModelConfig) -> str:
    """The name of the class in the configured model's ``model_index.json``; empty if it names none.

    Raises:
        UserError: the model is not available. This is a quick check, to be made before other work.
    """
    with told(config):
        return str(index_of(pipeline_folder(config)).get("_class_name", ""))


def index_of(folder: Path) -> dict[str, Any]:
    """The content of a pipeline's ``model_index.json``, which names its parts.

    Raises:
        ValueError: it is missing or damaged.
    """
    index = read_json(folder / "model_index.json")
    if not isinstance(index, dict):
        raise ValueError("model_index.json is missing or damaged")
    return index


PARTS, PART_BYTES = 64, 2**16
MODEL_FILES = (".safetensors", ".bin", ".json", ".txt", ".model")


def fingerprint(model: str) -> str:
    """A digest that quickly tells apart models of the same name; empty if the model is not on this machine.

    It covers the files' names, their sizes and some parts of each, all of the smaller ones. Of a pipeline only the files of
    its parts count, not what a repository holds beside them, nor copies of them in half precision.
    """
    folder = located(model)
    if folder is None:
        return ""
    index = read_json(folder / "model_index.json")
    parts = [folder / name for name in index if not name.startswith("_")] if isinstance(index, dict) else [folder]
    total = hashlib.sha256()
    for file in sorted({file for part in parts for file in part.rglob("*")}):
        if file.suffix not in MODEL_FILES or ".fp16" in file.name or not file.is_file():
            continue
        size = file.stat().st_size
        total.update(f"{file.relative_to(folder)} {size}\n".encode())
        with open(file, "rb") as opened:
            for start in range(0, size, max(PART_BYTES, size // PARTS)):
                opened.seek(start)
                total.update(opened.read(PART_BYTES))
    return total.hexdigest()


@contextmanager
def told(config: ModelConfig) -> Iterator[None]:
    """Inside, an error that keeps a model from being loaded becomes a UserError that says how to get it."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise UserError(
            f"model.path={source(config)}: no SD3 pipeline could be loaded ({reason(error)}); "
            f"{remedy(source(config), 'diffusers')}"
        ) from None


def reason(error: Exception) -> str:
    """Why a library could not load something: the start of its message, without details of the hub and advice."""
    return first_line(error).partition(" (")[0].partition(". ")[0].rstrip(".") or type(error).__name__


def remedy(model: str, kind: str) -> str:
    """What to do about a model that is not where the settings say; only a repository can be downloaded.

    Args:
        model: a path, or the name of a repository.
        kind: the kind of folder that is wanted, e.g. ``diffusers``.
    """
    if Path(model).is_file():
        return f"it is a file: name the {kind} folder that it belongs to"
    if Path(model).is_dir():
        return f"name a {kind} folder"
    if model.startswith(("/", ".", "~")) or model.count("/") != 1:  # a repository is called OWNER/NAME
        return f"there is no such folder: name a {kind} folder, or a repository like OWNER/NAME"
    return f"download it with `{download(model)}` (gated models need `hf auth login`) or name a {kind} folder"


def download(model: str) -> str:
    """The command that downloads a repository from the hub."""
    at = f" --revision {REVISIONS[model]}" if model in REVISIONS else ""
    return f"hf download {model}{at}"
