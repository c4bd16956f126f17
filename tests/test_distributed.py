"""Two processes on one machine: the same images and rewards, and the same weights up to the order of sums."""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from star.config import to_yaml

PROGRAM = """
import sys
import torch
from omegaconf import OmegaConf
from star.config import Config
from star.trainer import Trainer
from fake_task import RedTask
torch.set_num_threads(1)
config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), OmegaConf.load(sys.argv[1])))
Trainer(config, RedTask()).run()
"""


def test_two_processes_are_one(make_config, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    runs = {}
    for processes in (1, 2):
        # Six micro-batches in two updates: each process has two in the first and one in the second, or the reverse.
        config = make_config("train.epochs=2", "train.groups=6", "train.micro_batch=4", f"run={tmp_path / str(processes)}")
        file = tmp_path / f"{processes}.yaml"
        file.write_text(to_yaml(config))
        environment = {
            **os.environ,
            "PYTHONPATH": str(Path(__file__).parent),
            "ACCELERATE_USE_CPU": "true",
            "OMP_NUM_THREADS": "1",
        }
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        subprocess.run([*launch, str(program), str(file)], check=True, env=environment, timeout=300)
        runs[processes] = (
            [json.loads(line) for line in Path(config.run, "metrics.jsonl").read_text().splitlines()],
            load_file(Path(config.run, "final", "trained.safetensors")),
        )
    (one, weights), (two, others) = runs[1], runs[2]
    assert one[0]["reward"] == two[0]["reward"] and one[0]["diversity"] == two[0]["diversity"]
    assert one[0]["effective_share"] == two[0]["effective_share"]
    for line, other in zip(one, two, strict=True):
        assert abs(line["loss"] - other["loss"]) <= 1e-5
        assert line["ratio_error"] <= 1e-6 and other["ratio_error"] <= 1e-6
    assert all(torch.allclose(weights[name], others[name], atol=1e-5) for name in weights)
