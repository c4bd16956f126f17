"""Cells, their states and times, the loop over them, and the files that it leaves."""

import csv
import gzip
import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path

import forked
import pandas as pd
import pytest
from tiny import FAST

from star import config as settings
from star.common.errors import RunStopped, UserError
from star.config import config_hash
from star.matrix import commands, run
from star.matrix.board import Board
from star.matrix.cells import Cell, State, expand
from star.matrix.collect import collect
from star.matrix.estimate import pace, total
from star.matrix.publish import publish
from star.matrix.run import matrix
from star.method.arms import ARMS
from star.records import results
from star.records.code import committed
from star.records.results import Row
from star.training import runs
from star.training.folder import RunFolder

# Stands in for ``star train`` and ``star base``: quick, and it fails in the way that BEHAVIOUR has for its method.
FAKE_STAR = """
import json, os, signal, sys, time
from pathlib import Path
command, *words = sys.argv[1:]
method = "base" if command == "base" else next((w[7:] for w in words if w.startswith("method=")), "")
how = json.loads(os.environ.get("BEHAVIOUR", "{}")).get(method, "")
if how == "stop":
    sys.exit("some warning\\nstar: collapsed: the reward is 0.1\\nleaked semaphores")
if how == "trace":
    raise RuntimeError("CUDA out of memory")
if how == "caution":
    print("star: caution: groups of 4 are reported to collapse", file=sys.stderr)
    print("star: note: star on ocr, seed 0: 30 epochs", file=sys.stderr)
    raise MemoryError("the true reason")
if how == "die":
    os.kill(os.getpid(), signal.SIGKILL)
if how == "time is up":
    os.kill(os.getpid(), signal.SIGUSR2)
    sys.exit()
if how == "code":
    sys.exit(3)
if how.startswith("sleep"):
    Path("child").write_text(str(os.getpid()))
    time.sleep(float(how[6:]))
    print("awake", flush=True)
if not method:
    sys.exit()
from star import config as settings
from star.records.results import Row
config = settings.load(words)
base = command == "base"
folder = Path(f"runs/mini/{config.task.name}/base" if base else config.run)
(folder / "final").mkdir(parents=True, exist_ok=True)
if not base:
    line = {"epoch": 1, "updates": 2, "images_seen": 192, "seconds": 9.6, "reward": 0.1 + config.seed, "first": {"reward": 1}}
    (folder / "metrics.jsonl").write_text(json.dumps(line) + "\\n")
    (folder / "final" / "summary.json").write_text(json.dumps(line))
for name in [config.task.name] if base else config.evaluators:
    final = folder / "final" / ("" if name == config.task.name else name)
    final.mkdir(exist_ok=True)
    label = method if name == config.task.name else f"{method}:{config.task.name}"
    seed = 1000 if base else config.seed
    known = settings.base_identity(config) if base else settings.identity(config, name)
    row = Row(name, "score", "v1/mini", label, seed, 0.5, None, 2, 1, 0, 0, 0.0, "c", settings.config_hash(known))
    (final / "images.csv").write_text(f'prompt,image,stratum,{name}\\n"a, b",0,all,True\\n"a, b",1,all,0.10\\n')
    (final / "rows.json").write_text(json.dumps([vars(row)]))
"""


@pytest.fixture(autouse=True)
def nothing_ships(tmp_path, monkeypatch):
    """The results of this repository tell nothing of how long these cells take."""
    monkeypatch.setattr("star.records.folder.ROOT", tmp_path)


@pytest.fixture
def fake_star(monkeypatch, tmp_path):
    """Cells run the fake, in an empty folder; the function says how it behaves from then on."""
    (tmp_path / "fake_star.py").write_text(FAKE_STAR)
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    monkeypatch.setitem(commands.MODULES, "star", "fake_star")
    monkeypatch.setattr(run, "check_present", lambda *given: None)
    return lambda **behaviour: monkeypatch.setenv("BEHAVIOUR", json.dumps(behaviour))


def labels(*words: str) -> list[str]:
    return [cell.label for cell in expand(words)]


def attempts(cell: Cell) -> int:
    log = cell.folder / "log.txt"
    return log.read_text().count("$ star") if log.exists() else 0


def test_bases_come_first_then_seed_by_seed_with_the_methods_side_by_side():
    assert labels("task=ocr,geneval", "method=star,flow_grpo", "seed=7,0..1,1") == [
        "ocr base",
        "geneval base",
        *[f"{task} {method} seed {k}" for k in (7, 0, 1) for task in ("ocr", "geneval") for method in ("star", "flow_grpo")],
    ]


def test_without_words_every_task_and_method_and_three_seeds():
    tasks = ("geneval", "ocr", "pickscore")
    arms = ("flow_grpo", "dense_uniform", "spatial", "temporal", "star", "star_shuffled", "star_random")
    found = labels("seed=0")
    assert found == [f"{task} base" for task in tasks] + [f"{task} {arm} seed 0" for task in tasks for arm in arms]
    assert labels("task=ocr", "method=star") == ["ocr base", *(f"ocr star seed {k}" for k in range(3))]
    assert set(ARMS) == set(settings.options("method"))
    # Arms for measurements are run by their names alone.
    assert labels("task=ocr", "method=oracle", "seed=0") == ["ocr base", "ocr oracle seed 0"]


def test_the_last_of_two_lists_counts_so_that_defaults_can_be_overridden():
    assert labels("task=geneval", "seed=0..2", "method=star", "task=ocr", "seed=5") == ["ocr base", "ocr star seed 5"]


def test_a_command_gives_the_settings_of_its_cell():
    for cell in expand(["task=geneval", "method=star", "seed=3", "train.betas=[0.8, 0.9]", "++rewards.others.ocr=0.5"]):
        program, command, *words = shlex.split(shlex.join(cell.command))
        loaded = settings.load(words)
        assert (program, command) == ("star", "base" if cell.seed is None else "train")
        assert loaded == cell.config and loaded.train.betas == [0.8, 0.9]
        assert cell.seed is None or (loaded.seed == 3 and Path(loaded.run) == cell.folder)


def test_the_command_of_a_base_names_nothing_that_it_has_no_use_for():
    words = ["method.mix=1", "method.name=star_mix1", "relevance.blocks=[4]", "sampling.guidance=2"]
    words += ["+rewards.others.pickscore=0.5", "task.beta=0.02"]
    base, arm = expand(["task=ocr", "method=star", "seed=0", *words, "evaluation.images=2"])
    assert base.command == ("star", "base", "task=ocr", "evaluation.images=2")
    assert arm.command[5:-1] == tuple(words)


