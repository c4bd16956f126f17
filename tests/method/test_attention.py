import math

import pytest
import torch
from diffusers.models.attention_processor import JointAttnProcessor2_0
from peft import LoraConfig, get_peft_model
from tiny import tiny_transformer

from star.common.errors import UserError
from star.method.attention import Relevance, explicit_log_sum_exp, log_sum_exp

TEXT, ROWS = 11, 3
# Logits of these examples reach 17, where neighbours in float32 are 1.9e-6 apart: so far a logit and its normaliser, each
# rounded by half of that, are off together, and with them the logarithm of a share.
ROUNDING = 2e-6


class ExplicitAttention:
    """Joint attention with its whole matrix in float64, kept for the test to look at."""

    def __init__(self):
        self.matrix = self.logits = None

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None):
        def heads(tokens, projection, norm):
            split = projection(tokens).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            return split if norm is None else norm(split)

        query = heads(hidden_states, attn.to_q, attn.norm_q)
        key = heads(hidden_states, attn.to_k, attn.norm_k)
        key = torch.cat([key, heads(encoder_hidden_states, attn.add_k_proj, attn.norm_added_k)], dim=2)
        self.logits = torch.einsum("bhid,bhjd->bhij", query.double(), key.double()) / math.sqrt(query.shape[-1])
        self.matrix = self.logits.exp() / self.logits.exp().sum(-1, keepdim=True)
        return JointAttnProcessor2_0()(attn, hidden_states, encoder_hidden_states)


def inputs(rows=ROWS, seed=0, size=8):
    generator = torch.Generator().manual_seed(seed)
    return {
        "hidden_states": torch.randn(rows, 16, size, size, generator=generator),
        "encoder_hidden_states": torch.randn(rows, TEXT, 32, generator=generator),
        "pooled_projections": torch.randn(rows, 64, generator=generator),
        "timestep": torch.rand(rows, generator=generator) * 1000,
    }


def core_mask():
    """A different number of columns in every row."""
    mask = torch.zeros(ROWS, TEXT, dtype=torch.bool)
    mask[0, 4] = mask[1, [1, 2, 7]] = mask[2, [0, 3, 5, 9, 10]] = True
    return mask


def captured(model, batch, mask, blocks=(0, 1), per_block=True, **options):
    with Relevance(model, blocks, mask, **options) as relevance, torch.no_grad():
        model(**batch)
        return relevance.take(per_block)


def explicit(model, batch, mask, heads=slice(None), softmax_over="joint"):
    """The relevance of every block from its full attention matrix, float64 (blocks, B, h, w)."""
    processors = [ExplicitAttention() for _ in model.transformer_blocks]
    before = [block.attn.processor for block in model.transformer_blocks]
    for block, processor in zip(model.transformer_blocks, processors, strict=True):
        block.attn.processor = processor
    with torch.no_grad():
        model(**batch)
    for block, processor in zip(model.transformer_blocks, before, strict=True):
        block.attn.processor = processor
    maps = []
    for processor in processors:
        images = processor.matrix.shape[-1] - TEXT
        matrix = processor.matrix[:, :, :images, images:]
        if softmax_over == "text":
            matrix = processor.logits[:, :, :images, images:].softmax(-1)
        own = [matrix[row, heads][..., columns].sum(-1).mean(0) for row, columns in enumerate(mask)]
        maps.append(torch.stack(own).unflatten(-1, (math.isqrt(images),) * 2))
    return torch.stack(maps)


MODELS = {
    "sd3.5": lambda: tiny_transformer(peaked=1.5),
    "sd3": lambda: tiny_transformer(qk_norm=None, peaked=3.0),
}


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("softmax_over", ["joint", "text"])
def test_relevance_is_that_of_the_explicit_softmax(kind, softmax_over):
    model, batch, mask = MODELS[kind](), inputs(), core_mask()
    found = captured(model, batch, mask, softmax_over=softmax_over)
    expected = explicit(model, batch, mask, softmax_over=softmax_over)
    assert found.shape == (2, ROWS, 4, 4) and found.dtype == torch.float32
    assert expected.max() > 3 * expected.mean(), "the example's attention must not be nearly uniform"
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=ROUNDING)


