"""Cells on several GPUs and nodes: the accelerate command, and SLURM through submitit."""

import json
import os
import pickle
import re
import shlex
import signal
import stat
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from star.common.errors import RunStopped, UserError
from star.matrix import commands, launchers
from star.matrix.cells import Cell, State, expand
from star.matrix.launchers import Job, command, launch, load
from star.records.attempts import attempts
from star.training.folder import RunFolder

# Stands in for ``star``: says how it was started, and leaves the results of a cell that is done.
FAKE_STAR = """
import json, os, sys
from pathlib import Path
from types import SimpleNamespace
names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
place = [os.environ.get(name, "-") for name in names]
Path(f"started-{place[0]}").write_text(" ".join(place + sys.argv[1:]))
if os.environ.get("LEAVE"):
    for folder, hashed in json.loads(os.environ["LEAVE"]).items():
        Path(folder).mkdir(parents=True, exist_ok=True)
        # In one stroke: every cell's fake leaves the rows of all.
        part = Path(folder, f"rows.{os.getpid()}")
        row = dict.fromkeys(("images", "prompts", "updates", "images_seen", "seed"), 1) | {"value": 0.5, "stderr": None}
        row |= {"task": "ocr", "metric": "score", "protocol": "v1/mini", "method": "star", "seconds": 1.0, "commit": "c"}
        part.write_text(json.dumps([row | {"config_hash": hashed}]))
        Path(folder, "images.csv").touch()
        part.replace(Path(folder, "rows.json"))
"""


# Python runs this file at its start: the processes of jobs take the fake too.
SITE = """
import sys
if "submitit.core._submit" in sys.orig_argv:
    from star.matrix import commands
    commands.MODULES["star"] = "fake_star"
"""


@pytest.fixture
def cell(monkeypatch, tmp_path) -> Cell:
    """A cell in an empty folder, whose command is the fake."""
    (tmp_path / "fake_star.py").write_text(FAKE_STAR)
    (tmp_path / "sitecustomize.py").write_text(SITE)
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    monkeypatch.setitem(commands.MODULES, "star", "fake_star")
    monkeypatch.setattr(launchers, "usable_gpus", lambda: [])
    return expand(["task=ocr", "method=star", "seed=0"])[1]


@pytest.fixture
def finishing(cell, monkeypatch) -> Cell:
    """The same, and the fake does its work."""
    leave([cell], monkeypatch)
    return cell


def leave(cells, monkeypatch) -> None:
    """What the fake leaves behind: the rows of these cells' evaluations."""
    rows = {str(folder): cell.config_hash(task) for cell in cells for task, folder in cell.measured().items()}
    monkeypatch.setenv("LEAVE", json.dumps(rows))


def test_one_gpu_needs_no_launcher(cell):
    assert command(cell, load([])) == list(cell.command)
    assert command(cell, load(["launcher=submitit"])) == list(cell.command)


@pytest.mark.parametrize("nodes", [1, 2])
def test_accelerate_understands_the_command(cell, nodes):
    from accelerate.commands.launch import launch_command_parser

    options = load(["launcher=submitit", "launcher.gpus_per_node=4", f"launcher.nodes={nodes}"])
    words = command(cell, options, node=nodes - 1, host="node07", port=23456)
    assert words[:2] == ["accelerate", "launch"]
    parsed = launch_command_parser().parse_args(words[2:])
    assert (parsed.num_processes, parsed.num_machines, parsed.multi_gpu) == (4 * nodes, nodes, True)
    assert (parsed.mixed_precision, parsed.dynamo_backend, parsed.gpu_ids) == ("no", "no", "all")
    assert parsed.module and [parsed.training_script, *parsed.training_script_args] == list(cell.command)
    assert parsed.main_process_port == 23456
    if nodes > 1:
        assert (parsed.machine_rank, parsed.main_process_ip) == (1, "node07")


FIGURES = {"seconds": 1.0, "images_seen": 8, "reward": 0.5}


class Broken:
    """In place of attempts: an epoch at each look, the results after the third; ``bad`` says of a GPU and a folder whether
    they fail."""

    def __init__(self, bad):
        self.bad, self.tried = bad, []

    def __call__(self, folder, words, environment):
        folder.mkdir(parents=True, exist_ok=True)
        place = environment["CUDA_VISIBLE_DEVICES"]
        self.tried.append((place, folder))
        yield
        if self.bad(place, folder):
            with open(folder / "attempts.jsonl", "a") as log:
                log.write('{"seconds": 1, "reason": "CUDA error"}\n')
            return 1
        for epoch in range(1, 4):
            (folder / "metrics.jsonl").write_text(json.dumps({"epoch": epoch, **FIGURES}) + "\n")
            yield
        (folder / "done").touch()
        return 0


