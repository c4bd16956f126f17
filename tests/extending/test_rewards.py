"""A reward of one's own by its path, and mixtures of rewards that cannot be."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_cli import star  # noqa: F401 (a fixture)
from tiny import FAST

from evaluators import registry
from evaluators.interface import MEMBERS, Score, Text, check_verdicts, mean_scores, summary, try_judge
from evaluators.score import score
from star.common.errors import RunStopped, UserError
from star.config import identity, load
from star.matrix import run
from star.matrix.cells import expand
from star.tasks import load_rewards, load_task
from star.training import runs
from star.training.trainer import Trainer

HERE = Path(__file__).parent
OWN = "own_reward:Brightness"
SCORE = Score("brightness", 0.5, 0.25, 2, 1)


@pytest.fixture(autouse=True)
def beside_the_example(monkeypatch):
    monkeypatch.syspath_prepend(HERE)


def lines(config):
    return [json.loads(line) for line in (Path(config.run) / "metrics.jsonl").read_text().splitlines()]


def test_a_reward_of_ones_own_is_mixed_with_the_tasks(make_config):
    config = make_config("task=pickscore", f"+rewards.others.{OWN}=0.5", "train.epochs=1")
    assert config.rewards.others == {OWN: 0.5} and identity(config)["rewards"]["others"] == {OWN: 0.5}
    Trainer(config).run()
    (line,) = lines(config)
    assert 0 < line[f"reward/{OWN}"] < 1 and line["reward"] != line[f"reward/{OWN}"]


def test_a_reward_of_ones_own_is_the_only_one_and_judges_the_evaluation(make_config):
    config = make_config("task=ocr", f"evaluators.ocr={OWN}", "train.epochs=1")
    rows = runs.trained(config)
    assert [row.metric for row in rows] == ["brightness"] and rows[0].protocol.startswith("brightness-v1/mini")
    assert 0 < rows[0].value < 1 and rows[0].prompts == 128
    assert identity(config)["evaluators"] == {"ocr": OWN}


def test_what_a_reward_of_ones_own_gave_is_reported(star, forked_cells, pipeline_folder):  # noqa: F811
    """As the only reward of a task: tables, figures, the report and the diff are of its own score."""
    words = ["task=pickscore", f"evaluators.pickscore={OWN}", *FAST.split(), f"model.path={pipeline_folder}"]
    words += ["train.epochs=1", "evaluation.images=1"]
    assert star("base", *words)[0] == 0
    for method in ("flow_grpo", "star"):
        assert star("train", *words, f"method={method}")[0] == 0
    assert star("matrix", *words, "method=flow_grpo,star", "seed=0")[0] == 0  # which has nothing left to do
    code, out, err = star("report")
    assert code == 0, err
    report = Path("runs/results/mini/report.md").read_text()
    assert "pickscore, brightness" in report and "STAR minus Flow-GRPO is" in report
    assert Path("runs/results/mini/figures/samples-pickscore.png").exists()
    code, out, err = star("diff")
    assert code == 0 and "brightness" in out and "STAR minus Flow-GRPO, yours: " in out and "on reward (seed 0;" in out
    assert "none that can be compared" not in out.split("shipped:")[0]


def test_a_matrix_sees_before_its_first_run_that_the_last_can_be_judged(monkeypatch, pipeline_folder):
    """Every task with its rewards, and every arm with what its maps are made of."""
    words = [*FAST.split(), f"model.path={pipeline_folder}", "~evaluators.ocr=rapidocr", "seed=0"]

    def check(*others):
        cells = expand([*words, "task=geneval,pickscore", *others])
        configs = {cell.task: cell.config for cell in cells}
        arms = {task: {cell.config.method.arm for cell in cells if cell.task == task} for task in configs}
        return run._load_all(configs, arms, {})

    assert check("method=star", f"+rewards.others.{OWN}=1").keys() == {"geneval", "pickscore"}
    with pytest.raises(UserError, match="method.arm=oracle needs to know where in an image .*, which brightness-v1 does not"):
        check("method=flow_grpo,oracle", f"evaluators.pickscore={OWN}")
    first, last = ({prompt.text for prompt in load_task(load(words), name).train} for name in ("geneval", "pickscore"))
    monkeypatch.setattr("own_reward.Brightness.lacks", lambda judge, asked: "record" if asked.text in last - first else "")
    with pytest.raises(
        UserError, match=f"rewards.others.{OWN} cannot judge images of task=pickscore: the prompt .* no record"
    ):
        check("method=star", f"+rewards.others.{OWN}=1")


def test_a_matrix_looks_for_the_evaluators_that_its_runs_use_and_no_others(monkeypatch, pipeline_folder):
    monkeypatch.setattr("evaluators.pickscore.evaluator.Preference.__init__", lambda *_: pytest.fail("PickScore is loaded"))
    words = ["task=geneval", "method=star", "seed=0"]
    _, cell = expand([*FAST.split(), f"model.path={pipeline_folder}", *words])
    assert run._load_all({"geneval": cell.config}, {"geneval": {"star"}}, {}).keys() == {"geneval"}


@pytest.mark.parametrize("task", ["geneval", "ocr"], ids=["its own", "another"])
def test_held_out_prompts_that_are_not_there_are_told_before_the_training(make_config, monkeypatch, task):
    def missing(scale):
        raise UserError("data/ocr/test.txt is missing")

    monkeypatch.setattr("star.tasks.ocr.test", missing)
    config = make_config(f"task={task}", "evaluation.cross_images=1")
    with pytest.raises(UserError, match="data/ocr/test.txt is missing"):
        runs.trained(config)
    assert not Path(config.run).exists()


def test_a_held_out_prompt_that_cannot_be_judged_is_told_before_the_training(make_config, monkeypatch):
    last = load_task(load([]), "pickscore").test[-1].text
    monkeypatch.setattr("own_reward.Brightness.lacks", lambda judge, asked: "mood" if asked.text == last else "")
    config = make_config("task=geneval", f"evaluators.pickscore={OWN}", "evaluation.cross_images=1")
    with pytest.raises(UserError, match="evaluators.pickscore cannot judge .* task=pickscore: the prompt .* has no mood"):
        runs.trained(config)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (lambda *_: {"brightness": 0.5}, "`summarise` must return a list of .*Score, not {'brightness'"),
        (lambda _, *given: mean_scores(*given, {"light": "reward"}), "`primary` is 'brightness', .*; it gives light"),
        (lambda *_: [SCORE, SCORE], "`summarise` gives two scores of 'brightness'"),
        (lambda *_: [SCORE, SCORE._replace(metric="+light")], r"`summarise` gives Score.*light.*; a Score is"),
        (lambda *_: [SCORE._replace(value=torch.tensor(0.5))], r"`summarise` gives Score\(.*tensor.*; a Score is"),
        (lambda *_: [SCORE._replace(images=2.5)], r"`summarise` gives Score\(.*images=2.5.*; a Score is"),
        (lambda *_: [SCORE._replace(value=2e12)], "`summarise` gives numbers out of range: .*value=2000000000000.0"),
        (lambda *_: [SCORE._replace(stderr=-0.1)], "`summarise` gives numbers out of range: .*stderr=-0.1"),
        (lambda *_: [SCORE._replace(prompts=0)], "`summarise` gives numbers out of range: .*prompts=0"),
        (lambda *_: [SCORE._replace(images=2**63)], "`summarise` gives numbers out of range: .*images=9223372036854775808"),
    ],
)
def test_so_are_scores_that_are_not_those_of_an_evaluation(make_config, monkeypatch, given, told):
    monkeypatch.setattr("own_reward.Brightness.summarise", given)
    config = make_config("task=pickscore", f"evaluators.pickscore={OWN}")
    with pytest.raises(UserError, match=f"evaluators.pickscore: {told}"):
        Trainer(config)
    assert not Path(config.run).exists()


@pytest.mark.parametrize("metric", ["ocr_accuracy", "vivid", "geneval_official_brightness"])
def test_a_score_in_percent_is_refused_under_the_name_of_a_rate(metric):
    """No result file would hold it. A mean may miss 1 by the last bit of a float."""
    judge = registry.create(OWN)
    judge.primary, judge.summarise = metric, lambda *_: [SCORE._replace(metric=metric, value=97.6)]
    with pytest.raises(UserError, match=f"mine: `summarise` gives {metric}=97.6, and by its name that is a rate, from 0 to 1"):
        summary("mine", judge, [], [])
    judge.summarise = lambda *_: [SCORE._replace(metric=metric, value=1 + 1e-15)]
    assert summary("mine", judge, [], [])[0].metric == metric


@pytest.mark.parametrize("protocol", ["=v1", "-v1", "+v1", "@v1", " v1", "v1 ", "", "v\r1", "v\n1", "v\0", "\ud800", None])
def test_a_protocol_that_no_result_file_holds_is_told_before_the_training(protocol):
    judge = registry.create(OWN)
    judge.protocol = protocol
    with pytest.raises(UserError, match="mine: `protocol` is .*; write name and version, as in 'brightness-v1'"):
        try_judge("mine", judge, [Text("a circle")], 8)


def test_scores_of_numpy_numbers_are_kept_as_plain_ones(monkeypatch):
    """Which JSON can hold; one that is not finite stops what would report it, but not the trial on white images."""
    judge, asked = registry.create(OWN), [Text("a circle")]
    given = [Score("brightness", np.float32(0.5), np.float64(0.25), np.int64(2), 1)]
    monkeypatch.setattr("own_reward.Brightness.summarise", lambda *_: given)
    (plain,) = summary("mine", judge, asked, [])
    assert plain == SCORE and [type(number) for number in plain[1:]] == [float, float, int, int]
    monkeypatch.setattr("own_reward.Brightness.summarise", lambda *_: [SCORE._replace(value=float("nan"))])
    try_judge("mine", judge, asked, 8)
    with pytest.raises(RunStopped, match="mine gives brightness=nan"):
        summary("mine", judge, asked, [])


def test_verdicts_on_a_folder_have_the_form_that_trainings_ask_for(monkeypatch, tmp_path):
    monkeypatch.setattr("own_reward.Brightness.submit", lambda judge, prompts, images: lambda: [{"reward": "0.5"}])
    Image.new("RGB", (64, 64)).save(tmp_path / "one.png")
    (tmp_path / "prompts.txt").write_text("a circle\n")
    with pytest.raises(RunStopped, match="a list of 1 dicts here, .* whose 'reward' is a number, not"):
        score(OWN, str(tmp_path), str(tmp_path / "prompts.txt"))


@pytest.mark.parametrize("member", MEMBERS)
def test_what_an_evaluator_lacks_is_told_when_it_is_named(monkeypatch, member):
    monkeypatch.delattr(f"own_reward.Brightness.{member}")
    with pytest.raises(UserError, match=f"^evaluator {OWN} has no {member}; docs/extending.md"):
        registry.create(OWN)


def test_what_is_wrong_on_batches_alone_is_not_tried_one_by_one(monkeypatch, tmp_path):
    monkeypatch.setattr("own_reward.Brightness.submit", lambda judge, prompts, images: lambda: [{"reward": 1.0}])
    for name in ("1.png", "2.png"):
        Image.new("RGB", (64, 64)).save(tmp_path / name)
    (tmp_path / "prompts.txt").write_text("a circle\na square\n")
    with pytest.raises(RunStopped, match="a list of 2 dicts here"):
        score(OWN, str(tmp_path), str(tmp_path / "prompts.txt"))


def test_scores_of_a_folder_that_are_none_are_told_and_its_images_scores_stay(monkeypatch, tmp_path):
    monkeypatch.setattr("own_reward.Brightness.summarise", lambda *given: [])
    Image.new("RGB", (64, 64)).save(tmp_path / "one.png")
    (tmp_path / "prompts.txt").write_text("a circle\n")
    with pytest.raises(UserError, match=f"task={OWN}: `primary` is 'brightness', which `summarise` does not give"):
        score(OWN, str(tmp_path), str(tmp_path / "prompts.txt"))
    assert len((tmp_path / "brightness.csv").read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (lambda images: lambda: [{"stratum": "all"}] * len(images), "a list of 2 dicts .* 'reward' is a number, not"),
        (lambda images: lambda: [{"reward": 1.0}], r"a list of 2 dicts .*, not \[\{'reward': 1.0\}\]"),
        (lambda images: lambda: [{"reward": torch.tensor(0.5)}] * len(images), "'reward' is a number, not .*tensor"),
        (lambda images: lambda: [{"reward": float("nan")}] * len(images), "gives reward=nan: its weights are"),
        (lambda images: [{"reward": 1.0}] * len(images), "`submit` must return a function that waits"),
        (lambda images: lambda: [{"stratum": "all", "reward": 1.0, "image": 3}] * len(images), "gives .image. in its verd"),
    ],
)
@pytest.mark.parametrize("word", [f"+rewards.others.{OWN}=0.5", f"evaluators.pickscore={OWN}"])
def test_what_judges_otherwise_than_it_must_is_told_before_anything_is_drawn(make_config, monkeypatch, given, told, word):
    monkeypatch.setattr("own_reward.Brightness.submit", lambda judge, prompts, images: given(images))
    config = make_config("task=pickscore", word)
    name = "rewards.others.own_reward:Brightness" if "others" in word else "evaluators.pickscore"
    with pytest.raises(UserError, match=f"^{name}:? .*{told}"):
        Trainer(config)
    assert not Path(config.run).exists()


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"why": "dark\rand small"}, "'why': .*, with a carriage return; leave that out"),
        ({"why": "a \0"}, "with a null character"),
        ({"why": "\ud800"}, "half a character"),
        ({"wh\ry": 1}, "with a carriage return"),
        ({"terms": 1}, "'terms' in its verdicts, a column of every table"),
        ({"trained_on": 1}, "'trained_on' in its verdicts, a column of every table"),
    ],
)
def test_a_verdict_that_tables_cannot_hold_is_refused(more, told):
    with pytest.raises(UserError, match=f"^mine gives .*{told}"):
        check_verdicts("mine", [{"reward": 1.0} | more], 1)


@pytest.mark.parametrize("others", [(), ("+rewards.others.pickscore=0.5",)], ids=["judged in the end", "mixed in"])
def test_so_is_the_evaluator_of_another_task(make_config, monkeypatch, others):
    monkeypatch.setattr("own_reward.Brightness.submit", lambda judge, prompts, images: lambda: [])
    words = ("task=geneval", "~evaluators.ocr=rapidocr", f"evaluators.pickscore={OWN}", "evaluation.cross_images=1")
    config = make_config(*words, *others)
    with pytest.raises(UserError, match="(evaluators|rewards.others).pickscore: `submit` must return"):
        runs.trained(config)
    assert not Path(config.run).exists()


def test_a_tasks_own_evaluator_may_be_a_class_of_ones_own(monkeypatch):
    """As in a task of one's own: what its module names is what the settings name as its engine."""
    assert type(registry.create(OWN, OWN)).__name__ == "Brightness" == type(registry.create(OWN)).__name__
    with pytest.raises(UserError, match="engine=mini: .* has no engines"):
        registry.create(OWN, "mini")


