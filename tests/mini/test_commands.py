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
