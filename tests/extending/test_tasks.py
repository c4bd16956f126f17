"""A task of one's own in a copy of the package: three files. And an engine: its class and a line."""

import os
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from evaluators.geneval import evaluate
from evaluators.geneval.official import engines as detectors
from evaluators.interface import Score
from evaluators.ocr import evaluator as ocr
from star.common.errors import UserError
from star.config import load
from star.tasks import Prompt, load_task

ROOT = Path(__file__).parents[2]

PROMPTS = '''"""Prompts about rings: the core word is the ring."""

from star.tasks import Prompt

EVALUATOR = "pickscore"


def train(scale: str) -> list[Prompt]:
    return [_prompt(f"a photo of a {colour} ring") for colour in ("red", "blue", "green")]


def test(scale: str) -> list[Prompt]:
    return [_prompt("a photo of a ring")]


def _prompt(text: str) -> Prompt:
    return Prompt(text, ((text.index("ring"), text.index("ring") + 4),))
'''

PROGRAM = """
from star.config import load
from star.tasks import load_rewards, load_task
config = load(["task=rings"])
task = load_task(config, "rings")
assert [task.train[0].text[slice(*span)] for span in task.train[0].spans] == ["ring"], task.train[0]
assert load_rewards(config, task) == {} and task.evaluator.primary == "pickscore"
geneval = load(["task=geneval", "+rewards.others.rings=0.5"])
assert list(load_rewards(geneval, load_task(geneval, "geneval"))) == ["rings"]
print(config.task.beta, task.evaluator.protocol)
"""


def test_a_task_is_three_files(tmp_path):
    for package in ("star", "evaluators", "baselines"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    # 1: its prompts and core words, and who judges them.
    (tmp_path / "star" / "tasks" / "rings.py").write_text(PROMPTS)
    # 2: its settings.
    (tmp_path / "star" / "config" / "files" / "task" / "rings.yaml").write_text("name: rings\nbeta: 0.02\n")
    # 3: the engine that judges it at a scale.
    mini = tmp_path / "star" / "config" / "files" / "scale" / "mini.yaml"
    mini.write_text(mini.read_text().replace("  pickscore: mini\n", "  pickscore: mini\n  rings: mini\n"))
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    run = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("0.02 pickscore-v1/taste_weights@")


def test_no_two_engines_have_one_name():
    """It tells their rows apart; an engine made from another has that one's name, unless it says its own."""
    for made, engines in ((ocr.engine, ocr.ENGINES), (evaluate.detector, ("mini", *detectors.ENGINES))):
        names = []
        for engine in engines:
            with suppress(UserError):  # its weights or packages are not on this machine
                names.append(made(engine).name)
        assert names and len(set(names)) == len(names)


class Shouting:
    """An engine that reads the same of every picture."""

    name = "shouting-1"

    def lines(self, image):
        return ["STAR"]


def test_an_engine_is_its_class_and_a_line(monkeypatch):
    monkeypatch.setitem(ocr.ENGINES, "shouting", Shouting)
    task = load_task(load(["task=ocr", "evaluators.ocr=shouting"]), "ocr")
    task.evaluator.pool._workers = 0  # the class is this test's own
    prompts = [Prompt('a sign that says "STAR"', ((18, 22),)), Prompt('a sign that says "SIGN"', ((18, 22),))]
    verdicts = task.evaluator.submit(prompts, [np.zeros((8, 8, 3), np.uint8)] * 2)()
    assert task.evaluator.protocol == "ocr-v1/shouting-1" and [verdict["exact"] for verdict in verdicts] == [True, False]
    assert task.evaluator.summarise(prompts, verdicts)[1] == Score("ocr_exact", 0.5, pytest.approx(0.5), 2, 2)