@pytest.fixture
def side_by_side(cell, monkeypatch):
    """Runs cells at two places and gives what became of each in the end, and what was tried."""
    monkeypatch.setattr(launchers, "usable_gpus", lambda: ["0", "1"])
    monkeypatch.setattr(Cell, "state", lambda cell: State.DONE if (cell.folder / "done").exists() else State.FAILED)

    def run(bad):
        cells = expand(["task=ocr", "method=star", "seed=0..7"])[1:]
        attempt = Broken(bad)
        monkeypatch.setattr(launchers, "attempt", attempt)
        ends = {}
        for one, state, _ in launch(cells, load(["launcher.at_once=2"])):
            ends[one.seed] = state
        return ends, [place for place, _ in attempt.tried]

    return run


def test_a_broken_gpu_does_not_eat_the_queue(side_by_side, capsys):
    ends, tried = side_by_side(lambda place, folder: place == "1")
    assert set(ends.values()) == {State.DONE}
    assert tried.count("1") == 2 and tried.count("0") == 8
    assert "CUDA_VISIBLE_DEVICES=1 has failed 2 runs in a row while others go on" in capsys.readouterr().err


def test_a_folder_that_does_not_answer_ends_no_other_run(side_by_side, monkeypatch):
    state = Cell.state

    def stale(cell):
        if cell.seed == 3:
            raise OSError(116, "Stale file handle")
        return state(cell)

    def unreadable(folder):
        if "seed3" in folder.path.name:
            raise OSError(116, "Stale file handle")
        return last(folder)

    def fail(place, folder):
        monkeypatch.setattr(Cell, "state", stale)
        monkeypatch.setattr(RunFolder, "last", unreadable)

    last = RunFolder.last
    ends, _ = side_by_side(fail)
    assert ends.pop(3) is State.FAILED and set(ends.values()) == {State.DONE}


def test_runs_that_fail_everywhere_cost_no_gpu(side_by_side):
    # At place 1, where the second run fails before the first one at place 0 has ended.
    ends, tried = side_by_side(lambda place, folder: "seed1" in folder.name or "seed2" in folder.name)
    assert {seed for seed, state in ends.items() if state is State.FAILED} == {1, 2}
    assert tried.count("1") > 3


def test_a_place_that_was_shown_to_be_broken_stays_alone():
    """Of two runs that failed there one goes well elsewhere; that the other fails there too says nothing for the place."""
    first, second, going = expand(["task=ocr", "method=star", "seed=0..2"])[1:]
    places = launchers.Places(["0", "1"])
    places.free.clear()  # both are in use
    assert places.ended(first, 0, lost=True, going_on=True) == [] and places.free == [0]
    places.free.clear()
    assert places.ended(second, 0, lost=True, going_on=True) == [first, second] and places.free == []
    assert places.ended(first, 1, lost=False, going_on=False) == [] and places.free == [1]
    places.free.clear()
    assert places.ended(second, 1, lost=True, going_on=False) == [] and places.free == [1]


def test_where_everything_fails_every_run_is_tried_once(side_by_side, capsys):
    ends, tried = side_by_side(lambda place, folder: True)
    assert set(ends.values()) == {State.FAILED} and len(tried) == 8
    assert "broken" not in capsys.readouterr().err


def test_the_local_launcher_uses_all_gpus(finishing, monkeypatch):
    monkeypatch.setitem(commands.MODULES, "accelerate", "fake_star")
    with pytest.raises(UserError, match="gpus_per_node=8 each, but here are no GPUs"):
        launch([finishing], load(["launcher.gpus_per_node=8"]))
    monkeypatch.setattr(launchers, "usable_gpus", lambda: list("01234567"))
    assert list(launch([finishing], load(["launcher.gpus_per_node=8"])))[-1] == (finishing, State.DONE, "")
    started = Path("started--").read_text()
    assert "launch --multi_gpu --num_processes 8 --num_machines 1" in started
    # By the code of a later day its settings might have another folder.
    assert started.endswith(f"--module {shlex.join([*finishing.command, f'run={finishing.folder}'])}")


