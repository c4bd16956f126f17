"""Prompts of one's own by their path: from training to the report."""

import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from test_cli import star  # noqa: F401 (a fixture)
from tiny import FAST

from star.bench.words import identity as measurement
from star.common.errors import UserError
from star.config import identity, load
from star.config.schema import TABLES
from star.matrix.cells import expand
from star.models.memory import needed
from star.models.shapes import SD35_MEDIUM
from star.records.folder import COMMANDS, CURVES, IMAGES, NO_RESULTS
from star.tasks import Prompt, load_rewards, load_task, main_metric, paired_scores
from star.training import runs
from star.training.trainer import Trainer

OWN = ["task=pickscore", "task.prompts=own_task:Rings", "task.name=rings", "+evaluators.rings=mini"]


@pytest.fixture(autouse=True)
def beside_the_example(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent)


def test_it_is_judged_by_the_evaluator_that_it_names():
    config = load(OWN)
    task = load_task(config, "rings")
    assert [prompt.text for prompt in task.test] == ["a photo of a ring"] and len(task.train) == 4
    assert task.name == "rings" and task.evaluator.primary == "pickscore" and load_rewards(config, task) == {}
    other = load_task(config, "geneval")  # which its checkpoints are measured on too
    assert other.evaluator.primary == "geneval_official_macro"
    own = load_task(load([*OWN[:3], "+evaluators.rings=own_reward:Brightness"]), "rings")
    assert own.evaluator.primary == "brightness"


def test_it_trains(make_config):
    config = make_config(*OWN, "train.epochs=1")
    trainer = Trainer(config)
    trainer.run()
    assert trainer.task.train[0].text == "a photo of a red ring"
    assert trainer.evaluate(1)[0].metric == "pickscore"


def test_a_report_tells_of_it(star, forked_cells, pipeline_folder):  # noqa: F811
    words = [*OWN, *FAST.split(), f"model.path={pipeline_folder}"]
    words += ["train.epochs=1", "evaluation.images=1"]
    assert star("base", *words)[0] == 0
    for method in ("flow_grpo", "star"):
        assert star("train", *words, f"method={method}")[0] == 0
    assert star("matrix", *words, "method=flow_grpo,star", "seed=0")[0] == 0  # which has nothing left to do
    assert Path("runs/results/mini/rings.csv").exists()
    code, out, err = star("diff")
    assert code == 0 and "rings, mini" in out and "on PickScore (seed 0;" in out, out
    # What is collected later leaves its lines where they are.
    tables = {name: Path("runs/results/mini", name) for name in (IMAGES, CURVES, COMMANDS)}
    kept = {name: pd.read_csv(table, dtype=str) for name, table in tables.items()}
    tables[COMMANDS].write_text("damaged")  # put aside; the others lose nothing by it
    assert star("base", "task=vivid", *words[len(OWN) :])[0] == 0
    assert star("matrix", "task=vivid", *words[len(OWN) :], "method=flow_grpo", "seed=0")[0] == 0
    for name in (IMAGES, CURVES):
        after = pd.read_csv(tables[name], dtype=str)
        assert set(after["task"]) == {"rings", "vivid"}
        left = after[after["task"] == "rings"].reset_index(drop=True)[list(kept[name].columns)]
        pd.testing.assert_frame_equal(left, kept[name])
    assert star("report")[0] == 0
    report, figures = Path("runs/results/mini/report.md").read_text(), Path("runs/results/mini/figures")
    assert "![Samples of base, Flow-GRPO, STAR side by side. “a photo of a ring”: base " in report
    # Of a check there are none.
    assert {file.name for file in figures.glob("*.png")} == {"maps-rings.png", "samples-rings.png"}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["task.prompts=own_task:Rings"], "task.prompts=own_task:Rings: results need another name for this task"),
        (["task.prompts=rings.txt", "task.name=rings"], "task.prompts=rings.txt is no path of a class of one's own"),
        (["task.prompts=own_task:Rings", "task.name=rings"], r"say what judges it, \+evaluators.rings=ENGINE"),
        ([*OWN[1:], "task.name=curves"], "task.name=curves is no name for a task"),
        ([*OWN[1:], "task.name=../rings"], "is no name for a task"),
        (["task.name=rings"], "task.name=rings: there is no such task; .* by task.prompts=my_module:MyTask"),
        (["task.name=rings", "+evaluators.rings=mini"], "task.name=rings: there is no such task"),
        ([*OWN[1:2], "task.name=PickScore"], "results need another name"),
        ([*OWN[1:2], "task.name=my.rings"], "is no name for a task"),
    ],
)
def test_settings_that_do_not_fit_are_one_line(words, told):
    with pytest.raises(UserError, match=told):
        load(["task=pickscore", *words])