def test_a_folder_is_scored_by_an_evaluator_of_ones_own(tmp_path):
    for name, grey in (("a.png", 51), ("b.png", 102)):
        Image.fromarray(np.full((4, 4, 3), grey, np.uint8)).save(tmp_path / name)
    (tmp_path / "prompts.txt").write_text("a dark picture\na grey picture\n")
    scores = score(OWN, str(tmp_path), str(tmp_path / "prompts.txt"))
    assert scores["value"].tolist() == pytest.approx([0.3]) and scores["protocol"].tolist() == ["brightness-v1"]
    assert (tmp_path / "brightness.csv").exists()


def test_an_engine_for_an_evaluator_of_ones_own_is_refused(tmp_path):
    with pytest.raises(
        UserError, match="engine=fast: own_reward:Brightness is an evaluator of your own, which has no engines"
    ):
        registry.create(OWN, "fast")


# Task, reward, and what the task's prompts lack of it; all six pairs of a task with the reward of another.
PAIRS = [
    ("geneval", "pickscore", ""),
    ("ocr", "pickscore", ""),
    ("pickscore", "geneval", ""),
    ("ocr", "geneval", "GenEval record"),
    ("geneval", "ocr", "text in double quotes"),
    ("pickscore", "ocr", "text in double quotes"),
]


