"""A reward that is local by construction: it is of the named objects' pixels and of no others."""

import re

import numpy as np
import pytest

from evaluators.geneval import evaluate
from evaluators.geneval.evaluator import GenEval
from evaluators.geneval.prompts import MINI, single_object, two_object
from evaluators.geneval.rules import Detection
from evaluators.interface import Text, places_of
from evaluators.pickscore.evaluator import Preference
from evaluators.vivid import Vivid
from star import config as settings
from star.common.errors import UserError
from star.matrix.cells import expand
from star.mini.scenes import draw_scene
from star.tasks import load_task


def square(left, top, side=10):
    mask = np.zeros((64, 64), bool)
    mask[top : top + side, left : left + side] = True
    return mask


class Objects:
    """A good and a weak circle, a square, and a heart below the threshold, whatever the image."""

    name, classes, colors = "objects", MINI.names, MINI.colors

    def __call__(self, images):
        circles = [
            Detection((0.0, 0.0, 1.0, 1.0), 0.5, mask=square(20, 0)),
            Detection((0.0, 0.0, 1.0, 1.0), 0.95, mask=square(0, 0)),
        ]
        boxed = [Detection((40.0, 40.0, 50.0, 50.0), 0.9)]
        return [
            {"circle": circles, "square": boxed, "heart": [Detection((0.0, 0.0, 1.0, 1.0), 0.3, mask=square(50, 50))]}
        ] * len(images)


@pytest.fixture
def image():
    """Red where the good circle is, half as vivid in the square, white elsewhere."""
    pixels = np.full((64, 64, 3), 255, np.uint8)
    pixels[square(0, 0)] = (255, 0, 0)
    pixels[square(40, 40)] = (153, 51, 51)
    return pixels


def prompt(record):
    return Text(record["prompt"], record)


CLAUSE = {"class": "circle", "count": 1}


@pytest.mark.parametrize(
    ("target", "lack"),
    [
        ({"tag": "rings", "include": [CLAUSE]}, ""),
        ({"style": "oil"}, "GenEval record"),
        ({"tag": "rings", "include": []}, r'usable GenEval record \("include" is missing or empty\)'),
        ({"tag": "rings", "include": [{"class": "circle"}]}, r'usable GenEval record \("count" is missing .*\)'),
        ({"tag": "rings", "include": [CLAUSE | {"count": 0}]}, r'usable GenEval record \("count" is missing or below 1, .*\)'),
        ({"tag": "Counting", "include": [CLAUSE]}, r"usable GenEval record \(.* GenEval writes counting\)"),
        ({"tag": "rings", "include": [CLAUSE | {"class": "dog"}]}, "GenEval record of what the detector .* knows .'dog' it.*"),
        ({"tag": "rings", "include": [CLAUSE | {"color": "pink"}]}, "GenEval record of what .* knows .'pink' it.*"),
    ],
)
@pytest.mark.parametrize("judge", [GenEval, Vivid])
def test_a_record_that_could_not_be_judged_is_known_before(judge, target, lack):
    """It may lack its prompt, which the prompt's text is."""
    found = judge("mini").lacks(Text("a photo of rings", target))
    assert re.fullmatch(lack, found)


@pytest.mark.parametrize(
    ("record", "reward", "found", "mask"),
    [
        (single_object("circle"), 1.0, 1.0, square(0, 0)),  # the best alone, not the weak one
        (single_object("square"), 0.4, 1.0, square(40, 40)),  # its box, where there is no mask
        (two_object("circle", "square"), 0.7, 1.0, square(0, 0) | square(40, 40)),
        (two_object("circle", "star"), 0.5, 0.5, square(0, 0)),  # what is not found is 0
        (single_object("heart"), 0.0, 0.0, square(0, 0, 0)),  # below the threshold
    ],
)
def test_only_the_named_objects_pixels_count(image, monkeypatch, record, reward, found, mask):
    monkeypatch.setattr(evaluate, "detector", lambda engine: Objects())
    judge = Vivid("objects")
    (verdict,) = judge.submit([prompt(record)], [image])()
    assert (verdict["reward"], verdict["found"], verdict["stratum"]) == pytest.approx((reward, found, "all"))
    (place,) = places_of(judge)([prompt(record)], [image])
    assert place.dtype == bool and np.array_equal(place, mask)
    other = image.copy()
    other[~mask] = (0, 0, 255)
    assert judge.submit([prompt(record)], [other])() == [verdict]


def test_a_drawn_scene_is_as_vivid_as_its_colours():
    record = two_object("circle", "star")
    painted = [{**clause, "color": color} for clause, color in zip(record["include"], ("orange", "black"), strict=True)]
    image, _ = draw_scene({**record, "include": painted}, np.random.default_rng(1))
    judge = Vivid("mini")
    verdict = judge.submit([prompt(record)], [image])()[0]
    assert verdict["found"] == 1 and 0.35 < verdict["reward"] < 0.5  # half of orange's 0.9
    (mask,), (whole,) = (places_of(one)([prompt(record)], [image]) for one in (judge, GenEval("mini")))
    assert np.array_equal(mask, whole)
    scores = {score.metric: score.value for score in judge.summarise([prompt(record)], [verdict])}
    assert scores == {"vivid": verdict["reward"], "vivid_found": 1.0} and judge.protocol == "vivid-v1/mini-2"


def test_a_prompt_without_a_record_cannot_be_judged():
    assert Vivid("mini").lacks(Text("a photo of a circle")) == "GenEval record"


def test_the_task_has_objects_and_pairs_and_keeps_its_test_apart():
    task = load_task(settings.load(["task=vivid"]), "vivid")
    train, test = ({p.text for p in prompts} for prompts in (task.train, task.test))
    assert len(train) == len(task.train) and not train & test
    assert {p.target["tag"] for p in task.train} == {p.target["tag"] for p in task.test} == {"single_object", "two_object"}
    assert all(p.text[slice(*p.spans[-1])] == p.target["include"][-1]["class"] for p in task.train)
    assert not any("color" in clause for p in task.train for clause in p.target["include"])


def test_it_is_of_the_mini_world():
    with pytest.raises(UserError, match="task=vivid is of the mini world, and has no prompts for scale=paper; use scale=mini"):
        load_task(settings.load(["task=vivid", "scale=paper"]), "vivid").train  # noqa: B018


def test_it_is_no_part_of_the_matrix_nor_of_other_tasks_evaluations():
    assert {cell.task for cell in expand(["seed=0"])} == {"geneval", "ocr", "pickscore"}
    assert {cell.task for cell in expand(["task=vivid", "seed=0"])} == {"vivid"}
    assert "vivid" not in settings.other_tasks(settings.load(["task=geneval"]))


def test_a_target_that_is_no_record_has_no_objects(image):
    """Of prompts that need none: PickScore's."""
    prompts = [Text("a painting", {"style": "oil"}), prompt(single_object("circle")), Text("a painting")]
    found = places_of(Preference("mini"))(prompts, [image] * 3)
    assert not found[0].any() and not found[2].any()
