"""Which trainings may be compared: those that differ in nothing but what the table of arms says."""

import pytest

from star.config import load, terms
from star.method.arms import ARMS
from star.records.comparison import alike


def of(*words):
    return terms(load(list(words)))


def test_arms_as_the_table_has_them_are_alike_whatever_their_seed():
    assert {of(f"method={name}", "seed=3") for name in ARMS} == {of()}


@pytest.mark.parametrize(
    "word", ["method.steps=equal", "method.clip=kl", "method.clip_range=1e-6", "method.weighted_kl=true", "train.lr=1e-3"]
)
@pytest.mark.parametrize("method", ["star", "flow_grpo", "star_shuffled"])
def test_what_changes_an_update_beside_that_is_another_training(method, word):
    assert not alike(method, of(f"method={method}", word), "dense_uniform", of("method=dense_uniform"))
    assert not alike(method, of(f"method={method}", word), method, of(f"method={method}"))
    assert alike(method, of(f"method={method}", word), "spatial", of("method=spatial", word))  # where both have it


def test_another_ratio_is_another_training_unless_it_is_the_arms():
    assert of("method=star", "method.reduction=position") != of("method=star")
    assert of("method=star", "method.reduction=image_weighted") == of("method=star")
    assert of("method=flow_grpo", "method.reduction=position", "method.name=own") == of("method=dense_uniform")


@pytest.mark.parametrize(
    "word",
    ["method.mix=1", "method.cap=null", "method.exponent=2", "method.normalise=step", "relevance.softmax_over=text",
     "relevance.columns_count=equally"],
)  # fmt: skip
def test_how_maps_are_made_matters_between_arms_that_have_some(word):
    star, own = of("method=star", word), of("method=star", word, "method.name=mine")
    assert not alike("star", star, "star_shuffled", of("method=star_shuffled"))
    assert alike("star", star, "star_shuffled", of("method=star_shuffled", word))
    assert alike("star", star, "flow_grpo", of("method=flow_grpo"))
    assert alike("flow_grpo", of("method=flow_grpo", word), "star", of("method=star"))
    assert alike("mine+fast", own, "flow_grpo+fast", of("method=flow_grpo"))
    assert not alike("mine", own, "star", of("method=star"))


def test_what_is_not_known_counts_as_alike():
    assert alike("star", "", "star_shuffled", "a/b") and alike("star", "a", "flow_grpo", "")
