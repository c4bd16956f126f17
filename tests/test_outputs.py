"""Where results may go: what cannot be written to, or is somebody else's, is told in one line before the work."""

import os
import subprocess
import sys
from pathlib import Path

import forked
import pytest
from test_cli import star  # noqa: F401 (a fixture)
from tiny import FAST

from star.common import console as module
from star.common.console import console, print_table
from star.common.errors import UserError
from star.common.files import check_file

ROOT = Path(__file__).parents[1]
TRAINED_NOWHERE = [["base"], ["demo"], ["calibrate"], ["bench", "overhead"], ["bench", "speed"], ["bench", "localisation"]]
TRAINED_NOWHERE += [["bench", "gpu"], ["doctor", "--dry-run"]]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["bench", "gradient", "out=file/x.csv"], "the table cannot go to 'file'"),
        (["bench", "gradient", "out=/proc/x.csv"], "the table cannot go to '/proc'"),
        (["bench", "gradient", "out=folder"], "the table cannot go to 'folder': it is a folder"),
        (["bench", "influence", "out=file/x.csv"], "the table cannot go to 'file'"),
        (["bench", "influence", f"out={'x' * 300}.csv"], "File name too long"),
        (["bench", "gpu", "out=file"], "the table cannot go to 'file'"),
        (["bench", "gpu", "out=file/below"], "the table cannot go to 'file/below'"),
        (["demo", "--out", "file"], "the page cannot go to 'file'"),
        (["demo", "--out", "taken"], "taken/index.html is not of this command and would be overwritten"),
        (["demo", "--out", "pictured"], "pictured/pictures.png is not of this command and would be overwritten"),
        (["data", "ocr", "source"], "prompts cannot go to 'data/ocr'"),
        (["report", str(ROOT / "results/mini"), "--out", "file/page.html"], "the page cannot go to 'file'"),
    ],
)
def test_a_place_that_cannot_be_written_to_is_told_before_the_work(star, pipeline_folder, words, told):  # noqa: F811
    for name in ("folder", "taken", "pictured", "source"):
        Path(name).mkdir()
    for name in ("file", "data", "taken/index.html", "pictured/pictures.png"):
        Path(name).write_text("mine")
    if words[0] == "bench" and words[1] != "gpu":
        words = [*words, *FAST.split(), f"model.path={pipeline_folder}"]
    before = sorted(Path().rglob("*"))
    code, _, err = star(*words)
    assert code == 2 and told in err and err.startswith("star: ") and err.count("\n") == 1
    assert sorted(Path().rglob("*")) == before
    assert all(path.read_text() == "mine" for path in before if path.is_file())


@pytest.mark.parametrize("file", ["runs/results", "runs/gradient", "runs/influence"])
def test_a_file_where_results_are_kept(star, pipeline_folder, file):  # noqa: F811
    Path("runs").mkdir()
    Path(file).write_text("mine")
    for words in (["gradient", "arms=flow_grpo,star"], ["influence"]):
        if file.endswith(("results", words[0])):
            code, _, err = star("bench", *words, *FAST.split(), f"model.path={pipeline_folder}")
            assert code == 2 and f"cannot go to '{file}" in err and err.count("\n") == 1
    assert Path(file).read_text() == "mine"


def test_a_file_is_tried_without_a_trace(tmp_path):
    (tmp_path / "there.csv").write_text("old")
    check_file(tmp_path / "there.csv", "scores")
    check_file(tmp_path / "new" / "scores.csv", "scores")
    assert [path.name for path in tmp_path.iterdir()] == ["there.csv"] and (tmp_path / "there.csv").read_text() == "old"
    with pytest.raises(UserError, match="scores cannot go to .*File name too long"):
        check_file(tmp_path / ("x" * 300), "scores")


@pytest.mark.parametrize("words", TRAINED_NOWHERE, ids=" ".join)
def test_a_folder_that_nothing_would_come_to_is_refused(star, words):  # noqa: F811
    code, _, err = star(*words, "run=mine")
    assert code == 2 and "run=mine: only a training has a folder of one's choice" in err and not list(Path().iterdir())


@pytest.mark.parametrize(
    "words", [["report", ""], ["diff", " "], ["report", "--out="], ["mini", "pretrain", ""], ["train", ""]]
)
def test_a_word_that_says_nothing_is_refused(star, words):  # noqa: F811
    code, _, err = star(*words)
    assert code == 2 and "on the command line is empty" in err and not list(Path().iterdir())


@pytest.mark.parametrize(
    "words",
    [
        ["bench", "gpu", "only=machine", "out=~/made"],
        ["diff", "~/none.csv"],
        ["report", str(ROOT / "results/mini"), "--out=~/none/page.html"],
        ["bench", "gradient", "weights=~/none"],
        ["evaluate", "task=ocr", "images=~/none", "prompts=p.txt"],
        ["report", "~/none"],
        ["mini", "pretrain", "~/file"],
    ],
)
def test_the_home_folder_is_found_where_no_shell_finds_it(star, monkeypatch, tmp_path, words):  # noqa: F811
    """Behind an equals sign, and in quotes."""
    monkeypatch.setattr("star.bench.gpu.worker.CONTEXT", forked.SERVER)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "file").write_text("mine")
    code, out, err = star(*words)
    assert str(tmp_path / "home") in out.replace("\n", "") + err and not list(Path().glob("*~*"))
    assert code == (0 if "gpu" in words else 2)


DIFF = ["diff", str(ROOT / "results/mini/geneval.csv")]


def ended(tmp_path, words, **streams) -> tuple[int, str]:
    """Exit code and standard error of a process of its own."""
    program = [sys.executable, "-m", "star", *words]
    streams = {"stderr": subprocess.PIPE} | streams
    done = subprocess.run(program, text=True, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, **streams)
    return done.returncode, done.stderr


@pytest.mark.parametrize("words", [DIFF, [*DIFF, "--json"]])
def test_a_full_disk_behind_what_is_printed_is_one_line(tmp_path, words):
    with open("/dev/full", "w") as full:
        assert ended(tmp_path, words, stdout=full) == (2, "star: what is printed: No space left on device\n")
    with open("/dev/full", "w") as full:
        assert ended(tmp_path, ["diff", "nope"], stderr=full) == (2, None)


@pytest.mark.parametrize("words", [DIFF, [*DIFF, "--json"]])
def test_a_reader_that_left_is_no_difference(tmp_path, words):
    """As behind ``| head -1``; exit code 1 says that numbers differ."""
    reading, writing = os.pipe()
    os.close(reading)
    assert ended(tmp_path, words, stdout=writing) == (141, "")
    assert ended(tmp_path, ["diff", "nope"], stderr=writing) == (2, None)
    os.close(writing)


@pytest.mark.parametrize("width", [None, 40])
def test_a_table_cuts_no_number_short(capsys, monkeypatch, width):
    if width:  # a narrow terminal, where what does not fit goes on below
        monkeypatch.setattr(module, "console_for_tables", lambda: console(width=width))
    numbers = [f"{place}.{'123456789'}" for place in range(10)]
    print_table("geneval_continuous_macro", [f"step {place}" for place in range(10)], [numbers])
    out = capsys.readouterr().out
    assert "…" not in out
    assert width or all(number in out for number in numbers)
