import math

import pytest
import torch
from diffusers.models.normalization import RMSNorm
from peft import LoraConfig, get_peft_model
from tiny import tiny_transformer

from star.common.errors import UserError
from star.method.attention import (
    KERNELS,
    OPERATORS,
    JointAttention,
    Relevance,
    default_kernel,
    install,
    log_sum_exp,
    may_have,
    normalised,
)
from star.models.sd3 import SD3

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
            split = split if norm is None else norm(split)
            return split.bfloat16() if torch.is_autocast_enabled("cpu") else split

        query = heads(hidden_states, attn.to_q, attn.norm_q)
        key = heads(hidden_states, attn.to_k, attn.norm_k)
        key = torch.cat([key, heads(encoder_hidden_states, attn.add_k_proj, attn.norm_added_k)], dim=2)
        self.logits = torch.einsum("bhid,bhjd->bhij", query.double(), key.double()) / math.sqrt(query.shape[-1])
        self.matrix = self.logits.exp() / self.logits.exp().sum(-1, keepdim=True)
        return JointAttention()(attn, hidden_states, encoder_hidden_states)


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
def test_columns_that_count_equally_have_the_same_mean_and_leave_the_sum(kind):
    model, batch, mask = MODELS[kind](), inputs(), core_mask()
    found = captured(model, batch, mask, columns_count="equally").double()
    plain = explicit(model, batch, mask)
    for row, columns in enumerate(mask):
        alone = [explicit(model, batch, mask & False | (torch.arange(TEXT) == c))[:, row] for c in columns.nonzero().flatten()]
        mean = torch.stack([one.mean((1, 2), keepdim=True) for one in alone]).mean(0)
        expected = sum(one / one.mean((1, 2), keepdim=True) * mean for one in alone)
        torch.testing.assert_close(found[:, row], expected, rtol=0, atol=ROUNDING)
    torch.testing.assert_close(found.mean((2, 3)), plain.mean((2, 3)), rtol=0, atol=ROUNDING)
    assert (found - plain).abs().max() > 1e-3


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
    mask = torch.zeros(1, TEXT, dtype=torch.bool)
    mask[0, 3] = True
    relevance = Relevance(tiny_transformer(), [0], mask)
    query, image_key, text_key = torch.zeros(1, 2, 16, 16), torch.zeros(1, 2, 16, 16), torch.zeros(1, 2, TEXT, 16)
    query[..., 5, 0] = query[..., 10, 1] = text_key[..., 3, 0] = text_key[..., 7, 1] = 40.0
    keys = torch.cat([image_key, text_key], dim=2)
    _, normaliser = KERNELS["cpu"](query, keys, keys)
    found = relevance._relevance(query, text_key, normaliser).flatten()
    expected = torch.full((16,), 1 / (16 + TEXT))
    expected[5], expected[10] = 1.0, 0.0
    torch.testing.assert_close(found, expected)


def test_an_image_that_is_no_square_is_refused():
    model, batch = tiny_transformer(), inputs()
    batch["hidden_states"] = batch["hidden_states"][:, :, :4]
    with pytest.raises(ValueError, match="8 image tokens form no square"):
        captured(model, batch, core_mask())


def test_nothing_watches_after_the_context():
    model = tiny_transformer()

    def watching():
        return sum(block.attn.processor.watch is not None for block in model.transformer_blocks)

    with Relevance(model, [0, 1], core_mask()):
        assert watching() == 2
    assert watching() == 0
    with pytest.raises(KeyError), Relevance(model, [1], core_mask()):
        assert watching() == 1
        raise KeyError
    assert watching() == 0


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


@pytest.mark.parametrize("kind", MODELS)
def test_under_autocast_queries_and_keys_are_rounded_as_the_attention_rounds_them(kind):
    model, batch, mask = MODELS[kind](), inputs(), core_mask()
    exact = explicit(model, batch, mask)
    with torch.autocast("cpu", torch.bfloat16):
        expected, found = explicit(model, batch, mask), captured(model, batch, mask)
    # The kernel for bfloat16 takes a quicker exponential: the logarithm of its sum is off by up to 3e-5 with AVX-512 and 7e-5
    # with AVX2. Rounding probabilities to bfloat16, as the kernel does for its output, is 2e-3.
    torch.testing.assert_close(found.double(), expected, rtol=8e-5, atol=ROUNDING)
    assert (expected - exact).abs().max() > 100 * (found - expected).abs().max(), "rounding must be seen in the example"


def test_the_maps_of_some_rows_are_those_of_all():
    model, batch, mask = tiny_transformer(peaked=1.5), inputs(), core_mask()
    rows = [2, 0]
    some = {name: tensor[rows] for name, tensor in batch.items()}
    options = {"heads": [1], "softmax_over": "text", "columns_count": "equally"}
    with Relevance(model, [0, 1], mask, **options) as whole, torch.no_grad():
        model(**batch)
        expected = whole.take(per_block=True)[:, rows]
    with whole.of(rows) as part, torch.no_grad():
        model(**some)
        torch.testing.assert_close(part.take(per_block=True), expected, rtol=0, atol=ROUNDING)


