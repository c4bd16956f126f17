"""The published variants, the presets and the other base models, each an epoch on a tiny pipeline."""

import json
from pathlib import Path

import pytest
import torch
from fake_task import RedTask

from star.config import load, options
from star.models.shapes import AUTOENCODER, SD3_MEDIUM, SD35_LARGE, random_pipeline
from star.training.trainer import Trainer

# What is left of a shape when it shrinks: which blocks are dual, and whether queries and keys are normed.
SMALL = {
    "sample_size": 16,
    "num_layers": 3,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 96,
    "caption_projection_dim": 32,
    "pooled_projection_dim": 64,
    "pos_embed_max_size": 16,
}
SMALL_AUTOENCODER = {**AUTOENCODER, "block_out_channels": (8, 8, 8, 8), "norm_num_groups": 8, "layers_per_block": 1}


def first_epoch(config) -> dict:
    Trainer(config, RedTask()).run()
    return json.loads(Path(config.run, "metrics.jsonl").read_text().splitlines()[0])


@pytest.mark.parametrize("method", ["flow_grpo", "star"])
@pytest.mark.parametrize("variant", options("variant"))
def test_variants_train_on_policy(make_config, variant, method):
    window = {"fast": ("sampling.window=3", "sampling.window_range=[0,5]", "sampling.steps=6")}.get(
        variant, ("sampling.window=0",)
    )
    config = make_config(f"variant={variant}", f"method={method}", "train.epochs=1", *window)
    line = first_epoch(config)
    assert line["ratio_error"] <= 1e-6 and line["approx_kl"] > 0 and line["grad_norm"] > 0
    assert (config.sampling.kind == "cps") == (variant in ("fast", "cps"))


def test_the_guard_changes_the_gradient(make_config, tmp_path):
    plain, guarded = (
        first_epoch(make_config(f"train.guard={guard}", "train.epochs=1", f"run={tmp_path / str(guard)}"))
        for guard in (False, True)
    )
    assert plain["reward"] == guarded["reward"] and plain["grad_norm"] != guarded["grad_norm"]


@pytest.mark.parametrize("preset", options("preset"))
def test_presets_train(make_config, preset):
    """Checkpointing, offloading and the micro-batch of the preset, with two groups of that size."""
    size = load(["scale=paper", f"preset={preset}"]).train.micro_batch
    sizes = ["train.groups=2", f"train.group_size={size}", f"train.micro_batch={size}"]
    config = make_config(f"preset={preset}", "train.epochs=1", *sizes)
    trainer = Trainer(config, RedTask())
    assert trainer.base.transformer.is_gradient_checkpointing == config.model.gradient_checkpointing
    figures = trainer.epoch(0)
    assert figures["ratio_error"] <= 1e-6 and figures["grad_norm"] > 0


def test_checkpointing_does_not_change_the_update(make_config, tmp_path):
    norms = [
        first_epoch(make_config(f"model.gradient_checkpointing={on}", "train.epochs=1", f"run={tmp_path / str(on)}"))[
            "grad_norm"
        ]
        for on in (False, True)
    ]
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)


@pytest.mark.parametrize("shape", [SD3_MEDIUM, SD35_LARGE], ids=["sd3_medium", "sd35_large"])
def test_other_base_models_train(make_config, tmp_path, shape):
    """SD3 Medium has neither query and key norm nor dual blocks, SD3.5 Large no dual blocks; both have 16 latent channels."""
    torch.manual_seed(0)
    random_pipeline({**shape, **SMALL}, torch.float32, SMALL_AUTOENCODER).save_pretrained(tmp_path / "base")
    config = make_config(f"model.path={tmp_path / 'base'}", "method=star", "train.epochs=1", "sampling.guidance=2")
    trainer = Trainer(config, RedTask())
    attention = trainer.base.transformer.transformer_blocks[0].attn
    assert (attention.norm_q is None) == (shape is SD3_MEDIUM)
    assert trainer.base.latent_shape == (16, 8, 8)
    figures = trainer.epoch(0)
    assert figures["ratio_error"] <= 1e-6 and figures["grad_norm"] > 0
    assert 0 < figures["effective_share"] < 1
