"""Weights that are not those that config.json asks for are refused wherever they are loaded; libraries make up the rest."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_clip import save_tiny_clip
from tiny_detector import save_detector, stored

from evaluators.geneval.official.clips import TransformersClip
from evaluators.geneval.official.mask2former import Mask2Former
from evaluators.pickscore.score import PickScore
from star.common.errors import UserError
from star.models.sd3 import SD3

PLACES = {
    "transformer": ("transformer/diffusion_pytorch_model.safetensors", "qk_norm"),
    "vae": ("vae/diffusion_pytorch_model.safetensors", "layers_per_block"),
    "text_encoder": ("text_encoder/model.safetensors", "num_hidden_layers"),
    "text_encoder_3": ("text_encoder_3/model.safetensors", "num_layers"),
    "pickscore": ("model.safetensors", "text_config.num_hidden_layers"),
    "colours": ("model.safetensors", "vision_config.num_hidden_layers"),
    "detector": ("model.safetensors", "decoder_layers"),
}
"""What is loaded -> its file of weights, and a setting of config.json by which it has more or fewer of them."""


@pytest.fixture(params=PLACES)
def place(request, make_config, pipeline_folder, tmp_path):
    """A copy of what is loaded: its weights, that setting, and a function that loads it."""
    folder, kind = tmp_path / "copy", request.param
    if kind == "detector":
        save_detector(tmp_path, stored()[0]).folder.rename(folder)
    elif kind in ("pickscore", "colours"):
        save_tiny_clip(folder)
    else:
        shutil.copytree(pipeline_folder, folder)
    loads = {
        "pickscore": lambda: PickScore(folder),
        "colours": lambda: TransformersClip(folder),
        "detector": lambda: Mask2Former(folder, "x"),
    }
    file, setting = PLACES[kind]
    model = make_config(f"model.path={folder}").model
    return folder / file, setting, loads.get(kind, lambda: SD3(model, torch.device("cpu"), 0))


def test_surplus_weights_are_refused(place):
    """As of a network with more layers, of which only a part would compute."""
    file, setting, load = place
    load()
    group, _, name = setting.rpartition(".")
    config = json.loads(file.with_name("config.json").read_text())
    part = config[group] if group else config
    part[name] = None if name == "qk_norm" else part[name] - 1
    file.with_name("config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"has weights that its config.json has no place for: .*, in all \d") as told:
        load()
    assert "\n" not in str(told.value)


def test_a_matrix_of_zeros_is_refused(place):
    """As where a download broke off and the file was filled up with zeros."""
    file, _, load = place
    weights = load_file(file)
    name = next(name for name, value in weights.items() if value.ndim > 1 and name.endswith("weight"))
    weights[name].zero_()
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(UserError, match="has nothing but zeros in .*, in all 1") as told:
        load()
    assert "\n" not in str(told.value)
