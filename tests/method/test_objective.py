import math
import statistics
from decimal import Decimal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from star.method.objective import (
    Bound,
    advantages,
    clip_range_for,
    divergence_map,
    guarded,
    kl,
    kl_limit_for,
    log_prob_map,
    mixed_rewards,
    policy_loss,
    ratio_tolerance_for,
    zero_std_share,
)
from star.method.sampling import log_prob, sigmas, transition

# Flow-GRPO's factors of mean((v - v_ref)^2) at noise level 0.7 on the 10-step schedule: as coded, and exact.
KL_WEIGHTS = [
    ("6.5e-5", "0.0016"),
    ("1.4e-4", "0.0031"),
    ("4.7e-4", "0.0084"),
    ("0.0012", "0.0177"),
    ("0.0029", "0.0349"),
    ("0.0072", "0.0688"),
    ("0.0197", "0.1435"),
    ("0.0636", "0.3402"),
    ("0.2974", "1.105"),
    ("0.0140", "1.568"),
]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def naive_advantages(rewards, groups, std, eps):
    if len(set(groups)) == len(groups):
        groups = [0] * len(groups)
    result = []
    for reward, group in zip(rewards, groups, strict=True):
        own = [r for r, g in zip(rewards, groups, strict=True) if g == group]
        spread = statistics.pstdev(rewards if std == "batch" else own)
        result.append((reward - statistics.fmean(own)) / (spread + eps))
    return torch.tensor(result, dtype=torch.float32)


@pytest.mark.parametrize("normalise", [True, False])
def test_mixed_rewards_equal_a_naive_loop(normalise):
    groups = [0, 0, 0, 7, 7, 7]
    rewards = {"a": [0.0, 1.0, 1.0, 0.5, 0.5, 0.5], "b": [21.0, 22.0, 26.0, 19.0, 20.0, 21.0]}
    weights = {"a": 1.0, "b": 0.25}
    expected = []
    for row, group in enumerate(groups):
        total = 0.0
        for name, values in rewards.items():
            own = [v for v, g in zip(values, groups, strict=True) if g == group]
            value = (values[row] - statistics.fmean(own)) / (statistics.pstdev(own) + 1e-4) if normalise else values[row]
            total += weights[name] * value
        expected.append(total)
    found = mixed_rewards(rewards, weights, groups, normalise)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=1e-6)


@settings(deadline=None, max_examples=100)
@given(
    samples=st.lists(st.tuples(st.floats(-3, 3, width=32), st.integers(-4, 4)), min_size=1, max_size=30),
    std=st.sampled_from(["batch", "group"]),
)
def test_advantages_equal_a_naive_loop(samples, std):
    rewards, groups = (list(column) for column in zip(*samples, strict=True))
    found = advantages(rewards, groups, std)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, naive_advantages(rewards, groups, std, 1e-4), rtol=1e-5, atol=1e-6)


def test_advantages_by_hand():
    rewards, groups = torch.tensor([0.0, 1.0, 4.0, 6.0]), torch.tensor([7, 7, 3, 3])
    batch = math.sqrt(((0 - 2.75) ** 2 + (1 - 2.75) ** 2 + (4 - 2.75) ** 2 + (6 - 2.75) ** 2) / 4)
    torch.testing.assert_close(advantages(rewards, groups, eps=0), torch.tensor([-0.5, 0.5, -1, 1]) / batch)
    torch.testing.assert_close(advantages(rewards, groups, "group", 0.0), torch.tensor([-1.0, 1, -1, 1]))
    torch.testing.assert_close(advantages(rewards, groups, "group", 0.5), torch.tensor([-0.5 / 1, 0.5 / 1, -1 / 1.5, 1 / 1.5]))


def test_groups_of_one_are_set_against_all_rewards():
    torch.testing.assert_close(
        advantages([1.0, 2.0, 3.0], [5, 6, 7], "group", 0.0), torch.tensor([-1.0, 0, 1]) / math.sqrt(2 / 3)
    )
    assert advantages([1.0, 2.0, 9.0], [5, 5, 7])[2] == 0


