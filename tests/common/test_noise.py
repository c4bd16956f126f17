from star.common.noise import generator


def test_no_two_keys_are_one():
    keys = [(1, 12), (11, 2), (1, 1, 2), (112,), (12, 1), ("prompts", 0), ("window", 0)]
    assert len({generator(*key).initial_seed() for key in keys}) == len(keys)


def test_a_keys_numbers_are_those_of_the_results():
    """Other ones would be another run of the same settings."""
    assert generator(0, "prompts", 1).initial_seed() == 4371353553414003237
