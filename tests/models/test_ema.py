import torch

from star.models.ema import EMA, swapped


def test_the_average_is_the_ramped_one_of_every_other_value():
    """Decay min((1 + n) / (10 + n), decay) after n updates, where n + 1 can be divided: here 1, 3 and 5, by hand."""
    weights = {"w": torch.tensor([1.0, -2.0])}
    ema = EMA(weights, decay=0.35, every=2)
    expected = weights["w"].double()
    for n in range(1, 7):
        weights["w"] = weights["w"] + n
        ema.update(weights)
        if n in (1, 3, 5):
            decay = min((1 + n) / (10 + n), 0.35)
            expected = decay * expected + (1 - decay) * weights["w"].double()
        assert torch.allclose(ema.values["w"].double(), expected, atol=1e-6)
    assert (1 + 3) / (10 + 3) < 0.35 < (1 + 5) / (10 + 5)  # the ramp and the decay both count


def test_a_restored_average_goes_on_alike():
    weights = {"w": torch.tensor([1.0])}
    one, other = EMA(weights, 0.9, every=2), EMA({"w": torch.tensor([7.0])}, 0.9, every=2)
    for n in range(5):
        weights["w"] = weights["w"] + 1
        one.update(weights)
        if n == 2:
            other.load_state_dict(one.state_dict())
        elif n > 2:
            other.update(weights)
    assert torch.equal(one.values["w"], other.values["w"]) and one.updates == other.updates == 5


def test_swapped_values_are_there_inside_only():
    weight = torch.nn.Parameter(torch.tensor([1.0]))
    with swapped({"w": weight}, {"w": torch.tensor([5.0])}):
        assert weight.item() == 5
    assert weight.item() == 1
