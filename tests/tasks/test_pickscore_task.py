import numpy as np
import pytest

from evaluators.geneval.prompts import MINI, TAGS, generate
from evaluators.pickscore import score
from star.config import load
from star.tasks import load_task, pickscore


class Scorer:
    """Gives an image's first byte as its score."""

    name = "bytes@0"

    def score(self, prompts, images):
        return np.array([image[0, 0, 0] for image in images], dtype=np.float32)


@pytest.fixture
def make_task(monkeypatch):
    monkeypatch.setattr(score, "engine", {"bytes": Scorer()}.__getitem__)
    return lambda engine, scale: load_task(load([f"scale={scale}", f"evaluators.pickscore={engine}"]), "pickscore")


def test_mini_prompts_are_disjoint_deterministic_and_drawable(make_task):
    task = make_task("bytes", "mini")
    train, test = ({prompt.text for prompt in prompts} for prompts in (task.train, task.test))
    assert not train & test
    assert len(task.test) == len(test) and 120 <= len(test) <= 200
    assert len(task.train) == pickscore.TRAINING_PROMPTS and len(train) > 500
    assert [p.text for p in make_task("bytes", "mini").train[:50]] == [p.text for p in task.train[:50]]
    by_tag = {tag: {r["prompt"] for r in generate(MINI) if r["tag"] == tag} for tag in TAGS}
    assert test == by_tag["single_object"] | by_tag["colors"] | by_tag["two_object"] | by_tag["color_attr"]
    # GenEval's test prompts stay unseen by training on any task.
    assert not train & {record["prompt"] for record in generate(MINI)}


def test_core_words_are_the_content_words(make_task):
    prompt = next(p for p in make_task("bytes", "mini").train if " and " in p.text and "red" in p.text)
    words = [prompt.text[start:end] for start, end in prompt.spans]
    assert words == [word for word in prompt.text.split() if word not in ("a", "an", "photo", "of", "and")]


def test_paper_prompts_without_content_words_are_scored_but_not_trained_on(make_task, monkeypatch):
    texts = {"train": ["a castle in the sky", "what is this and who are you"], "test": ["what is this", "a cat"]}
    monkeypatch.setattr(pickscore, "load_prompts", lambda task, split: texts[split] if task == "pickscore" else None)
    task = make_task("bytes", "paper")
    assert [prompt.text for prompt in task.train] == ["a castle in the sky"]
    assert [prompt.text for prompt in task.test] == ["what is this", "a cat"]


def test_the_reward_is_scaled_and_the_score_is_not(make_task):
    task = make_task("bytes", "mini")
    images = [np.full((2, 2, 3), value, np.uint8) for value in (26, 13, 0, 52)]
    prompts = [task.test[0], task.test[0], task.test[1], task.test[1]]
    verdicts = task.evaluator.submit(prompts, images)()
    assert [v["reward"] for v in verdicts] == [1, 0.5, 0, 2] and [v["score"] for v in verdicts] == [26, 13, 0, 52]
    assert {v["stratum"] for v in verdicts} == {"all"} and all(type(v["score"]) is float for v in verdicts)
    (score,) = task.evaluator.summarise(prompts, verdicts)
    # Prompt means 19.5 and 26: the standard error of the mean of two clusters is half their distance.
    assert score == (task.evaluator.primary, pytest.approx(22.75), pytest.approx(3.25), 4, 2)
    assert task.name == "pickscore"
    assert task.evaluator.protocol == "pickscore-v1/bytes@0" and set(task.evaluator.paired) <= verdicts[0].keys()
