"""What the environment and the machine may be, and what is told where they cannot."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState, PartialState

from star import cli
from star.bench import first_updates, gradient, influence, localisation, speed
from star.bench.gpu import run as gpu
from star.common.errors import RunStopped, UserError
from star.common.launched import OF_SEVERAL, OURS, check_alone, check_launched, is_first
from star.common.processes import joined
from star.method.allocation import effective_sample_share
from star.training import runs

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    for name in (*OF_SEVERAL, *OURS):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def afresh():
    """Accelerate keeps what it read first."""
    kept = AcceleratorState._shared_state.copy(), PartialState._shared_state.copy()
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    for state, was in zip((AcceleratorState, PartialState), kept, strict=True):
        state._shared_state.update(was)


WHOLE = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}


@pytest.mark.usefixtures("afresh")
@pytest.mark.parametrize(
    ("environment", "told"),
    [
        ({"RANK": "1"}, "RANK=1, as of one of several processes, but no LOCAL_RANK; unset RANK"),
        ({"LOCAL_RANK": "0"}, "LOCAL_RANK=0, .* but no RANK; unset LOCAL_RANK, or start with"),
        ({"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}, "but no MASTER_ADDR"),
        ({"WORLD_SIZE": "4"}, "WORLD_SIZE=4, .* but no RANK; unset WORLD_SIZE"),
        ({"WORLD_SIZE": "many"}, "WORLD_SIZE=many, .* but no RANK"),
        (WHOLE | {"RANK": "x"}, "RANK=x is no whole number"),
        (WHOLE | {"MASTER_PORT": "here"}, "MASTER_PORT=here is no whole number"),
        (WHOLE | {"RANK": "2", "WORLD_SIZE": "2"}, "RANK=2 of WORLD_SIZE=2: ranks begin at 0"),
        ({"ACCELERATE_TORCH_DEVICE": "foo"}, "ACCELERATE_TORCH_DEVICE=foo cannot be used: Expected one of cpu"),
        ({"ACCELERATE_TORCH_DEVICE": "cuda"}, "ACCELERATE_TORCH_DEVICE=cuda cannot be used"),
        ({"ACCELERATE_TORCH_DEVICE": "meta"}, "not on meta; the environment has ACCELERATE_TORCH_DEVICE=meta"),
        ({"ACCELERATE_USE_CPU": "maybe"}, "ACCELERATE_USE_CPU=maybe cannot be used: invalid truth value maybe"),
        ({"ACCELERATE_DYNAMO_USE_DYNAMIC": "x"}, "ACCELERATE_DYNAMO_USE_DYNAMIC=x cannot be used"),
        ({"ACCELERATE_DYNAMO_BACKEND": "foo"}, "ACCELERATE_DYNAMO_BACKEND=foo is not supported"),
        ({"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "abc"}, "STEPS=abc is not supported.*train.micro_batch"),
        ({"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "0"}, "STEPS=0 is not supported"),
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "ACCELERATE_USE_DEEPSPEED=true is not supported; unset it"),
        ({"ACCELERATE_MIXED_PRECISION": "fp8"}, "ACCELERATE_MIXED_PRECISION=fp8 is not supported"),
    ],
)
def test_half_of_an_environment_of_several_processes_is_refused(make_config, monkeypatch, tmp_path, environment, told):
    monkeypatch.chdir(tmp_path)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    for run in (runs.base, runs.trained):
        AcceleratorState._reset_state(reset_partial_state=True)
        with pytest.raises(UserError, match=told):
            run(make_config())
    assert not (tmp_path / "run").exists()


def test_nobody_starts_without_a_look_at_the_environment():
    """``processes.joined`` has that look."""
    starts = [file for package in ("star", "evaluators", "baselines") for file in (ROOT / package).rglob("*.py")]
    assert [file.name for file in starts if "Accelerator(" in file.read_text()] == ["processes.py"]


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"WORLD_SIZE": "1"},
        {"ACCELERATE_MIXED_PRECISION": "no", "ACCELERATE_USE_DEEPSPEED": "false", "ACCELERATE_USE_FSDP": "no"},
        {"ACCELERATE_DYNAMO_BACKEND": "NO", "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "1"},
        WHOLE,
    ],
)
def test_a_whole_environment_is_fine(monkeypatch, environment):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    check_launched()


@pytest.mark.usefixtures("afresh")
def test_an_accelerator_of_another_make_is_left_alone(monkeypatch):
    monkeypatch.setattr("accelerate.state.is_mps_available", lambda *_: True)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda *_: True)
    assert joined().device == torch.device("cpu")


def test_results_are_shown_by_one_process_of_several(monkeypatch):
    assert is_first()
    monkeypatch.setenv("RANK", "1")
    assert is_first()  # there is nobody else
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert not is_first()


MEASUREMENTS = {
    "speed": lambda: speed.measure(["task=none"], 1),
    "gradient": lambda: gradient.run(["task=none"]),
    "first_updates": lambda: first_updates.run(["task=none"]),
    "influence": lambda: influence.run(["task=none"]),
    "localisation": lambda: localisation.measure(["task=none"]),
    "gpu": lambda: gpu.run(["only=none"]),
}


@pytest.mark.parametrize("name", MEASUREMENTS)
def test_what_takes_one_process_says_so_before_all_else(monkeypatch, name):
    for variable, value in (WHOLE | {"RANK": "1", "WORLD_SIZE": "2"}).items():
        monkeypatch.setenv(variable, value)
    with pytest.raises(UserError, match=f"^star bench {name} takes one process; start it without a launcher$"):
        MEASUREMENTS[name]()


def test_one_process_of_a_launcher_is_alone(monkeypatch):
    check_alone("star demo")
    for variable, value in WHOLE.items():
        monkeypatch.setenv(variable, value)
    check_alone("star demo")
    monkeypatch.setenv("RANK", "x")
    with pytest.raises(UserError, match="RANK=x is no whole number"):
        check_alone("star demo")


class OnApple(torch.Tensor):
    """A tensor that refuses float64, as those on Apple's GPUs do, until it is brought to main memory."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        given = super().__torch_function__(function, types, args, kwargs or {})
        if function is torch.Tensor.cpu:
            return given.as_subclass(torch.Tensor)
        if isinstance(given, torch.Tensor) and given.dtype == torch.float64:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64")
        return given


