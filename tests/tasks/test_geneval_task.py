import numpy as np
import pytest

from evaluators.geneval.prompts import MINI, OFFICIAL, TAGS, generate
from evaluators.geneval.rules import Detection
from star.config import load
from star.tasks import geneval, load_task


class Counting:
    """Finds as many of every class as an image's first byte says, all red."""

    name, classes, colors = "counting", MINI.names, MINI.colors

    def __call__(self, images):
        return [{name: [Detection((0, 0, 9, 9), 1.0)] * int(image.flat[0]) for name in MINI.names} for image in images]

    def with_colors(self, image, name, detections):
        return [Detection(d.box, d.score, "red") for d in detections]


@pytest.fixture(scope="module")
def task():
    made = load_task(load(["task=geneval"]), "geneval")
    made.evaluator.detector = Counting()
    return made


def image(count):
    return np.full((2, 2, 3), count, np.uint8)


def test_training_never_sees_a_test_prompt(task):
    train, test = ({prompt.text for prompt in prompts} for prompts in (task.train, task.test))
    assert not train & test and len(task.train) == 4000 and len(train) > 500
    assert [prompt.text for prompt in task.test] == [record["prompt"] for record in generate(MINI)]


def test_the_paper_scale_has_the_official_prompts():
    test = load_task(load(["scale=paper", "evaluators.geneval=mini"]), "geneval").test
    assert [prompt.target for prompt in test] == list(generate(OFFICIAL)) and len(test) == 553


def test_the_paper_scale_trains_on_distinct_prompts_in_the_published_number(monkeypatch):
    asked = []
    monkeypatch.setattr(geneval.geneval, "training", lambda *given, **named: asked.append((given, named)) or [])
    assert geneval.train("paper") == [] and asked == [((OFFICIAL, 50_000, 0), {"distinct": True})]


def test_the_reward_is_the_continuous_score_and_strata_are_tags(task):
    single = next(p for p in task.test if p.target["tag"] == "single_object")
    red, blue = (next(p for p in task.test if p.target["tag"] == "colors" and f" {c} " in p.text) for c in ("red", "blue"))
    prompts = [single, single, single, red, blue]
    verdicts = task.evaluator.submit(prompts, [image(count) for count in (1, 2, 0, 1, 1)])()
    assert [v["reward"] for v in verdicts] == [1, 0, 0, 1, 0.5]
    assert [v["correct"] for v in verdicts] == [True, True, False, True, False]
    assert [v["strict"] for v in verdicts] == [True, False, False, True, False]
    assert [v["stratum"] for v in verdicts] == ["single_object"] * 3 + ["colors"] * 2
    assert {v["stratum"] for v in task.evaluator.submit(task.test, [image(1)] * len(task.test))()} == set(TAGS)
    assert set(task.evaluator.paired) <= verdicts[0].keys()
    score = {score.metric: score for score in task.evaluator.summarise(prompts, verdicts)}[task.evaluator.primary]
    assert score.value == pytest.approx((2 / 3 + 1 / 2) / 2)  # the mean of the tags, not of the images
    assert (score.images, score.prompts) == (5, 3)


def test_core_words_are_those_of_the_record(task):
    prompt = next(p for p in task.test if p.target["tag"] == "color_attr")
    words = {prompt.text[start:end] for start, end in prompt.spans}
    clauses = prompt.target["include"]
    assert words == {clause[key] for clause in clauses for key in ("class", "color")}