def test_a_group_of_equal_rewards_has_no_advantage():
    rewards = [0.1, 0.1, 0.1, 0.0, 1.0]
    assert sum(rewards[:3]) / 3 != 0.1, "the example's mean must be off by rounding"
    for std in ("batch", "group"):
        found = advantages(rewards, [0, 0, 0, 1, 1], std)
        assert torch.equal(found[:3], torch.zeros(3)) and (found[3:] != 0).all()


def test_zero_std_share_counts_groups():
    assert zero_std_share([0.1, 0.1, 0.1, 0.0, 1.0, 2.0], [4, 4, 4, 1, 1, 9]) == pytest.approx(2 / 3)
    assert zero_std_share([0.0, 1.0], [1, 1]) == 0


def test_log_prob_map_averages_over_channels_or_all():
    following, mean = (
        torch.randn((2, 3, 4, 5), generator=generator(1)),
        torch.randn((2, 3, 4, 5), generator=generator()),
    )
    for kind in ("sde", "cps"):
        elements = log_prob(following, mean, 0.4, kind).double()
        per_position = log_prob_map(following, mean, 0.4, kind, "position")
        per_image = log_prob_map(following, mean, 0.4, kind, "image")
        assert per_position.shape == (2, 4, 5) and per_image.shape == (2,)
        for b in range(2):
            assert per_image[b].item() == pytest.approx(elements[b].sum().item() / 60, rel=1e-5)
            for y in range(4):
                for x in range(5):
                    expected = sum(elements[b, c, y, x].item() for c in range(3)) / 3
                    assert per_position[b, y, x].item() == pytest.approx(expected, rel=1e-5)


def naive_loss_and_gradient(new, old, advantage, weights, clip_range, adv_clip):
    """Per-sample losses and the gradient of their sum, one position at a time."""
    losses, gradient = [], torch.zeros_like(new)
    for b in range(len(new)):
        a = max(-adv_clip, min(adv_clip, advantage[b].item()))
        terms = []
        for y in range(new.shape[1]):
            for x in range(new.shape[2]):
                ratio = math.exp(new[b, y, x].item() - old[b, y, x].item())
                gain = a * weights[b, y, x].item()
                clipped = max(1 - clip_range, min(1 + clip_range, ratio))
                terms.append(-min(ratio * gain, clipped * gain))
                pays = ratio <= 1 + clip_range if gain > 0 else ratio >= 1 - clip_range
                gradient[b, y, x] = -ratio * gain * pays / (new.shape[1] * new.shape[2])
        losses.append(sum(terms) / len(terms))
    return torch.tensor(losses, dtype=torch.float64), gradient


def example(shape, seed=0):
    g = generator(seed)
    old = torch.randn(shape, generator=g, dtype=torch.float64)
    new = old + 0.15 * torch.randn(shape, generator=g, dtype=torch.float64)
    advantage = 4 * torch.randn(shape[:1], generator=g, dtype=torch.float64)
    weights = torch.rand(shape, generator=g, dtype=torch.float64) * 2
    return new, old, advantage, weights


def test_policy_loss_per_position_equals_a_naive_loop_and_its_gradient():
    new, old, advantage, weights = example((6, 4, 5))
    new.requires_grad_()
    found = policy_loss(new, old, advantage, weights, clip_range=0.1, adv_clip=5.0)
    found.loss.sum().backward()
    loss, gradient = naive_loss_and_gradient(new.detach(), old, advantage, weights, 0.1, 5.0)
    torch.testing.assert_close(found.loss, loss)
    torch.testing.assert_close(new.grad, gradient)
    assert advantage.abs().max() > 5, "the example must reach the clip of the advantage"
    assert (gradient == 0).any() and (gradient != 0).any()


@pytest.mark.parametrize("weighted", [True, False])
def test_policy_loss_per_image_equals_a_naive_loop_and_its_gradient(weighted):
    new, old, advantage, weights = example((40,))
    new.requires_grad_()
    weights = weights if weighted else torch.ones_like(weights)
    found = policy_loss(new, old, advantage, weights if weighted else None, clip_range=0.1)
    found.loss.sum().backward()
    as_maps = [tensor.reshape(-1, 1, 1) for tensor in (new.detach(), old)]
    loss, gradient = naive_loss_and_gradient(*as_maps, advantage, weights.reshape(-1, 1, 1), 0.1, 5.0)
    torch.testing.assert_close(found.loss, loss)
    torch.testing.assert_close(new.grad, gradient.reshape(-1))


