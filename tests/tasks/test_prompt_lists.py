"""The shipped results are of these prompts, and NumPy does not promise that its generators' streams stay as they are."""

import hashlib
from importlib import import_module

import pytest

from star.config import load, options
from star.config.identity import SMALL_CLIP
from star.tasks import check_prompts, load_task

DIGESTS = {
    "geneval": ("9f71c8a3853c", "709aca7d840c"),
    "ocr": ("f4ba6a273ef4", "919920914196"),  # of all words of the mini world's signs, whose split pretraining took, too
    "pickscore": ("dac29a1e2cc5", "5025996f98d1"),
    "vivid": ("4ff88624a38c", "3351e37af38e"),
}


@pytest.mark.parametrize("task", options("task"))
def test_the_mini_scales_prompts_are_those_of_its_results(task):
    module = import_module(f"star.tasks.{task}")
    lists = ([prompt.text for prompt in prompts] for prompts in (module.train("mini"), module.test("mini")))
    assert tuple(hashlib.sha256("\n".join(texts).encode()).hexdigest()[:12] for texts in lists) == DIGESTS[task]


@pytest.mark.parametrize("task", options("task"))
def test_every_prompt_can_be_used_and_no_test_prompt_is_trained_on(task):
    made = load_task(load([f"task={task}"]), task)
    check_prompts(task, "mini", made.train, made.test)
    assert not [prompt.text for prompt in (*made.train, *made.test) if made.evaluator.lacks(prompt)]


def test_the_tasks_of_the_small_clip_are_known_by_its_weights():
    judges = {task: import_module(f"star.tasks.{task}").EVALUATOR for task in options("task")}
    assert tuple(task for task, judge in judges.items() if judge == "pickscore") == SMALL_CLIP
