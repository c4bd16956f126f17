"""A tokenizer that lacks its words is refused wherever one is loaded: its texts would be all alike, with no error."""

import json
import shutil

import pytest
import torch
from tiny_clip import save_tiny_clip

from evaluators.geneval.official.clips import TransformersClip
from evaluators.pickscore.score import PickScore
from star.common.errors import UserError
from star.models.sd3 import SD3


def forget(folder) -> None:
    """As a download that broke off leaves it: transformers then builds a tokenizer of the special tokens alone."""
    for name in ("tokenizer.json", "vocab.json", "merges.txt", "spiece.model"):
        (folder / name).unlink(missing_ok=True)


def shorten(folder) -> None:
    """The vocabulary of another, smaller model."""
    content = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    kept = vocabulary[:40] if isinstance(vocabulary, list) else {token: i for token, i in vocabulary.items() if i < 40}
    content["model"] |= {"vocab": kept} | ({"merges": []} if "merges" in content["model"] else {})
    (folder / "tokenizer.json").write_text(json.dumps(content))


def loads(kind: str, folder):
    {"pickscore": lambda: PickScore(folder), "colours": lambda: TransformersClip(folder)}[kind]()


@pytest.mark.parametrize("spoil", [forget, shorten])
@pytest.mark.parametrize("name", ["tokenizer", "tokenizer_2", "tokenizer_3"])
def test_of_a_base_model(make_config, pipeline_folder, tmp_path, name, spoil):
    shutil.copytree(pipeline_folder, tmp_path / "model")
    spoil(tmp_path / "model" / name)
    with pytest.raises(UserError, match="model.path=") as told:
        SD3(make_config(f"model.path={tmp_path / 'model'}").model, torch.device("cpu"), 0)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("spoil", [forget, shorten])
@pytest.mark.parametrize("kind", ["pickscore", "colours"])
def test_of_a_clip(tmp_path, kind, spoil):
    folder = save_tiny_clip(tmp_path / "clip")
    loads(kind, folder)
    spoil(folder)
    with pytest.raises(UserError, match="cannot load its|cannot load their") as told:
        loads(kind, folder)
    assert "\n" not in str(told.value)
