"""One, two and four processes on one machine: the same images and rewards, and the same weights up to the order of sums."""

import json
import os
import subprocess
import sys
from pathlib import Path
from subprocess import CompletedProcess

import forked
import pytest
import torch
from safetensors.torch import load_file
from tiny import FAST
from torch.distributed.fsdp._fully_shard._fsdp_collectives import DefaultAllGather

from star.common.errors import DIED, RunStopped, UserError
from star.common.processes import total
from star.config import Config, load, to_yaml
from star.matrix.commands import _reason
from star.models.sharding import gather

PROGRAM = """
import hashlib, json, os, signal, sys
from pathlib import Path
import torch
from torch.distributed.tensor import DTensor
from omegaconf import OmegaConf
from star.cli import report_errors
from star.config import Config
from star.training.trainer import Trainer
from fake_task import RedTask
torch.set_num_threads(1)
folder, dying = sys.argv[1], sys.argv[2]
config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), OmegaConf.load(folder + ".yaml")))
rank, judged = os.environ["RANK"], 0

class Task(RedTask):
    def judge(self, prompts, images):
        global judged
        judged += 1
        if rank == "1" and judged == int(dying):
            os.kill(os.getpid(), signal.SIGKILL)
        verdicts = super().judge(prompts, images)
        with open(f"{folder}.rank{rank}", "a") as file:
            for prompt, image, verdict in zip(prompts, images, verdicts):
                digest = hashlib.sha256(image.tobytes()).hexdigest()
                if "star" in prompt.text:
                    verdict["reward"] = 1.0  # no advantages, so no gradient
                file.write(json.dumps([prompt.text, digest, verdict["reward"]]) + "\\n")
        return verdicts

with report_errors():
    trainer = Trainer(config, Task())
    trainer.run()
    frozen = [p for p in trainer.base.transformer.transformer_blocks.parameters() if not p.requires_grad]
    held = sum((p.to_local() if isinstance(p, DTensor) else p).numel() for p in frozen)
    Path(f"{folder}.held{rank}").write_text(str(held))
"""

WHOLE = """
import os, sys, time
from omegaconf import OmegaConf
from star.training import runs, trainer
from star.training.checkpoint import TrainingFolder
from star.cli import report_errors
from star.config import Config
from fake_task import RedTask

def task(config, name, evaluator=None):
    made = RedTask()
    made.name = name
    return made

trainer.load_task = runs.load_task = task
folder = sys.argv[1]
config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), OmegaConf.load(folder + ".yaml")))
finish = TrainingFolder.finish

def slowly(*arguments):
    if os.environ["WORLD_SIZE"] != "1":
        time.sleep(1)  # the others must not look for the weights before they are there
    finish(*arguments)

TrainingFolder.finish = slowly
os.makedirs(folder + ".base", exist_ok=True)
with report_errors():
    rows = runs.trained(config)
    os.chdir(folder + ".base")
    rows += runs.base(config)
    assert len(rows) == 6, rows
"""


DYING = """
import os, signal, sys, time
if os.environ["RANK"] == "1":
    time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGKILL)
print("star:", sys.argv[1], file=sys.stderr, flush=True)
time.sleep(60)  # until the launcher ends it
"""

# Eight micro-batches in two updates, of which every process has as many as the others.
WORDS = ("train.epochs=2", "train.groups=8", "train.micro_batch=4")


def launch(config: Config, folder: Path, processes: int, dying: int = 0, program: str = PROGRAM) -> CompletedProcess:
    """Run a program; with ``dying`` the process of rank 1 kills itself when it judges for the so-many-th time."""
    file = folder / "program.py"
    file.write_text(program)
    Path(f"{config.run}.yaml").write_text(to_yaml(config))
    words = ["--standalone", f"--nproc_per_node={processes}", str(file), config.run, str(dying)]
    return forked.torchrun(words, folder / "output.txt")


