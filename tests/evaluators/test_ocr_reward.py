import difflib
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from rapidfuzz.distance.Levenshtein import distance as levenshtein

from evaluators.interface import Text
from evaluators.ocr.evaluator import TextRendering
from evaluators.ocr.reward import target_span, target_text, text_reward
from evaluators.score import score
from star.common.errors import UserError
from star.tasks.core_words import of_quote

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


def test_target_and_core_word_are_the_same_characters():
    for prompt in ('a "Grand Opening" sign, "not this"', '"x"', 'tabs "\t" are no spaces', 'two\nlines "a\nb"'):
        start, end = target_span(prompt)
        assert of_quote(prompt) == [(start, end)]
        assert prompt[start:end] == prompt.split('"')[1] == target_text(prompt)
        assert prompt[start - 1] == prompt[end] == '"'
    for prompt in ("no quotes", 'one " quote', 'an empty "" one', '"  "'):
        with pytest.raises(UserError, match="double quotes"):
            of_quote(prompt)


def test_a_quote_too_many_is_told_once(capsys):
    evaluator = TextRendering("rapidocr")
    for text in ('a sign "OPEN"', 'a 6" ruler that says "HELLO"', '12" and "A"'):
        assert evaluator.lacks(Text(text)) == ""
    assert capsys.readouterr().err == (
        'star: caution: the prompt \'a 6" ruler that says "HELLO"\' has an odd number of double quotes; '
        "' ruler that says ' is taken as its text\n"
    )


def test_prompts_without_quotes_are_told_before_images_are_read(tmp_path):
    for name in ("1.png", "2.png"):
        Image.new("RGB", (32, 32)).save(tmp_path / name)
    (tmp_path / "p.txt").write_text('a sign "OPEN"\na sign\n')
    with pytest.raises(
        UserError, match="p.txt: the prompt 'a sign' of 2.png has no text in double quotes; ocr-v1/.* needs it$"
    ):
        score("ocr", str(tmp_path), str(tmp_path / "p.txt"))
    assert not [*tmp_path.glob("*.csv")]