def test_folders_tell_trainings_apart_and_nothing_else():
    words = ["task=geneval", "method=star", "seed=0"]
    _, cell = expand(words)
    assert cell.folder.parent == Path("runs/mini/geneval/star")
    assert cell.folder.name == f"seed0-{config_hash(settings.identity(settings.load(words)))[:8]}"
    # What star train trained is not trained again.
    assert cell.folder == Path(settings.load(words).run) and list(cell.command) == ["star", "train", *words]
    for same in ("evaluation.images=1", "tracker=tensorboard"):
        assert expand([*words, same])[1].folder == cell.folder
    for other in ("train.epochs=5", "method.cap=4", "relevance.blocks=[1]"):
        assert expand([*words, other])[1].folder != cell.folder


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["method=foo"], "method=foo: no method 'foo'; there are: background, dense_uniform, flow_dppo, flow_grpo"),
        (["method=base"], "no method 'base'"),
        (["method=star,own_arm:peaks"], "a map of your own: method=star method.name=NAME method.arm=own_arm:peaks"),
        (["task=geneval,"], "no task ''; there are: geneval, ocr, pickscore"),
        (["seed=4..2"], "the range 4..2 is empty"),
        (["seed=0..999999999999"], "the range 0..999999999999 has more than 10,000 seeds"),
        (["seed=-1"], "'-1' is no seed"),
        (["seed=-2..1"], "'-2..1' is no seed"),
        ([f"seed={'9' * 5000}"], "... is no seed; write numbers from 0 on"),  # more digits than Python makes a number of
        ([f"seed=0..{'9' * 5000}"], "... is no seed; write numbers from 0 on"),
        ([f"launcher.at_once={'9' * 5000}"], "launcher=local: Exceeds the limit"),
        (["launcher=submitit", "launcher.partition=&a [*a]"], "launcher=submitit: maximum recursion depth exceeded"),
        (["seed="], "'' is no seed"),
        (["seed"], "'seed' is no setting; write key=value"),
        *(([f"{signs}seed=5"], f"{signs}seed=5: write seed=5, without signs before it") for signs in ("+", "++", "~")),
        (["++task=ocr"], "++task=ocr: write task=ocr, without signs before it"),
        (["run=here"], "run=...: the cells of a matrix have their own folders"),
        (["method=star,spatial", "method.name=mine"], "method.name=mine: star, spatial would share a name in the results"),
        (["scale=mini,paper"], "no scale 'mini,paper'"),
        (["train.lr=fast"], "train.lr"),
        (["task=ocr", "~evaluators.ocr=rapidocr"], "scale=mini has no evaluator for it, only for geneval"),
        (["launcher=pbs"], "no launcher 'pbs'; there are: local, submitit"),
        (["launcher.nodes=2"], "its options are: gpus_per_node, at_once"),
        (["method.name=flow_grpo"], "in results flow_grpo is the arm with the map uniform, not star; choose another name"),
        (["method.name=spatial+late"], "in results spatial is the arm with the map spatial, not star"),
        (["train.epochs=1000000"], "train.epochs=1000000 must lie between 1 and 999,999"),
        *(([f"launcher.at_once{end}"], "launcher.at_once= has no value; write one") for end in ("", "=", "= ")),
        (["launcher=submitit", "launcher.partition="], "launcher.partition= has no value; write one, or leave it out"),
        (["launcher.at_once=0"], "launcher.at_once=0 must lie between 1 and 10,000"),
        (["launcher.gpus_per_node=0"], "launcher.gpus_per_node=0 must lie between 1 and 10,000"),
        (["launcher.gpus_per_node=1000000"], "launcher.gpus_per_node=1000000 must lie between 1 and 10,000"),
        (["launcher=submitit", "launcher.timeout=soon"], "launcher=submitit: "),
        (["launcher=submitit", "launcher.cluster=cloud"], "launcher.cluster=cloud is not known; it is slurm or local"),
    ],
)
def test_bad_input_is_one_line(words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=".") as error:
        matrix(["task=geneval", "method=star", "seed=0", *words])
    assert message in str(error.value) and "\n" not in str(error.value)
    assert not list(Path().iterdir())


def test_a_missing_model_is_told_before_anything_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run, "get_context", lambda method: forked.SERVER)
    with pytest.raises(UserError, match="model.path=missing"):
        matrix(["task=geneval", "method=star", "seed=0", "model.path=missing"])
    assert not list(Path().iterdir())


def test_a_process_that_is_killed_while_it_looks_for_models_is_told(monkeypatch):
    def killed(*given, **named):
        raise BrokenProcessPool

    monkeypatch.setattr(run, "ProcessPoolExecutor", killed)
    with pytest.raises(
        RunStopped, match="looks for models and evaluators was killed, perhaps for want of memory; nothing was"
    ):
        run.check_present(expand(["task=geneval", "method=star", "seed=0"]), {})