def test_chosen_blocks_and_heads():
    model, batch, mask = tiny_transformer(peaked=1.5, num_layers=3), inputs(), core_mask()
    expected = explicit(model, batch, mask)
    for blocks in ((2,), (1, 0), (0, 1, 2)):
        found = captured(model, batch, mask, blocks)
        torch.testing.assert_close(found.double(), expected[list(blocks)], rtol=0, atol=ROUNDING)
        mean = captured(model, batch, mask, blocks, per_block=False)
        torch.testing.assert_close(mean.double(), expected[list(blocks)].mean(0), rtol=0, atol=ROUNDING)
    one_head = explicit(model, batch, mask, heads=[1])
    assert (one_head - expected).abs().max() > 1e-3
    torch.testing.assert_close(captured(model, batch, mask, (0, 1, 2), heads=[1]).double(), one_head, rtol=0, atol=ROUNDING)


def test_all_text_columns_and_all_image_keys_share_one_attention():
    model, batch = tiny_transformer(peaked=1.5), inputs()
    everything = torch.ones(ROWS, TEXT, dtype=torch.bool)
    parts = [captured(model, batch, everything & (torch.arange(TEXT) == column)) for column in range(TEXT)]
    whole = captured(model, batch, everything)
    torch.testing.assert_close(sum(parts), whole)
    assert (whole > 0).all() and (whole < 1).all()
    over_text = captured(model, batch, everything, softmax_over="text")
    torch.testing.assert_close(over_text, torch.ones_like(over_text))


@pytest.mark.parametrize("kind", MODELS)
def test_the_output_is_bit_equal_with_and_without_capture(kind):
    model, batch = MODELS[kind](), inputs()
    with torch.no_grad():
        plain = model(**batch).sample
    with Relevance(model, [0, 1], core_mask()):
        watched = model(**batch).sample
    assert torch.equal(plain, watched)


def test_gradients_are_those_without_capture():
    model, batch = tiny_transformer(), inputs()
    weights = model.transformer_blocks[0].attn.to_q.weight
    (plain,) = torch.autograd.grad(model(**batch).sample.square().mean(), weights)
    with Relevance(model, [0, 1], core_mask()) as relevance:
        (watched,) = torch.autograd.grad(model(**batch).sample.square().mean(), weights)
        assert not relevance.take().requires_grad
    assert torch.equal(plain, watched)


def test_the_conditional_half_is_used_under_guidance():
    model, mask = tiny_transformer(peaked=1.5), core_mask()
    unconditional, conditional = inputs(seed=1), inputs(seed=2)
    both = {name: torch.cat([unconditional[name], conditional[name]]) for name in conditional}
    expected = captured(model, conditional, mask)
    torch.testing.assert_close(captured(model, both, mask), expected, rtol=0, atol=ROUNDING)
    assert (captured(model, unconditional, mask) - expected).abs().max() > 1e-2


def test_permuting_the_batch_permutes_the_maps():
    model, batch, mask = tiny_transformer(peaked=1.5), inputs(), core_mask()
    order = torch.tensor([2, 0, 1])
    permuted = captured(model, {name: tensor[order] for name, tensor in batch.items()}, mask[order])
    torch.testing.assert_close(permuted, captured(model, batch, mask)[:, order], rtol=0, atol=ROUNDING)


def test_moving_a_word_moves_its_column():
    model, batch, mask = tiny_transformer(peaked=1.5), inputs(), core_mask()
    order = torch.randperm(TEXT, generator=torch.Generator().manual_seed(0))
    moved = batch | {"encoder_hidden_states": batch["encoder_hidden_states"][:, order]}
    expected = captured(model, batch, mask)
    torch.testing.assert_close(captured(model, moved, mask[:, order]), expected, rtol=0, atol=ROUNDING)