@pytest.fixture
def windows(monkeypatch) -> None:
    """Processes start and end as there, where all else is refused."""
    popen = subprocess.Popen

    def plain(words, creationflags=None, preexec_fn=None, pass_fds=(), start_new_session=False, **options):
        assert creationflags == 512 and not (preexec_fn or pass_fds or start_new_session)
        return popen(words, **options)

    monkeypatch.setattr(commands, "POSIX", False)
    monkeypatch.setattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 512, raising=False)
    monkeypatch.setattr(commands.subprocess, "Popen", plain)
    monkeypatch.delattr(commands.os, "killpg")


def test_a_cell_runs_as_windows_has_processes(finishing, windows):
    assert list(launch([finishing], load([])))[-1] == (finishing, State.DONE, "")


def assert_both_end(program, tmp_path, monkeypatch):
    """A command that starts another process is given up once both run, and none of the two is left."""
    monkeypatch.setattr(commands, "PYTHON", (sys.executable, "-c"))
    monkeypatch.setitem(commands.MODULES, "star", program)
    before = set(psutil.Process().children(recursive=True))
    with open(tmp_path / "log", "wb") as log, closing(commands.carry_out(["star"], log)) as running:
        next(running)
        while len(started := set(psutil.Process().children(recursive=True)) - before) < 2:
            time.sleep(0.05)
    gone, alive = psutil.wait_procs(started, timeout=10)
    assert len(gone) == 2 and not alive


def test_what_is_given_up_ends_as_windows_has_it(windows, tmp_path, monkeypatch):
    program = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])"
    assert_both_end(program, tmp_path, monkeypatch)


def test_processes_in_sessions_of_their_own_end_too(tmp_path, monkeypatch):
    """As those of torch's launcher, which no signal to its group reaches; here they hear no Ctrl-C, as in a collective."""
    rank = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); time.sleep(60)"
    program = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {rank!r}], start_new_session=True)"
    monkeypatch.setattr(commands, "END_SECONDS", 1.0)
    assert_both_end(program, tmp_path, monkeypatch)


@pytest.mark.parametrize(("at_once", "most"), [(1, 1), (2, 2)])
def test_cells_run_side_by_side(finishing, at_once, most, monkeypatch):
    """Of three cells, never more than asked for are running, and each has its share of the cores."""
    cells = [finishing, *expand(["task=ocr", "method=star", "seed=1,2"])[1:]]
    leave(cells, monkeypatch)
    monkeypatch.setattr(launchers, "cores", lambda: 8)
    shares = []
    attempt = launchers.attempt

    def recorded(folder, words, environment):
        shares.append(environment.get("OMP_NUM_THREADS"))
        return attempt(folder, words, environment)

    monkeypatch.setattr(launchers, "attempt", recorded)
    running, seen = set(), []
    for cell, state, _ in launch(cells, load([f"launcher.at_once={at_once}"])):
        (running.add if state is State.RUNNING else running.discard)(cell)
        seen.append(len(running))
    assert max(seen) == most
    assert shares == [None if at_once == 1 else "4"] * 3


def test_each_of_several_cells_has_gpus_of_its_own(finishing, monkeypatch):
    cells = [finishing, *expand(["task=ocr", "method=star", "seed=1,2"])[1:]]
    leave(cells, monkeypatch)
    monkeypatch.setitem(commands.MODULES, "accelerate", "fake_star")
    monkeypatch.setattr(launchers, "usable_gpus", lambda: ["0", "1", "4", "5"])
    monkeypatch.setattr(launchers, "cores", lambda: 16)
    used, shares = [], set()
    attempt = launchers.attempt

    def recorded(folder, words, environment):
        used.append((environment["CUDA_VISIBLE_DEVICES"], words[words.index("--main_process_port") + 1]))
        shares.add((environment["STAR_CORES"], environment["OMP_NUM_THREADS"]))
        return attempt(folder, words, environment)

    monkeypatch.setattr(launchers, "attempt", recorded)
    options = load(["launcher.at_once=2", "launcher.gpus_per_node=2"])
    assert sum(state is State.DONE for _, state, _ in launch(cells, options)) == 3
    assert [gpus for gpus, _ in used[:2]] == ["0,1", "4,5"] and used[2][0] in ("0,1", "4,5")
    assert shares == {("8", "4")}, "two processes divide their run's cores"
    assert used[0][1] != used[1][1], "side by side, two runs cannot meet at the same port"
    with pytest.raises(UserError, match="at_once=3 runs with launcher.gpus_per_node=2 each, but here are 4 GPUs"):
        launch(cells, load(["launcher.at_once=3", "launcher.gpus_per_node=2"]))