def test_on_policy_the_gradient_is_the_weighted_score_function():
    _, old, advantage, weights = example((3, 2, 2))
    new = old.clone().requires_grad_()
    found = policy_loss(new, old, advantage, weights, clip_range=1e-4)
    found.loss.mean().backward()
    torch.testing.assert_close(new.grad, -advantage.clamp(-5, 5).reshape(3, 1, 1) * weights / 12)
    assert found.ratio_error == 0 and found.clip_fraction == 0 and found.approx_kl == 0


WEIGHTED = ("position", "image_weighted", "detached")


@pytest.mark.parametrize("reduction", WEIGHTED)
def test_on_policy_every_reduction_has_the_gradient_of_the_weighted_log_probability(reduction):
    _, old, advantage, weights = example((3, 2, 2))
    new = old.clone().requires_grad_()
    found = policy_loss(new, old, advantage, weights, 1e-4, reduction=reduction)
    found.loss.mean().backward()
    torch.testing.assert_close(new.grad, -advantage.clamp(-5, 5).reshape(3, 1, 1) * weights / 12)
    assert found.ratio_error == 0 and found.clip_fraction == 0 and found.image_kl == 0


@pytest.mark.parametrize("reduction", ["image_weighted", "detached"])
def test_weights_of_one_ratio_per_image_equal_a_naive_loop_and_its_gradient(reduction):
    new, old, advantage, weights = example((40, 2, 3))
    new.requires_grad_()
    found = policy_loss(new, old, advantage, weights, clip_range=0.05, reduction=reduction)
    found.loss.sum().backward()
    losses, gradient = [], torch.zeros_like(new)
    for b in range(40):
        a, d, w = max(-5.0, min(5.0, advantage[b].item())), (new - old)[b].flatten().tolist(), weights[b].flatten().tolist()
        inside = [x * y for x, y in zip(w, d, strict=True)] if reduction == "image_weighted" else d
        ratio = math.exp(sum(inside) / 6)
        clipped = max(0.95, min(1.05, ratio))
        pays = ratio <= 1.05 if a > 0 else ratio >= 0.95
        share = 1.0 if reduction == "image_weighted" else sum(w) / 6
        losses.append(-min(ratio * a, clipped * a) * share)
        gradient[b] = -ratio * a * pays * weights[b] / 6
    torch.testing.assert_close(found.loss, torch.tensor(losses, dtype=torch.float64))
    torch.testing.assert_close(new.grad, gradient)
    assert 0 < found.clip_fraction < 1 and (gradient == 0).any()


@pytest.mark.parametrize("reduction", ["image_weighted", "detached"])
def test_weights_of_one_are_one_plain_ratio_of_the_image(reduction):
    new, old, advantage, _ = example((40, 2, 3))
    for weights in (None, torch.ones_like(old)):
        mapped = policy_loss(new, old, advantage, weights, 0.05, reduction=reduction)
        plain = policy_loss(new.mean((1, 2)), old.mean((1, 2)), advantage, None, 0.05)
        for name in ("loss", "clip_fraction", "ratio_error", "approx_kl", "image_kl"):
            torch.testing.assert_close(getattr(mapped, name), getattr(plain, name), msg=name)


def test_weights_within_the_minimum_or_before_it_are_the_same():
    """min(r W A, clip(r) W A) = W min(r A, clip(r) A) for W >= 0."""
    new, old, advantage, weights = example((6, 4, 5))
    whole = policy_loss(new, old, advantage, weights, 0.1).loss
    ratio, a = (new - old).exp(), advantage.clamp(-5, 5).reshape(-1, 1, 1)
    torch.testing.assert_close(whole, -(weights * torch.minimum(ratio * a, ratio.clamp(0.9, 1.1) * a)).mean((1, 2)))