def test_a_known_attention_gives_a_known_map():
    """Queries of two image positions that match one text key each, far above all else."""
    model, mask = tiny_transformer(qk_norm=None), torch.zeros(1, TEXT, dtype=torch.bool)
    mask[0, 3] = True
    with Relevance(model, [0], mask) as relevance:
        attn = model.transformer_blocks[0].attn
        image_query, keys = torch.zeros(1, 16, 32), torch.zeros(1, TEXT, 32)
        image_query[0, 5, ::16] = image_query[0, 10, 1::16] = 40.0
        keys[0, 3, ::16], keys[0, 7, 1::16] = 40.0, 40.0
        for module, output in ((attn.to_q, image_query), (attn.to_k, torch.zeros(1, 16, 32)), (attn.add_k_proj, keys)):
            for hook in module._forward_hooks.values():
                hook(module, (), output)
        found = relevance.take()[0].flatten()
    expected = torch.full((16,), 1 / (16 + TEXT))
    expected[5], expected[10] = 1.0, 0.0
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("grid", [(2, 8), (4, 4), None])
def test_the_grid_is_filled_row_by_row(grid):
    model, batch = tiny_transformer(peaked=1.5), inputs()
    found = captured(model, batch, core_mask(), grid=grid)
    assert found.shape[-2:] == (grid or (4, 4))
    assert torch.equal(found.flatten(2), captured(model, batch, core_mask()).flatten(2))


def test_an_image_that_is_no_square_needs_its_grid():
    model, batch = tiny_transformer(), inputs()
    batch["hidden_states"] = batch["hidden_states"][:, :, :4]
    assert captured(model, batch, core_mask(), grid=(2, 4)).shape == (2, ROWS, 2, 4)
    with pytest.raises(ValueError, match="8 image tokens are no grid of 2 x 2"):
        captured(model, batch, core_mask())


@pytest.mark.parametrize("kind", MODELS)
def test_hooks_are_gone_after_the_context(kind):
    model = MODELS[kind]()

    def hooks():
        return sum(len(module._forward_hooks) for module in model.modules())

    with Relevance(model, [0, 1], core_mask()):
        assert hooks() == 6
    assert hooks() == 0
    with pytest.raises(KeyError), Relevance(model, [1], core_mask()):
        assert hooks() == 3
        raise KeyError
    assert hooks() == 0


def test_every_forward_pass_gives_one_map():
    model, mask = tiny_transformer(), core_mask()
    with Relevance(model, [0], mask) as relevance, torch.no_grad():
        with pytest.raises(RuntimeError, match=r"blocks \[0\] since the last take"):
            relevance.take()
        model(**inputs(seed=1))
        model(**inputs(seed=2))
        latest = relevance.take(per_block=True)
        with pytest.raises(RuntimeError):
            relevance.take()
        model(**inputs(seed=3), skip_layers=[0])
        with pytest.raises(RuntimeError):
            relevance.take()
    assert torch.equal(latest, captured(model, inputs(seed=2), mask, [0]))


def test_a_capture_may_be_entered_again_and_read_outside():
    model, mask = tiny_transformer(peaked=1.5), core_mask()
    relevance = Relevance(model, [1], mask)
    for seed in (1, 2):
        with relevance, torch.no_grad():
            model(**inputs(seed=seed))
        model(**inputs(seed=9))  # not captured
        assert torch.equal(relevance.take(), captured(model, inputs(seed=seed), mask, [1], per_block=False))


@pytest.mark.parametrize("kind", MODELS)
def test_lora_is_seen_injected_and_wrapped(kind):
    batch, mask = inputs(), core_mask()
    lora = LoraConfig(r=4, init_lora_weights=False, target_modules=["to_q", "to_k", "add_k_proj"])
    base = captured(MODELS[kind](), batch, mask)
    torch.manual_seed(0)
    injected = MODELS[kind]()
    injected.add_adapter(lora)
    expected = explicit(injected, batch, mask)
    assert (expected - base).abs().max() > 1e-3
    torch.testing.assert_close(captured(injected, batch, mask).double(), expected, rtol=0, atol=ROUNDING)
    torch.manual_seed(0)
    wrapped = get_peft_model(MODELS[kind](), lora)
    torch.testing.assert_close(captured(wrapped, batch, mask).double(), expected, rtol=0, atol=ROUNDING)
    parallel = torch.nn.Module()
    parallel.module, parallel.forward = wrapped, wrapped.forward
    torch.testing.assert_close(captured(parallel, batch, mask).double(), expected, rtol=0, atol=ROUNDING)


