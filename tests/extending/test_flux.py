"""A base model whose attention is not SD3's, from one file outside of the project: a FLUX.1 with random weights."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from diffusers.models.embeddings import apply_rotary_emb
from fake_task import RedTask
from own_flux import Flux
from tiny import FAST
from transformers import CLIPTextModel

from star import models
from star.common.errors import UserError
from star.common.noise import normal
from star.config import identity, load
from star.doctor.checks import check
from star.doctor.dry_run import dry_run
from star.mini.build import TEXT_WIDTH, untrained_pipeline
from star.training import machine
from star.training.rollout import generate
from star.training.trainer import Trainer

CPU = torch.device("cpu")
TEXTS = ["a photo of a red circle", "two stars"]


@pytest.fixture(scope="module")
def flux(tmp_path_factory) -> Path:
    """Two blocks of each kind, guidance as an input, and a shift by resolution, in diffusers' folder format."""
    torch.manual_seed(0)
    parts = untrained_pipeline(width=32, blocks=1)
    parts.vae.register_to_config(scaling_factor=0.36, shift_factor=0.1)
    pipeline = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=parts.vae,
        text_encoder=CLIPTextModel(parts.text_encoder.config),
        tokenizer=parts.tokenizer,
        text_encoder_2=parts.text_encoder_3,
        tokenizer_2=parts.tokenizer_3,
        transformer=FluxTransformer2DModel(
            in_channels=16,
            num_layers=2,
            num_single_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=TEXT_WIDTH,
            pooled_projection_dim=parts.text_encoder.config.hidden_size,
            guidance_embeds=True,
            axes_dims_rope=(4, 6, 6),
        ),
    )
    folder = tmp_path_factory.mktemp("flux")
    pipeline.save_pretrained(folder)
    return folder


@pytest.fixture
def words(flux, monkeypatch) -> list[str]:
    monkeypatch.syspath_prepend(Path(__file__).parent)
    own = [
        f"model.path={flux}",
        "model.kind=own_flux:Flux",
        "model.name=flux",
        "relevance.columns=t5",
        "relevance.blocks=[1,2]",
    ]
    return [
        *FAST.split(),
        *own,
        "sampling.guidance=3.5",
        "evaluation.guidance=3.5",
        "model.resolution=32",
        "model.text_length=24",
    ]


def test_pictures_are_those_of_the_plain_pipeline(flux, words):
    config = load(words)
    base = models.load(config.model, CPU, 0)
    assert type(base) is Flux and base.blocks == 4
    keys = [("test", number) for number in range(len(TEXTS))]
    drawn = generate(base, TEXTS, keys, 3, 3.5).numpy()
    pipeline = FluxPipeline.from_pretrained(flux)
    pipeline.set_progress_bar_config(disable=True)
    noise = torch.stack([normal(base.latent_shape, *key) for key in keys])
    packed = FluxPipeline._pack_latents(noise, *noise.shape)
    size = config.model.resolution
    plain = pipeline(
        TEXTS,
        height=size,
        width=size,
        num_inference_steps=3,
        guidance_scale=3.5,
        latents=packed,
        max_sequence_length=config.model.text_length,
        output_type="np",
    ).images
    assert np.abs(drawn / 255 - plain).max() < 1 / 255 and plain.std() > 0.01


def attention(attn, text, hidden_states, encoder_hidden_states=None, image_rotary_emb=None, **_):
    """The softmax of a block written out, (B, heads, image tokens, text columns), from what goes into it."""

    def heads(x, projection, norm):
        return norm(projection(x).unflatten(-1, (attn.heads, -1)))

    query, key = heads(hidden_states, attn.to_q, attn.norm_q), heads(hidden_states, attn.to_k, attn.norm_k)
    if encoder_hidden_states is not None:
        query = torch.cat([heads(encoder_hidden_states, attn.add_q_proj, attn.norm_added_q), query], 1)
        key = torch.cat([heads(encoder_hidden_states, attn.add_k_proj, attn.norm_added_k), key], 1)
    query, key = (apply_rotary_emb(x, image_rotary_emb, sequence_dim=1).transpose(1, 2) for x in (query, key))
    shares = (query @ key.transpose(2, 3) / query.shape[-1] ** 0.5).softmax(-1)
    return shares[:, :, text:, :text]


