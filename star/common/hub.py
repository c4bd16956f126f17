"""The cache of the Hugging Face hub. Nothing is downloaded."""

from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError


def cached(repository: str, revision: str | None = None) -> Path:
    """The folder of a repository in the cache, even if it has only a part of the files.

    ``hf download --include`` leaves such folders, and so do libraries that fetch what they need. Callers know what is needed.

    Args:
        repository: ``OWNER/NAME``.
        revision: a commit, or None for the newest that is there.

    Raises:
        LocalEntryNotFoundError: it is not there.
        HFValidationError: no repository could have such a name.
    """
    try:
        return Path(snapshot_download(repository, revision=revision, local_files_only=True))
    except LocalEntryNotFoundError as error:
        if part := getattr(error, "snapshot_path", None):  # newer versions of the library check for missing files
            return Path(part)
        raise
