"""Records as GenEval writes them and as other tools do, and the engine that fits them."""

import json
import os

import numpy as np
import pytest
from geneval_layout import evaluate_folder, save_folder
from PIL import Image

from evaluators.geneval import evaluate
from evaluators.geneval.prompts import MINI, OFFICIAL, generate
from evaluators.geneval.records import read_record
from evaluators.score import score
from star.common.errors import UserError

DOG = {"class": "dog", "count": 1}
CAT = {"class": "cat", "count": 2, "color": "red", "position": ["left of", 0]}
RECORD = {"tag": "counting", "include": [DOG, CAT], "exclude": [{"class": "dog", "count": 2}], "prompt": "a photo"}
FILLED = {"color": None, "position": None}


def record(**changes):
    return RECORD | changes


def read(tmp_path, content):
    file = tmp_path / "metadata.jsonl"
    file.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return read_record(file)


@pytest.mark.parametrize(
    "written",
    [
        RECORD,
        record(include=json.dumps(RECORD["include"]), exclude=json.dumps(RECORD["exclude"])),
        record(include=str(RECORD["include"]), exclude=str(RECORD["exclude"])),
        record(include=[DOG | {"count": 1.0}, CAT | {"count": 2.0, "position": ["left of", 0.0]}]),
        record(include=[DOG | FILLED, CAT | {"position": '["left of", 0]'}]),
        record(include=[DOG | {"color": float("nan")}, CAT], note=None),
        b"\xef\xbb\xbf" + json.dumps(RECORD, indent=2).encode(),
    ],
)
def test_what_other_tools_make_of_a_record_is_undone(tmp_path, written):
    assert read(tmp_path, written) == RECORD


def test_an_exclude_that_was_filled_up_is_none(tmp_path):
    assert "exclude" not in read(tmp_path, record(tag="two_object", exclude=None))


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (record(include={"class": ["dog"], "count": [1]}), '"include" is not a list'),
        (record(include="dog"), '"include" is not a list'),
        (record(include=[DOG | {"count": True}]), '"count" is missing or below 1, or no whole number'),
        (record(include=[DOG | {"count": 1.5}]), '"count" is missing or below 1, or no whole number'),
        (record(include=[DOG | {"count": "1"}]), '"count" is missing or below 1, or no whole number'),
        (record(include=[DOG | {"colour": "red"}]), '"colour" is none of class, count, color, position'),
        (record(include=[DOG | {"colour\nof it": "red"}]), '"colour of it" is none of class, count'),
        (record(**{"exclude\n": []}), 'must be written "exclude"'),
        (record(include=[DOG | {"color": ["red"]}]), '"color" is no word'),
        (record(include=[DOG, CAT | {"position": ["left of", True]}]), '"position" is not'),
        (record(tag="Counting"), "\"tag\" is 'Counting'; GenEval writes counting"),
        (record(tag="color attr"), "GenEval writes color_attr"),
        (record(tag="countings"), "\"tag\" is 'countings'; GenEval writes counting"),
        (record(tag="color"), "GenEval writes colors"),
        (record(exclude=None), '"exclude" is missing or empty, without which more objects'),
        (record(exclude=[]), '"exclude" is missing or empty, without which more objects'),
        (record(exclude=None, Exclude=RECORD["exclude"]), 'must be written "exclude"'),
        (record(**{" include": [DOG]}), 'must be written "include"'),
        (record(tag="colors", include=[DOG | FILLED]), 'colors needs "color" in 1 of the clauses of "include"'),
        (record(tag="color_attr"), 'color_attr needs "color" in 2 of the clauses of "include"'),
        (record(tag="position", include=[DOG, DOG]), 'position needs "position" in 1 of the clauses'),
        (record(prompt="half \ud800"), "holds half a character"),
        (record(prompt="nothing \0"), "holds a null character"),
        (record(prompt="a\rdog"), "holds a carriage return"),
        (record(prompt=" "), '"prompt" is missing or empty'),
        (b'{"tag": "colors", "tag": "counting"}', "'tag' stands twice in one object"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"include": "' + b"[" * 50_000 + b'"}', '"tag" is missing'),
        (b"\xff\xfe{}", "is not one JSON object"),
    ],
)
def test_what_cannot_be_undone_is_one_clear_line(tmp_path, written, message):
    with pytest.raises(UserError, match=message) as error:
        read(tmp_path, written)
    assert "\n" not in str(error.value)


@pytest.mark.timeout(20)
def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "metadata.jsonl")
    with pytest.raises(UserError, match="metadata.jsonl is a pipe"):
        read_record(tmp_path / "metadata.jsonl")


def test_a_tag_of_another_benchmark_is_its_own(tmp_path):
    assert read(tmp_path, record(tag="styles"))["tag"] == "styles"


@pytest.mark.parametrize("name", ["metadata is a folder", "a folder like ²"])
def test_odd_folders_cost_no_scores(tmp_path, name):
    records = generate(MINI)[:1]
    save_folder(tmp_path / "run", records, [[np.full((64, 64, 3), 128, np.uint8)]])
    if name.endswith("²"):
        (tmp_path / "run/²").mkdir()
        assert len(evaluate.read_records(tmp_path / "run")) == 1
    else:
        (tmp_path / "run/00001/metadata.jsonl").mkdir(parents=True)
        with pytest.raises(UserError, match="00001/metadata.jsonl cannot be read"):  # before anything is scored
            evaluate.judge_folder(tmp_path / "run", evaluate.detector("mini"))


@pytest.mark.parametrize(
    ("records", "engine"),
    [
        (generate(MINI), "mini"),
        (generate(OFFICIAL), "mask2former"),
        ([*generate(MINI)[:3], generate(OFFICIAL)[0]], "mask2former"),
        ([record(include=[{"class": "circle", "count": 1, "color": "pink"}], exclude=[])], "mask2former"),
        ([record(include=[{"class": "circel", "count": 1}], exclude=[])], "mini"),
    ],
)
def test_a_folder_gets_the_engine_that_knows_its_words(records, engine):
    assert evaluate.engine_for(records) == engine


def test_a_folder_of_the_real_geneval_names_its_engine_where_that_is_missing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("STAR_GENEVAL_DETECTOR", raising=False)
    save_folder(tmp_path / "run", [record(tag="counting")], [[np.zeros((512, 512, 3), np.uint8)]])
    with pytest.raises(UserError, match="GenEval's own, which need engine=mask2former: GenEval's detector is not in") as error:
        score("geneval", "run")
    assert "\n" not in str(error.value) and not (tmp_path / "run/geneval.csv").exists()


def test_prompts_and_images_come_in_the_order_of_their_numbers(tmp_path):
    for prompt in ("2", "10", "1"):
        (tmp_path / prompt / "samples").mkdir(parents=True)
        (tmp_path / prompt / "metadata.jsonl").write_text(json.dumps(generate(MINI)[0]))
        for image in ("2", "10", "._1"):
            Image.new("RGB", (64, 64)).save(tmp_path / prompt / "samples" / f"{image}.png")
    rows = evaluate_folder(tmp_path, evaluate.detector("mini"))
    assert rows["filename"].tolist() == [f"{p}/samples/{i}.png" for p in (1, 2, 10) for i in (2, 10)]
