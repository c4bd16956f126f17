"""Where in an image a verdict comes from."""

import numpy as np
import pytest
from tiny_clip import save_tiny_clip

from evaluators.geneval import evaluate
from evaluators.geneval.evaluator import GenEval
from evaluators.geneval.mini import MiniDetector
from evaluators.geneval.prompts import MINI, generate
from evaluators.geneval.rules import Detection, filter_detections
from evaluators.interface import Text, places_of
from evaluators.ocr import evaluator as ocr
from evaluators.ocr.evaluator import TextRendering
from evaluators.ocr.paddle import Paddle
from evaluators.pickscore.evaluator import Preference
from star.config import load
from star.mini import signs
from star.mini.scenes import draw_scene
from star.tasks import load_task, sign_words

BLANK = np.full((64, 64, 3), 128, np.uint8)


def square(left, top, side=10):
    mask = np.zeros((64, 64), bool)
    mask[top : top + side, left : left + side] = True
    return mask


def found(score, mask=None, box=(0.0, 0.0, 1.0, 1.0)):
    return Detection(box, score, mask=mask)


class Objects:
    """Two circles, one of them weak, a square and a heart without a mask, whatever the image."""

    name, classes, colors = "objects", MINI.names, MINI.colors

    def __call__(self, images):
        circles = [found(0.95, square(0, 0)), found(0.5, square(20, 0))]
        return [
            {"circle": circles, "square": [found(0.9, square(40, 40))], "heart": [found(0.9, None, (-3.0, 50.4, 9.6, 70.0))]}
        ] * len(images)


def record(tag, *classes, exclude=()):
    clauses = [{"class": name, "count": 1} for name in classes]
    return {"tag": tag, "include": clauses, "exclude": [{"class": name, "count": 2} for name in exclude]}


HEART = np.zeros((64, 64), bool)
HEART[50:, :10] = True


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (record("single_object", "square"), square(40, 40)),
        (record("two_object", "circle", "square"), square(0, 0) | square(20, 0) | square(40, 40)),  # surplus counts as well
        (record("counting", "circle"), square(0, 0)),  # where the threshold is higher
        (record("single_object", "square", exclude=["circle"]), square(40, 40) | square(0, 0) | square(20, 0)),
        (record("single_object", "heart"), HEART),  # its box, within the image
        (record("single_object", "ring"), np.zeros((64, 64), bool)),
    ],
)
def test_geneval_takes_all_objects_of_the_records_classes(asked, expected):
    (mask,) = evaluate.places([asked], [BLANK], Objects())
    assert mask.dtype == bool and np.array_equal(mask, expected)


def test_a_drawn_scene_is_judged_by_its_objects():
    prompts = [next(r for r in generate(MINI) if r["tag"] == tag) for tag in ("two_object", "counting", "position")]
    images = [draw_scene(prompt, np.random.default_rng(i))[0] for i, prompt in enumerate(prompts)]
    evaluator = GenEval("mini")
    masks = places_of(evaluator)([Text(prompt["prompt"], prompt) for prompt in prompts], images)
    for prompt, image, mask in zip(prompts, images, masks, strict=True):
        (seen,) = MiniDetector()([image])
        objects = filter_detections(seen, prompt["tag"])
        assert set(objects) == {clause["class"] for clause in prompt["include"]}
        assert np.array_equal(mask, np.any([d.mask for own in objects.values() for d in own], axis=0))
        assert 0.02 < mask.mean() < 0.5


def test_a_wrong_picture_has_places_too():
    wanted = record("two_object", "circle", "star")
    assert evaluate.places([wanted], [BLANK], Objects())[0].sum() == 200  # the star is missing


def test_signs_are_judged_by_their_lines():
    evaluator = TextRendering("rapidocr")
    sign = signs.draw_sign("STAR", np.random.default_rng(3))
    written, empty = places_of(evaluator)([Text(sign_words.prompt("STAR"))] * 2, [sign, BLANK])
    assert written.shape == sign.shape[:2] and written.dtype == bool and not empty.any()
    rows, columns = np.nonzero(written)
    assert 0.2 < written.mean() < 0.6
    # Nothing is read outside of it, and all of it inside.
    outside = np.where(written[..., None], np.uint8(128), sign)
    inside = np.where(written[..., None], sign, np.uint8(128))
    engine = evaluator.pool.engine
    assert engine.lines(outside) == () and engine.lines(inside) == ("STAR",)
    assert rows.max() - rows.min() < columns.max() - columns.min()


def test_outlines_are_filled():
    outlines = [np.array([[1, 2], [6, 2], [6, 4], [1, 4]]), np.array([[8.0, 0.0], [9.0, 0.0], [9.0, 9.0], [8.0, 9.0]])]
    expected = np.zeros((10, 12), bool)
    expected[2:5, 1:7] = expected[0:10, 8:10] = True
    assert np.array_equal(ocr._inside(outlines, (10, 12, 3)), expected)


class Reader:
    name = "reader"

    def lines(self, image):
        return []


def test_an_engine_that_only_reads_has_no_places(monkeypatch):
    monkeypatch.setitem(ocr.ENGINES, "reader", Reader)
    assert places_of(TextRendering("reader")) is None


def test_paddles_lines_are_those_it_recognised():
    engine = Paddle.__new__(Paddle)
    engine._flow_grpo_compat = False
    polygon = np.array([[1, 1], [3, 1], [3, 2], [1, 2]])
    seen = []

    class Engine:
        def predict(self, image):
            seen.append(image)
            return [{"rec_texts": ["A"], "rec_polys": [polygon]}]

    engine.__dict__["_engine"] = Engine()
    image = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    assert engine.outlines(image) == [polygon] and engine.lines(image) == ["A"]
    assert all(np.array_equal(one, image[..., ::-1]) for one in seen) and len(seen) == 2


def test_a_preference_has_places_in_the_mini_world_alone(tmp_path):
    assert places_of(Preference(str(save_tiny_clip(tmp_path / "clip")))) is None
    prompts = load_task(load(["task=pickscore"]), "pickscore").test[:2]
    images = [draw_scene(prompt.target, np.random.default_rng(i))[0] for i, prompt in enumerate(prompts)]
    mini = places_of(Preference("mini"))
    masks = mini(prompts, images)
    geneval = places_of(GenEval("mini"))(prompts, images)
    assert all(np.array_equal(own, other) and own.any() for own, other in zip(masks, geneval, strict=True))
    assert not mini([Text("a photo of a circle")], images[:1])[0].any()  # without a record
