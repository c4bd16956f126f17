import math
import re
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from baselines.controls import donors, randomised
from star.common.errors import RunStopped, UserError
from star.method import allocation
from star.method.allocation import allocate, effective_sample_share, overlap, upsample
from star.method.arms import ABLATION, ARMS, MAPS, METHODS, Rollouts, map_maker, needs

MAPPED = [arm for arm in MAPS if map_maker(arm)]
PROMPTS = [3, 3, 8, 8, 5, 5]


def relevance(seed=0, shape=(4, 6, 5, 3), sharpness=3.0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(shape, generator=generator) ** sharpness * 1e-2


def places(seed=0, shape=(6, 5, 3)):
    """Shares of tokens; nothing was found in the first image, and the second is all of it."""
    shares = torch.rand(shape, generator=torch.Generator().manual_seed(seed)).round(decimals=1)
    shares[:2] = torch.tensor([0.0, 1.0])[:, None, None]
    return shares


def seen(rows=slice(None), seed=0, shape=(6, 5, 3)):
    """What makers may ask for of rollouts, or of some of them."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (shape[0], 64, 64, 3), generator=generator, dtype=torch.uint8)
    slopes = torch.randn(images.shape, generator=generator)
    return {"places": places(seed, shape)[rows], "images": images[rows], "slopes": slopes[rows]}


def naive(relevance, arm, exponent=1.0, mix=1.0):
    """Spatial, temporal and full weights, one value at a time in float64."""
    steps, rollouts, height, width = relevance.shape
    values = (relevance.double() ** exponent).tolist()
    places = [(t, y, x) for t in range(steps) for y in range(height) for x in range(width)]
    weights = torch.zeros(relevance.shape, dtype=torch.float64)
    for i in range(rollouts):
        total = sum(values[t][i][y][x] for t, y, x in places) / len(places)
        for t, y, x in places:
            if arm == "spatial":
                value = sum(values[k][i][y][x] for k in range(steps)) / steps
            elif arm == "temporal":
                value = sum(values[t][i][a][b] for a in range(height) for b in range(width)) / (height * width)
            else:
                value = values[t][i][y][x]
            weights[t, i, y, x] = mix * value / total + 1 - mix
    return weights.float()


@pytest.mark.parametrize("arm", ["spatial", "temporal", "star"])
@pytest.mark.parametrize(("exponent", "mix"), [(1.0, 1.0), (0.5, 1.0), (2.0, 0.4)])
def test_arms_equal_naive_loops(arm, exponent, mix):
    found = allocate(relevance(), arm, exponent=exponent, mix=mix)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, naive(relevance(), arm, exponent, mix), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("arm", ["uniform"])
def test_uniform_arms_are_one_everywhere(arm):
    assert torch.equal(allocate(relevance(), arm), torch.ones(4, 6, 5, 3))


def test_spatial_has_no_when_and_temporal_no_where():
    spatial, temporal = allocate(relevance(), "spatial"), allocate(relevance(), "temporal")
    assert torch.equal(spatial, spatial[:1].expand_as(spatial)) and spatial.std() > 0.1
    assert torch.equal(temporal, temporal[:, :, :1, :1].expand_as(temporal)) and temporal.std() > 0.1


@pytest.mark.parametrize("cap", [None, 1.5])
def test_normalised_step_by_step_no_step_depends_on_another(cap):
    maps = relevance()
    found = allocate(maps, "star", cap=cap, mix=0.5, normalise="step")
    torch.testing.assert_close(found.mean((2, 3)), torch.ones(4, 6))
    for step in range(4):
        alone = allocate(maps[step : step + 1], "star", cap=cap, mix=0.5)
        torch.testing.assert_close(found[step : step + 1], alone)
    assert torch.equal(allocate(maps, "temporal", normalise="step"), torch.ones(4, 6, 5, 3))
    with pytest.raises(ValueError, match="rollout, step"):
        allocate(maps, "star", normalise="image")


def test_the_marginals_of_star_are_the_spatial_and_the_temporal_weights():
    star = allocate(relevance(), "star")
    torch.testing.assert_close(star.mean(0), allocate(relevance(), "spatial")[0])
    torch.testing.assert_close(star.mean((2, 3)), allocate(relevance(), "temporal")[:, :, 0, 0])


@settings(deadline=None, max_examples=150)
@given(
    shape=st.tuples(st.integers(1, 4), st.integers(2, 4), st.integers(1, 4), st.integers(1, 4)),
    arm=st.sampled_from(list(MAPS)),
    cap=st.none() | st.floats(1.01, 10),
    mix=st.floats(0, 1),
    exponent=st.floats(0.05, 4),
    zeros=st.floats(0, 0.9),
    magnitude=st.sampled_from([1e-30, 1e-4, 1.0, 1e30]),
    seed=st.integers(0, 10**6),
)
def test_weights_have_unit_mean_and_keep_below_the_cap(shape, arm, cap, mix, exponent, zeros, magnitude, seed):
    maps = relevance(seed, shape) / 1e-2 * magnitude
    maps[torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < zeros] = 0
    assume((maps > 0).flatten(2).any(2).any(0).all())
    try:
        known = seen(seed=seed, shape=shape[1:])
        weights = allocate(maps, arm, cap=cap, mix=mix, exponent=exponent, prompts=range(shape[1]), seed=seed, **known)
    except UserError:
        support = {
            "spatial": (maps > 0).any(0, keepdim=True).expand(shape),
            "temporal": (maps > 0).flatten(2).any(2)[..., None, None].expand(shape),
            **dict.fromkeys(("oracle", "oracle_twins", "background", "vipo", "sga", "sga_flipped"), torch.ones(shape)),
        }.get(arm, maps > 0)
        assert cap is not None and cap * support.double().mean((0, 2, 3)).min() < 1 + 1e-6
        return
    assert (weights >= 0).all()
    torch.testing.assert_close(weights.double().mean((0, 2, 3)), torch.ones(shape[1]).double(), rtol=0, atol=1e-5)
    if cap is not None:
        assert weights.max() <= cap * (1 + 1e-6)


def test_the_cap_equals_repeated_cutting_and_sharing_out():
    maps = relevance(sharpness=8.0)
    uncapped = allocate(maps, "star").double()
    assert uncapped.max() > 10
    for cap in (1.3, 2.0, 5.0):
        expected = uncapped.clone()
        for _ in range(2000):
            free = expected < cap
            expected = expected.clamp(max=cap)
            missing = 60 - expected.sum((0, 2, 3), keepdim=True)
            mass = (expected * free).sum((0, 2, 3), keepdim=True)
            expected = torch.where(free, expected * (1 + missing / mass), expected)
        found = allocate(maps, "star", cap=cap)
        torch.testing.assert_close(found, expected.float(), rtol=1e-4, atol=1e-6)
        assert found.max() <= cap * (1 + 1e-6)


def test_a_cap_that_nothing_reaches_changes_nothing():
    assert torch.equal(allocate(relevance(), "star", cap=1e6), allocate(relevance(), "star"))


def test_a_map_may_be_at_the_cap_wherever_it_is_not_zero():
    maps = torch.zeros(1, 1, 2, 3)
    maps[..., 0] = 0.7
    expected = torch.zeros(1, 1, 2, 3)
    expected[..., 0] = 3
    torch.testing.assert_close(allocate(maps, "star", cap=3.0), expected)
    for count in range(3, 20):  # whatever rounding does to the largest feasible scale
        for some in range(1, count):
            maps = torch.zeros(1, 1, 1, count)
            maps[..., :some] = relevance(count, (1, 1, 1, some))
            weights = allocate(maps, "star", cap=count / some)
            torch.testing.assert_close(weights, (maps > 0) * (count / some))
    maps = torch.zeros(1, 1, 2, 3)
    maps[..., 0] = 0.7
    with pytest.raises(UserError, match=r"rollout 0 .* 33.3% .* cap of 2.9; raise the cap to more than 3"):
        allocate(maps, "star", cap=2.9)


def test_a_rollout_does_not_depend_on_its_batch():
    arms = [arm for arm in MAPPED if not needs(map_maker(arm), "whole_epoch")]
    whole = {arm: allocate(relevance(), arm, cap=2.0, keys=range(10, 16), **seen()) for arm in arms}
    for arm, weights in whole.items():
        part = allocate(relevance()[:, [4, 1]], arm, cap=2.0, keys=[14, 11], **seen([4, 1]))
        assert torch.equal(part, weights[:, [4, 1]]), arm


def test_shuffled_gives_the_map_of_another_prompt_and_uses_every_map_once():
    maps = relevance()
    star, shuffled = allocate(maps, "star"), allocate(maps, "star_shuffled", prompts=PROMPTS, seed=1)
    sources = []
    for i in range(6):
        (source,) = [j for j in range(6) if torch.equal(shuffled[:, i], star[:, j])]
        assert PROMPTS[source] != PROMPTS[i]
        sources.append(source)
    assert sorted(sources) == list(range(6))
    assert sources == donors(PROMPTS, range(6), 1)


@settings(deadline=None, max_examples=100)
@given(prompts=st.lists(st.integers(0, 6), min_size=2, max_size=30), seed=st.integers(0, 2**40))
def test_donors_are_a_permutation_across_prompts_whatever_the_order_of_the_batch(prompts, seed):
    keys = [100 + i for i in range(len(prompts))]
    if 2 * max(Counter(prompts).values()) > len(prompts):
        with pytest.raises(UserError, match="share one prompt"):
            donors(prompts, keys, seed)
        return
    found = donors(prompts, keys, seed)
    assert sorted(found) == list(range(len(prompts)))
    assert all(prompts[i] != prompts[j] for i, j in enumerate(found))
    order = np.random.default_rng(seed).permutation(len(prompts)).tolist()
    elsewhere = donors([prompts[i] for i in order], [keys[i] for i in order], seed)
    assert all(keys[order[j]] == keys[found[order[i]]] for i, j in enumerate(elsewhere))


def test_donors_change_with_the_seed():
    assert len({tuple(donors([0, 0, 0, 1, 1, 1, 2, 2, 2], range(9), seed)) for seed in range(20)}) > 10


def test_the_controls_draw_what_they_drew_for_the_committed_results():
    """Other draws would be other runs under the same names and settings."""
    prompts, keys = [4, 4, 7, 7, 9, 9, 9, 2], range(3, 11)
    assert donors(prompts, keys, 0) == [7, 2, 6, 4, 1, 3, 0, 5]
    assert donors(prompts, keys, 1) == [6, 5, 1, 7, 0, 3, 2, 4]
    ranks = randomised(torch.arange(24.0).view(2, 1, 3, 4), Rollouts(prompts=(), keys=(5,), seed=0))
    drawn = [17, 20, 3, 4, 9, 0, 12, 15, 23, 14, 18, 8, 13, 19, 7, 21, 5, 6, 1, 22, 10, 16, 2, 11]
    assert ranks.flatten().tolist() == drawn


@pytest.mark.parametrize("options", [{}, {"cap": 2.0, "mix": 0.5, "exponent": 1.5}])
def test_random_keeps_the_values_of_the_rollout_and_nothing_else(options):
    maps = relevance(shape=(6, 4, 16, 16))
    star, random = allocate(maps, "star", **options), allocate(maps, "star_random", keys=[5, 6, 7, 8], **options)
    for i in range(4):
        torch.testing.assert_close(random[:, i].flatten().sort().values, star[:, i].flatten().sort().values)
        correlation = torch.corrcoef(torch.stack([random[:, i].flatten(), star[:, i].flatten()]))[0, 1]
        assert abs(correlation) < 0.15
    torch.testing.assert_close(effective_sample_share(random), effective_sample_share(star))


def neighbour_correlation(weights, axis):
    near = [weights.narrow(axis, start, weights.shape[axis] - 1).flatten() for start in (0, 1)]
    return torch.corrcoef(torch.stack(near))[0, 1].item()


def test_random_fields_are_smooth_keyed_and_favour_no_place():
    maps = relevance(shape=(8, 64, 16, 16), sharpness=1.0)
    fields = allocate(maps, "star_random", seed=3)
    for axis in (0, 2, 3):
        assert neighbour_correlation(allocate(maps, "star"), axis) < 0.05
        assert neighbour_correlation(fields, axis) > 0.6
        ends = torch.stack([fields.select(axis, end).flatten() for end in (0, -1)])
        assert torch.corrcoef(ends)[0, 1] > 0.6, "the field is periodic"
        # A filter whose width is an eighth of the axis; with a ninth or a seventh it is below 0.25 or above 0.35.
        quarter = torch.stack([fields.flatten(), fields.roll(fields.shape[axis] // 4, axis).flatten()])
        assert 0.25 < torch.corrcoef(quarter)[0, 1] < 0.35
    assert torch.equal(fields, allocate(maps, "star_random", seed=3))
    assert not torch.equal(fields, allocate(maps, "star_random", seed=4))
    assert not torch.equal(fields[:, 0].argsort(), fields[:, 1].argsort())
    assert (fields.mean((1, 2, 3)) - 1).abs().max() < 0.1
    assert (fields.mean((0, 1)) - 1).abs().max() < 0.25


def test_shifted_is_the_rollouts_own_map_half_a_canvas_away():
    maps = relevance(shape=(4, 6, 5, 4))
    star, shifted = allocate(maps, "star", cap=2.0), allocate(maps, "star_shifted", cap=2.0)
    for y in range(5):
        for x in range(4):
            assert torch.equal(shifted[:, :, (y + 2) % 5, (x + 2) % 4], star[:, :, y, x])


def test_oracle_and_background_weigh_where_the_verdict_comes_from_and_where_not():
    shares = places()
    oracle, background = (allocate(relevance(), arm, places=shares) for arm in ("oracle", "background"))
    assert torch.equal(oracle, oracle[:1].expand_as(oracle)) and torch.equal(background, background[:1].expand_as(background))
    assert torch.equal(oracle[:, :2], torch.ones(4, 2, 5, 3))  # nothing was found, or all of it is judged
    assert torch.equal(background[:, :2], torch.ones(4, 2, 5, 3))
    for i in range(2, 6):
        own = shares[i].double()
        torch.testing.assert_close(oracle[0, i].double(), own / own.mean(), rtol=0.01, atol=0.01)
        torch.testing.assert_close(background[0, i].double(), (1 - own) / (1 - own).mean(), rtol=0.01, atol=0.01)
    mixed = allocate(relevance(), "oracle", mix=0.5, places=shares)
    torch.testing.assert_close(mixed, oracle / 2 + 0.5)
    assert torch.equal(allocate(relevance(1), "oracle", exponent=2.0, places=shares), oracle)  # attention says nothing


def test_small_objects_are_at_the_cap_and_the_rest_is_even():
    shares = torch.zeros(1, 8, 8)
    shares[:, 2:4, 5] = 1  # 2 of 64 tokens: mean 1 on them alone would be 32
    weights = allocate(torch.ones(3, 1, 8, 8), "oracle", cap=5.0, places=shares)
    torch.testing.assert_close(weights[0, 0][shares[0] == 1], torch.tensor([5.0, 5.0]))
    torch.testing.assert_close(weights[0, 0][shares[0] == 0], torch.full((62,), (64 - 10) / 62))


def test_effective_sample_share():
    spike = torch.zeros(2, 1, 3, 4)
    spike[1, 0, 2, 2] = 24
    both = torch.cat([torch.ones(2, 1, 3, 4), spike], dim=1)
    torch.testing.assert_close(effective_sample_share(both), torch.tensor([1, 1 / 24]))
    weights = allocate(relevance(), "star")
    for i in range(6):
        own = weights[:, i].double().flatten().tolist()
        expected = math.fsum(own) ** 2 / (len(own) * math.fsum(w * w for w in own))
        assert effective_sample_share(weights)[i].item() == pytest.approx(expected)


def test_overlap_is_the_credit_that_two_maps_give_to_the_same_places():
    maps = relevance()
    torch.testing.assert_close(overlap(allocate(maps, "star"), maps), torch.ones(6))
    left, right = torch.zeros(2, 2, 1, 3, 4)
    left[..., :2], right[..., 2:] = 5, 0.1
    assert overlap(left, right).item() == 0 and overlap(torch.ones(2, 1, 3, 4), left).item() == 0.5
    own, other = (maps[:, i].double().flatten() for i in (0, 2))
    expected = sum(min(a, b) for a, b in zip((own / own.sum()).tolist(), (other / other.sum()).tolist(), strict=True))
    assert overlap(maps[:, [0]], maps[:, [2]]).item() == pytest.approx(expected) and 0 < expected < 1


def test_upsample_repeats_every_token_over_its_patch():
    weights = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    expected = torch.tensor([[1.0, 1, 2, 2], [1, 1, 2, 2], [3, 3, 4, 4], [3, 3, 4, 4]])
    assert torch.equal(upsample(weights, 2), expected)
    maps = allocate(relevance(), "star")
    assert upsample(maps, 2).shape == (4, 6, 10, 6)
    torch.testing.assert_close(upsample(maps, 2).mean((0, 2, 3)), torch.ones(6))


@pytest.mark.parametrize("arm", MAPPED)
@pytest.mark.parametrize(
    ("value", "message"),
    [(float("nan"), "not finite"), (float("inf"), "not finite"), (-1e-6, "negative"), (0.0, "is 0 everywhere")],
)
def test_a_map_that_cannot_be_used_is_an_error_that_names_the_rollout(arm, value, message):
    maps = relevance()
    if value == 0:
        maps[:, 4] = 0
    else:
        maps[1, 4, 2, 0] = value
    with pytest.raises(UserError if math.isfinite(value) else RunStopped, match=f"rollout 4 .*{message}"):
        allocate(maps, arm, prompts=PROMPTS)


@pytest.mark.parametrize(
    ("arm", "options", "message"),
    [
        ("full", {}, "spatial, temporal, star"),
        ("star", {"mix": 1.1}, r"mix is in \[0, 1\]"),
        ("star", {"mix": -0.1}, r"mix is in \[0, 1\]"),
        ("star", {"exponent": 0.0}, "exponent > 0"),
        ("star", {"exponent": math.nan}, "exponent > 0"),
        ("star", {"exponent": math.inf}, "exponent > 0"),
        ("star", {"cap": 1.0}, "cap > 1"),
        ("star_shuffled", {}, "needs the prompt"),
        ("star_shuffled", {"prompts": [1, 2]}, "prompts must be 6"),
        ("star_random", {"keys": [-1] * 6}, "keys must be 6"),
        ("oracle", {}, "oracle needs the places"),
        ("background", {}, "background needs the places"),
        ("oracle_twins", {"prompts": range(6)}, "oracle_twins needs the places"),
        ("oracle_twins", {"places": torch.ones(6, 5, 3)}, "oracle_twins needs the prompt"),
        ("oracle", {"places": places()[:2]}, r"places are \(6, 5, 3\) in \[0, 1\], got \(2, 5, 3\)"),
        ("oracle", {"places": 2 * places()}, "places are"),
    ],
)
def test_bad_options_are_named(arm, options, message):
    with pytest.raises(ValueError, match=message):
        allocate(relevance(), arm, **options)


def test_a_wrong_shape_is_named():
    with pytest.raises(ValueError, match=r"\(T, B, h, w\)"):
        allocate(relevance()[0], "star")


def test_shuffling_within_one_prompt_is_refused():
    with pytest.raises(UserError, match="6 of 6 rollouts share one prompt"):
        allocate(relevance(), "star_shuffled", prompts=[2] * 6)


def test_twins_tell_a_rollout_where_theirs_was_and_never_itself():
    shares, prompts = places(), [7, 2, 7, 7, 2, 9]
    found = allocate(relevance(), "oracle_twins", places=shares, prompts=prompts)
    for i, prompt in enumerate(prompts):
        others = [j for j, other in enumerate(prompts) if other == prompt and j != i]
        mean = sum(shares[j].double() for j in others) / len(others) if others else torch.ones(5, 3).double()
        mean = 1e-3 + (1 - 1e-3) * mean
        for step in range(4):
            torch.testing.assert_close(found[step, i].double(), mean / mean.mean(), rtol=1e-5, atol=1e-6)
    changed = shares.clone()
    changed[0] = 1 - changed[0]
    again = allocate(relevance(), "oracle_twins", places=changed, prompts=prompts)
    assert torch.equal(again[:, 0], found[:, 0]) and not torch.equal(again[:, 2], found[:, 2])


def test_the_table_of_arms_is_the_one_place():
    assert ("base", *ARMS) == METHODS and all(name == arm.name for name, arm in ARMS.items())
    assert {arm.map for arm in ARMS.values()} == set(MAPS)
    assert [name for name, arm in ARMS.items() if arm.published] == ["flow_grpo", "spatial", "temporal", "star"]
    assert [arm for arm in MAPPED if needs(map_maker(arm), "whole_epoch")] == ["star_shuffled", "oracle_twins"]
    told = {"places": ["oracle", "oracle_twins", "background"], "images": ["vipo"], "slopes": ["sga", "sga_flipped"]}
    for what, arms in told.items():
        assert [arm for arm in MAPPED if needs(map_maker(arm), what)] == arms
    neighbours = [name for name, arm in ARMS.items() if arm.neighbour]
    assert [*ABLATION, "star_shifted", "oracle", "oracle_twins", "background", *neighbours] == list(ARMS)
    assert neighbours == ["vipo", "sga", "sga_flipped", "tempflow", "flow_dppo"]
    assert all(ARMS[name].diagnostic for name in neighbours)
    colours = [arm.colour for arm in ARMS.values() if arm.colour]
    assert len(set(colours)) == len(colours) >= len(ABLATION) - 1


def test_the_table_of_maps_has_a_row_for_each_that_follows_no_other_work():
    own = {arm.map for arm in ARMS.values() if not arm.neighbour}
    assert re.findall(r"^\| ``(\w+)`` \|", allocation.__doc__, re.MULTILINE) == [name for name in MAPS if name in own]


def test_an_arm_of_ones_own_is_named_by_its_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_maps.py").write_text(
        "def squared(relevance, rollouts):\n    return relevance**2\n"
        "def flat(relevance, rollouts):\n    return relevance[:1]\n"
        "def none(relevance, rollouts):\n    return 0 * relevance\n"
        "def largest(relevance, rollouts):\n"
        "    assert (relevance.amax((0, 2, 3)) == 1).all()\n"
        "    return relevance\n"
    )
    relevance = torch.rand(2, 3, 4, 4) + 0.1
    assert torch.allclose(allocate(relevance, "own_maps:squared"), allocate(relevance, "star", exponent=2.0))
    # Also of shares whose powers would be 0: what comes in has been divided by its largest value.
    shares = relevance.double() * 1e-30
    assert torch.allclose(allocate(shares, "own_maps:largest", exponent=12.0), allocate(relevance, "star", exponent=12.0))
    for name, message in (
        ("flat", r"method.arm=own_maps:flat gives maps of shape \(1, 3, 4, 4\), but it must keep \(2, 3, 4, 4\)"),
        ("none", "the map that method.arm=own_maps:none gives for rollout 0 is 0 everywhere: correct the function"),
        ("lost", "method.arm=own_maps:lost: the module own_maps has no 'lost'"),
    ):
        with pytest.raises(UserError, match=message):
            allocate(relevance, f"own_maps:{name}")
    with pytest.raises(UserError, match="no module 'own_map'; install it, or put own_map into the folder where you call"):
        allocate(relevance, "own_map:squared")


def test_a_step_without_relevance_is_named_by_its_rollout():
    relevance = torch.rand(3, 4, 5, 5) + 0.1
    relevance[2, 1] = 0
    assert torch.isfinite(allocate(relevance, "star")).all()
    with pytest.raises(UserError, match="the relevance of rollout 1 at its trained step 2 is 0 everywhere: check"):
        allocate(relevance, "star", normalise="step")
    relevance[2, 1, 0, 0] = 1
    with pytest.raises(UserError, match="^rollout 1 at its trained step 2 has relevance on 4.0% .* the cap of 3"):
        allocate(relevance, "star", normalise="step", cap=3.0)
