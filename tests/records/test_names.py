import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from star.common.errors import UserError
from star.config import load
from star.config.schema import WORD
from star.records.diff import find_paper
from star.records.names import MethodName, ProtocolName, family, measured_on_own_task, method_label, on_task
from star.records.results import read_paper

WORDS = st.from_regex(WORD, fullmatch=True)


@pytest.mark.parametrize(
    ("text", "arm", "source", "changes", "task", "label"),
    [
        ("star", "star", "", (), "", "STAR"),
        ("flow_grpo@released", "flow_grpo", "released", (), "", "flow_grpo@released"),
        ("flow_grpo+large+fast:ocr", "flow_grpo", "", ("large", "fast"), "ocr", "Flow-GRPO, large, fast (trained for ocr)"),
        ("flow_grpo:geneval@quoted", "flow_grpo", "quoted", (), "geneval", "Flow-GRPO (trained for geneval@quoted)"),
        ("base+guided", "base", "", ("guided",), "", "base, guided"),
        ("star_mix1", "star_mix1", "", (), "", "star_mix1"),
    ],
)  # fmt: skip
def test_what_the_parts_of_a_name_are(text, arm, source, changes, task, label):
    name = MethodName.parse(text)
    assert (name.text, name.arm, name.source, name.changes, name.trained_for) == (text, arm, source, changes, task)
    assert name.label == method_label(text) == label
    assert family(text) == "".join(f"+{change}" for change in changes) and measured_on_own_task(text) == (not task)
    assert name.untrained == (arm == "base") and name.at_home == text.partition(":")[0]


@given(WORDS, WORDS, st.lists(WORDS, max_size=3), WORDS)
def test_a_name_is_the_sum_of_its_parts(arm, source, changes, task):
    text = f"{arm}@{source}" + "".join(f"+{change}" for change in changes) + f":{task}"
    name = MethodName.parse(text)
    assert (name.arm, name.source, list(name.changes), name.trained_for) == (arm, source, changes, task)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a/b",
        "star:",
        ":ocr",
        "star+",
        "star++fast",
        "a@b@c",
        "star:a:b",
        "two words",
        "star\n",
        "стар",
        ".",
        "star:..",
        "star+.x",
    ],
)
def test_what_is_no_name_is_told(text):
    with pytest.raises(UserError, match="is no method's name: write it like star, flow_grpo@released or star"):
        MethodName.parse(text)


@pytest.mark.parametrize(
    "name", ["star:v2", "a/b", "base", "base+guided", "star+", "two words", "a@b@c", "con", "star+Lpt1", "nul.x", "mine."]
)
def test_a_run_cannot_have_a_name_that_results_would_take_for_something_else(name):
    with pytest.raises(UserError, match="method.name=.* is no name for results"):
        load([f"method.name='{name}'"])


@pytest.mark.parametrize("name", ["star_mix1", "flow_grpo+late", "mine@home", "v1.2-b", "icon", "com", "console"])
def test_names_of_ones_own_are_read_as_they_were_written(name):
    arm = "flow_grpo" if name.startswith("flow_grpo") else "star"
    assert MethodName.parse(load([f"method={arm}", f"method.name={name}"]).method.name).text == name


@pytest.mark.parametrize("name", ["flow_grpo", "spatial+late", "flow_grpo@mine", "Flow_GRPO"])
def test_an_arms_name_is_that_arms(name):
    with pytest.raises(UserError, match=f"method.name={re.escape(name)}: in results .* is the arm with the map .*, not star"):
        load(["method=star", f"method.name={name}"])


def test_a_model_of_ones_own_is_a_word():
    with pytest.raises(UserError, match="model.name=a/b must be a word"):
        load(["model.name=a/b"])


def test_published_names_are_names():
    assert all(MethodName.parse(row.method).arm for row in read_paper(find_paper()))


@pytest.mark.parametrize(
    ("text", "evaluation", "engine", "changed", "mini"),
    [
        ("geneval-v1/mini-2/mini", "geneval-v1", "mini-2", False, True),
        ("ocr-v1/rapidocr-3.10.0/paper/guidance=2.0", "ocr-v1", "rapidocr-3.10.0", True, False),
        ("v1", "v1", "", False, False),
        ("v1/minimal/paper", "v1", "minimal", False, False),
    ],
)
def test_what_the_parts_of_a_protocol_are(text, evaluation, engine, changed, mini):
    name = ProtocolName.parse(text)
    assert (name.evaluation, name.engine, name.changed, name.mini, str(name)) == (evaluation, engine, changed, mini, text)


def test_a_protocol_is_made_of_evaluator_scale_and_changes():
    assert str(ProtocolName.of("geneval-v1/mini-2", "mini", {"guidance": 2.0})) == "geneval-v1/mini-2/mini/guidance=2.0"


def test_a_method_on_another_task_says_what_it_was_trained_for():
    assert on_task("star+fast", "ocr", "ocr") == "star+fast" and on_task("star+fast", "ocr", "geneval") == "star+fast:ocr"
    name = MethodName.parse(on_task("star+fast", "ocr", "geneval"))
    assert (name.at_home, name.trained_for) == ("star+fast", "ocr")
