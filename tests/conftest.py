"""A tiny SD3 pipeline on disk, and runs on it that take a second."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from tiny import FAST

from star.config import Config, load
from star.mini.build import untrained_pipeline

# Their conftest prepares for libraries that only their environments have.
collect_ignore = [] if any(map(find_spec, ("mmdet", "open_clip"))) else ["parity"]


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
