import pytest

from star.common.numbers import number, p_value, sample_size, signed, with_error
from star.common.statistics import Estimate


@pytest.mark.parametrize(
    "written, expected",
    [
        (number(None), "–"),
        (p_value(3.4e-8), "< 0.0001"),
        (p_value(0.04961), "0.0496"),
        (p_value(1.0), "1"),
        (number(float("nan")), "–"),
        (number(-1234.5678, 2), "\N{MINUS SIGN}1,234.57"),
        (with_error(-0.5, 0.0312), "\N{MINUS SIGN}0.500 ± 0.031"),
        (with_error(1.104, 0.031, 2, "±"), "1.10±0.03"),
        (with_error(0.5, None), "0.500"),
        (sample_size(1, 1), "1 image of 1 prompt"),
        (sample_size(2212, 553), "2,212 images of 553 prompts"),
        (with_error(0.5, float("nan"), 1), "0.5"),
        (signed(Estimate(0.02, None, None)), "+0.020"),
        (signed(Estimate(-0.0, None, (-0.02, 0.01)), 2), "\N{MINUS SIGN}0.00 [\N{MINUS SIGN}0.02, +0.01]"),
    ],
)
def test_how_numbers_are_written(written, expected):
    assert written == expected
