import math

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from star.method.sampling import log_prob, score_size, sigmas, transition

# Flow-GRPO's step at noise level 0.7 on the 10-step schedule: s, s', -dt, std_t, tau, coefficient of x and of v.
FLOW_GRPO_STEPS = [
    (1.0000, 0.9601, 0.0399, 3.506, 0.7000, 0.7550, -0.0399),
    (0.9601, 0.9133, 0.0468, 3.435, 0.7430, 0.7125, -0.0582),
    (0.9133, 0.8577, 0.0557, 2.273, 0.5362, 0.8426, -0.0693),
    (0.8577, 0.7904, 0.0673, 1.719, 0.4459, 0.8841, -0.0838),
    (0.7904, 0.7073, 0.0831, 1.359, 0.3918, 0.9029, -0.1035),
    (0.7073, 0.6022, 0.1051, 1.088, 0.3528, 0.9120, -0.1309),
    (0.6022, 0.4649, 0.1373, 0.861, 0.3191, 0.9155, -0.1709),
    (0.4649, 0.2780, 0.1868, 0.652, 0.2820, 0.9145, -0.2326),
    (0.2780, 0.0089, 0.2691, 0.434, 0.2254, 0.9087, -0.3351),
    (0.0089, 0.0000, 0.0089, 0.0664, 0.0063, 0.9978, -0.0111),
]
PRINTED = {
    10: [1, 0.960129, 0.913349, 0.857692, 0.790368, 0.707278, 0.602151, 0.464876, 0.278049, 0.008929, 0],
    5: [1, 0.900359, 0.751121, 0.502985, 0.008929, 0],
}


def latents(seed=0, shape=(3, 4, 6, 6)):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)


@pytest.mark.parametrize("shift", [1.0, 2.5, 3.0, 5.0])
@pytest.mark.parametrize("steps", [1, 2, 5, 10, 28, 40])
def test_sigmas_are_those_of_diffusers(steps, shift):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(steps)
    assert sigmas(steps, shift).dtype == torch.float32
    assert torch.equal(sigmas(steps, shift), scheduler.sigmas)


@pytest.mark.parametrize("steps", PRINTED)
def test_sigmas_have_the_published_values(steps):
    torch.testing.assert_close(sigmas(steps), torch.tensor(PRINTED[steps]).float(), rtol=0, atol=6e-7)


def test_sigmas_of_forty_steps_begin_and_end_as_published():
    schedule = sigmas(40)
    torch.testing.assert_close(schedule[:3], torch.tensor([1, 0.991331, 0.982356]), rtol=0, atol=6e-7)
    torch.testing.assert_close(schedule[-4:], torch.tensor([0.146509, 0.081046, 0.008929, 0]), rtol=0, atol=6e-7)


@pytest.mark.parametrize("index", range(10))
def test_sde_step_has_the_published_coefficients(index):
    s, s_next, minus_dt, std_t, tau, of_x, of_v = FLOW_GRPO_STEPS[index]
    schedule, one, zero = sigmas(10), torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1)
    step = transition(one, zero, schedule, index)
    assert schedule[index].item() == pytest.approx(s, abs=6e-5)
    assert schedule[index + 1].item() == pytest.approx(s_next, abs=6e-5)
    assert -step.dt.item() == pytest.approx(minus_dt, abs=6e-5)
    assert step.std.item() == pytest.approx(tau, abs=6e-5)
    assert (step.std / (-step.dt).sqrt()).item() == pytest.approx(std_t, abs=6e-4 if std_t > 0.1 else 6e-5)
    assert step.mean.item() == pytest.approx(of_x, abs=6e-5)
    assert transition(zero, one, schedule, index).mean.item() == pytest.approx(of_v, abs=6e-5)


@pytest.mark.parametrize("index", range(10))
@pytest.mark.parametrize("noise_level", [0.3, 0.7, 1.2])
def test_sde_step_equals_a_naive_one_in_float64(index, noise_level):
    x, v = latents(index)
    schedule = sigmas(10)
    step = transition(x, v, schedule, index, "sde", noise_level)
    s, s_next = schedule[index].item(), schedule[index + 1].item()
    stand_in = schedule[1].item() if s == 1 else s
    std_t = noise_level * math.sqrt(s / (1 - stand_in))
    drift = std_t**2 / (2 * s) * (x.double() + (1 - s) * v.double()) + v.double()
    torch.testing.assert_close(step.mean.double(), x.double() + drift * (s_next - s), rtol=1e-5, atol=3e-6)
    assert step.std.item() == pytest.approx(std_t * math.sqrt(s - s_next), rel=1e-5)


@pytest.mark.parametrize("index", range(10))
@pytest.mark.parametrize("eta", [0.2, 0.8, 1.0])
def test_cps_step_equals_a_naive_one_in_float64(index, eta):
    x, v = latents(index)
    schedule = sigmas(10)
    step = transition(x, v, schedule, index, "cps", eta)
    s, s_next = schedule[index].item(), schedule[index + 1].item()
    std = s_next * math.sin(eta * math.pi / 2)
    clean = x.double() - s * v.double()
    noise = x.double() + (1 - s) * v.double()
    mean = (1 - s_next) * clean + math.sqrt(s_next**2 - std**2) * noise
    torch.testing.assert_close(step.mean.double(), mean, rtol=1e-5, atol=1e-6)
    assert step.std.item() == pytest.approx(std, rel=1e-5)