def test_under_autocast_queries_and_keys_are_rounded_as_the_attention_rounds_them():
    generator = torch.Generator().manual_seed(0)
    query, image_key = (3 * torch.randn(ROWS, 16, 32, generator=generator) for _ in range(2))
    text_key = 3 * torch.randn(ROWS, TEXT, 32, generator=generator)
    model, mask = tiny_transformer(qk_norm=None), core_mask()
    with Relevance(model, [0], mask) as relevance, torch.autocast("cpu", torch.bfloat16):
        attn = model.transformer_blocks[0].attn
        for module, output in ((attn.to_q, query), (attn.to_k, image_key), (attn.add_k_proj, text_key)):
            for hook in module._forward_hooks.values():
                hook(module, (), output)
        found = relevance.take().flatten(1)
    rounded = [part.bfloat16().double().unflatten(-1, (2, 16)).transpose(1, 2) for part in (query, image_key, text_key)]
    matrix = (rounded[0] @ torch.cat(rounded[1:], dim=2).mT / 4).softmax(-1)[..., 16:]
    expected = torch.stack([matrix[row][..., columns].sum(-1).mean(0) for row, columns in enumerate(mask)])
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("width", [16, 18, 64])
def test_the_kernels_log_sum_exp_is_that_of_torch(width):
    generator = torch.Generator().manual_seed(width)
    query = 2 * torch.randn(2, 3, 70, width, generator=generator)
    key = 2 * torch.randn(2, 41, 3, width, generator=generator).transpose(1, 2)
    expected = torch.logsumexp(query.double() @ key.double().mT / math.sqrt(width), dim=-1)
    for found in (log_sum_exp(query, key), explicit_log_sum_exp(query, key)):
        assert found.shape == (2, 3, 70) and found.dtype == torch.float32
        torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("queries", [64, 70])
def test_the_gpu_kernels_log_sum_exp_is_that_of_torch(dtype, queries):
    query, key = (torch.randn(2, 3, tokens, 64, device="cuda", dtype=dtype) for tokens in (queries, 41))
    expected = torch.logsumexp(query.double() @ key.double().mT / 8, dim=-1)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-3
    torch.testing.assert_close(log_sum_exp(query, key).double(), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"blocks": [0, 2]}, "block 2 does not exist: choose blocks from 0 to 1"),
        ({"blocks": [-1]}, "block -1 does not exist"),
        ({"blocks": []}, "no block is chosen"),
        ({"blocks": [0], "heads": [2]}, "head 2 does not exist: choose heads from 0 to 1"),
        ({"blocks": [0], "heads": []}, "no head is chosen"),
    ],
)
def test_blocks_and_heads_that_do_not_exist_are_named(options, message):
    with pytest.raises(UserError, match=message):
        Relevance(tiny_transformer(), mask=core_mask(), **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"softmax_over": "image"}, "joint, text"),
        ({"mask": torch.zeros(ROWS, TEXT, dtype=torch.bool)}, "every row"),
        ({"mask": torch.ones(TEXT, dtype=torch.bool)}, r"\(B, text tokens\)"),
        ({"mask": torch.ones(ROWS, TEXT + 1, dtype=torch.bool)}, "12 columns, the text 11 tokens"),
        ({"mask": torch.ones(2, TEXT, dtype=torch.bool)}, "2 rows; .* not 3"),
        ({"mask": torch.ones(4, TEXT, dtype=torch.bool)}, "4 rows; .* not 3"),
    ],
)
def test_masks_that_do_not_fit_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        captured(tiny_transformer(), inputs(), **({"mask": core_mask()} | options))