def test_the_gpus_that_may_be_used(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,4,5")
    assert launchers.usable_gpus() == ["0", "1", "4", "5"]
    for none in ("", "-1", "-1,0"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", none)
        assert launchers.usable_gpus() == []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,-1,3")
    assert launchers.usable_gpus() == ["2"]


@pytest.mark.parametrize(
    "said, count",
    [
        ("No devices were found", 0),
        ("NVIDIA-SMI has failed because it could not\ncommunicate with the NVIDIA driver.", 0),
        ("GPU 0: NVIDIA H100 (UUID: GPU-1)\n  MIG 1g.10gb Device 0: (UUID: MIG-1)\n  MIG 1g.10gb Device 1: (UUID: MIG-2)", 1),
        ("GPU 0: NVIDIA H100 (UUID: GPU-1)\nGPU 1: NVIDIA H100 (UUID: GPU-2)", 2),
    ],
)
def test_gpus_are_counted_and_not_what_is_said_besides(tmp_path, monkeypatch, said, count):
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\ncat <<'END'\n{said}\nEND\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    launchers._installed_gpus.cache_clear()
    assert launchers.usable_gpus() == [str(index) for index in range(count)]
    launchers._installed_gpus.cache_clear()


def test_without_submitit_the_line_says_how_to_get_it(cell, monkeypatch):
    monkeypatch.setattr(launchers, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'star-rl\[slurm\]'"):
        launch([cell], load(["launcher=submitit"]))


def test_submitit_on_this_machine_runs_a_cell(finishing):
    pytest.importorskip("submitit")
    options = load(["launcher=submitit", "launcher.cluster=local"])
    events = list(launch([finishing], options))
    assert events[0] == (finishing, State.RUNNING, "") and events[-1] == (finishing, State.DONE, "")
    assert Path("started--").read_text().split()[5:] == [*finishing.command[1:], f"run={finishing.folder}"]
    assert "$ star train task=ocr" in (finishing.folder / "log.txt").read_text()


def test_a_job_that_leaves_nothing_failed(cell):
    pytest.importorskip("submitit")
    *_, (_, state, reason) = launch([cell], load(["launcher=submitit", "launcher.cluster=local"]))
    assert state is State.FAILED and re.fullmatch(r"job \d+ ended without results \(FINISHED\), see .*slurm", reason)


SLURM = {
    "sbatch": 'cp "$1" "$QUEUE/script"; pwd > "$QUEUE/where"; echo "Submitted batch job 4711"',
    "srun": "exit 1",
    "squeue": '[ "$*" = "--noheader --jobs 4711" ] && cat "$QUEUE/queued" 2>&- || { cat "$QUEUE/says" >&2; exit 1; }',
    "sacct": 'echo "JobID|State|NodeList"; echo "4711|$(cat $QUEUE/state)|node[07-08]"',
    "scontrol": 'echo "$*" >> "$QUEUE/requeued"',
}


@pytest.fixture
def slurm(tmp_path, monkeypatch) -> Path:
    """A cluster that takes one job, 4711, and never starts it; a folder with its ``script`` and ``state``."""
    pytest.importorskip("submitit")
    queue, programs = tmp_path / "queue", tmp_path / "programs"
    queue.mkdir()
    programs.mkdir()
    for name, text in SLURM.items():
        file = programs / name
        file.write_text(f"#!/bin/sh\n{text}\n")
        file.chmod(file.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("QUEUE", str(queue))
    monkeypatch.setenv("PATH", str(programs), prepend=os.pathsep)
    (queue / "state").write_text("PENDING")
    (queue / "says").write_text("slurm_load_jobs error: Invalid job id specified")
    return queue


WORDS = ["launcher=submitit", "launcher.nodes=2", "launcher.gpus_per_node=8", "launcher.cpus=32", "launcher.partition=a100"]
WORDS += ["launcher.timeout=90", "launcher.additional.account=lab"]


def test_the_job_script_asks_for_what_was_configured(cell, slurm):
    events = launch([cell], load(WORDS))
    assert next(events) == (cell, State.NEW, "")
    events.close()
    script = (slurm / "script").read_text()
    asked = dict(re.findall(r"^#SBATCH --([\w-]+)=(.*)$", script, re.MULTILINE))
    wanted = {"nodes": "2", "ntasks-per-node": "1", "gpus-per-node": "8", "cpus-per-task": "32", "partition": "a100"}
    wanted |= {"time": "90", "account": "lab", "job-name": "ocr-star-seed-0"}
    assert {name: asked[name] for name in wanted} == wanted
    assert "USR2@" in asked["signal"]
    srun = r"^srun .*--cpus-per-task=32 .*--kill-on-bad-exit=1 .*submitit.core._submit .*/slurm$"
    assert re.search(srun, script, re.MULTILINE)
    assert (slurm / "where").read_text().strip() == os.getcwd()


def test_every_gpu_of_a_job_has_cores(cell, slurm):
    events = launch([cell], load([word for word in WORDS if "cpus" not in word]))
    next(events)
    events.close()
    assert re.search("^#SBATCH --cpus-per-task=64$", (slurm / "script").read_text(), re.MULTILINE)


@pytest.mark.parametrize("node", [0, 1])
def test_a_node_whose_processes_failed_ends_the_job(cell, monkeypatch, node):
    """Its task fails, which by srun's --kill-on-bad-exit ends those that would wait for it."""
    environment = given(monkeypatch, node)
    environment.paths.result_pickle.write_text("of an attempt before")
    monkeypatch.setitem(commands.MODULES, "accelerate", "no_such_module")
    cell.folder.mkdir(parents=True)
    with pytest.raises(RunStopped, match=f"node {node} of ocr star seed 0 ended with exit code 1"):
        Job(cell, load(["launcher=submitit", "launcher.nodes=2"]))()
    assert len(attempts(cell.folder)) == 1 - node
    _, state, reason = launchers.outcome(cell, 0, "it left none")
    # Python's own line on a module that is not there is no reason; a failed process of the second node is.
    assert state is State.FAILED and reason == ("exit code 1" if node == 0 else "node 1: exit code 1")
    assert not environment.paths.result_pickle.exists()


def given(monkeypatch, node):
    """What submitit knows in a task of a job; its handler of signals stays out of this process."""
    paths = SimpleNamespace(result_pickle=Path("result.pkl"))
    environment = SimpleNamespace(node=node, job_id="7", hostnames=["one", "other"], paths=paths)
    monkeypatch.setattr("submitit.JobEnvironment", lambda: environment)
    environment.kept = []
    monkeypatch.setattr(launchers.signal, "signal", lambda *handler: environment.kept.append(handler))
    return environment


def test_a_job_whose_nodes_are_taken_away_does_not_end_by_itself(cell, monkeypatch):
    """SLURM signals and, after a while, kills; a result in between would say that a job in the queue is over."""
    environment, slept = given(monkeypatch, 0), []

    def taken_away(*given, **options):
        ((number, handler),) = environment.kept
        assert number == signal.SIGTERM
        handler(number, None)
        yield
        return 1

    monkeypatch.setattr(launchers, "attempt", taken_away)
    monkeypatch.setattr(launchers.time, "sleep", slept.append)
    with pytest.raises(RunStopped, match="ended with exit code 1"):
        Job(cell, load(["launcher=submitit"]))()
    assert slept == [launchers.GRACE_SECONDS]


NODE, FIRST = '{"node": 1, "reason": "node 1: %s"}', '{"seconds": 9.0, "reason": "%s"}'


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ([NODE % "CUDA out of memory", FIRST % "x.SignalException: Process 4 got signal: 15"], "node 1: CUDA out of memory"),
        ([FIRST % "diverged", NODE % "another process of this run has died or is out of reach"], "diverged"),
        ([NODE % "another process of this run has died", FIRST % "exit code 1"], "exit code 1"),
        ([FIRST % "SIGTERM"], "SIGTERM"),
        ([NODE % "CUDA out of memory"], "node 1: CUDA out of memory"),
        ([], "cancelled"),
    ],
)
def test_the_reason_is_that_of_the_node_which_ended_the_others(cell, lines, reason):
    cell.folder.mkdir(parents=True)
    (cell.folder / "attempts.jsonl").write_text("\n".join([FIRST % "of old", NODE % "of old", FIRST % "of old", *lines, ""]))
    assert launchers.outcome(cell, 3, "cancelled") == (cell, State.FAILED, reason)


def test_what_a_node_said_late_of_an_earlier_attempt_is_no_reason_for_the_next(cell):
    cell.folder.mkdir(parents=True)
    (cell.folder / "attempts.jsonl").write_text("\n".join([FIRST % "diverged", NODE % "CUDA out of memory", ""]))
    assert launchers.outcome(cell, 2, "cancelled") == (cell, State.FAILED, "cancelled")


@pytest.mark.parametrize(("words", "there"), [([], ["requeue"]), (["requeue=false", "exclusive=true"], ["exclusive"])])
def test_options_of_sbatch_without_a_value(cell, slurm, words, there):
    events = launch([cell], load([*WORDS, *(f"launcher.additional.{word}" for word in words)]))
    next(events)
    events.close()
    found = re.findall(r"^#SBATCH --(requeue|exclusive)(.*)$", (slurm / "script").read_text(), re.MULTILINE)
    assert found == [(name, "") for name in there]


def test_without_a_gpu_nothing_is_said_of_them(finishing, capsys):
    launch([finishing], load(["launcher.at_once=2"])).close()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("words", "idle"), [([], 3), (["launcher.at_once=2"], 2), (["launcher.gpus_per_node=4"], 0)])
def test_gpus_that_nothing_would_use_are_told(finishing, monkeypatch, capsys, words, idle):
    monkeypatch.setattr(launchers, "usable_gpus", lambda: ["0", "1", "4", "5"])
    launch([finishing], load(words)).close()
    told = capsys.readouterr().err
    assert (
        (told == "") if idle == 0 else told.startswith(f"star: note: {idle} of 4 GPUs are not used; launcher.gpus_per_node=4 ")
    )


def test_a_matrix_that_is_started_again_watches_the_job_that_is_queued(cell, slurm, capsys):
    events = launch([cell], load(WORDS))
    next(events)
    events.close()
    assert "jobs go on without being watched: 4711" in capsys.readouterr().err
    (slurm / "queued").write_text("4711 gpu RUNNING\n")
    (slurm / "script").unlink()
    again = launch([cell], load(WORDS))
    next(again)
    assert not (slurm / "script").exists()
    again.close()
    # Once it left the queue without results, it is submitted anew.
    (slurm / "queued").unlink()
    anew = launch([cell], load(WORDS))
    next(anew)
    assert (slurm / "script").exists()
    anew.close()


def test_a_job_is_not_taken_for_gone_because_slurm_does_not_answer(cell, slurm):
    events = launch([cell], load(WORDS))
    next(events)
    events.close()
    (slurm / "script").unlink()
    (slurm / "says").write_text("slurm_load_jobs error: Unable to contact slurm controller")
    with pytest.raises(
        UserError, match=r"squeue does not say whether job 4711 still runs \(slurm_load.*controller\); try again"
    ):
        next(launch([cell], load(WORDS)))
    assert not (slurm / "script").exists()


def test_a_job_that_never_ran_does_not_have_the_reason_of_an_earlier_one(cell):
    pytest.importorskip("submitit")
    cell.folder.mkdir(parents=True)
    (cell.folder / "attempts.jsonl").write_text('{"seconds": 3.0, "reason": "CUDA out of memory"}\n')
    assert launchers.outcome(cell, 0, "cancelled") == (cell, State.FAILED, "CUDA out of memory")
    assert launchers.outcome(cell, 1, "cancelled") == (cell, State.FAILED, "cancelled")


def test_a_job_that_cannot_be_submitted_is_one_line(cell, slurm, monkeypatch):
    Path(slurm.parent, "programs", "sbatch").write_text("#!/bin/sh\necho 'sbatch: error: invalid partition' >&2\nexit 1\n")
    with pytest.raises(UserError, match=r"ocr star seed 0 could not be submitted: .*invalid partition") as error:
        next(launch([cell], load(WORDS)))
    assert "\n" not in str(error.value)


def test_a_job_that_cannot_be_noted_down_is_taken_back(cell, slurm, monkeypatch):
    """The next matrix would not know of it, and submit another for the same folder."""
    submitit = pytest.importorskip("submitit")
    cancelled = []
    monkeypatch.setattr(submitit.SlurmJob, "cancel", lambda job, check=True: cancelled.append(job.job_id))

    def full(file, text):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(launchers, "write_text", full)
    with pytest.raises(UserError, match="ocr star seed 0 could not be submitted: .*No space left on device"):
        launchers._submit(cell, load(WORDS))
    assert cancelled == ["4711"]


def test_what_a_cluster_does_not_take_yet_waits(cell, slurm, capsys):
    taken = slurm / "taken"
    full = "[ -e $QUEUE/taken ] && { echo 'sbatch: error: QOSMaxSubmitJobPerUserLimit' >&2; exit 1; }; touch $QUEUE/taken; "
    Path(slurm.parent, "programs", "sbatch").write_text(f"#!/bin/sh\n{full}{SLURM['sbatch']}\n")
    cells = [cell, replace(cell, command=(*cell.command, "seed=1"))]
    events = launch(cells, load(WORDS))
    assert next(events) == (cells[0], State.NEW, "") and next(events)[0] == cells[0]
    told = capsys.readouterr().err
    assert "QOSMaxSubmitJobPerUserLimit; 1 runs wait ten minutes, or until a job has ended" in " ".join(told.split())
    taken.unlink()
    (slurm / "state").write_text("FAILED")  # it ends without results, and makes room
    ended = next(event for event in events if event[1] is State.FAILED)
    assert ended[0] == cells[0] and not taken.exists()
    assert next(events)[0] == cells[1] and taken.exists()
    events.close()


def test_a_cluster_that_does_not_answer_once_is_asked_again_while_jobs_run(cell, monkeypatch, capsys):
    """It is asked ten minutes later, and each thing that it says is told once."""
    cells = [replace(cell, command=(*cell.command, f"seed={seed}")) for seed in range(3)]
    now, asked = [0.0], []

    def sleep(_):
        now[0] += 100

    def submit(one, options):
        asked.append((now[0], cells.index(one)))
        if len(asked) in (2, 3):
            raise UserError("sbatch: error: Socket timed out on send/recv operation")
        return SimpleNamespace(job_id="1", state="RUNNING", done=lambda: False)

    monkeypatch.setattr(launchers, "_submit", submit)
    monkeypatch.setattr(launchers, "_queued", lambda _: None)
    monkeypatch.setattr(launchers, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=sleep))
    events = launchers._submitit(cells, load(["launcher=submitit"]))
    while len(asked) < 5 and now[0] < 5000:
        next(events)
    events.close()
    assert asked == [(0.0, 0), (0.0, 1), (600.0, 1), (1200.0, 1), (1200.0, 2)]
    assert capsys.readouterr().err.count("Socket timed out") == 1