def test_cps_std_has_the_published_values():
    published = [0.913, 0.869, 0.816, 0.752, 0.673, 0.573, 0.442, 0.264, 0.0085, 0]
    x, v = latents()
    for index, std in enumerate(published):
        assert transition(x, v, sigmas(10), index, "cps", 0.8).std.item() == pytest.approx(std, abs=6e-4)


@pytest.mark.parametrize("index", range(10))
def test_without_noise_every_kind_is_the_euler_step(index):
    x, v = latents(index)
    schedule = sigmas(10)
    euler = x + v * (schedule[index + 1] - schedule[index])
    assert torch.equal(transition(x, v, schedule, index, "ode").mean, euler)
    assert torch.equal(transition(x, v, schedule, index, "sde", 0.0).mean, euler)
    torch.testing.assert_close(transition(x, v, schedule, index, "cps", 0.0).mean, euler, rtol=0, atol=2e-6)
    for kind in ("ode", "sde", "cps"):
        assert transition(x, v, schedule, index, kind, 0.0).std == 0


def test_the_scheduler_of_diffusers_takes_the_same_ode_steps():
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(10)
    x, v = latents()
    for index, timestep in enumerate(scheduler.timesteps):
        expected = scheduler.step(v, timestep, x).prev_sample
        torch.testing.assert_close(transition(x, v, sigmas(10), index, "ode").mean, expected, rtol=0, atol=1e-6)


def test_the_last_cps_step_gives_the_clean_estimate_without_noise():
    x, v = latents()
    schedule = sigmas(10)
    step = transition(x, v, schedule, 9, "cps", 0.8)
    assert step.std == 0
    torch.testing.assert_close(step.mean, x - schedule[9] * v, rtol=0, atol=1e-6)


def test_half_precision_inputs_are_up_cast_first():
    x, v = (tensor.to(torch.bfloat16) for tensor in latents())
    step = transition(x, v, sigmas(10), 3)
    assert step.mean.dtype == torch.float32
    assert torch.equal(step.mean, transition(x.float(), v.float(), sigmas(10), 3).mean)
    assert torch.equal(log_prob(x, v, 0.5), log_prob(x.float(), v.float(), 0.5))


@pytest.mark.parametrize("kind", ["sde", "cps"])
def test_the_size_of_a_score_is_that_of_the_gradient_of_the_log_probability(kind):
    """Over many draws of the noise, the root mean square of d log-probability / d velocity; up to one factor for all steps."""
    schedule, factors = sigmas(10), []
    for step in range(9):
        v = torch.zeros(20_000, requires_grad=True)
        moved = transition(torch.zeros(20_000), v, schedule, step, kind, 0.7)
        following = moved.mean + moved.std * torch.randn(20_000, generator=torch.Generator().manual_seed(step))
        (score,) = torch.autograd.grad(log_prob(following.detach(), moved.mean, moved.std, kind).sum(), v)
        factors.append((score.square().mean().sqrt() / score_size(schedule, step, kind, 0.7)).item())
    assert factors == pytest.approx([factors[0]] * 9, rel=0.03)
    if kind == "sde":  # from .057 to 1.49 over the steps of the published schedule
        sizes = [score_size(schedule, step, "sde", 0.7).item() for step in (0, 8)]
        assert sizes == pytest.approx([0.057, 1.49], rel=0.02)


def test_log_prob_of_an_sde_step_is_the_normal_density():
    x, v = latents()
    step = transition(x, v, sigmas(10), 4)
    sample = step.mean + step.std * latents(1)[0]
    expected = torch.distributions.Normal(step.mean.double(), step.std.double()).log_prob(sample.double())
    found = log_prob(sample, step.mean, step.std)
    assert found.dtype == torch.float32 and found.shape == x.shape
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)


def test_log_prob_of_a_cps_step_drops_its_constants():
    x, v = latents()
    expected = -((x.double() - v.double()) ** 2)
    torch.testing.assert_close(log_prob(x, v, 0.3, "cps").double(), expected, rtol=1e-6, atol=0)
    assert torch.equal(log_prob(x, v, 0.3, "cps"), log_prob(x, v, 0.0, "cps"))


@pytest.mark.parametrize("kind", ["sde", "cps"])
def test_gradients_flow_through_the_mean_only(kind):
    sample, mean = (tensor.requires_grad_() for tensor in latents())
    log_prob(sample, mean, 0.5, kind).sum().backward()
    assert sample.grad is None
    factor = 1 / 0.5**2 if kind == "sde" else 2
    torch.testing.assert_close(mean.grad, factor * (sample - mean).detach())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, v: transition(x, v, sigmas(10), 0, "ddim"), "sde, cps, ode"),
        (lambda x, v: transition(x, v, sigmas(10), 10), "steps 0 to 9"),
        (lambda x, v: transition(x, v, sigmas(10), -1), "steps 0 to 9"),
        (lambda x, v: transition(x, v[:1], sigmas(10), 0), "differ in shape"),
        (lambda x, v: transition(x, v, sigmas(10), 0, "sde", -0.1), "noise_level"),
        (lambda x, v: transition(x, v, sigmas(10), 0, "cps", 1.1), "noise_level"),
        (lambda x, v: log_prob(x, v, 1.0, "ode"), "deterministic"),
        (lambda x, v: log_prob(x, v, 1.0, "flow"), "sde, cps, ode"),
        (lambda x, v: log_prob(x, v, 0.0), "must be positive"),
        (lambda x, v: log_prob(x, v, float("nan")), "must be positive"),
        (lambda x, v: log_prob(x, v[:1], 1.0), "differ in shape"),
        (lambda x, v: sigmas(0), "steps >= 1"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(*latents())