@pytest.fixture(scope="module", autouse=True)
def environment():
    here = Path(__file__).parents[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{here.parent}{os.pathsep}{here}")
        patch.setenv("ACCELERATE_USE_CPU", "true")
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture(scope="module")
def alone(pipeline_folder, tmp_path_factory) -> Config:
    """What one process has trained by ``WORDS``."""
    folder = tmp_path_factory.mktemp("alone")
    config = load([*FAST.split(), f"model.path={pipeline_folder}", f"run={folder / '1'}", *WORDS])
    run_all({1: config}, folder)
    return config


def lines(config: Config) -> list[dict]:
    return [json.loads(line) for line in Path(config.run, "metrics.jsonl").read_text().splitlines()]


def first_epoch(config: Config) -> list[list]:
    """(prompt, hash of the image, reward) of all images of the first epoch, whichever process drew them."""
    run, train = Path(config.run), config.train
    drawn = [file.read_text().splitlines() for file in run.parent.glob(f"{run.name}.rank*")]
    each = train.groups * train.group_size // len(drawn)
    return sorted(json.loads(line) for own in drawn for line in own[:each])


def weights(config: Config) -> dict[str, torch.Tensor]:
    return load_file(Path(config.run, "final", "trained.safetensors"))


def run_all(configs: dict[int, Config], folder: Path) -> None:
    """Train with so many processes each, to the end."""
    for processes, config in configs.items():
        done = launch(config, folder, processes)
        assert done.returncode == 0, done.stderr


def assert_same(one: Config, many: Config) -> None:
    """The first epochs are the same to the bit, and what follows but for the order of sums."""
    drawn = first_epoch(one)
    assert len(drawn) == 32 and drawn == first_epoch(many)
    for name in ("reward", "reward_std", "diversity", "effective_share", "weight_max", "overlap"):
        assert lines(one)[0][name] == lines(many)[0][name]
    for line, other in zip(lines(one), lines(many), strict=True):
        assert abs(line["loss"] - other["loss"]) <= 1e-5
        assert 0 < line["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-3)
        assert line["ratio_error"] <= 1e-6 and other["ratio_error"] <= 1e-6
    assert_same_weights(one, many)


def assert_same_weights(one: Config, other: Config) -> None:
    ours, theirs = weights(one), weights(other)
    assert ours.keys() == theirs.keys() and all(torch.allclose(ours[name], theirs[name], atol=1e-5) for name in ours)


@pytest.mark.parametrize("processes", [2, 4])
def test_many_processes_are_one(alone, make_config, tmp_path, processes):
    many = make_config(*WORDS)
    run_all({processes: many}, tmp_path)
    assert_same(alone, many)
    ranks = [Path(f"{many.run}.rank{rank}").read_text().splitlines() for rank in range(processes)]
    assert {len(own) for own in ranks} == {2 * 32 // processes}


@pytest.mark.parametrize(
    "words", [("train.beta=0",), ("train.beta=0.1", "model.gradient_checkpointing=true", "sampling.guidance=2")]
)
def test_processes_that_share_the_weights_are_one(make_config, tmp_path, words):
    # Ten test images are three batches, of which one process has two. Advantages of 0 fall on one process or the other.
    words = (*WORDS, *words, "evaluation.every=2", "evaluation.every_images=5")
    runs = {number: make_config(*words, f"run={tmp_path / str(number)}", "model.shard=true") for number in (1, 2)}
    run_all(runs, tmp_path)
    one, two = runs[1], runs[2]
    assert_same(one, two)
    for name in ("eval/red", "eval/diversity"):
        assert abs(lines(one)[1][name] - lines(two)[1][name]) <= 1e-6
    whole = int(Path(f"{one.run}.held0").read_text())
    parts = [int(Path(f"{two.run}.held{rank}").read_text()) for rank in (0, 1)]
    assert sum(parts) == whole and max(parts) < 0.55 * whole


def test_a_whole_run_leaves_the_same_results(make_config, tmp_path):
    """Training, evaluation on three tasks, and the base: numbers, verdicts and the samples that all processes drew."""
    words = ("train.epochs=1", "evaluation.images=3", "evaluation.cross_images=1")
    one, two = (make_config(*words, f"run={tmp_path / str(number)}") for number in (1, 2))
    for processes, config in ((1, one), (2, two)):
        done = launch(config, tmp_path, processes, program=WHOLE)
        assert done.returncode == 0, done.stderr
    for inside, evaluations in (("", 3), (".base/runs/mini/geneval/base", 1)):
        ours, theirs = (Path(f"{config.run}{inside}", "final") for config in (one, two))
        found = sorted(file.relative_to(ours) for file in ours.rglob("rows.json"))
        assert len(found) == evaluations
        for file in found:
            kept, other = (json.loads((folder / file).read_text()) for folder in (ours, theirs))
            assert [row["metric"] for row in kept] == [row["metric"] for row in other]
            assert all(abs(row["value"] - theirs["value"]) < 1e-3 for row, theirs in zip(kept, other, strict=True))
            samples = [sorted(path.name for path in (folder / file).parent.glob("samples/*")) for folder in (ours, theirs)]
            assert samples[0] == samples[1] == ["00000.png", "00001.png"]


def test_sharing_that_would_make_processes_wait_for_ever_is_refused(make_config, tmp_path):
    config = make_config("train.groups=6", "train.micro_batch=4", "model.shard=true")
    refused = launch(config, tmp_path, 2)
    assert refused.returncode != 0
    assert "star: model.shard=true: 6 micro-batches in 2 updates are no equal shares for 2 processes; use" in refused.stderr
    assert not Path(config.run).exists()


def test_who_waits_for_a_dead_process_ends_with_a_reason():
    class Broken:
        def reduce(self, values, how):
            raise RuntimeError("Connection closed by peer\nmore")

    with pytest.raises(RunStopped, match=r"another process of this run has died.*\(Connection closed by peer more\); the"):
        total(Broken(), torch.zeros(1))


def test_who_waits_for_a_dead_process_to_give_its_weights_ends_with_a_reason(monkeypatch):
    def broken(self, *arguments, **named):
        raise RuntimeError("Connection closed by peer\nmore")

    monkeypatch.setattr(DefaultAllGather, "__call__", broken)
    with pytest.raises(RunStopped, match=r"another process of this run has died.*\(Connection closed by peer more\)"):
        gather()(torch.zeros(2), torch.zeros(1), None)


def test_a_torch_that_keeps_its_gathering_elsewhere_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.distributed.fsdp._fully_shard._fsdp_collectives", None)
    with pytest.raises(UserError, match="model.shard=true does not know torch .*; use 2.9 to 2.14, or model.shard=false"):
        gather()


@pytest.mark.parametrize("shard", [False, True])
def test_a_run_whose_process_dies_says_so_and_goes_on_with_another_number(alone, make_config, tmp_path, shard):
    cut, further = (make_config(*WORDS, f"model.shard={sharded}") for sharded in (shard, False))
    # Four micro-batches of rank 1 are one epoch; it dies in the second, after a checkpoint.
    died = launch(cut, tmp_path, 2, dying=6)
    assert died.returncode != 0
    log = tmp_path / "log.txt"
    log.write_text(died.stderr)
    # The launcher that forks may end the other process before it says so, or see it end first.
    assert _reason(log, 0, died.returncode).startswith((DIED, "the process of rank 1 was killed by SIGKILL"))
    assert len(lines(cut)) == 1
    assert launch(further, tmp_path, 1 if shard else 4).returncode == 0
    assert [line["epoch"] for line in lines(cut)] == [1, 2]
    assert_same_weights(alone, cut)


def test_a_dead_process_is_told_by_the_launcher_that_users_have(tmp_path):
    """It does not fork, and reports in another way: both processes, whichever ended first."""
    file, log = tmp_path / "program.py", tmp_path / "log.txt"
    file.write_text(DYING)
    words = ["--standalone", "--nproc_per_node=2", str(file), DIED]
    died = subprocess.run([sys.executable, "-m", forked.LAUNCHER, *words], timeout=600, capture_output=True, text=True)
    log.write_text(died.stderr)
    assert died.returncode != 0 and f"star: {DIED}" in died.stderr
    assert _reason(log, 0, died.returncode) == "the process of rank 1 was killed by SIGKILL (out of memory?)"