def test_the_move_of_the_images_is_the_same_whatever_is_clipped():
    new, old, advantage, weights = example((6, 4, 5))
    moves = [policy_loss(new, old, advantage, weights, 0.1, reduction=reduction).image_kl for reduction in WEIGHTED]
    expected = 0.5 * statistics.fmean(x * x for x in (new - old).mean((1, 2)).tolist())
    assert [move.item() for move in moves] == pytest.approx([expected] * 3)


@pytest.mark.parametrize(
    ("reduction", "shape"),
    [("image", (4, 3, 3)), ("image_weighted", (4,)), ("detached", (4,)), ("voxel", (4,)), ("voxel", (4, 3, 3))],
)
def test_a_reduction_of_another_shape_is_named(reduction, shape):
    with pytest.raises(ValueError, match=reduction):
        policy_loss(torch.zeros(shape), torch.zeros(shape), torch.ones(4), None, 0.1, reduction=reduction)


def test_diagnostics_equal_a_naive_count_and_carry_no_gradient():
    new, old, advantage, weights = example((6, 4, 5))
    found = policy_loss(new.requires_grad_(), old, advantage, weights, clip_range=0.1)
    ratios = [math.exp(a - b) for a, b in zip(new.flatten().tolist(), old.flatten().tolist(), strict=True)]
    log_ratios = [math.log(ratio) for ratio in ratios]
    assert found.clip_fraction.item() == pytest.approx(sum(abs(r - 1) > 0.1 for r in ratios) / len(ratios))
    assert found.ratio_error.item() == pytest.approx(max(abs(r - 1) for r in ratios))
    assert found.approx_kl.item() == pytest.approx(0.5 * statistics.fmean(r * r for r in log_ratios))
    assert not any(value.requires_grad for value in found[1:])


def test_a_ratio_too_small_for_its_precision_leaves_figures_finite():
    for reduction in ("position", "image_weighted", "detached"):
        found = policy_loss(torch.full((2, 2, 2), -200.0), torch.zeros(2, 2, 2), torch.ones(2), None, 0.1, reduction=reduction)
        assert found.approx_kl == found.image_kl == 20_000


def test_old_log_probs_weights_and_advantages_get_no_gradient():
    new, old, advantage, weights = (tensor.requires_grad_() for tensor in example((2, 3, 3)))
    policy_loss(new, old, advantage, weights, 0.1).loss.sum().backward()
    assert new.grad is not None
    assert old.grad is None and advantage.grad is None and weights.grad is None


@pytest.mark.parametrize(
    ("new", "old", "advantage", "weights"),
    [
        ((4, 3, 3), (4, 1, 1), (4,), (4, 3, 3)),
        ((4, 3, 3), (4, 3, 3), (4,), (1, 3, 3)),
        ((4, 3, 3), (4, 3, 3), (4,), (4, 1, 1)),
        ((4, 3, 3), (4, 3, 3), (1,), (4, 3, 3)),
        ((4, 3, 3), (4, 3, 3), (4, 1, 1), (4, 3, 3)),
        ((4,), (1,), (4,), None),
        ((4,), (4, 1), (4,), None),
        ((4,), (4,), (4, 1), None),
        ((4,), (4,), (4,), (1,)),
        ((4,), (4,), (4,), (4, 1)),
        ((4, 1), (4, 1), (4,), None),
    ],
)
def test_shapes_that_would_broadcast_are_refused(new, old, advantage, weights):
    with pytest.raises(ValueError, match=r"\(4,"):
        policy_loss(
            torch.zeros(new),
            torch.zeros(old),
            torch.ones(advantage),
            None if weights is None else torch.ones(weights),
            0.1,
        )


@pytest.mark.parametrize(
    ("reduction", "dtype", "clip_range", "expected"),
    [
        ("image", "float32", 1e-4, 1e-5),
        ("image", "float16", 1e-4, 1e-4),
        ("position", "float32", 1e-4 * 4096, 1.28e-3),
        ("position", "float16", 1e-4 * 4096, 6.4e-2),
        ("position", "bfloat16", 1e-4 * 4096, 0.4096),
        ("image", "bfloat16", 0.01, 4e-3),
    ],
)
def test_rounding_is_allowed_up_to_the_clip_range(reduction, dtype, clip_range, expected):
    assert ratio_tolerance_for(reduction, dtype, clip_range, 4096) == pytest.approx(expected)


