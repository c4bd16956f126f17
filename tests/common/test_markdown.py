import pytest

from star.common import markdown


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("star_shuffled", "star_shuffled"),
        ("__star__", r"\_\_star\_\_"),
        ("_x_ y_", r"\_x\_ y\_"),
        ("a*b* `c` <i> $1$", r"a\*b\* \`c\` \<i\> \$1\$"),
        ("[a](b) [0.1, 0.2]", r"[a\](b) [0.1, 0.2]"),
    ],
)
def test_names_read_as_they_are(text, written):
    assert markdown.escape(text) == written
