"""The words of errors of libraries."""

import pytest

from star.common.errors import first_line


@pytest.mark.parametrize(
    ("message", "told"), [("one", "one"), ("\n  one \ntwo", "one"), ("", "ValueError"), (" \n", "ValueError")]
)
def test_the_first_line_of_an_error_says_something(message, told):
    assert first_line(ValueError(message)) == told
