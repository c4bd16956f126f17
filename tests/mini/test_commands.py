"""What ``star mini`` is given and cannot use is told before the work."""

from pathlib import Path

import pytest
from test_cli import star  # noqa: F401 (a fixture)


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
    assert code == 2 and "new/clip is not of such a training and would be deleted" in err
    assert Path("new/clip/mine.txt").read_text() == "precious"


def test_a_picture_that_is_there_is_not_overwritten(star):  # noqa: F811
    Path("keep.png").write_text("mine")
    code, _, err = star("bench", "localisation", "--image", "keep.png")
    assert code == 2 and "there is such a file" in err and Path("keep.png").read_text() == "mine"