@pytest.mark.parametrize("words", [[], ["task=all"], ["task=geneval,ocr"]], ids=str)
def test_a_matrix_of_it_is_of_one_task(words):
    with pytest.raises(UserError, match="task.prompts=own_task:Rings: one task gives the other settings"):
        expand([*OWN[1:], *words, "method=star", "seed=0"])
    cells = expand([*OWN, "method=flow_grpo,star", "seed=0"])
    assert [cell.task for cell in cells] == ["rings"] * 3


@pytest.mark.parametrize(
    ("split", "prompts", "told"),
    [
        ("train", [], "train.'mini'. must give a list of star.tasks.Prompt, and at least one"),
        ("test", ["a ring"], "test.'mini'. must give a list of star.tasks.Prompt"),
        ("train", [Prompt("a ring", ())], "prompt 1 of train.'mini'. is 'a ring': it needs the spans of its core words"),
        ("train", [Prompt("a ring", (2, 6))], "needs the spans"),
        ("train", [Prompt("a ring", ((2, 9),))], r"'a ring': it needs the spans .* not \(\(2, 9\),\)"),
        ("train", [Prompt("a photo of a ring", ((13, 17),))], "'a photo of a ring' is a training prompt and a test prompt"),
        ("train", [Prompt("a ring", ((2.0, 6.0),))], "needs the spans"),
        ("test", [Prompt("a ring", ())] * 2 + [Prompt("a ring", ((2, 9),))], "prompt 3 of test.*needs the spans"),
        ("test", [Prompt("a ring", None)], "needs the spans .* not None"),
        ("test", [Prompt(" a photo of\ta red  ring\n", ())], "'a photo of a red ring' is a training prompt and a test prompt"),
        ("test", [Prompt(float("nan"), ())], "prompt 1 of test.'mini'. has nan for its text, which is none"),
        ("train", [Prompt(b"a ring", ((2, 6),))], "has b'a ring' for its text"),
        ("test", [Prompt("a ring", ()), Prompt(" \n", ())], "prompt 2 of test.'mini'. is empty; leave it out"),
        ("train", [Prompt("a ring\r", ((2, 6),))], "it holds a carriage return; read its file .* and strip its lines"),
        ("train", [Prompt("a \udce9 ring", ((4, 8),))], "half a character"),
        ("train", [Prompt("\ufeffa ring", ((3, 7),))], "begins with a byte order mark; read its file as utf-8-sig"),
        ("train", [Prompt("a ring", ((2, 6),), None)], "its target must be a dict, not None"),
        ("train", None, "gives no prompts: TypeError"),
    ],
)
def test_prompts_that_nothing_can_be_learnt_from_are_one_line(monkeypatch, split, prompts, told):
    given = (lambda task, scale: prompts) if prompts is not None else (lambda task: [])
    monkeypatch.setattr(f"own_task.Rings.{split}", given)
    with pytest.raises(UserError, match=told):
        load_task(load(OWN), "rings")


@pytest.mark.parametrize("given", [None, ["pickscore"], "own_reward:Brightness"], ids=str)
def test_an_evaluator_that_is_none_is_one_line(monkeypatch, given):
    monkeypatch.setattr("own_task.Rings.evaluator", given)
    with pytest.raises(UserError, match="evaluator must be geneval, ocr, pickscore, vivid, not .*evaluators.NAME="):
        load_task(load(OWN), "rings")


