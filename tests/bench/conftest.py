"""Commands of ``star bench`` on the tiny pipeline: a file of tests has its ``COMMAND``, a module, and that one's ``WORDS``."""

import shutil
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def given(request, pipeline_folder) -> list[str]:
    """The words, with the settings of short runs."""
    from tiny import FAST

    return [*FAST.split(), f"model.path={pipeline_folder}", "model.kernels=torch", *request.module.WORDS]


@pytest.fixture
def words(given, tmp_path, monkeypatch) -> list[str]:
    """Those words, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return [*given]


@pytest.fixture(scope="module")
def kept(request, given, tmp_path_factory) -> Path:
    """The folder of what the command keeps when it has measured what these words ask for."""
    command = request.module.COMMAND
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("kept"))
        command.run(given)
        return Path("runs", command.__name__.rpartition(".")[2]).absolute()


@pytest.fixture
def measured(words, kept) -> list[str]:
    """Those words where all of it is kept, and no table yet."""
    shutil.copytree(kept, Path("runs", kept.name))
    return words