@pytest.mark.parametrize(("dtype", "noise"), [("float16", 7e-4), ("float32", 1e-6)])
@pytest.mark.parametrize("reduction", ["image", "position"])
def test_rounding_of_a_velocity_stays_below_its_tolerance_and_another_velocity_does_not(reduction, dtype, noise):
    """Latents (16, 64, 64) of steps in the middle, a velocity with relative rounding, and one that is a hundredth off."""
    torch.manual_seed(0)
    schedule, v = sigmas(10), torch.randn(4, 16, 64, 64)
    x = torch.randn_like(v)
    tolerance = ratio_tolerance_for(reduction, dtype, 1.0, 64 * 64)
    for step in (0, 4, 8):
        moved = transition(x, v, schedule, step, "sde", 0.7)
        following = moved.mean + moved.std * torch.randn_like(x)

        def error(velocity, step=step, moved=moved, following=following):
            again = transition(x, velocity, schedule, step, "sde", 0.7)
            new, old = (log_prob_map(following, m.mean, m.std, "sde", reduction) for m in (again, moved))
            return ((new - old).exp() - 1).abs().max()

        assert error(v * (1 + noise * torch.randn_like(v))) < tolerance
    assert error(1.1 * v) > tolerance / 10


def test_one_position_at_its_bound_moves_the_image_to_its_own():
    log_ratio = torch.zeros(1, 8, 8, dtype=torch.float64)
    log_ratio[0, 3, 5] = math.log1p(clip_range_for("position", 1e-4, 64))
    assert log_ratio.mean().exp().item() - 1 == pytest.approx(clip_range_for("image", 1e-4, 64), rel=0.01)


def test_clipping_positions_as_often_as_images_pulls_the_policy_back_and_the_default_does_not():
    """Advantages without meaning: what is left of the gradient along a step just made is the work of clipping."""
    samples, side, moved, image_clip = 2000, 16, 1e-3, 1e-4
    noise = torch.randn((samples, side, side), generator=generator(1))
    coins = torch.randint(0, 2, (samples,), generator=generator(2)) * 2.0 - 1

    def pull(clip_range):
        length = torch.tensor(1.0, requires_grad=True)
        log_ratio = noise * moved * length - (moved * length).square() / 2
        policy_loss(log_ratio, torch.zeros_like(noise), coins, None, clip_range).loss.mean().backward()
        return length.grad.item()

    as_often = pull(image_clip * side)
    assert as_often > 20 * abs(pull(1.0))
    assert pull(clip_range_for("position", image_clip, side * side)) == pull(1.0)


@pytest.mark.parametrize("index", range(10))
def test_kl_has_the_published_weights(index):
    schedule, shape = sigmas(10), (2, 3, 4, 4)
    x, v, v_ref = (torch.randn(shape, generator=generator(seed)) for seed in range(3))
    new, ref = (transition(x, velocity, schedule, index) for velocity in (v, v_ref))
    per_velocity = (v - v_ref).square().mean(1)
    for kind, weight in zip(("flow_grpo", "paper"), KL_WEIGHTS[index], strict=True):
        found = kl(new.mean, ref.mean, new.std, new.dt, kind)
        assert found.shape == (2, 4, 4)
        published, last_digit = Decimal(weight), 10.0 ** Decimal(weight).as_tuple().exponent
        ratio = found / per_velocity
        torch.testing.assert_close(ratio, torch.full_like(ratio, float(published)), rtol=1e-3, atol=0.51 * last_digit)


def test_kl_of_the_paper_is_that_of_two_normals():
    new, ref = (torch.randn((2, 3, 4, 4), generator=generator(seed), dtype=torch.float64) for seed in range(2))
    normals = [torch.distributions.Normal(mean, 0.3) for mean in (new, ref)]
    expected = torch.distributions.kl_divergence(*normals).mean(1).float()
    torch.testing.assert_close(kl(new, ref, 0.3, -0.1, "paper"), expected)
    torch.testing.assert_close(kl(new, ref, 0.3, -0.1, "flow_grpo"), 0.1 * expected)


