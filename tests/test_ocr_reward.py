import difflib
from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluators.ocr.rapid import Rapid
from evaluators.ocr.reward import levenshtein, target_text, text_reward
from star.errors import UserError
from star.mini import signs

words = st.text(alphabet="abC d", max_size=7)


@given(words, words)
def test_levenshtein_is_the_recursive_definition(a, b):
    @cache
    def distance(i: int, j: int) -> int:
        if not i or not j:
            return i + j
        return min(distance(i - 1, j) + 1, distance(i, j - 1) + 1, distance(i - 1, j - 1) + (a[i - 1] != b[j - 1]))

    assert levenshtein(a, b) == distance(len(a), len(b))


@pytest.mark.parametrize(
    ("target", "lines", "reward"),
    [
        ("OPEN", ["open"], 1.0),
        ("OPEN", ["we are o p e n today"], 1.0),
        ("New Year", ["NEW", "YEAR"], 1.0),
        ("OPEN", [], 0.0),
        ("OPEN", ["OPEM"], 0.75),
        ("OPEN", ["OPN"], 0.75),
        ("OPEN", ["completely different"], 0.0),
        ("A-B", ["AB"], 1 - 1 / 3),
        ("a\tb", ["ab"], 1 - 1 / 3),
    ],
)
def test_reward(target, lines, reward):
    assert text_reward(target, lines) == pytest.approx(reward)


@given(words.filter(lambda word: word.replace(" ", "")), st.lists(words, max_size=3))
def test_reward_is_in_range_and_1_only_for_what_contains_the_target(target, lines):
    reward = text_reward(target, lines)
    wanted, found = (text.replace(" ", "").lower() for text in (target, "".join(lines)))
    assert 0 <= reward <= 1
    matched = difflib.SequenceMatcher(None, wanted, found, autojunk=False).find_longest_match().size == len(wanted)
    assert (reward == 1) == matched


def test_target_is_the_first_quoted_text():
    assert target_text('a "Grand Opening" sign, "not this"') == "Grand Opening"
    for prompt in ("no quotes", 'one " quote', 'an empty "" one', '" "'):
        with pytest.raises(UserError, match="double quotes"):
            target_text(prompt)
    with pytest.raises(ValueError, match="empty"):
        text_reward("  ", ["x"])


def test_drawn_signs_are_read():
    engine, chosen = Rapid(), sorted(signs.TEST_WORDS)[::6]
    pictures = [signs.draw_sign(word, np.random.default_rng((5, i))) for i, word in enumerate(chosen)]
    rewards = [text_reward(word, engine.lines(picture)) for word, picture in zip(chosen, pictures, strict=True)]
    assert np.mean(rewards) >= 0.97
    assert engine.lines(np.full((64, 64, 3), 128, np.uint8)) == ()