def test_figures_are_made_where_there_is_float64():
    weights = torch.rand(2, 3, 4, 4)
    with pytest.raises(TypeError, match="float64"):
        weights.as_subclass(OnApple).double()
    assert torch.equal(effective_sample_share(weights.as_subclass(OnApple)), effective_sample_share(weights))


WITHOUT = """
import psutil, sys  # that one knows its systems
sys.modules["fcntl"] = sys.modules["resource"] = None
from star.cli import main
for words in {commands!r}:
    sys.argv = ["star", *words]
    try:
        main()
    except SystemExit as ended:
        assert (ended.code or 0) <= (words[0] == "diff"), words
print("all of them")
"""


def test_nothing_here_needs_what_windows_has_not(pipeline_folder, tmp_path):
    commands = [["--help"], ["diff", f"{ROOT}/results/mini/geneval.csv"], ["bench", "gpu", "--help"]]
    fast = "train.epochs=1 train.groups=2 train.group_size=4 train.micro_batch=4 sampling.steps=4 sampling.window=2"
    words = [*fast.split(), "sampling.window_range=[0,3]", "evaluation.steps=1", "evaluation.images=1", "task=vivid"]
    words += ["evaluation.cross_images=0", "relevance.blocks=[0]", f"model.path={pipeline_folder}"]
    program = WITHOUT.format(commands=[*commands, ["train", *words]])
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.endswith("all of them\n"), done.stderr
    assert (tmp_path / "runs" / "mini" / "vivid" / "star").exists()


def test_a_command_goes_on_without_a_place_to_speak(make_config, monkeypatch, tmp_path):
    """As ``star train >&- 2>&-`` is."""
    monkeypatch.chdir(tmp_path)

    def trained(settings):
        print("a caution", file=sys.stderr)
        raise RunStopped("it ran")

    monkeypatch.setattr(runs, "trained", trained)
    monkeypatch.setattr(sys, "argv", ["star", "train"])
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    with pytest.raises(SystemExit) as exit:
        cli.main()
    assert exit.value.code == 1