def test_kl_takes_the_reference_as_a_constant():
    new, ref = (torch.randn((1, 2, 2, 2), generator=generator(seed)).requires_grad_() for seed in range(2))
    kl(new, ref, 0.5, -0.1, "paper").sum().backward()
    torch.testing.assert_close(new.grad, ((new - ref) / 0.25 / 2).detach())
    assert ref.grad is None


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: advantages([1.0, 2.0], [0, 0], "global"), "batch, group"),
        (lambda: mixed_rewards({"a": [1.0]}, {"b": 1.0}, [0], True), "weights of b"),
        (lambda: advantages([1.0, 2.0], [0]), r"\(2,\), \(1,\)"),
        (lambda: advantages([], []), "n > 0"),
        (lambda: advantages([1.0, float("nan")], [0, 0]), "reward 1 is not finite"),
        (lambda: zero_std_share([1.0, float("inf")], [0, 0]), "reward 1 is not finite"),
        (
            lambda: log_prob_map(*[torch.zeros(1, 1, 2, 2)] * 2, 1.0, "sde", "pixel"),
            "image, image_weighted, detached, position",
        ),
        (lambda: kl(*[torch.zeros(1, 1, 2, 2)] * 2, 1.0, -0.1, "exact"), "flow_grpo, paper"),
        (lambda: kl(torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 1, 2), 1.0, -0.1), "differ in shape"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("reduction", ["image", "position"])
def test_guarded_ratio_is_the_exponential_of_the_mean_of_noise_times_move(reduction):
    """The published formula and what follows from it for a Gaussian step, both in float64 and one number at a time."""
    random = generator(3)
    schedule = sigmas(10)
    x, v, z = (torch.randn(2, 3, 4, 4, generator=random) for _ in range(3))
    moved_v = (v + 0.1 * torch.randn(v.shape, generator=random)).requires_grad_()
    old, new = transition(x, v, schedule, 4), transition(x, moved_v, schedule, 4)
    following = old.mean + old.std * z
    logps = [log_prob_map(following, step.mean, step.std, "sde", reduction) for step in (new, old)]
    log_new, log_old = guarded(*logps, new.mean, old.mean, new.std, reduction)
    ratio = (log_new - log_old).exp()

    tau, mean_new, mean_old, after = new.std.double(), new.mean.detach().double(), old.mean.double(), following.double()
    for row in range(2):
        for i in range(4):
            for j in range(4):
                place = (row, slice(None), i, j) if reduction == "position" else row
                a, b, c = mean_new[place], mean_old[place], after[place]
                elements = [
                    -((n - m) ** 2) / (2 * tau**2) - tau.log() - math.log(math.sqrt(2 * math.pi)) for n, m in ((c, a), (c, b))
                ]
                difference = elements[0].mean() - elements[1].mean()
                published = ((difference + ((a - b) ** 2).mean() / (2 * tau**2)) * tau).exp()
                noise = (c - b) / tau
                assert published.item() == pytest.approx((noise * (a - b)).mean().exp().item(), abs=1e-10)
                ours = ratio[row, i, j] if reduction == "position" else ratio[row]
                assert ours.item() == pytest.approx(published.item(), abs=2e-6)

    (gradient,) = torch.autograd.grad(ratio.sum(), moved_v)
    mean = transition(x.double(), moved_v.double(), schedule, 4).mean
    z_mean = (z.double() * (mean - old.mean.double())).mean(dim=1 if reduction == "position" else (1, 2, 3))
    (expected,) = torch.autograd.grad(z_mean.exp().sum(), moved_v)
    assert torch.allclose(gradient, expected, atol=1e-5 * expected.abs().max().item())


