"""The shipped results are of these prompts, and NumPy does not promise that its generators' streams stay as they are."""

import hashlib
from importlib import import_module

import pytest

DIGESTS = {
    "geneval": ("9f71c8a3853c", "709aca7d840c"),
    "ocr": ("f4ba6a273ef4", "919920914196"),  # of all words of the mini world's signs, whose split pretraining took, too
    "pickscore": ("dac29a1e2cc5", "5025996f98d1"),
    "vivid": ("4ff88624a38c", "3351e37af38e"),
}


@pytest.mark.parametrize("task", DIGESTS)
def test_the_mini_scales_prompts_are_those_of_its_results(task):
    module = import_module(f"star.tasks.{task}")
    lists = ([prompt.text for prompt in prompts] for prompts in (module.train("mini"), module.test("mini")))
    assert tuple(hashlib.sha256("\n".join(texts).encode()).hexdigest()[:12] for texts in lists) == DIGESTS[task]
