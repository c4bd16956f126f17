"""What ``star mini`` is given and cannot use is told before the work."""

import shutil
from pathlib import Path

import pytest
from test_cli import star  # noqa: F401 (a fixture)

from star.common.files import alone_in


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["pretrain", "file"], "the work cannot go to 'file'"),
        (["pretrain", "new", "--start", "missing"], "--start missing is no folder of a diffusers pipeline"),
        (["pretrain", "new", "--flow-steps", "0"], "Invalid value for '--flow-steps'"),
        (["pretrain", "new", "--flow-steps", "-1"], "Invalid value for '--flow-steps'"),
        (["taste", "file"], "the work cannot go to 'file'"),
        (["taste", "new", "--steps", "0"], "Invalid value for '--steps'"),
    ],
)
def test_what_cannot_be_used(star, words, told):  # noqa: F811
    Path("file").write_text("mine")
    code, _, err = star("mini", *words)
    assert code == 2 and told in err and "Traceback" not in err
    assert Path("file").read_text() == "mine" and not list(Path().glob("new/*"))


def test_what_is_not_of_a_training_is_not_deleted(star):  # noqa: F811
    Path("new/clip").mkdir(parents=True)
    Path("new/clip/mine.txt").write_text("precious")
    code, _, err = star("mini", "taste", "new", "--steps", "1")
    assert code == 2 and "new holds something else than such a training (clip)" in err
    assert Path("new/clip/mine.txt").read_text() == "precious"


@pytest.mark.parametrize("command", ["pretrain", "taste"])
def test_a_work_folder_is_a_trainings_own(star, command):  # noqa: F811
    Path("new").mkdir()
    Path("new/pipeline").write_text("mine")
    code, _, err = star("mini", command, "new")
    assert code == 2 and "new holds something else than such a training (pipeline)" in err
    Path("begun").mkdir()
    Path("begun/metrics.jsonl").write_text("")
    with alone_in(Path("begun")):
        code, _, err = star("mini", command, "begun")
    assert code == 2 and "another process works in begun" in err
    file = {"pretrain": "autoencoder.pt", "taste": "taste.pt"}[command]
    Path("begun", file).write_bytes(b"cut")
    code, _, err = star("mini", command, "begun")
    assert code == 2 and f"begun/{file} cannot be continued from" in err and "Traceback" not in err


@pytest.mark.parametrize("content", ["{", "{}", '{"_class_name": "FluxPipeline"}'])
def test_a_pipeline_to_start_from_is_one(star, pipeline_folder, content):  # noqa: F811
    shutil.copytree(pipeline_folder, "model")
    Path("model/model_index.json").write_text(content)
    code, _, err = star("mini", "pretrain", "new", "--start", "model")
    assert code == 2 and "--start model is no folder of a diffusers pipeline" in err and "Traceback" not in err
    assert not Path("new").exists()


def test_a_picture_that_is_there_is_not_overwritten(star):  # noqa: F811
    Path("keep.png").write_text("mine")
    code, _, err = star("bench", "localisation", "--image", "keep.png")
    assert code == 2 and "there is such a file" in err and Path("keep.png").read_text() == "mine"
