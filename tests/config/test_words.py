"""Words of a command that cannot be meant, and values that are plain text."""

from pathlib import Path

import pytest

from star.common.errors import UserError
from star.config import load
from star.matrix import launchers


@pytest.mark.parametrize(
    ("word", "told"),
    [
        *((f"{key}={value}", f"^{key}= has no value; write one, or leave it out$")
          for key in ("run", "model.path", "method.name", "tracker", "evaluators.ocr") for value in ("", "''", ' " "')),
        ("+evaluators.foo=bar", "evaluators.foo: there is no such task; there are: geneval, ocr, pickscore"),
        ("~evaluators.geneval", "no setting; write key=value"),
        ("~evaluators.geneval=mini", "only for ocr, pickscore; say what judges it, \\+evaluators.geneval=ENGINE"),
        ("+scale=0", r"\+scale is no setting; write scale=... without signs before it"),
        ("++task=ocr", r"\+\+task is no setting; write task="),
        ("++run=x", r"\+\+run is no setting"),
        ("scale=0", "no scale '0'; there are: mini, paper"),
        *((f"method.name='{name}'", "is no name for results")
          for name in ("base", "Base", "base+x", "a/b", "a:b", " x", "x ", "..", ".x", "\u00e9", "a@b@c")),
        ("model.name=..", "must be a word"),
        ("method.name=a(b", "'method.name=a\\(b' cannot be read; put a value with signs in it in quotes"),
        ("seed=9223372036854775808", "seed=9223372036854775808 must be less than"),
        ("evaluation.seed=-1", "evaluation.seed=-1 must not be negative"),
        ("model.text_length=100000", "model.text_length=100000 must lie between 1 and 512"),
        ("++rewards=1", "settings: "),
        ("++rewards={others: 3}", "settings: "),
        ("++rewards.others=[1]", "settings: "),
        ("++train=1", "settings: "),
        ("++sampling.window_range={a: 1}", "settings: "),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_one_line(word, told):
    with pytest.raises(UserError, match=told) as caught:
        load([word])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", ["a=b", "a(b", "x#y", "[x]", "sch\u00f6n", "a b", "it's", "{x}", "a,b", "C:\\x"])
@pytest.mark.parametrize("key", ["run", "model.path"])
def test_paths_are_plain_text(key, value):
    config = load([f"{key}={value}"])
    assert (config.run if key == "run" else config.model.path) == value


def test_the_home_folder_is_found_and_quotes_are_taken_off(monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    config = load(["run=~/runs/x", "model.path='~/model'"])
    assert (config.run, config.model.path) == ("/home/somebody/runs/x", "/home/somebody/model")
    assert load(["model.path=null"]).model.path is None
    assert Path(load(["run=null"]).run).parts[0] == "runs"


@pytest.mark.parametrize(
    "word", ['launcher.at_once="', "launcher.at_once=[", "launcher.at_once={", "launcher.gpus_per_node=x"]
)
def test_options_of_a_launcher_that_cannot_be_read_are_one_line(word):
    with pytest.raises(UserError, match="launcher=local: .*; its options are: gpus_per_node, at_once") as caught:
        launchers.load([word])
    assert "\n" not in str(caught.value)
