import json

import pytest
from huggingface_hub import constants
from huggingface_hub.errors import LocalEntryNotFoundError

from evaluators.hub import Published, locate
from star.common.hub import cached
from star.models.sources import located

COMMIT = "0123456789" * 4


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache as ``hf download someone/clip --include config.json`` leaves it: it knows what else the repository has."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--someone--clip"
    part = repository / "snapshots" / COMMIT
    part.mkdir(parents=True)
    (part / "config.json").write_text("{}")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    (repository / "trees").mkdir()
    files = {name: {"size": 2, "blob_id": "a" * 40} for name in ("config.json", "README.md", "flax_model.msgpack")}
    listing = {"format_version": 1, "files": files}
    (repository / "trees" / f"{COMMIT}.json").write_text(json.dumps(listing))
    return part


@pytest.mark.parametrize("revision", [None, COMMIT])
def test_a_part_of_a_repository_is_found(cache, revision):
    assert cached("someone/clip", revision) == cache
    assert located("someone/clip") == cache
    assert locate(Published("someone/clip", COMMIT), "a test") == cache


def test_what_is_not_there_is_not_found(cache):
    for repository, revision in (("someone/other", None), ("someone/clip", "9" * 40)):
        with pytest.raises(LocalEntryNotFoundError):
            cached(repository, revision)
    assert located("someone/other") is None
