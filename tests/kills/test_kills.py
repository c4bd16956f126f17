"""Killed at any moment and done again: the same bytes, nothing left behind, nothing lost. Slow: ``tox -e kills``."""

import json
import random
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import forked
import numpy as np
import pandas as pd
import pytest
from fake_results import write_matrix
from PIL import Image
from tiny import FAST

pytestmark = pytest.mark.slow

TIMED = re.compile(r'"(sampling_|update_)?seconds": [\d.e-]+')
HISTORY = ("log.txt", "attempts.jsonl", ".lock")
"""What differs between a command that was killed and one that was not, and may."""

RANDOM = 20


def run(words: Sequence[str], moment: str = "") -> int | None:
    process = forked.start("killing", [moment, "star", *words], Path("log.txt"))
    process.join(300)
    assert process.exitcode is not None, Path("log.txt").read_text()
    return process.exitcode


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, without times; tables have theirs in columns."""
    found = {}
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        if file.name.endswith(HISTORY):
            continue
        data = file.read_bytes()
        if file.suffix in (".json", ".jsonl"):
            data = TIMED.sub('"seconds": 0', data.decode()).encode()
        if file.name == "SHA256SUMS":
            data = re.sub(rb".*progress.json\n", b"", data)  # it has times in it
        if file.suffix == ".csv":
            table = pd.read_csv(file, dtype=str, keep_default_na=False)
            data = table.drop(columns=[name for name in table if name.endswith("seconds")]).to_csv().encode()
        found[str(file.relative_to(folder))] = data
    return found


def train(pipeline: Path, folder: str) -> list[str]:
    words = [*FAST.split(), f"model.path={pipeline}", "task=pickscore", "~evaluators.ocr=rapidocr", "train.epochs=2"]
    return ["train", *words, "evaluation.cross_images=0", "model.kernels=torch", f"run={folder}"]


def moments(most: int) -> list[str]:
    """Chosen moments of a command: around every one of so many files that it names."""
    return [f"{kind}:{number}" for number in range(1, most + 1) for kind in ("before", "within", "after")]


def test_training(pipeline_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = train(pipeline_folder, "cut")
    assert run(words) == 0
    whole = contents(Path("cut"))
    kills = 0
    times = random.Random(0)
    for moment in [*moments(40), *(f"{times.uniform(0.5, 6):.2f}" for _ in range(RANDOM))]:
        shutil.rmtree("cut", ignore_errors=True)
        code = run(words, moment)
        if code == 0:  # it ended before the moment came
            assert contents(Path("cut")) == whole, moment
            continue
        kills += 1
        assert run(words) == 0, moment
        assert contents(Path("cut")) == whole, moment
    print(f"training: {kills} kills")
    assert kills >= 40


def test_evaluation(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("images").mkdir()
    for number in range(12):
        Image.fromarray(np.full((64, 64, 3), 20 * number, np.uint8)).save(f"images/{number}.png")
    Path("prompts.txt").write_text("\n".join(f"a photo of {number} cats" for number in range(12)) + "\n")
    words = ["evaluate", "task=pickscore", "images=images", "prompts=prompts.txt", "engine=mini"]
    inputs = contents(Path("images"))
    assert run([*words, "out=whole.csv"]) == 0
    kills = 0
    times = random.Random(1)
    for moment in [*moments(2), *(f"{times.uniform(0.1, 2):.2f}" for _ in range(RANDOM))]:
        kills += run([*words, "out=cut.csv"], moment) != 0
        assert run([*words, "out=cut.csv"]) == 0, moment
        assert Path("cut.csv").read_bytes() == Path("whole.csv").read_bytes(), moment
        assert contents(Path("images")) == inputs
    print(f"evaluation: {kills} kills")
    assert kills >= 3


def test_report(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    results = write_matrix(tmp_path, arms=("flow_grpo", "star"), seeds=(0, 1), tasks=("ocr",))
    assert run(["report", str(results)]) == 0
    whole = contents(results)
    kills = 0
    for moment in moments(12):
        for name in ("report.html", "report.md", "ocr.md", "ocr.png"):
            (results / name).unlink()
        shutil.rmtree(results / "tables")
        code = run(["report", str(results)], moment)
        kills += code != 0
        assert run(["report", str(results)]) == 0
        assert contents(results) == whole, moment
    print(f"report: {kills} kills")
    assert kills >= 10


def test_matrix(pipeline_folder, tmp_path, monkeypatch):
    """The matrix itself is killed; a cell that outlives it is waited for, and one that is done is not run again."""
    monkeypatch.chdir(tmp_path)
    words = train(pipeline_folder, "")[1:-1] + ["method=star", "seed=0", "launcher.at_once=1"]
    (tmp_path / "whole").mkdir()
    monkeypatch.chdir(tmp_path / "whole")
    assert run(["matrix", *words]) == 0
    whole = contents(Path("runs"))
    kills = 0
    times = random.Random(2)
    for number, moment in enumerate([*moments(5), *(f"{times.uniform(1, 30):.2f}" for _ in range(RANDOM // 2))]):
        place = tmp_path / f"cut{number}"
        place.mkdir()
        monkeypatch.chdir(place)
        kills += run(["matrix", *words], moment) != 0
        assert run(["matrix", *words]) == 0, moment
        assert contents(Path("runs")) == whole, moment
        ended = [json.loads(line) for file in Path("runs").rglob("attempts.jsonl") for line in file.read_text().splitlines()]
        assert sum(attempt["reason"] is None for attempt in ended) <= 2, moment
        shutil.rmtree(place)
    print(f"matrix: {kills} kills")
    assert kills >= 10
