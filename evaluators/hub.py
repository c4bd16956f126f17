"""Models that the evaluators take from local folders and from the cache of the Hugging Face hub. Nothing is downloaded."""

from collections.abc import Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from transformers import AutoTokenizer, CLIPConfig, CLIPModel, PreTrainedTokenizerBase

from star.common import vocabulary, weights
from star.common.errors import UserError
from star.common.files import model_digest
from star.common.hub import cached


class Published(NamedTuple):
    """A repository of the Hugging Face hub at a commit."""

    repository: str
    revision: str


Source = str | Path | Published


def locate(source: Source, user: str, only: str = "") -> Path:
    """The local folder of a model or processor.

    Args:
        source: a folder, or a repository in the hub's cache.
        user: who needs it, for the error.
        only: options of ``hf download`` that select files, for a repository that also holds many that are not needed.

    Raises:
        UserError: it is neither; the message gives the command that gets it.
    """
    if not isinstance(source, Published) and Path(source).is_dir():
        return Path(source)
    repository, revision = source if isinstance(source, Published) else (str(source), None)
    try:
        return cached(repository, revision)
    except (OSError, ValueError) as error:  # not in the cache; no name that a repository could have
        if revision is None and repository.startswith((".", "/", "~")):
            raise UserError(f"{user} needs a model, but there is no folder {repository}") from error
        at = f" --revision {revision}" if revision else ""
        raise UserError(
            f"{user} needs {repository}, which is no folder here and not in the hub's cache; "
            f"`hf download {repository}{at}{only}` gets it"
        ) from error


def model_name(source: Source, folder: Path, beside: Path | None = None) -> str:
    """A model's name for protocols, with the start of a hub repository's commit (the name of its folder in the cache) or of a
    local folder's digest, which also covers the settings, tokenizer and processor there or ``beside``."""
    if isinstance(source, Published) or not Path(source).is_dir():
        repository = source.repository if isinstance(source, Published) else str(source)
        return f"{repository.split('/')[-1]}@{folder.name[:8]}"
    return f"{folder.resolve().name}@{model_digest(folder, beside or folder)[:8]}"


def load_clip(folder: Path, config: CLIPConfig | None = None) -> CLIPModel:
    """The CLIP model of a folder in transformers' format, in float32 and in eval mode; ``config`` replaces its own.

    Raises:
        OSError, ValueError, SafetensorError: it holds none, or its weights are not those that its config.json asks for.
    """
    model, report = CLIPModel.from_pretrained(
        folder, config=config, dtype=torch.float32, local_files_only=True, output_loading_info=True
    )
    if wrong := weights.fault(model, report):
        raise ValueError(f"the CLIP model {wrong}")
    return model.eval()


def load_tokenizer(folder: Path, model: CLIPModel) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder, for the text encoder of a model.

    Raises:
        OSError, ValueError: there is none, or it lacks its vocabulary or has another model's.
    """
    tokenizer, text = AutoTokenizer.from_pretrained(folder, local_files_only=True), model.config.text_config
    if wrong := vocabulary.fault(tokenizer, text.vocab_size) or vocabulary.fault_of_end(tokenizer, text.eos_token_id):
        raise ValueError(f"the tokenizer {wrong}; get it again")
    return tokenizer


def text_features(model: CLIPModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> torch.Tensor:
    """Projected embeddings (n, width) of texts, not normalised; a text that is longer than the model's context is cut."""
    length = model.config.text_config.max_position_embeddings
    tokens = tokenizer(list(texts), padding=True, truncation=True, max_length=length, return_tensors="pt").to(model.device)
    return model.get_text_features(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask).pooler_output


PROBE = "a photo of a cat"
PUBLISHED_CLIP: dict[str, Any] = {
    "tokens": (49406, 320, 1125, 539, 320, 2368, 49407),  # of the probe
    "config.text_config.max_position_embeddings": 77,
    "config.text_config.layer_norm_eps": 1e-5,
    "config.vision_config.layer_norm_eps": 1e-5,
    "config.vision_config.image_size": 224,
    "config.vision_config.patch_size": 14,
}
"""What OpenAI's CLIPs and those that were trained after them have in common; no weight has another shape for most of it."""


def check_published(source: Published, known: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, **parts: Any) -> None:
    """Check that a model that goes by its repository's name computes as it was published.

    Args:
        source: the repository.
        known: value by dotted name, the first part of which is one of ``parts``, or ``tokens``, those of :data:`PROBE`.
        tokenizer, parts: what was loaded; of the parts the model's ``config``, and the ``processor``.

    Raises:
        UserError: a value is another one.
    """
    loaded = SimpleNamespace(tokens=tokenizer(PROBE)["input_ids"], **parts)
    for name, value in known.items():
        found = attrgetter(name)(loaded)
        if (tuple(found) if isinstance(found, list) else found) != value:
            raise UserError(
                f"{source.repository} in the hub's cache is not as it was published: {name} is {found}, not {value}; "
                f"`hf download {source.repository} --revision {source.revision} --force-download` gets it again"
            )
