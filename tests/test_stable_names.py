"""The calls that docs/architecture.md promises to keep, made as others would; what they compute is tested elsewhere."""

import re
from ast import literal_eval
from importlib import import_module
from inspect import signature
from pathlib import Path

import pytest
import torch

from evaluators.geneval.prompts import official
from evaluators.geneval.rules import Detection, judge
from evaluators.ocr.reward import text_reward
from star.method import allocation, objective, sampling

PAGE = Path(__file__).parents[1] / "docs" / "architecture.md"
CALLS = re.findall(r"^\| `((?:star|evaluators)[\w.]+)\((.*?)\)` \|", PAGE.read_text(), re.MULTILINE)


@pytest.mark.parametrize(("name", "arguments"), CALLS)
def test_what_the_page_names_can_be_called_so(name, arguments):
    module, _, function = name.rpartition(".")
    found = getattr(import_module(module), function)
    promised = [argument.strip().partition("=") for argument in arguments.split(",") if argument]
    taken = [one for one in signature(found).parameters.values() if one.kind is one.POSITIONAL_OR_KEYWORD]
    assert [one.name for one in taken] == [name for name, *_ in promised]
    assert [one.default for one in taken if one.default is not one.empty] == [literal_eval(it) for *_, it in promised if it]


def test_all_of_them_are_on_the_page():
    assert len(CALLS) == 13


def test_they_give_what_the_page_says():
    sigmas = sampling.sigmas(4, shift=3.0)
    assert sigmas.shape == (5,) and sigmas.dtype == torch.float32 and sigmas[0] == 1 and sigmas[-1] == 0
    x = torch.randn(2, 4, 8, 8)
    moved = sampling.transition(x, torch.zeros_like(x), sigmas, 1, kind="sde", noise_level=0.7)
    assert moved.mean.shape == x.shape and moved.std > 0
    assert sampling.log_prob(x, moved.mean, moved.std, kind="sde").shape == x.shape
    assert objective.advantages([0.0, 1.0], [0, 0], std="batch").tolist() == pytest.approx([-1, 1], abs=1e-3)
    weights = allocation.allocate(torch.rand(3, 2, 4, 4), "star")
    assert weights.mean((0, 2, 3)).tolist() == pytest.approx([1, 1])
    assert len(official()) == 553
    seen = judge(official()[0], {official()[0]["include"][0]["class"]: [Detection((0, 0, 9, 9), 0.9)]})
    assert seen.correct and seen.strict and seen.score == 1 and seen.reason == ""
    assert text_reward("star", ["S T", "AR"]) == 1 and text_reward("star", []) == 0
