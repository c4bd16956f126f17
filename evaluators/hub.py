"""Models that the evaluators take from local folders and from the cache of the Hugging Face hub. Nothing is downloaded."""

from pathlib import Path
from typing import NamedTuple

import torch
from transformers import AutoTokenizer, CLIPConfig, CLIPModel, PreTrainedTokenizerBase

from star.common import vocabulary
from star.common.errors import UserError
from star.common.files import weights_digest
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
        at = f" --revision {revision}" if revision else ""
        raise UserError(
            f"{user} needs {repository}, which is no folder here and not in the hub's cache; "
            f"`hf download {repository}{at}{only}` gets it"
        ) from error


def model_name(source: Source, folder: Path, name: str | None = None) -> str:
    """A model's name for protocols, with the start of a hub repository's commit (the name of its folder in the cache) or of a
    digest of a local folder's weights; ``name`` replaces the local folder's own."""
    if isinstance(source, Published) or not Path(source).is_dir():
        repository = source.repository if isinstance(source, Published) else str(source)
        return f"{repository.split('/')[-1]}@{folder.name[:8]}"
    return f"{name or folder.resolve().name}@{weights_digest(folder)[:8]}"


def load_clip(folder: Path, config: CLIPConfig | None = None) -> CLIPModel:
    """The CLIP model of a folder in transformers' format, in float32 and in eval mode; ``config`` replaces its own.

    Raises:
        OSError, ValueError, SafetensorError: it holds none, or not all of its weights.
    """
    model, report = CLIPModel.from_pretrained(
        folder, config=config, dtype=torch.float32, local_files_only=True, output_loading_info=True
    )
    if report["missing_keys"]:  # they would be initialised at random
        raise ValueError(f"these weights of a CLIP model are missing: {', '.join(sorted(report['missing_keys'])[:3])}, ...")
    return model.eval()


def load_tokenizer(folder: Path, model: CLIPModel) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder, for the text encoder of a model.

    Raises:
        OSError, ValueError: there is none, or it lacks its vocabulary or has another model's.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    if wrong := vocabulary.fault(tokenizer, model.config.text_config.vocab_size):
        raise ValueError(f"the tokenizer {wrong}; get it again")
    return tokenizer