def test_maps_are_the_attention_of_both_kinds_of_blocks(words):
    config = load(words)
    base = models.load(config.model, CPU, 0)
    mask = base.core_columns(TEXTS, [((0, 7),), ((0, 3),)], "t5")
    went_in = {}
    blocks = [base.transformer.transformer_blocks[1], base.transformer.single_transformer_blocks[0]]
    for block in blocks:
        block.attn.register_forward_pre_hook(lambda attn, given, named: went_in.__setitem__(attn, named), with_kwargs=True)
    capture = base.relevance(config.relevance, mask)
    latents = torch.stack([normal(base.latent_shape, 0, text) for text in TEXTS])
    with torch.no_grad(), capture:
        base.velocity(latents, torch.tensor(0.5), TEXTS, 3.5)
    found = capture.take(per_block=True)
    assert found.shape == (2, 2, 4, 4)
    for block, taken in zip(blocks, found, strict=True):
        with torch.no_grad():
            shares = attention(block.attn, config.model.text_length, **went_in[block.attn])
        expected = torch.stack([row[:, :, own].sum(2).mean(0) for row, own in zip(shares, mask, strict=True)])
        torch.testing.assert_close(taken.flatten(1), expected)
        assert expected.std() > 1e-5


@pytest.mark.parametrize("method", ["flow_grpo", "star"])
def test_it_trains_and_its_adapters_load_in_plain_diffusers(words, tmp_path, method):
    trainer = Trainer(
        load([*words, f"method={method}", f"run={tmp_path / 'run'}", "train.epochs=2", "train.lr=1e-2"]), RedTask()
    )
    trainer.run()
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 2 and lines[0]["ratio_error"] < 1e-4 and lines[0]["grad_norm"] > 0
    if method == "star":
        assert lines[0]["weight_max"] > 1
    base, latents = trainer.base, normal((1, 4, 8, 8), 0, "x").to(trainer.base.device)
    with torch.no_grad(), base.weights(trainer.ema.values):
        trained = base.velocity(latents, torch.tensor(0.5), TEXTS[:1], 3.5)
    with torch.no_grad(), base.reference():
        untrained = base.velocity(latents, torch.tensor(0.5), TEXTS[:1], 3.5)
    again = models.load(trainer.config.model, base.device, 1)
    again.transformer.delete_adapters("default")
    again.pipeline.load_lora_weights(tmp_path / "run" / "final" / "lora")
    with torch.no_grad():
        loaded = again.velocity(latents, torch.tensor(0.5), TEXTS[:1], 3.5)
    torch.testing.assert_close(loaded, trained)
    assert (trained - untrained).abs().max() > 1e-4


def test_what_is_sd3s_alone_says_so(words, monkeypatch):
    found = {finding.what: finding for finding in check(load([*words, "evaluation.cross_images=0"]))}
    assert found["model"].fine and "own_flux:Flux: of your own" in found["model"].found and "GPU memory" not in found
    with pytest.raises(UserError, match="the dry run builds SD3's transformer"):
        dry_run(words)
    with pytest.raises(UserError, match="model.offload=null.* say true or false"):
        machine.placed(load([*words, "model.offload=null"]), torch.device("cuda"), 1)
    with pytest.raises(UserError, match="model.kind=own_flux:Flux: results need a name for the model"):
        load([word for word in words if not word.startswith("model.name=")])
    with pytest.raises(UserError, match=r"model\.kind=flux is no path of a class"):
        load([*words, "model.kind=flux"])
    with pytest.raises(UserError, match="relevance.columns=both: this model's attention sees T5 alone"):
        Trainer(load([*words, "relevance.columns=both"]), RedTask())


def test_a_known_model_has_no_kind_in_its_identity(words):
    assert "kind" not in identity(load([]))["model"]
    assert identity(load(words))["model"]["kind"] == "own_flux:Flux"