def attended(model, batch, kernel):
    """Velocity and a gradient of a transformer whose blocks attend by one kernel, or by diffusers' own if it is None."""
    model.zero_grad()
    if kernel:
        install(model, kernel)
    output = model(**batch).sample
    output.square().mean().backward()
    return output.detach(), model.transformer_blocks[0].attn.add_k_proj.weight.grad


@pytest.mark.parametrize("options", [{}, {"qk_norm": None}, {"dual_attention_layers": ()}], ids=str)
def test_blocks_compute_what_those_of_diffusers_do(options):
    model, fresh, batch = *(tiny_transformer(peaked=1.5, **options) for _ in range(2)), inputs()
    for found, expected in zip(attended(model, batch, "cpu"), attended(fresh, batch, None), strict=True):
        assert torch.equal(found, expected)
    for found, expected in zip(attended(model, batch, "math"), attended(model, batch, "cpu"), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kernel", ["flash", "efficient", "cudnn"])
def test_a_kernel_that_a_device_has_not_is_told(make_config, kernel):
    with pytest.raises(UserError, match=f"model.attention={kernel} does not compute in float32 on a cpu device; leave it out"):
        SD3(make_config(f"model.attention={kernel}").model, torch.device("cpu"), 0)
    assert may_have("cuda", kernel, "bfloat16") and may_have("cuda", kernel, "float32") == (kernel == "efficient")


def test_a_compiled_block_shows_its_attention():
    """Compiled with and without a capture, and again for other captures of the same kind without compiling anew."""
    model, batch, mask = tiny_transformer(peaked=1.5), inputs(), core_mask()
    expected = captured(model, batch, mask)
    with torch.no_grad():
        plain = model(**batch).sample
    for block in model.transformer_blocks:
        block.compile(backend="aot_eager")  # the whole of compiling but the making of machine code, which takes a minute
    for _ in range(2):
        torch.testing.assert_close(captured(model, batch, mask), expected, rtol=0, atol=ROUNDING)
    frames = torch._dynamo.utils.counters["frames"]["total"]
    other = mask.roll(1, dims=1)
    assert (captured(model, batch, other) - expected).abs().max() > 1e-3
    assert torch._dynamo.utils.counters["frames"]["total"] == frames
    with torch.no_grad():
        torch.testing.assert_close(model(**batch).sample, plain)
    with Relevance(model, [0, 1], mask):
        torch.testing.assert_close(model(**batch).sample, plain)


def test_checkpointing_recomputes_what_the_capture_saw():
    model, batch, mask = tiny_transformer(peaked=1.5), inputs(), core_mask()
    expected = captured(model, batch, mask)
    (plain,) = torch.autograd.grad(
        model(**batch).sample.square().mean(), weights := model.transformer_blocks[0].attn.to_q.weight
    )
    model.enable_gradient_checkpointing()
    with Relevance(model, [0, 1], mask) as relevance:
        (again,) = torch.autograd.grad(model(**batch).sample.square().mean(), weights)
        torch.testing.assert_close(relevance.take(per_block=True), expected, rtol=0, atol=ROUNDING)
    assert torch.equal(plain, again)


def explicit_attention(query, key, value):
    """Output and log-sum-exp in float64."""
    logits = query.double() @ key.double().mT / math.sqrt(query.shape[-1])
    return logits.softmax(-1) @ value.double(), logits.logsumexp(-1)


def parts(width, dtype=torch.float32, device="cpu", queries=70, keys=41):
    generator = torch.Generator().manual_seed(width)
    query = 2 * torch.randn(2, 3, queries, width, generator=generator)
    # As a block makes them: (batch, tokens, heads, width) seen as (batch, heads, tokens, width).
    key, value = (2 * torch.randn(2, keys, 3, width, generator=generator).transpose(1, 2) for _ in range(2))
    return [part.to(device, dtype) for part in (query, key, value)]


def test_a_torch_without_the_operator_of_a_kernel_is_told(monkeypatch, make_config):
    assert OPERATORS.keys() == KERNELS.keys() - {"math"} and all(hasattr(torch.ops.aten, name) for name in OPERATORS.values())
    monkeypatch.setitem(OPERATORS, "cpu", "_gone")
    with pytest.raises(
        UserError, match="the attention kernel cpu does not know torch .*; use 2.9 to 2.14, or model.attention=math"
    ):
        SD3(make_config().model, torch.device("cpu"), 0)
    SD3(make_config("model.attention=math").model, torch.device("cpu"), 0)


@pytest.mark.parametrize("kernel", ["cpu", "math"])
@pytest.mark.parametrize("width", [16, 18, 64])
def test_a_kernel_gives_its_output_and_its_log_sum_exp(kernel, width):
    query, key, value = parts(width)
    output, normaliser = explicit_attention(query, key, value)
    found, own = KERNELS[kernel](query, key, value)
    assert own.shape == (2, 3, 70) and own.dtype == torch.float32
    torch.testing.assert_close(own.double(), normaliser, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.double(), output, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(log_sum_exp(query, key).double(), normaliser, rtol=1e-6, atol=1e-6)


def test_the_plain_kernel_computes_in_float32_under_autocast_too():
    query, key, value = parts(64, torch.bfloat16)
    output, normaliser = explicit_attention(query, key, value)
    with torch.autocast("cpu", torch.bfloat16):
        found, own = KERNELS["math"](query, key, value)
    assert own.dtype == torch.float32 and found.dtype == torch.bfloat16
    torch.testing.assert_close(own.double(), normaliser, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.double(), output, rtol=2**-8, atol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kernel", ["flash", "efficient", "cudnn", "math"])
@pytest.mark.parametrize("queries", [64, 70])
def test_a_gpu_kernel_gives_its_log_sum_exp_and_the_same_output_with_gradients(kernel, dtype, queries):
    if dtype == torch.float32 and kernel in ("flash", "cudnn"):
        pytest.skip("a kernel of half precision")
    query, key, value = parts(64, dtype, "cuda", queries)
    output, normaliser = explicit_attention(query, key, value)
    tolerance = 1e-4 if dtype == torch.float32 else 2e-2
    with torch.no_grad():
        found, own = KERNELS[kernel](query, key, value)
    torch.testing.assert_close(own.double(), normaliser, rtol=0, atol=tolerance / 10)
    torch.testing.assert_close(found.double(), output, rtol=tolerance, atol=tolerance)
    again, _ = KERNELS[kernel](query.requires_grad_(), key, value)
    assert torch.equal(found, again)
    again.float().square().sum().backward()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_gpus_norm_is_diffusers_and_keeps_its_input_alone(dtype):
    norm = RMSNorm(64, 1e-6).to("cuda", dtype).requires_grad_(False)
    norm.weight.mul_(1 + 0.5 * torch.randn(64, device="cuda"))
    split = torch.randn(2, 70, 3, 64, device="cuda", dtype=dtype, requires_grad=True)
    kept = []
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda held: (kept.append(held.numel()), held)[1], lambda held: held)
    with torch.autocast("cuda", dtype, enabled=dtype != torch.float32), hooks:
        found = normalised(split, norm)
    assert found.dtype == dtype and sum(count == split.numel() for count in kept) == 1
    exact, whole = split.detach().double().requires_grad_(), norm.weight.double()
    expected = exact * (exact.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * whole
    close = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 2e-2}
    torch.testing.assert_close(found.double(), expected, **close)
    given = torch.randn_like(expected)
    (grad,), (wanted,) = torch.autograd.grad(found, split, given.to(dtype)), torch.autograd.grad(expected, exact, given)
    torch.testing.assert_close(grad.double(), wanted, **close)


@pytest.mark.parametrize("kernel", ["flash", "efficient", "cudnn"])
@pytest.mark.parametrize("gradient", [False, True])
def test_a_gpus_kernels_take_and_give_what_is_asked_of_them(kernel, gradient):
    """Without a GPU: on tensors that have shapes and no values, at the sizes of SD3.5 Medium."""
    query, key, value = (
        torch.empty(2, 1024 + 333, 24, 64, dtype=torch.bfloat16, device="meta").transpose(1, 2).requires_grad_(gradient)
        for _ in range(3)
    )
    output, normaliser = KERNELS[kernel](query, key, value)
    assert output.shape == query.shape and output.dtype == torch.bfloat16
    assert normaliser.shape == query.shape[:3] and normaliser.dtype == torch.float32
    if gradient:
        grads = torch.autograd.grad(output.float().sum(), [query, key, value])
        assert all(grad.shape == query.shape for grad in grads)


def test_the_usual_kernels():
    assert [default_kernel(*kind) for kind in (("cpu", torch.float16), ("mps", torch.float32))] == ["cpu", "math"]
    assert default_kernel("cuda", torch.float32) == "efficient" and default_kernel("cuda", torch.bfloat16) == "flash"
    model = tiny_transformer()
    install(model, "math")
    assert {type(module) for module in model.attn_processors.values()} == {JointAttention}
    assert {processor.kernel for processor in model.attn_processors.values()} == {"math"}


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
        ({"columns_count": "twice"}, "as_attended, equally"),
        ({"mask": torch.zeros(ROWS, TEXT, dtype=torch.bool)}, "every row"),
        ({"mask": torch.arange(ROWS)[:, None].expand(-1, TEXT) > 0}, "every row"),  # the first alone has none
        ({"mask": torch.ones(TEXT, dtype=torch.bool)}, r"\(B, text tokens\)"),
        ({"mask": torch.ones(ROWS, TEXT + 1, dtype=torch.bool)}, "12 columns, the text 11 tokens"),
        ({"mask": torch.ones(2, TEXT, dtype=torch.bool)}, "2 rows; .* not 3"),
        ({"mask": torch.ones(4, TEXT, dtype=torch.bool)}, "4 rows; .* not 3"),
    ],
)
def test_masks_that_do_not_fit_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        captured(tiny_transformer(), inputs(), **({"mask": core_mask()} | options))