def test_expected_times_come_from_runs_of_the_same_task_and_scale(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["task=geneval,ocr", "method=star", "seed=0..1", "train.groups=10", "train.group_size=10", "train.micro_batch=10"]
    words += ["train.epochs=20"]
    cells = {cell.label: cell for cell in expand(words)}
    assert pace("mini", "geneval", 100) is None

    def under_way(folder: Path, epoch: int, seconds: float, images: int) -> None:
        folder.mkdir(parents=True)
        line = {"epoch": epoch, "seconds": seconds, "images_seen": images, "reward": 0.5}
        (folder / "metrics.jsonl").write_text(json.dumps(line) + '\n{"epoch": 9, "sec')

    under_way(cells["geneval star seed 0"].folder, 5, 50.0, 500)
    assert pace("mini", "geneval", 100) == (0.1, 0.0)
    # A finished run of like epochs knows better: 60 seconds for 1000 images, and 340 beside, however long a training is.
    under_way(Path("runs/mini/geneval/flow_grpo/trial"), 1, 900.0, 50)
    finished = Path("runs/mini/geneval/flow_grpo/seed0")
    under_way(finished, 10, 60.0, 1000)
    (finished / "final").mkdir()
    (finished / "final" / "summary.json").write_text(json.dumps({"seconds": 60.0, "images_seen": 1000, "updates": 2}))
    tries = [{"seconds": 100.0, "reason": "killed by SIGKILL"}, {"seconds": 300.0, "reason": None}]
    (finished / "attempts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in tries))
    assert pace("mini", "geneval", 100) == (0.06, 340.0)
    assert matrix([*words, "launcher.at_once=1"], dry_run=True) == 0
    lines = capsys.readouterr().out.splitlines()
    comments = [line.partition("  # ")[2] for line in lines[:-1]]
    # 20 epochs of 100 images at 0.06 seconds, and 340; of the run that was cut off three quarters are left, at its own pace.
    assert comments == ["to do, ?"] * 2 + ["cut off, about 0:08:10", "to do, ?", "to do, about 0:07:40", "to do, ?"]
    assert pace("mini", "geneval", 50) == (18.0, 0.0)
    assert [line.partition("  # ")[0] for line in lines[:-1]] == [shlex.join(cell.command) for cell in cells.values()]
    assert lines[-1] == "# matrix: 0 done, 0 running, 0 failed, 6 left, about 0:15:50 and 4 of unknown time"
    assert matrix([*words, "launcher.at_once=2"], dry_run=True) == 0
    assert "6 left, about 0:08:10 and 4 of unknown time, 2 side by side\n" in capsys.readouterr().out
    two_at_once = {cell: State.RUNNING for cell in cells.values() if cell.task == "geneval" and cell.seed is not None}
    assert total(two_at_once) == "about 0:08:10"
    one = {cell: State.NEW for cell in cells.values() if (cell.task, cell.seed) in (("geneval", None), ("geneval", 1))}
    assert total(one, at_once=2) == "about 0:07:40 and 1 of unknown time"  # one run is not faster on two lanes
    three = {cell: State.NEW for cell in expand([*words, "task=geneval", "seed=2..4"])[1:]}
    assert total(three, at_once=2) == "about 0:15:20"


@pytest.mark.parametrize(
    "odd",
    [
        *({"epoch": value} for value in (None, "3", 0, -1, 2.5, True, [1], 10**400)),
        *({"seconds": value} for value in (None, "long", -1.0, 10**400)),
        *({"images_seen": value} for value in (None, 0, "many", {})),
        *({"reward": value} for value in (None, "high", 10**400)),
    ],
)
def test_odd_lines_of_any_log_end_no_matrix(tmp_path, monkeypatch, odd):
    monkeypatch.chdir(tmp_path)
    cell = expand(["task=geneval", "method=star", "seed=0", "train.epochs=20"])[1]
    cell.folder.mkdir(parents=True)
    good = {"epoch": 5, "seconds": 50.0, "images_seen": 500, "reward": 0.5}
    lines = [good, good | odd, {"epoch": 7}]
    (cell.folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    tries = [{"seconds": 9.0, "reason": "broke"}, {"seconds": "9", "reason": None}, {"seconds": 1.0, "reason": 3}]
    (cell.folder / "attempts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in tries))
    (cell.folder / "final").mkdir()
    (cell.folder / "final" / "summary.json").write_text('{"seconds": "1", "images_seen": 1, "updates": 1}')
    assert RunFolder(cell.folder).metrics() == [good] and RunFolder(cell.folder).last() == good
    assert cell.state() is State.FAILED and pace("mini", "geneval", 100) == (0.1, 0.0)
    assert "epoch 5 of 20, reward 0.500" in Board({cell: State.RUNNING}, 1)._running()[0]


def test_logs_that_nobody_may_read_end_no_matrix(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cell = expand(["task=geneval", "method=star", "seed=0"])[1]
    cell.folder.mkdir(parents=True)
    for name in ("metrics.jsonl", "attempts.jsonl"):
        (cell.folder / name).touch()

    def denied(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("star.training.folder.last_of_jsonl", denied)
    monkeypatch.setattr("star.records.attempts.read_jsonl", denied)
    assert cell.state() is State.CUT_OFF and total({cell: cell.state()}) == "?"


def test_before_anything_ran_the_time_is_that_of_the_results_that_are_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert pace("mini", "ocr", 192) is None
    first = Row("ocr", "score", "v1/mini", "base", 1000, 0.5, None, 2, 1, 0, 0, 0.0, "c", "d")
    trained = [replace(first, method=m, seed=0, updates=60, images_seen=1000, seconds=s) for m, s in METHOD_SECONDS]
    elsewhere = [replace(row, seconds=10 * row.seconds) for row in trained]
    results.write([first, *elsewhere], Path("results/mini/ocr.csv"))
    assert pace("mini", "ocr", 192) == (2.5, 0.0), "of the shipped results, which another machine made"
    results.write([first, *trained], Path("runs/results/mini/ocr.csv"))
    assert pace("mini", "ocr", 192) == (0.25, 0.0), "what was measured on the run of another task is no further run"


METHOD_SECONDS = (("star", 200.0), ("flow_grpo", 300.0), ("star:geneval", 900.0))


def test_all_tasks_and_all_arms_by_one_word_each():
    assert labels("task=geneval", "method=star", "task=all", "method=all") == labels()


def test_a_failed_cell_stops_no_other_and_is_tried_again(fake_star, capsys):
    words = ["task=geneval,ocr", "method=flow_grpo,star", "seed=0"]
    cells = {cell.label: cell for cell in expand(words)}
    words.append("launcher.at_once=1")
    failing, fine = cells["geneval star seed 0"], cells["ocr star seed 0"]
    fake_star(star="stop")
    assert matrix(words) == 1
    out, err = capsys.readouterr()
    assert "failed: geneval star seed 0: collapsed: the reward is 0.1 (runs/" in out
    assert "matrix: 4 done, 0 running, 2 failed, 0 left" in out
    assert "matrix: 1 done, 1 running, 0 failed, 4 left, ?; ocr base: running" in err
    assert failing.state() is State.FAILED and fine.state() is State.FAILED
    assert json.loads((failing.folder / "attempts.jsonl").read_text())["reason"] == "collapsed: the reward is 0.1"
    files = [Path(f"runs/results/mini/{task}.csv") for task in ("geneval", "ocr")]
    methods = {(row.task, row.method) for file in files for row in results.read(file)}
    own = {(task, method) for task in ("geneval", "ocr") for method in ("base", "flow_grpo")}
    assert methods == own | {("ocr", "flow_grpo:geneval"), ("geneval", "flow_grpo:ocr")}

    fake_star()
    assert matrix(words) == 0
    assert {label: attempts(cell) for label, cell in cells.items()} == dict.fromkeys(cells, 1) | {
        failing.label: 2,
        fine.label: 2,
    }
    assert "took" not in capsys.readouterr().out
    written = {path: path.read_bytes() for path in Path("runs/results").rglob("*") if path.is_file()}
    assert matrix(words) == 0
    assert matrix(words, dry_run=True) == 0
    assert len(re.findall(r"  # done, took 0:\d\d:\d\d", capsys.readouterr().out)) == 6
    assert {path: path.read_bytes() for path in Path("runs/results").rglob("*") if path.is_file()} == written
    assert sum(attempts(cell) for cell in cells.values()) == 8


def test_a_cell_that_is_to_be_evaluated_otherwise_is_not_done(fake_star):
    words = ["task=ocr", "method=star", "seed=0"]
    assert matrix(words) == 0
    base, cell = expand([*words, "evaluation.images=1"])
    # The base, which is evaluated alone, begins anew in its folder; the training goes on to its evaluation.
    assert (base.state(), cell.state()) == (State.NEW, State.CUT_OFF)
    base, cell = expand([*words, "train.epochs=3"])
    assert (base.state(), cell.state()) == (State.DONE, State.NEW)


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        ("stop", "collapsed: the reward is 0.1"),
        ("trace", "RuntimeError: CUDA out of memory"),
        ("caution", "MemoryError: the true reason"),
        ("die", "killed by SIGKILL (out of memory?)"),
        ("code", "exit code 3"),
        ("time is up", None),
        ("", None),
    ],
)
def test_the_reason_of_a_failure_is_one_line(fake_star, behaviour, reason):
    fake_star(star=behaviour)
    folder = Path("cell")
    folder.mkdir()
    (folder / "log.txt").write_text("star: of an earlier attempt\n")
    list(commands.attempt(folder, ["star", "train", "method=star" if behaviour else "method="]))
    assert json.loads((folder / "attempts.jsonl").read_text())["reason"] == reason


def test_attempts_at_one_cell_wait_for_each_other(fake_star):
    fake_star(star="sleep 1")
    folder = Path("cell")
    first, second = (commands.attempt(folder, ["star", "train", "method=star"]) for _ in range(2))
    next(first)
    next(second)
    assert (folder / "log.txt").read_text().count("$ star") == 1
    first.close()
    second.close()
    lines = (folder / "attempts.jsonl").read_text().splitlines()
    assert [json.loads(line)["reason"] for line in lines] == [None]  # the one that was given up; the other never began


def test_whoever_waits_for_a_cell_says_so_and_a_job_not_for_ever(fake_star, monkeypatch, capsys):
    fake_star(star="sleep 1")
    monkeypatch.setattr(commands, "TELL_SECONDS", 0.0)
    folder = Path("cell")
    words = ["star", "train", "method=star"]
    first, second = commands.attempt(folder, words), commands.attempt(folder, words)
    for going in (first, second, second):
        next(going)
    note = "star: note: waiting for whoever has cell/lock: another matrix, a run that outlived its own, or a node that died"
    assert (folder / "log.txt").read_text().count(note) == capsys.readouterr().err.count(note) == 1
    with pytest.raises(RunStopped, match="somebody else has had cell/lock for 0 seconds"):
        next(commands.attempt(folder, words, patience=0))
    assert json.loads((folder / "attempts.jsonl").read_text())["reason"].startswith("somebody else")
    first.close()
    second.close()


def test_what_cannot_be_written_beside_them_ends_no_run(fake_star, monkeypatch, capsys):
    """A file of results that a spreadsheet has changed, and a board whose files do not answer."""
    words = ["task=geneval", "method=star,flow_grpo", "seed=0", "evaluation.cross_images=0"]

    def unreadable(*arguments):
        raise UserError("geneval.csv does not follow its schema")

    def unreachable(*arguments):
        raise OSError(116, "Stale file handle")

    monkeypatch.setattr(run, "put", unreadable)
    monkeypatch.setattr("star.matrix.board.Board.line", unreachable)
    monkeypatch.setattr(run, "_report", lambda board, folder: None)
    assert matrix(words) == 0
    assert {cell.state() for cell in expand(words)} == {State.DONE}
    told = [line for line in capsys.readouterr().err.splitlines() if "caution" in line]
    assert len(told) == 2 and all("the runs go on" in line for line in told)
    monkeypatch.undo()


def test_a_folder_that_vanishes_costs_its_own_run_alone(fake_star, monkeypatch):
    words = ["task=geneval", "method=star,flow_grpo", "seed=0", "evaluation.cross_images=0"]
    lost = expand(words)[1]
    log = commands.append_jsonl

    def full(file, line):
        if file.parent == lost.folder:
            raise OSError(28, "No space left on device", str(file))
        log(file, line)

    monkeypatch.setattr(commands, "append_jsonl", full)
    assert matrix(words) == 0  # its results were written
    assert [cell.state() for cell in expand(words)] == [State.DONE] * 3


PARENT = """
import sys
from star.matrix import commands, run
commands.MODULES["star"] = sys.argv[1]
run.check_present = lambda *given: None
sys.exit(run.matrix(sys.argv[2:]))
"""


def start(module: str, *words: str, interrupt: signal.Handlers = signal.SIG_DFL) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", PARENT, module, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, interrupt),  # a shell's background jobs ignore Ctrl-C
    )


def wait_for(condition, seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.05)


def alive(pid: int) -> bool:
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout.strip()
    return bool(state) and not state.startswith("Z")


@pytest.mark.parametrize(
    ("number", "interrupt"),
    [(signal.SIGINT, signal.SIG_DFL), (signal.SIGTERM, signal.SIG_DFL), (signal.SIGTERM, signal.SIG_IGN)],
)
def test_ending_a_matrix_ends_its_cell(fake_star, number, interrupt):
    fake_star(base="sleep 60")
    words = ["task=ocr", "method=star", "seed=0"]
    # By itself: one that is still importing may lose an interruption, and is ended by force.
    parent = start("fake_star", *words, "launcher.at_once=1", interrupt=interrupt)
    wait_for(lambda: Path("child").exists() and Path("child").read_text())
    child = int(Path("child").read_text())
    assert alive(child)
    parent.send_signal(number)
    assert b"KeyboardInterrupt" in parent.communicate(timeout=15)[1]  # by force it would take 20 s
    assert not alive(child)
    base, _ = expand(words)
    assert base.state() is State.CUT_OFF
    assert json.loads((base.folder / "attempts.jsonl").read_text())["reason"] is None


def test_a_cell_that_outlives_its_matrix_is_waited_for(fake_star):
    fake_star(base="sleep 3")
    words = ["task=ocr", "method=star", "seed=0"]
    parent = start("fake_star", *words)
    wait_for(lambda: Path("child").exists())
    parent.kill()
    parent.communicate()
    base, arm = expand(words)
    fake_star(base="sleep 0")
    assert matrix(words) == 0
    lines = [line.split()[0] for line in (base.folder / "log.txt").read_text().splitlines()]
    assert lines == ["$", "awake", "$", "awake"]
    assert base.state() is arm.state() is State.DONE


def finish(cell: Cell, verdicts: str, figure: float) -> None:
    """Make up the folder of a cell that is done."""
    for name, folder in cell.measured().items():
        folder.mkdir(parents=True, exist_ok=True)
        label = cell.method if name == cell.task else f"{cell.method}:{cell.task}"
        number = 1000 if cell.seed is None else cell.seed
        row = Row(name, "score", "v1/mini", label, number, figure, None, 2, 1, 4, 8, 1.0, "c", cell.config_hash(name))
        (folder / "rows.json").write_text(json.dumps([vars(row)]))
        (folder / "images.csv").write_text(verdicts)
    if cell.seed is not None:
        lines = [
            {"epoch": k + 1, "updates": 2, "images_seen": 8, "seconds": 1.5, "reward": figure, "kl": 1e-7, "first": {}}
            for k in range(2)
        ]
        (cell.folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"epoch"')


def test_files_hold_what_comparisons_need_and_do_not_depend_on_the_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cells = expand(["task=geneval,ocr", "method=flow_grpo,star", "seed=2,10"])
    for cell in cells:
        verdicts = "stratum,correct,count" if cell.task == "geneval" else "stratum,text"
        values = "two,True,3" if cell.task == "geneval" else 'all,"NA ""x"", y"'
        finish(cell, f"prompt,image,{verdicts}\nb,0,{values}\na,0,{values}\n", 0.25)
    collect(cells, Path("one"))
    for cell in reversed(cells):
        collect([cell], Path("two"))
    for file in ("geneval.csv", "ocr.csv", "curves.csv", "images.csv.gz", "commands.csv"):
        assert Path("one", file).read_bytes() == Path("two", file).read_bytes()

    packed = Path("one/images.csv.gz").read_bytes()
    assert packed[3:8] == bytes(5)  # no name, no time
    images = list(csv.DictReader(io.StringIO(gzip.decompress(packed).decode(), newline="")))
    columns = ["task", "method", "seed", "config_hash", "stratum", "prompt", "image", "correct", "count", "text"]
    assert list(images[0]) == columns
    own = [row for row in images if (row["task"], row["method"], row["seed"]) == ("geneval", "star", "10")]
    star = next(cell for cell in cells if cell.label == "geneval star seed 10")
    assert [list(row.values()) for row in own] == [
        ["geneval", "star", "10", star.config_hash("geneval"), "two", prompt, "0", "True", "3", ""] for prompt in "ba"
    ]
    assert next(row["text"] for row in images if row["task"] == "ocr" and row["method"] == "base") == 'NA "x", y'
    assert {row["method"] for row in images if row["task"] == "ocr"} == {
        *("base", "flow_grpo", "star", "flow_grpo:geneval", "star:geneval"),
    }
    curves = list(csv.DictReader(Path("one/curves.csv").read_text().splitlines()))
    assert [row["seed"] for row in curves if row["task"] == "ocr" and row["method"] == "star"] == ["2", "2", "10", "10"]
    assert [curves[1][name] for name in ("epoch", "images_seen", "seconds", "kl")] == ["2", "8", "1.5", "1e-07"]
    assert "first" not in curves[0] and len(curves) == 2 * 8
    lines = csv.DictReader(Path("one/commands.csv").read_text().splitlines())
    commands = {(row["task"], row["method"], row["seed"]): row for row in lines}
    assert shlex.split(commands["geneval", "star", "10"]["command"]) == list(star.command)


def test_what_other_runs_left_in_the_files_stays(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first, second = (expand(["task=ocr", f"method={method}", "seed=0"])[1] for method in ("star", "spatial"))
    for cell in (first, second):
        finish(cell, "prompt,image\na,0\n", 0.25)
    collect([first], Path("results"))
    collect([second], Path("results"))
    (longer,) = expand(["task=ocr", "method=star", "seed=0", "train.epochs=2"])[1:]
    finish(longer, "prompt,image\nb,0\n", 0.75)
    collect([longer], Path("results"))
    images = pd.read_csv("results/images.csv.gz").query("task == 'ocr'")
    assert list(zip(images["method"], images["prompt"], strict=True)) == [("spatial", "a"), ("star", "b")]
    assert list(pd.read_csv("results/curves.csv")["reward"]) == [0.25, 0.25, 0.75, 0.75]
    assert [(row.method, row.value) for row in results.read(Path("results/ocr.csv"))] == [("spatial", 0.25), ("star", 0.75)]


def test_beside_a_result_file_that_cannot_be_read_nothing_is_written(checkout):
    words = ["task=geneval", "method=star", "seed=0", "evaluation.cross_images=0"]
    finish(expand(words)[1], "prompt,image\na,0\n", 0.25)
    broken = Path("results/mini/ocr.csv")
    broken.parent.mkdir()
    broken.write_text("task,metric\nbroken\n")
    for make in (lambda: collect(expand(words)[1:], broken.parent), lambda: publish(words)):
        with pytest.raises(UserError, match="ocr.csv line 1: the columns are task,metric"):
            make()
    assert [file for file in broken.parent.iterdir() if not file.name.startswith(".")] == [broken]


def test_an_epoch_that_was_drawn_again_counts_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cell = expand(["task=ocr", "method=star", "seed=0"])[1]
    finish(cell, "prompt,image\na,0\n", 0.25)
    line = {"epoch": 2, "updates": 2, "images_seen": 8, "seconds": 1.5, "reward": 0.75}
    odd = [{"epoch": 2}, line | {"reward": "high"}, line | {"epoch": None}]
    with (cell.folder / "metrics.jsonl").open("a") as file:
        file.write("".join(f"\n{json.dumps(one)}" for one in [line, *odd]) + "\n")
    collect([cell], Path("results"))
    assert pd.read_csv("results/curves.csv")[["epoch", "reward"]].to_numpy().tolist() == [[1, 0.25], [2, 0.75]]


@pytest.mark.parametrize("damage", ["quoted", "semicolons"])
def test_verdicts_of_a_task_whose_table_a_spreadsheet_changed_stay(tmp_path, monkeypatch, damage):
    monkeypatch.chdir(tmp_path)
    cell = expand(["task=ocr", "method=star", "seed=0"])[1]
    finish(cell, "prompt,image\na,0\n", 0.25)
    collect([cell], Path("results"))
    for name in ("ocr.csv", "curves.csv", "commands.csv", "images.csv.gz"):  # as if of a task of one's own
        opened = gzip.open if name.endswith(".gz") else open
        with opened(Path("results", name), "rt") as file:
            text = file.read().replace("ocr,", "rings,")
        with opened(Path("results", name.replace("ocr", "rings")), "wt") as file:
            file.write(text)
    table = Path("results/rings.csv")
    head, *lines = table.read_text().splitlines(keepends=True)
    changed = '"' + head.strip().replace(",", '","') + '"\n' if damage == "quoted" else head.replace(",", ";")
    table.write_text("".join([changed, *lines]))
    collect([cell], Path("results"))
    assert (
        {"rings", "ocr"} == set(pd.read_csv("results/curves.csv")["task"]) == set(pd.read_csv("results/commands.csv")["task"])
    )
    assert "rings" in set(pd.read_csv("results/images.csv.gz")["task"])


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A checkout whose shipped results are empty, and which is where one stands."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results").mkdir()
    return tmp_path


def test_what_is_done_is_published_and_the_rest_left_out(checkout):
    words = ["task=ocr", "method=flow_grpo,star", "seed=0..1"]
    for cell in expand(words)[1:3]:
        finish(cell, "prompt,image\na,0\n", 0.5)
    assert publish(words) == (checkout / "results" / "mini", 2)
    shipped = {(row.method, row.seed) for row in results.read(Path("results/mini/ocr.csv"))}
    assert shipped == {("flow_grpo", 0), ("star", 0)} and Path("results/mini/curves.csv").exists()


def test_what_is_published_goes_only_when_somebody_says_so(checkout):
    words = ["task=ocr", "method=star", "seed=0..1"]
    for cell in expand(words)[1:]:
        finish(cell, "prompt,image\na,0\n", 0.5)
    publish(words)
    before = Path("results/mini/ocr.csv").read_text()
    short = ["task=ocr", "method=star", "seed=0", "train.epochs=2"]
    finish(expand(short)[1], "prompt,image\na,0\n", 0.25)
    with pytest.raises(
        UserError, match=r"ocr.csv has star of seed 0, 1 with other settings, .*; publish .*, or say --replace"
    ):
        publish(short)
    assert Path("results/mini/ocr.csv").read_text() == before
    publish(words)  # the same again takes nothing away
    publish(short, replace=True)
    assert [row.value for row in results.read(Path("results/mini/ocr.csv"))] == [0.25]


def test_the_same_run_with_other_figures_does_not_take_a_published_ones_place(checkout, capsys):
    """Another kind of processor has other last digits, and the base is measured anew on each machine."""
    words = ["task=ocr", "method=flow_grpo,star", "seed=0"]
    base, flow_grpo, star = expand(words)
    for cell in (base, flow_grpo):
        finish(cell, "prompt,image\na,0\n", 0.5)
    assert publish(words)[1] == publish(words)[1] == 2 and capsys.readouterr().err == ""
    before = {file.name: file.read_bytes() for file in Path("results/mini").iterdir()}
    for cell, value in ((base, 0.500001), (flow_grpo, 0.25)):
        finish(cell, "prompt,image\na,1\n", value)
    assert publish(words)[1] == 0
    assert before == {file.name: file.read_bytes() for file in Path("results/mini").iterdir()}
    told = capsys.readouterr().err
    assert told.count("which stay") == 2 and "has ocr base with" in told and "--replace puts those of runs/" in told
    finish(star, "prompt,image\na,0\n", 0.75)
    assert publish(words)[1] == 1
    found = {row.method: row.value for row in results.read(Path("results/mini/ocr.csv"))}
    assert found == {"base": 0.5, "flow_grpo": 0.5, "star": 0.75}
    publish(words, replace=True)
    found = {row.method: row.value for row in results.read(Path("results/mini/ocr.csv"))}
    assert found == {"base": 0.500001, "flow_grpo": 0.25, "star": 0.75}


def test_a_cell_without_its_verdicts_is_not_done(checkout):
    _, cell = expand(["task=ocr", "method=star", "seed=0"])
    finish(cell, "prompt,image\na,0\n", 0.5)
    assert cell.state() is State.DONE
    (cell.folder / "final" / "images.csv").unlink()
    assert cell.state() is not State.DONE


@pytest.mark.parametrize("change", [{"commit": "abc1234567+dirty"}, {"commit": "unknown"}, {"protocol": "v2/mini"}])
def test_what_nobody_could_make_again_is_not_published(checkout, change):
    words = ["task=ocr", "method=flow_grpo,star", "seed=0"]
    _, flow_grpo, star = expand(words)
    for cell in (flow_grpo, star):
        finish(cell, "prompt,image\na,0\n", 0.5)
    file = star.folder / "final" / "rows.json"
    (row,) = json.loads(file.read_text())
    file.write_text(json.dumps([row | change]))
    with pytest.raises(UserError, match="which no commit has|was measured under v1/mini and v2/mini"):
        publish(words)
    assert not list(Path("results").iterdir())


def test_what_a_class_of_ones_own_made_is_published_once_it_is_committed(checkout, monkeypatch):
    Path("uncommitted_map.py").write_text("def flat(relevance, rollouts):\n    return relevance * 0 + 1\n")
    words = ["task=ocr", "method=star", "method.name=flat", "seed=0", "method.arm=uncommitted_map:flat"]
    _, cell = expand(words)
    finish(cell, "prompt,image\na,0\n", 0.5)
    with pytest.raises(UserError, match="uncommitted_map:flat is not in this repository's commit"):
        publish(words)
    assert not list(Path("results").iterdir())
    monkeypatch.setattr("star.matrix.publish.committed", lambda file: file == checkout / "uncommitted_map.py")
    assert publish(words)[1] == 1


def test_a_file_is_committed_as_it_is_now(tmp_path, monkeypatch):
    monkeypatch.setattr("star.records.code.ROOT", tmp_path)
    for words in ("init -q", "config user.email a@b.c", "config user.name a"):
        subprocess.run(["git", "-C", tmp_path, *words.split()], check=True)
    mine = tmp_path / "mine.py"
    mine.write_text("1\n")
    assert not committed(mine)
    subprocess.run(["git", "-C", tmp_path, "add", "mine.py"], check=True)
    assert not committed(mine)
    subprocess.run(["git", "-C", tmp_path, "commit", "-qm", "mine"], check=True)
    assert committed(mine) and not committed(tmp_path.parent / "mine.py")
    mine.write_text("2\n")
    assert not committed(mine)


def under(protocol, words):
    """Runs that are done, and judged under a protocol."""
    for cell in expand(words)[1:]:
        finish(cell, "stratum,prompt,image\nall,a,0\n", 0.5)
        for folder in cell.measured().values():
            (row,) = json.loads((folder / "rows.json").read_text())
            (folder / "rows.json").write_text(json.dumps([row | {"protocol": protocol}]))
    return words


def test_a_task_is_published_under_one_protocol(checkout):
    publish(under("v1/mini", ["task=ocr", "method=star", "seed=0..1"]))
    before = {file: file.read_bytes() for file in Path("results/mini").iterdir()}
    guided = under("v1/mini/guidance=2.0", ["task=ocr", "method=star", "seed=0..1", "evaluation.guidance=2.0"])
    for all_the_same in (False, True):
        with pytest.raises(UserError, match="ocr was measured under v1/mini and v1/mini/guidance=2.0: publish one of them"):
            publish(guided, all_the_same)
    assert before == {file: file.read_bytes() for file in Path("results/mini").iterdir()}
    newer = under("v2/mini", ["task=ocr", "method=star", "seed=0..1"])  # by a newer evaluator: in place of the older rows
    publish(newer, replace=True)
    assert {row.protocol for row in results.read(Path("results/mini/ocr.csv"))} == {"v2/mini"}


def test_another_protocol_takes_no_verdicts_away(checkout):
    words = ["task=ocr", "method=star", "seed=0..1"]
    for protocol, more in (("v1/mini", []), ("v1/mini/guidance=2.0", ["evaluation.guidance=2.0"])):
        collect(expand(under(protocol, [*words, *more]))[1:], Path("here"))
    rows = results.read(Path("here/ocr.csv"))
    with gzip.open("here/images.csv.gz", "rt") as file:
        judged = {(row["seed"], row["config_hash"]) for row in csv.DictReader(file) if row["task"] == "ocr"}
    assert len(rows) == 4 and judged == {(str(row.seed), row.config_hash) for row in rows}


def test_another_training_under_another_protocol_takes_neither_curve_nor_command(checkout):
    words = ["task=ocr", "method=star", "seed=0"]
    longer = ["evaluation.guidance=2.0", "train.epochs=2"]
    for protocol, more in (("v1/mini", []), ("v1/mini/guidance=2.0", longer)):
        collect(expand(under(protocol, [*words, *more]))[1:], Path("here"))
    for name in ("commands.csv", "curves.csv"):
        kept = {row["config_hash"] for row in csv.DictReader(Path("here", name).read_text().splitlines())}
        assert kept == {row.config_hash for row in results.read(Path("here/ocr.csv"))} and len(kept) == 2


@pytest.mark.parametrize("name, what", [("model", "base weights"), ("prompts", "prompts")])
def test_runs_of_different_inputs_are_neither_collected_nor_published(checkout, name, what):
    """Of the same settings: the files were exchanged in their place."""
    words = ["task=ocr", "method=star", "seed=0..1"]
    cells = expand(words)
    for cell, digest in zip(cells, ("", "old", "new"), strict=True):  # the base has none, as before they were recorded
        finish(cell, "stratum,prompt,image\nall,a,0\n", 0.5)
        (cell.folder / "final" / "summary.json").write_text(json.dumps({name: digest}))
    told = f"{cells[1].folder} and {cells[2].folder} were made with different {what} of the same name; delete the one"
    for act in (lambda: publish(words), lambda: matrix(words)):
        with pytest.raises(UserError, match=told):
            act()
    assert not list(Path("results/mini").glob("*")) and not Path("runs/results").exists()
    (cells[2].folder / "final" / "summary.json").write_text(json.dumps({name: "old"}))
    publish(words)
    (cells[0].folder / "final" / "given.json").write_text(json.dumps({name: "new"}))
    with pytest.raises(UserError, match=f"{cells[0].folder} and {cells[1].folder} were made with different {what}"):
        publish(words)


def test_a_matrix_goes_on_with_the_base_weights_that_it_began_with(pipeline_folder):
    words = [*FAST.split(), f"model.path={pipeline_folder}", "task=geneval", "method=star", "seed=0"]
    cell, arms = expand(words)[1], {"geneval": {"star"}}
    with pytest.raises(UserError, match="is another model than when the runs that are done were made; put that back, or"):
        run._load_all({"geneval": cell.config}, arms, {("model", ""): "old", ("prompts", "ocr"): "old"})


def test_a_map_that_cannot_be_made_is_told_before_the_first_run(pipeline_folder):
    words = [*FAST.split(), f"model.path={pipeline_folder}", "task=geneval", "method=flow_grpo", "seed=0", "train.groups=1"]
    cell = expand([*words, "train.micro_batch=2"])[1]
    run._load_all({"geneval": cell.config}, {"geneval": {"uniform"}}, {})
    with pytest.raises(UserError, match="^train.groups=1: some training texts are listed more than once"):
        run._load_all({"geneval": cell.config}, {"geneval": {"uniform", "star_shuffled"}}, {})


def test_a_base_needs_no_settings_of_trainings():
    """Those of sampling are left out of its command, and what trainings say about the loss would not go with the others."""
    for words in ("sampling.kind=sde train.beta=0.04", "sampling.kind=sde sampling.noise_level=0.7 train.guard=true"):
        cells = expand([*["scale=paper", "task=geneval", "method=flow_grpo", "seed=0", "variant=fast"], *words.split()])
        assert [cell.seed for cell in cells] == [None, 0]


def test_nothing_done_is_nothing_to_publish(checkout):
    with pytest.raises(UserError, match="none of these runs is done: nothing to publish"):
        publish(["task=ocr", "method=star", "seed=0"])


@pytest.mark.parametrize("name", ["images.csv.gz", "curves.csv", "commands.csv"])
def test_a_damaged_file_is_put_aside_and_written_again(tmp_path, monkeypatch, capsys, name):
    monkeypatch.chdir(tmp_path)
    cells = expand(["task=ocr", "method=star", "seed=0"])
    for cell in cells:
        finish(cell, "prompt,image\na,0\n", 0.25)
    collect(cells, Path("results"))
    file = Path("results", name)
    whole = file.read_bytes()
    for number, damaged in enumerate((b"", b"\xff\x00", b"seed\n0\n"), 1):
        file.write_bytes(damaged)
        collect(cells, Path("results"))
        assert file.read_bytes() == whole and Path("results", f"{name}.damaged{number}").read_bytes() == damaged
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"star: caution: results/{name}") and line.endswith(f"put aside as {name}.damaged{number}")


def test_seeds_with_other_settings_leave_the_files_with_a_word(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["task=ocr", "method=star,spatial", "seed=0..2"]
    cells = expand(words)
    (again,) = expand(["task=ocr", "method=star", "seed=1", "train.epochs=2"])[1:]
    for cell in (*cells, again):
        finish(cell, "prompt,image\na,0\n", 0.25)
    collect(cells, Path("results"))
    assert capsys.readouterr().err == ""
    collect([again], Path("results"))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "star: results/ocr.csv: star seed 0, 1, 2 had other settings or an older evaluator, left out now"
    assert len(lines) == len(again.measured())
    kept = {("base", 1000), ("spatial", 0), ("spatial", 1), ("spatial", 2), ("star", 1)}
    assert {(row.method, row.seed) for row in results.read(Path("results/ocr.csv"))} == kept
    for file in ("curves.csv", "images.csv.gz", "commands.csv"):
        table = pd.read_csv(Path("results", file)).query("task == 'ocr' and not method.str.contains(':')")
        assert set(table[["method", "seed"]].itertuples(index=False, name=None)) == kept - (
            {("base", 1000)} if file == "curves.csv" else set()
        )


def test_what_an_older_evaluator_said_of_the_same_images_goes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cells = expand(["task=ocr", "method=star", "seed=0..1"])
    for cell in cells:
        finish(cell, "prompt,image\na,0\n", 0.25)
    collect(cells, Path("results"))
    file = Path("results/ocr.csv")
    before = results.read(file)
    for rows in cells[1].measured().values():
        text = (rows / "rows.json").read_text()
        (rows / "rows.json").write_text(re.sub(r'"protocol": "[^"]*"', '"protocol": "v2/mini"', text))
    collect([cells[1]], Path("results"))
    after = {(row.method, row.seed, row.protocol) for row in results.read(file)}
    older = {(row.method, row.seed, row.protocol) for row in before if (row.method, row.seed) != ("star", 0)}
    assert after == older | {("star", 0, "v2/mini")}, "the other seed keeps what it has"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_a_table_with_a_mark_per_seed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    terminal = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(sys, "stderr", terminal)
    cells = expand(["task=geneval,ocr", "method=flow_grpo,star", "seed=0..2"])
    finish(cells[2], "prompt,image\n", 0.5)
    with Board({cell: State.FAILED for cell in cells}) as board:
        for cell in cells:
            if cell.seed is None or cell.label.startswith("geneval flow_grpo"):
                board.update(cell, State.DONE)
        board.update(cells[4], State.FAILED, "collapsed [x]")
        board.update(cells[2], State.RUNNING)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue())
    lines = [line.strip("\r ") for line in text.split("a mark per seed: ")[-1].splitlines()]
    assert lines[1].startswith("matrix: 4 done, 1 running, 1 failed, 8 left, ")
    cells_shown = [line.split() for line in text.splitlines() if "flow_grpo" in line and "│" in line]
    assert cells_shown[-1] == ["│", "flow_grpo", "│", "▶●●", "│", "✗◐◐", "│"]
    assert f"geneval flow_grpo seed 0: epoch 2 of {settings.load([]).train.epochs}, reward 0.500" in lines
    assert "ocr flow_grpo seed 0 failed: collapsed [x]" in lines and "next: geneval star seed 0" in lines


def test_a_line_of_a_log_names_all_that_runs_and_what_has_ended(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    base, one, other = expand(["task=ocr", "method=flow_grpo,star", "seed=0"])
    with Board({base: State.RUNNING, one: State.RUNNING, other: State.RUNNING}) as board:
        finish(other, "prompt,image\n", 0.5)
        board.update(base, State.DONE)
    (line,) = capsys.readouterr().err.splitlines()
    ended, running, last = line.split("; ")[1:]
    assert ended == "ocr base: done" and running == "ocr flow_grpo seed 0: running"
    assert last == f"ocr star seed 0: epoch 2 of {settings.load([]).train.epochs}, reward 0.500"


def test_a_log_gets_a_line_when_something_changes_or_a_minute_went_by(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    now = [0.0]
    monkeypatch.setattr("star.matrix.board.time.monotonic", lambda: now[0])
    base, cell = expand(["task=ocr", "method=star", "seed=0"])
    with Board({base: State.DONE, cell: State.NEW}) as board:
        for _ in range(8):
            now[0] += 10
            board.update(cell, State.RUNNING)
        board.update(cell, State.FAILED, "killed")
    start = "matrix: 1 done, 1 running, 0 failed, 0 left, ?; ocr star seed 0: running"
    end = "matrix: 1 done, 0 running, 1 failed, 0 left, about 0:00:00; ocr star seed 0: failed killed"
    assert capsys.readouterr().err.splitlines() == [start, start, end]


def without_seconds(folder: Path) -> dict[str, str]:
    """The result files as text, less the time that things took."""
    files = {}
    for file in sorted(folder.iterdir()):
        table = pd.read_csv(file, dtype=str, keep_default_na=False)
        files[file.name] = table.drop(columns=[name for name in table if name.endswith("seconds")]).to_csv(index=False)
    return files


def test_a_killed_and_resumed_matrix_ends_with_the_files_of_one_that_was_not(pipeline_folder, tmp_path, monkeypatch):
    words = [*FAST.split(), f"model.path={pipeline_folder}", "train.epochs=6", "evaluation.cross_images=1"]
    words += ["task=pickscore", "~evaluators.ocr=rapidocr", "method=star", "seed=1"]  # starting a reader takes seconds
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(run, "check_present", lambda *given: None)
    monkeypatch.chdir(tmp_path / "whole")
    base, cell = expand(words)
    expected = runs.base(base.config) + runs.trained(cell.config)
    assert (base.state(), cell.state()) == (State.DONE, State.DONE)
    assert matrix(words) == 0 and attempts(cell) == 0
    found = [row for task in cell.config.evaluators for row in results.read(Path(f"runs/results/mini/{task}.csv"))]
    assert {row.key: row.config_hash for row in found} == {row.key: row.config_hash for row in expected}

    monkeypatch.chdir(tmp_path / "killed")
    shutil.copytree(tmp_path / "whole" / base.folder, base.folder)
    parent = start("star", *words)
    wait_for(lambda: list(cell.folder.glob("checkpoints/epoch-??????")))
    children = subprocess.run(["pgrep", "-P", str(parent.pid)], capture_output=True, text=True).stdout.split()
    parent.kill()
    subprocess.run(["kill", "-9", *children], check=True)
    parent.communicate()
    assert (base.state(), cell.state()) == (State.DONE, State.CUT_OFF)
    monkeypatch.setattr(commands, "carry_out", forked.carry_out)
    assert matrix(words) == 0
    assert (attempts(base), attempts(cell)) == (0, 2)
    assert without_seconds(Path("runs/results/mini")) == without_seconds(tmp_path / "whole" / "runs" / "results" / "mini")


def test_damaged_files_of_any_run_stop_no_matrix(fake_star, capsys):
    words = ["task=geneval", "method=star,flow_grpo", "seed=0", "evaluation.cross_images=0"]
    assert matrix(words) == 0
    base, star, _ = expand(words)
    (base.folder / "final" / "rows.json").write_text("")
    (star.folder / "final" / "rows.json").write_text('[{"value": NaN}]')
    (star.folder / "final" / "summary.json").write_text("")
    with open(star.folder / "attempts.jsonl", "a") as log:
        log.write('{"seconds": 1')
    with open(star.folder / "metrics.jsonl", "a") as log:
        log.write('{"epoch": 2\n')
    assert [cell.state() for cell in expand(words)] == [State.CUT_OFF, State.CUT_OFF, State.DONE]
    assert matrix(words, dry_run=True) == 0
    assert matrix(words) == 0 and attempts(star) == 2


def test_a_place_of_results_that_is_a_file_is_told_before_the_training(fake_star):
    Path("runs").mkdir()
    Path("runs/results").write_text("mine")
    with pytest.raises(UserError, match="result files cannot go to 'runs/results/mini'"):
        matrix(["task=geneval", "method=star", "seed=0"])
    assert list(Path("runs").iterdir()) == [Path("runs/results")]


@pytest.mark.parametrize(
    ("number", "told"), [(9, "killed by SIGKILL (out of memory?)"), (15, "killed by SIGTERM"), (40, "killed by signal 40")]
)
def test_a_signal_without_a_name_ends_no_matrix(tmp_path, number, told):
    (tmp_path / "log.txt").write_text("")
    assert commands._reason(tmp_path / "log.txt", 0, -number) == told
    (tmp_path / "log.txt").write_text(
        f"Root Cause (first observed failure):\n  rank      : 1 (local)\n  exitcode  : -{number} (pid)"
    )
    assert commands._reason(tmp_path / "log.txt", 0, 1) == f"the process of rank 1 was {told}"


def test_a_dead_process_is_the_reason_whoever_missed_it_first(tmp_path):
    told = "  rank      : {} (local_rank: {})\n  exitcode  : {} (pid: 7)\n"
    log = tmp_path / "log.txt"
    failures = [told.format(2, 2, -15), told.format(1, 1, -9)]
    log.write_text("Failures:\n" + "".join(failures) + "Root Cause (first observed failure):\n" + told.format(0, 0, 1))
    assert commands._reason(log, 0, 1) == "the process of rank 1 was killed by SIGKILL (out of memory?)"
    for others, reason in (((-9, -15), "rank 1 was killed by SIGKILL"), ((-15, -15), "rank 0 was killed by SIGABRT")):
        failures = [told.format(rank, rank, code) for rank, code in enumerate(others, 1)]
        log.write_text("Failures:\n" + "".join(failures) + "Root Cause (first observed failure):\n" + told.format(0, 0, -6))
        assert commands._reason(log, 0, 1).startswith(f"the process of {reason}")
    log.write_text("star: collapsed\nRoot Cause (first observed failure):\n" + told.format(0, 0, 1))
    assert commands._reason(log, 0, 1) == "collapsed"


def test_what_launchers_say_of_the_processes_they_started_is_no_reason(tmp_path):
    log, missed = tmp_path / "log.txt", "star: another process of this run has died, see what it said\n"
    ends = "torch.distributed.elastic.multiprocessing.errors.ChildFailedError:\nsubprocess.CalledProcessError: Command 'x'\n"
    log.write_text(f"[rank3]: RuntimeError: on cuda:0 and cuda:3\n{missed}{ends}")
    assert commands._reason(log, 0, 1) == "RuntimeError: on cuda:0 and cuda:3"
    log.write_text(f"ValueError: no\n{missed}star: diverged\n{missed}{ends}")
    assert commands._reason(log, 0, 1) == "diverged"
    log.write_text(missed + ends)
    assert commands._reason(log, 0, 1) == "another process of this run has died, see what it said"
    log.write_text(ends)
    assert commands._reason(log, 0, 7) == "exit code 7"
    ended = "torch.distributed.elastic.multiprocessing.api.SignalException: Process 4711 got signal: 15"
    log.write_text(f"Traceback:\n{ended}\n")
    assert commands._reason(log, 0, 1) == ended
    log.write_text(f"ValueError: no\n{missed}{ended}\n")
    assert commands._reason(log, 0, 1) == "ValueError: no"


def test_a_disk_on_which_not_all_runs_may_find_room_is_told(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run, "ProcessPoolExecutor", lambda *given, **named: ThreadPoolExecutor(1))
    monkeypatch.setattr(run, "_load_all", lambda configs, *given: dict.fromkeys(configs, 3 * 2**30))
    cells = expand(["task=geneval", "method=star,flow_grpo", "seed=0"])
    Path("elsewhere").mkdir()
    Path("runs").symlink_to("elsewhere")  # another disk
    asked = []
    for free, told in ((6 * 2**30, ""), (5 * 2**30, "2 runs may need 6 GiB more on this disk (estimate), where 5 are free")):
        monkeypatch.setattr(run, "free_bytes", lambda folder, free=free: asked.append(folder.resolve()) or free)
        run.check_present(cells, {})
        assert told in (err := capsys.readouterr().err) and bool(told) == bool(err)
    assert all(folder.is_relative_to(Path("elsewhere").resolve()) for folder in asked)
    # What a run that was cut off has written it does not need again.
    checkpoint = cells[-1].folder / "checkpoint" / "state"
    checkpoint.parent.mkdir(parents=True)
    with checkpoint.open("wb") as file:
        file.truncate(2**30)  # which takes no room itself
    run.check_present(cells, {})
    assert not capsys.readouterr().err


CHECKING = """
import time
from star.matrix import run
def slow(*given):
    import os
    print(os.getpid(), flush=True)
    time.sleep(60)
run._load_all = slow
if __name__ == "__main__":
    from star.matrix.cells import expand
    run.check_present(expand(["task=geneval", "method=star", "seed=0"]), {})
"""


def test_a_killed_matrix_leaves_no_worker_that_looks_for_models(tmp_path):
    (tmp_path / "program.py").write_text(CHECKING)
    root = Path(run.__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": str(root)}
    with subprocess.Popen([sys.executable, "program.py"], cwd=tmp_path, env=environment, stdout=subprocess.PIPE) as parent:
        worker = int(parent.stdout.readline())
        parent.kill()
    deadline = time.monotonic() + 20
    while Path(f"/proc/{worker}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{worker}").exists()
