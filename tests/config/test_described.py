"""Every setting is told, with the value that it has and what its docstring says."""

from dataclasses import fields, is_dataclass

import pytest

from star.common.errors import UserError
from star.config import Config, load
from star.config.described import described


def told(config, *names):
    return {one.name: one for group in described(config, names) for one in group.settings}


def leaves(kind, prefix=""):
    for field in fields(kind):
        own = leaves(field.type, f"{prefix}{field.name}.") if is_dataclass(field.type) else [prefix + field.name]
        yield from own


@pytest.mark.parametrize("scale", ["mini", "paper"])
def test_all_settings_are_told(scale):
    found = told(load([f"scale={scale}"]))
    heads = [name if not name.startswith("evaluators.") else "evaluators" for name in found]
    assert sorted(dict.fromkeys(heads)) == sorted(leaves(Config))
    assert {name for name, one in found.items() if not one.text} == {"evaluators.geneval", "evaluators.ocr"}
    assert all("``" not in one.text and ":`" not in one.text for one in found.values())


def test_texts_are_those_of_the_docstrings():
    found = told(load([]))
    assert found["sampling.steps"].text == "denoising steps."
    assert found["train.betas"].text == found["train.weight_decay"].text == "AdamW's."
    assert found["method.normalise"].text.endswith("of a rollout, or over the positions of each step.")  # a second line


@pytest.mark.parametrize(
    "words",
    [
        ["scale=paper", "preset=gpu8", "variant=fast"],
        ["method=temporal", "method.cap=null", "relevance.heads=[0,1]", "+rewards.others.pickscore=0.5", "seed=3"],
        ["task=ocr", "model.path=/a folder/with=signs", "run=my run", "tracker=wandb"],
    ],
)
def test_a_value_is_the_word_that_gives_it(words):
    config = load(words)
    found = {name: one.value for name, one in told(config).items()}
    mixed = {name: found.pop(name) for name in list(found) if name.startswith("rewards.others.")}
    assert load([*(f"{name}={value}" for name, value in found.items()), *(f"+{n}={v}" for n, v in mixed.items())]) == config


def test_groups_and_single_settings():
    config = load(["scale=paper"])
    assert list(told(config, "task")) == ["task.name", "task.beta", "task.prompts"]
    assert list(told(config, "train.lr", "seed")) == ["seed", "train.lr"]
    assert [group.title for group in described(config, ["train.lr"])] == ["train: The optimisation"]
    assert told(config, "train.lr")["train.lr"].value == str(config.train.lr)


@pytest.mark.parametrize(("name", "meant"), [("trian", "train"), ("train.epoch", "train.epochs"), ("evaluator", "evaluators")])
def test_a_name_of_none_is_one_line(name, meant):
    with pytest.raises(UserError, match=f"^{name} is no setting and no group of settings; did you mean {meant}?"):
        described(load([]), [name])


@pytest.mark.parametrize(
    ("name", "told"),
    [("preset", "scale=paper preset=NAME .*; gpu1, gpu4, gpu8"), ("launcher.cpus", "star matrix, local or submitit")],
)
def test_a_choice_is_told_apart_from_a_setting(name, told):
    with pytest.raises(UserError, match=f"^{name} is no setting and no group of settings; it is a choice.*{told}.*; star set"):
        described(load([]), [name])