@pytest.mark.parametrize("split", ["train", "test"])
def test_what_its_evaluator_cannot_judge_is_told_before_anything_is_drawn(monkeypatch, split):
    monkeypatch.setattr("own_task.Rings.evaluator", "geneval")
    record = {"tag": "single_object", "include": [{"class": "ring", "count": 1}]}
    other = "test" if split == "train" else "train"
    prompts = {"train": [Prompt("a red ring", ((2, 5),))], "test": [Prompt("a ring", ((2, 6),))]}
    prompts[other] = [replace(prompt, target=record) for prompt in prompts[other]]
    for name, given in prompts.items():
        monkeypatch.setattr(f"own_task.Rings.{name}", lambda task, scale, given=given: given)
    told = f"evaluators.rings cannot judge images of task=rings: the prompt '{prompts[split][0].text}' has no .*; "
    told += "put it into own_task:Rings's prompts, by their target or text"  # OCR reads what to look for from the text
    with pytest.raises(UserError, match=told):
        load_task(load(OWN), "rings")


def test_processes_that_have_other_prompts_are_told(make_config, monkeypatch):
    monkeypatch.setattr("star.common.processes.gather", lambda accelerator, items: [*items, "another"])
    with pytest.raises(UserError, match="task.prompts=own_task:Rings gives other prompts on each process"):
        Trainer(make_config(*OWN))


def test_a_run_does_not_go_on_with_other_prompts(make_config, monkeypatch):
    """Nor are they what its results are of."""
    config = make_config(*OWN, "train.epochs=2")
    Trainer(config).run()
    held_out = [Prompt("a photo of a red ring again", ((15, 19),))]
    with monkeypatch.context() as changed:
        changed.setattr("own_task.Rings.test", lambda task, scale: held_out)
        for done in (True, False):
            with pytest.raises(UserError, match=f"task.prompts=own_task:Rings gives other prompts than when {config.run} was"):
                Trainer(config).run()
            if done:
                shutil.rmtree(Path(config.run, "final"))
    Trainer(config).run()


def test_nor_is_the_base_what_other_prompts_are_compared_with(make_config, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    config = make_config(*OWN, "evaluation.images=1")
    rows = runs.base(config)
    with monkeypatch.context() as changed:
        changed.setattr("own_task.Rings.test", lambda task, scale: [Prompt("a photo of a red ring again", ((15, 19),))])
        with pytest.raises(UserError, match="task.prompts=own_task:Rings gives other prompts than when .*base was measured"):
            runs.base(config)
    assert runs.base(config) == rows


def test_a_measurement_does_not_go_on_with_other_prompts(monkeypatch):
    config = load([*OWN, "method=star"])
    before = measurement(config, load_task(config, "rings"), None)
    monkeypatch.setattr("own_task.Rings.test", lambda task, scale: [Prompt("a photo of a red ring again", ((15, 19),))])
    assert measurement(config, load_task(config, "rings"), None) != before


def test_what_it_was_judged_by_is_part_of_its_identity():
    assert identity(load(OWN), "rings")["evaluators"]["rings"].startswith("taste_weights@")


def test_its_judge_is_counted_as_the_largest():
    words = ["scale=paper", *OWN[:3]]
    needs = [needed(load([*words, f"+evaluators.rings={engine}"]), SD35_MEDIUM).gpu for engine in ("mini", "other")]
    assert needs[1] - needs[0] == 4 * 986e6


def test_no_class_is_one_line():
    with pytest.raises(UserError, match="the module own_task has no 'Balls'"):
        load_task(load([*OWN, "task.prompts=own_task:Balls"]), "rings")


def test_the_metric_of_a_comparison_is_known_by_its_name():
    assert main_metric("rings", {"geneval_official_micro", "geneval_official_macro"}) == "geneval_official_macro"
    assert main_metric("rings", {"brightness"}) == "brightness" == main_metric("pickscore", {"brightness"})
    assert main_metric("rings", {"brightness", "contrast"}) is None
    assert paired_scores("ocr_accuracy") != paired_scores("brightness") == {"reward": "reward"}


def test_the_names_of_tables_are_kept_for_them():
    assert {f"{name}.csv" for name in TABLES} == {*NO_RESULTS, "images.csv"}