@pytest.mark.parametrize("reduction", ["image", "image_weighted", "detached", "position"])
def test_a_bound_leaves_out_what_would_part_the_policies_further_and_nothing_else(reduction):
    """Loss and gradient by the formula, ratio by ratio."""
    shape = (6,) if reduction == "image" else (6, 2, 3)
    moved = (0.3 * torch.randn(shape, generator=generator(1), dtype=torch.float64)).requires_grad_()
    old = torch.randn(shape, generator=generator(2), dtype=torch.float64)
    gains = torch.tensor([1.0, -1.0, 2.0, -2.0, 0.5, 1.5], dtype=torch.float64)
    weights = None if reduction == "image" else torch.rand(shape, generator=generator(3), dtype=torch.float64)
    apart = torch.rand(shape if reduction == "position" else (6,), generator=generator(4), dtype=torch.float64)
    found = policy_loss(old + moved, old, gains, weights, 1e-9, reduction=reduction, bound=Bound(apart, 0.2))
    total = 0.0
    for i in range(6):
        if reduction in ("image", "image_weighted"):
            w = 1.0 if weights is None else weights[i]
            parts = [(((w * moved[i]).mean()).exp(), 1.0, apart[i])]
        else:
            plain = moved[i].detach().mean().exp()
            parts = [
                (
                    moved[i, y, u].exp() / (1 if reduction == "position" else moved[i, y, u].detach().exp() / plain),
                    weights[i, y, u],
                    apart[i, y, u] if reduction == "position" else apart[i],
                )
                for y in range(2)
                for u in range(3)
            ]
        for ratio, weight, distance in parts:
            further = (ratio > 1 and gains[i] > 0) or (ratio < 1 and gains[i] < 0)
            kept = ratio.detach() if distance > 0.2 and further else ratio
            total = total - kept * weight * gains[i] / len(parts)
    assert found.loss.sum().item() == pytest.approx(total.item())
    own, expected = (torch.autograd.grad(value, moved, retain_graph=True)[0] for value in (found.loss.sum(), total))
    torch.testing.assert_close(own, expected)
    assert 0 < (own == 0).double().mean() < 1
    assert found.clip_fraction.item() == pytest.approx((apart > 0.2).double().mean().item())


def test_divergences_are_those_of_two_normals():
    new, old = (torch.randn((2, 3, 4, 4), generator=generator(seed), dtype=torch.float64) for seed in range(2))
    exact = torch.distributions.kl_divergence(*(torch.distributions.Normal(mean, 0.3) for mean in (old, new))).float()
    torch.testing.assert_close(divergence_map(new, old, torch.tensor(0.3), "position"), exact.mean(1))
    for reduction in ("image", "image_weighted", "detached"):
        torch.testing.assert_close(divergence_map(new, old, torch.tensor(0.3), reduction), exact.mean((1, 2, 3)))


@pytest.mark.parametrize("reduction", ["image", "position"])
def test_at_the_limit_a_log_ratio_deviates_by_the_clip_range(reduction):
    """By drawing: transitions that are just so far apart, and the noise of the old one."""
    shape, clip_range, std = (2, 3, 4), 0.01, 0.7
    elements = 2 if reduction == "position" else 24
    limit = kl_limit_for(reduction, clip_range, shape)
    apart = torch.randn((1, *shape), generator=generator(1))
    size = apart.square().mean(1, keepdim=True) if reduction == "position" else apart.square().mean()
    apart = apart * std * (2 * limit / size).sqrt()
    assert divergence_map(apart, torch.zeros_like(apart), torch.tensor(std), reduction).allclose(torch.tensor(limit))
    assert elements * limit == pytest.approx((elements * clip_range) ** 2 / 2)
    following = std * torch.randn((20_000, *shape), generator=generator(2))
    new, old = (log_prob_map(following, m.expand_as(following), std, "sde", reduction) for m in (apart, 0 * apart))
    assert (new - old).std(0).mean().item() == pytest.approx(clip_range, rel=0.03)


def test_guarded_ratio_is_one_on_policy():
    mean, following = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    std = torch.tensor(0.37)
    logp = log_prob_map(following, mean, std, "sde", "position")
    new, old = guarded(logp, logp, mean, mean, std, "position")
    assert torch.equal(new, old)
    with pytest.raises(ValueError, match="means differ in shape"):
        guarded(logp, logp, mean, mean[:1], std, "position")
