import numpy as np
import pytest

from star.records.learning_curves import Reach, area_under_curve, cost_to_reach, levels, running_mean


def test_running_mean_against_a_loop():
    rewards = np.random.default_rng(0).random(20).tolist()
    expected = [sum(rewards[i : i + 5]) / 5 for i in range(16)]
    assert running_mean(rewards, 5) == pytest.approx(expected)
    assert len(running_mean(rewards[:4], 5)) == 0


def test_a_level_is_reached_where_the_running_mean_first_is_there():
    costs = [10, 20, 30, 40, 50, 60]
    rewards = [0.0, 0.9, 0.1, 0.6, 0.6, 0.2]
    assert cost_to_reach(costs, rewards, 0.9, window=1) == 20
    assert cost_to_reach(costs, rewards, 0.5, window=3) == 40  # (0.9 + 0.1 + 0.6) / 3 = 0.533
    assert cost_to_reach(costs, rewards, 0.45, window=2) == 20
    assert cost_to_reach(costs, rewards, 0.6, window=2) == 50  # the mean of 0.6 and 0.6, whatever its last bit


def test_a_level_may_never_be_reached():
    assert cost_to_reach([1, 2, 3], [0.1, 0.2, 0.3], 0.4, window=1) is None
    assert cost_to_reach([1, 2, 3], [0.5, 0.5, 0.5], 0.4, window=4) is None
    with pytest.raises(ValueError):
        cost_to_reach([1, 2], [0.1], 0.0)


@pytest.mark.parametrize(
    "costs, median, reached",
    [
        ((3.0, 1.0, 2.0), 2.0, 3),
        ((3.0, None, 2.0), 3.0, 2),
        ((None, None, 2.0), None, 1),
        ((1.0, 4.0), 4.0, 2),
        ((1.0, None), None, 1),
        ((1.0, 2.0, 5.0, None), 5.0, 3),
        ((), None, 0),
    ],
)
def test_never_is_later_than_all_else(costs, median, reached):
    assert (Reach(costs).median, Reach(costs).reached) == (median, reached)


def test_area_under_known_curves():
    assert area_under_curve([0, 10], [0.2, 0.6]) == pytest.approx(0.4)
    assert area_under_curve([0, 1, 4], [0.0, 1.0, 1.0]) == pytest.approx((0.5 + 3) / 4)
    assert area_under_curve([0, 1, 4], [0.0, 1.0, 1.0], until=1) == pytest.approx(0.5)
    assert area_under_curve([0, 2, 4], [0.0, 1.0, 0.0], until=3) == pytest.approx((1.0 + 0.75) / 3)


def test_area_against_a_fine_sum():
    rng = np.random.default_rng(1)
    costs, rewards = np.cumsum(rng.random(30) + 0.1), rng.random(30)
    grid = np.linspace(costs[0], 7.0, 400_001)
    assert area_under_curve(costs, rewards, until=7.0) == pytest.approx(np.interp(grid, costs, rewards).mean(), abs=1e-5)


@pytest.mark.parametrize("until", [0.0, 5.0])
def test_area_within_the_curve_only(until):
    with pytest.raises(ValueError):
        area_under_curve([0, 1, 4], [0.0, 1.0, 1.0], until=until)


def test_area_needs_an_ascending_curve():
    for costs, rewards in (([1], [1]), ([1, 1], [0, 1]), ([1, 2], [1])):
        with pytest.raises(ValueError):
            area_under_curve(costs, rewards)


def test_levels_are_shares_of_the_way():
    assert levels(0.2, 0.6) == pytest.approx([0.4, 0.6])
    assert levels(0.6, 0.6) == []
