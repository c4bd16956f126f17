"""The first thing that one runs: a page from what ships, without training."""

import io
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from star import demo as module
from star.common.errors import UserError
from star.demo import METHODS, METRICS, demo

SECOND_OF_TWO = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
EXTENDING = Path(__file__).parent / "extending"


def test_it_is_refused_to_a_launcher(tmp_path, monkeypatch):
    """Each process would have drawn a part of the pictures."""
    for name, value in SECOND_OF_TWO.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="star demo takes one process; start it without a launcher"):
        demo(tmp_path / "made", [])
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("word", ["task=ocr", "evaluators.geneval=own_reward:Brightness"])
def test_another_task_or_evaluator_is_refused(tmp_path, monkeypatch, word):
    monkeypatch.syspath_prepend(EXTENDING)
    with pytest.raises(UserError, match="star demo shows GenEval's scores, and .* gives others"):
        demo(tmp_path / "made", [word])


def test_a_prompt_with_two_dollar_signs_is_no_formula():
    dear = "a sign that says $3 or $\\"
    image = np.zeros((4, 4, 3), np.uint8)
    found = {"star": SimpleNamespace(rows=[{"prompt": dear, "correct": True}], samples={dear: image})}
    drawn = module._drawn(found, {dear: np.ones((2, 2))})
    drawn.savefig(io.BytesIO())
    first, last = drawn.axes
    assert first.get_title(loc="left") == dear and first.get_xlabel() == "STAR: right" and not first.title.get_parse_math()
    assert last.get_xlabel() == "weights up to 1.0"


def test_a_page_with_scores_pictures_and_maps_from_what_ships(tmp_path, few_prompts, capsys):
    found = demo(tmp_path / "made", ["evaluation.steps=4", "sampling.steps=4"])
    assert [row[0] for row in found.rows] == ["base", "Flow-GRPO", "STAR"]
    assert "star: note: base, model 1 of 3\n" in (err := capsys.readouterr().err) and "STAR, model 3 of 3\n" in err
    assert len({tuple(row[1:]) for row in found.rows}) == 1 + len(METHODS), "the adapters change nothing"
    assert all(len(row) == 1 + len(METRICS) and "±" in row[1] for row in found.rows)
    page = found.page.read_text().replace("\N{NO-BREAK SPACE}", " ")
    assert "data:image/png;base64," in page and "a diamond below a circle" in page
    assert all(cell in page for cell in found.rows[2])
    assert "those that are wrong" in page and "expected" in page
    with Image.open(found.page.with_name("pictures.png")) as picture:
        assert picture.width > 500 and picture.height > picture.width
    assert sorted(path.name for path in found.page.parent.iterdir()) == ["index.html", "pictures.png"]