def test_the_nodes_of_a_job_meet(cell, slurm, monkeypatch):
    """What each node runs, as submitit would call it there; the processes of accelerate find each other."""
    program = "import pickle; pickle.load(open('job', 'rb'))()"
    options = load(["launcher=submitit", "launcher.nodes=2", "launcher.gpus_per_node=2"])
    job = Job(replace(cell, command=("fake_star", *cell.command[1:])), options)
    Path("job").write_bytes(pickle.dumps(job))
    cell.folder.mkdir(parents=True)
    nodes = []
    for node in range(2):
        given = {
            "SUBMITIT_EXECUTOR": "slurm",
            "SLURM_JOB_ID": str(os.getpid()),
            "SLURM_JOB_NUM_NODES": "2",
            "SLURM_NTASKS": "2",
        }
        given |= {"SUBMITIT_FOLDER": os.getcwd()}
        given |= {"SLURM_NODEID": str(node), "SLURM_PROCID": str(node), "SLURM_JOB_NODELIST": "localhost,other"}
        nodes.append(subprocess.Popen([sys.executable, "-c", program], env={**os.environ, **given}))
    try:
        assert [node.wait(120) for node in nodes] == [0, 0]
    finally:
        for node in nodes:
            node.send_signal(signal.SIGINT)  # which ends what it started, too
    places = {tuple(file.read_text().split()[:3]) for file in Path().glob("started-*")}
    assert places == {("0", "4", "0"), ("1", "4", "1"), ("2", "4", "0"), ("3", "4", "1")}
    assert "--machine_rank 0" in (cell.folder / "log.txt").read_text()
    assert "--machine_rank 1" in (cell.folder / "log-1.txt").read_text()
    assert len((cell.folder / "attempts.jsonl").read_text().splitlines()) == 1
    again = job.checkpoint()
    assert again.function is job
