"""``star train`` at the size of SD3.5 Medium, from files with random weights: ``tox -e true-size``.

T5 has two of its 24 layers and the vocabularies are made up. All else has the true size: transformer, both CLIPs, autoencoder,
512 pixels, tokens, adapters. Without guidance, which would double the time.
"""

import itertools
import json
import string
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from PIL import Image
from tiny import clip_tokenizer, t5_tokenizer

from star.bench.gpu.bench import put_true_encoders
from star.bench.gpu.sizes import TRUE
from star.config import load
from star.models.memory import needed
from star.models.shapes import CLIP_LENGTH, SD35_MEDIUM, random_pipeline

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent

WORDS = """scale=paper task=pickscore task.name=rings task.prompts=own_task:Rings +evaluators.rings=own_reward:Brightness
method=star seed=0 model.dtype=bfloat16 model.gradient_checkpointing=true train.beta=0.01
train.groups=1 train.group_size=2 train.micro_batch=1 train.epochs=1 train.checkpoint_every=1 train.ema_every=1
sampling.steps=4 sampling.window=1 sampling.window_range=[0,3] sampling.guidance=1
evaluation.guidance=1 evaluation.steps=2 evaluation.images=1 evaluation.cross_images=0 evaluation.every=0"""

PROGRAM = """
import resource, sys
from star.cli import main
from star.models import sd3
sd3.CPU_PARAMETERS = float("inf")  # users are told that it takes minutes
try:
    main()
finally:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def made_up(count: int) -> list[str]:
    """Words of three and four letters."""
    return ["".join(w) for n in (3, 4) for w in itertools.product(string.ascii_lowercase, repeat=n)][:count]


@pytest.fixture
def folder(tmp_path) -> Path:
    torch.manual_seed(0)
    pipeline = random_pipeline(SD35_MEDIUM, torch.bfloat16)
    pipeline.tokenizer = clip_tokenizer(made_up(46500), CLIP_LENGTH)
    pipeline.tokenizer_2 = clip_tokenizer(made_up(46500), CLIP_LENGTH, pad="!")
    pipeline.tokenizer_3 = t5_tokenizer(["▁" + word for word in made_up(31900)], 512)
    sizes = replace(TRUE, t5={**TRUE.t5, "num_layers": 2})
    put_true_encoders(pipeline, sizes, torch.device("cpu"), torch.bfloat16)
    pipeline.vae.to(torch.bfloat16)
    pipeline.save_pretrained(tmp_path / "sd35")
    return tmp_path / "sd35"


def test_a_training(folder, tmp_path):
    words = [*WORDS.split(), f"model.path={folder}", f"run={tmp_path / 'run'}"]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, "train", *words], cwd=HERE.parent / "extending", capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (line,) = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    print(done.stdout, line)
    assert line["ratio_error"] == 0 and 0 < line["effective_share"] < 1 and line["grad_norm"] > 0
    final = tmp_path / "run" / "final"
    assert Image.open(next(final.rglob("*.png"))).size == (512, 512)
    others = sum(file.stat().st_size for file in folder.rglob("*.safetensors") if file.parent.name != "transformer")
    assert 0.5 < int(done.stdout.split()[-1]) * 1024 / needed(load(words), SD35_MEDIUM, others).process < 1
    adapters = StableDiffusion3Pipeline.lora_state_dict(final / "lora")
    assert len(adapters) == 2 * (24 * 8 - 1)  # the last block gives on no text
    unmoved = [name for name, tensor in adapters.items() if not tensor.any()]
    assert unmoved == ["transformer.transformer_blocks.23.attn.add_q_proj.lora_B.weight"]  # for the same reason
