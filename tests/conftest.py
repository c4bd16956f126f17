"""A tiny SD3 pipeline on disk, and runs on it that take a second.

pytest-xdist reads this before it starts the processes that test: what takes seconds to import is imported in the fixtures.
"""

import gc
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest

# Their conftest prepares for libraries that only their environments have.
collect_ignore = [] if any(map(find_spec, ("mmdet", "open_clip"))) else ["parity"]


@pytest.fixture(scope="session")
def drawn_once():
    """A process draws the mini scale's training prompts once: they have one seed for all runs."""
    from star.tasks import geneval, pickscore

    def once(train):
        kept = cache(lambda: train("mini"))
        return lambda scale: [*kept()] if scale == "mini" else train(scale)

    with pytest.MonkeyPatch.context() as patch:
        for task in (geneval, pickscore):
            patch.setattr(task, "train", once(task.train))
        yield


@pytest.fixture(scope="session")
def pipeline_folder(tmp_path_factory, drawn_once) -> Path:
    """An untrained SD3 pipeline of the mini base's kind, but smaller, in diffusers' folder format."""
    import torch
    from tiny import small_pipeline

    gc.freeze()  # else every collection looks through all that was imported
    folder = tmp_path_factory.mktemp("pipeline")
    torch.manual_seed(0)
    pipeline = small_pipeline()
    pipeline.save_pretrained(folder)
    return folder


@pytest.fixture
def make_config(pipeline_folder, tmp_path):
    """Settings of a run on the tiny pipeline; words override."""
    from tiny import FAST

    from star.config import load

    def make(*overrides: str):
        return load([*FAST.split(), f"model.path={pipeline_folder}", f"run={tmp_path / 'run'}", *overrides])

    return make


@pytest.fixture
def few_prompts(monkeypatch):
    """GenEval is tested on every fourth of its prompts, in this process: still some of each kind."""
    from star.tasks import geneval

    every = geneval.test
    monkeypatch.setattr(geneval, "test", lambda scale: every(scale)[::4])


@pytest.fixture
def forked_cells(monkeypatch):
    """The cells of a matrix start at once, see :mod:`forked`; tests/matrix has programs of their own."""
    import forked

    from star.matrix import commands, run

    monkeypatch.setattr(commands, "carry_out", forked.carry_out)
    monkeypatch.setattr(run, "get_context", lambda method: forked.SERVER)
