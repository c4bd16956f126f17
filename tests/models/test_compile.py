"""Compiled blocks train as interpreted ones do, and say where they cannot."""

from functools import partial

import pytest
import torch
from fake_task import RedTask
from tiny import tiny_transformer

from star.common.errors import RunStopped, UserError
from star.method.attention import install
from star.models import sd3
from star.training import guards
from star.training.trainer import Trainer

CPU = torch.device("cpu")


@pytest.fixture
def quickly(monkeypatch):
    """Compiles without making machine code, which takes a minute; afterwards nothing compiled is left."""
    monkeypatch.setattr(sd3, "compile_blocks", partial(sd3.compile_blocks, backend="aot_eager"))
    before = torch._dynamo.config.recompile_limit, torch._dynamo.config.fail_on_recompile_limit_hit
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()
    torch._dynamo.config.recompile_limit, torch._dynamo.config.fail_on_recompile_limit_hit = before


def epochs(config):
    trainer = Trainer(config, RedTask())
    return [trainer.epoch(number) for number in range(2)]


def test_an_epoch_is_that_of_interpreted_blocks(make_config, quickly):
    """With relevance, guidance, a KL penalty and gradient checkpointing."""
    words = [
        "method=star",
        "sampling.guidance=2",
        "train.beta=0.1",
        "model.gradient_checkpointing=true",
        "model.kernels=torch",
    ]
    words += ["sampling.same_latent=false", "relevance.blocks=[0]"]
    plain = epochs(make_config(*words))
    compiled = epochs(make_config(*words, "model.compile=true"))
    for ours, theirs in zip(compiled, plain, strict=True):
        assert ours["ratio_error"] < 1e-5
        for name in ("reward", "grad_norm", "effective_share", "kl"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-3)


@pytest.mark.slow
def test_compiled_half_precision_gives_the_same_with_and_without_gradients():
    """As rollouts and updates compute it, in machine code, which takes minutes: run with ``pytest -m slow`` and this file."""
    transformer = tiny_transformer().to(torch.bfloat16).requires_grad_(False)
    install(transformer)
    for block in transformer.transformer_blocks:
        block.attn.to_q.weight.requires_grad_(True)
    sd3.compile_blocks(transformer, CPU)
    latents, texts, pooled = torch.randn(2, 16, 8, 8), torch.randn(2, 12, 32), torch.randn(2, 64)
    given = {"encoder_hidden_states": texts.bfloat16(), "pooled_projections": pooled.bfloat16()}
    found = []
    for learns in (False, True):
        with torch.set_grad_enabled(learns), torch.autocast("cpu", torch.bfloat16):
            found.append(transformer(latents.bfloat16(), timestep=torch.full((2,), 500.0), **given).sample)
    assert found[1].requires_grad and torch.equal(*found)


def test_too_many_variants_are_a_line_and_not_interpreted(make_config, quickly, monkeypatch):
    monkeypatch.setattr(sd3, "VARIANTS", 1)
    config = make_config("model.compile=true")
    told = pytest.raises(RunStopped, match="more shapes and modes than are compiled, .* set model.compile=false")
    with told, guards.limits(config):
        Trainer(config, RedTask()).epoch(0)


def test_a_machine_without_a_compiler_is_told(make_config, monkeypatch):
    monkeypatch.setattr(sd3.shutil, "which", lambda name: None)
    with pytest.raises(UserError, match=r"model.compile=true needs a C\+\+ compiler"):
        sd3.SD3(make_config("model.compile=true").model, CPU, 0)