@pytest.mark.parametrize(("task", "reward", "lack"), PAIRS)
def test_every_pair_of_task_and_reward_works_or_is_refused_before_a_model_is_loaded(task, reward, lack, monkeypatch):
    monkeypatch.setattr("star.models.load", lambda *_: pytest.fail("a model is loaded"))
    config = load([f"task={task}", f"+rewards.others.{reward}=0.5"])
    if not lack:
        evaluator = load_rewards(config, load_task(config, task))[reward]
        prompts = load_task(config, task).train[:2]
        verdicts = evaluator.submit(prompts, [np.full((64, 64, 3), 128, np.uint8)] * 2)()
        assert all(isinstance(verdict["reward"], float | int) for verdict in verdicts)
        return
    with pytest.raises(UserError, match=f"rewards.others.{reward} cannot judge images of task={task}: .* has no {lack}"):
        Trainer(config)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["+rewards.others.own_reward:Missing=1"], "the module own_reward has no 'Missing'"),
        (["+rewards.others.nowhere.at_all:Reward=1"], "there is no module 'nowhere'"),
        ([f"+rewards.others.{OWN}=much"], "must be a number, the weight of the reward"),
        ([f"+rewards.others.{OWN}=inf"], "must be a finite number"),
        (["+rewards.others.own_reward=1"], "not another task; there are: ocr, pickscore, and your own as"),
        (["evaluators.geneval=own_reward:Missing"], "the module own_reward has no 'Missing'"),
    ],
)
def test_paths_that_lead_nowhere_are_one_line(words, message):
    with pytest.raises(UserError, match=message) as caught:
        config = load(words)
        load_rewards(config, load_task(config, "geneval"))
    assert "\n" not in str(caught.value)


def test_the_registry_names_what_there_is():
    assert list(registry.EVALUATORS) == ["geneval", "ocr", "pickscore", "vivid"]
    with pytest.raises(UserError, match="no evaluator 'style'; there are geneval, ocr, pickscore, vivid, and your own as"):
        registry.find("style")
    metrics = [registry.find(name).primary for name in registry.EVALUATORS]
    assert len(set(metrics)) == len(metrics)  # reports find an evaluator by its main metric
