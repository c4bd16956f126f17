"""A tiny SD3 pipeline on disk, and runs on it that take a second."""

from pathlib import Path

import pytest
import torch

from star.config import Config, load
from star.mini.build import untrained_pipeline

FAST = """train.epochs=3 train.groups=4 train.group_size=4 train.micro_batch=8 train.checkpoint_every=1 sampling.steps=4
sampling.window=2 sampling.window_range=[0,3] evaluation.steps=2 evaluation.images=1 relevance.blocks=[0,1]
model.parameters=lora model.lora_rank=4 model.lora_alpha=8 sampling.guidance=1 evaluation.guidance=1"""


@pytest.fixture(scope="session")
def pipeline_folder(tmp_path_factory) -> Path:
    """An untrained SD3 pipeline of the mini base's kind, but smaller, in diffusers' folder format."""
    folder = tmp_path_factory.mktemp("pipeline")
    torch.manual_seed(0)
    pipeline = untrained_pipeline(width=32, blocks=3)
    pipeline.vae.register_to_config(scaling_factor=0.8, shift_factor=0.1)
    pipeline.save_pretrained(folder)
    return folder


@pytest.fixture
def make_config(pipeline_folder, tmp_path):
    """Settings of a run on the tiny pipeline; words override."""

    def make(*overrides: str) -> Config:
        return load([*FAST.split(), f"model.path={pipeline_folder}", f"run={tmp_path / 'run'}", *overrides])

    return make
