import hashlib
from collections import Counter

import pytest
from geneval_layout import serialised

from evaluators.geneval import prompts
from evaluators.geneval.prompts import MINI, OFFICIAL, RELATIONS, TAGS, TRAINING_MIX
from star.common.errors import UserError


def sha256_of_lines(lines):
    return hashlib.sha256("".join(f"{line}\n" for line in lines).encode()).hexdigest()


def canonical(record):
    """What a record asks for, whatever the order in which it names its objects."""
    include = record["include"]
    if record["tag"] == "position":
        reference, subject = include[0]["class"], include[1]["class"]
        relation, target = include[1]["position"]
        assert target == 0
        if relation in ("right of", "below"):
            reference, subject, relation = subject, reference, {"right of": "left of", "below": "above"}[relation]
        return ("position", subject, relation, reference)
    return (record["tag"], frozenset((c["class"], c["count"], c.get("color")) for c in include))


def test_official_files_are_byte_identical_to_the_published_ones():
    records = prompts.official()
    assert len(serialised(records).encode()) == 85_209
    assert (
        sha256_of_lines(serialised(records).splitlines()) == "5c48e0813e812e3c373fa5c8ed07a8f0a483be30272b4427b0559c8048e67c13"
    )
    assert (
        sha256_of_lines(record["prompt"] for record in records)
        == "55b6e3650e980c13daf30569eb666e000faf19bfc2b7b4cbe999fcdb7aa9d680"
    )
    assert sha256_of_lines(OFFICIAL.names) == "608f6a0e5c8ca1c7a92b818430141fe268c85b7930b50f4160f1d65893b5bacd"


def test_official_tags_come_in_blocks_of_the_published_sizes():
    tags = [record["tag"] for record in prompts.official()]
    assert Counter(tags) == {
        "single_object": 80, "two_object": 99, "counting": 80, "colors": 94, "position": 100, "color_attr": 100,
    }  # fmt: skip
    assert [tags.index(tag) for tag in TAGS] == [0, 80, 179, 259, 353, 453]
    records = prompts.official()
    assert Counter(r["include"][0]["count"] for r in records if r["tag"] == "counting") == {2: 26, 3: 28, 4: 26}
    relations = Counter(r["include"][1]["position"][0] for r in records if r["tag"] == "position")
    assert relations == {"below": 28, "right of": 27, "above": 26, "left of": 19}


@pytest.mark.parametrize(
    ("record", "prompt"),
    [
        (prompts.single_object("skis"), "a photo of a skis"),
        (prompts.counting("bench", 3), "a photo of three benchs"),
        (prompts.counting("scissors", 2), "a photo of two scissorses"),
        (prompts.colors("apple", "orange"), "a photo of an orange apple"),
        (prompts.position("cat", "left of", "umbrella"), "a photo of a cat left of an umbrella"),
    ],
)
def test_grammar_keeps_the_official_oddities(record, prompt):
    assert record["prompt"] == prompt


def test_mini_evaluation_has_every_tag_and_no_duplicates():
    records = prompts.generate(MINI)
    assert {record["tag"] for record in records} == set(TAGS)
    assert len({record["prompt"] for record in records}) == len(records) >= 192


@pytest.mark.parametrize("distinct", [False, True])
@pytest.mark.parametrize("vocabulary", [MINI, OFFICIAL], ids=["mini", "official"])
def test_no_training_record_asks_for_what_an_evaluation_record_asks_for(vocabulary, distinct):
    held_out = {canonical(record) for record in prompts.generate(vocabulary)}
    training = prompts.training(vocabulary, 4_000, seed=1, distinct=distinct)
    assert not held_out & {canonical(record) for record in training}
    drawn = Counter(record["tag"] for record in training)
    assert all(drawn[tag] > 0 for tag, weight in TRAINING_MIX.items() if weight)
    assert all(len({r["prompt"] for r in training if r["tag"] == tag}) >= 5 for tag in drawn)


def test_official_training_mix_is_the_published_one():
    records = prompts.training(OFFICIAL, 50_000, seed=0)
    assert Counter(record["tag"] for record in records) == {
        "position": 20_588, "counting": 14_706, "color_attr": 8_824, "colors": 2_941, "two_object": 2_941,
    }  # fmt: skip
    assert len({record["tag"] for record in records[:50]}) > 2, "training records are not shuffled"


def test_no_prompt_comes_again_before_all_have_come():
    records = prompts.training(OFFICIAL, 50_000, seed=0, distinct=True)
    times = {tag: Counter(record["prompt"] for record in records if record["tag"] == tag) for tag in TAGS}
    assert {tag: sum(count.values()) for tag, count in times.items()} == {
        "single_object": 0, "position": 20_588, "counting": 14_706, "color_attr": 8_824, "colors": 2_941, "two_object": 2_941,
    }  # fmt: skip
    assert all(max(count.values()) - min(count.values()) <= 1 for tag, count in times.items() if count)
    assert set(times["position"].values()) == set(times["color_attr"].values()) == {1}
    assert sum(map(len, times.values())) == 33_209  # "about 33,000" is what the published file's size tells
    # Of counting there are three numbers of each of 80 classes, less what is held out.
    held_out = {record["prompt"] for record in prompts.official()}
    every = {prompts.counting(name, number)["prompt"] for name in OFFICIAL.names for number in prompts.COUNT_WORDS}
    assert times["counting"].keys() == every - held_out
    assert records == prompts.training(OFFICIAL, 50_000, seed=0, distinct=True)


def test_training_records_follow_the_seed():
    assert prompts.training(MINI, 50, seed=3) == prompts.training(MINI, 50, seed=3)
    assert prompts.training(MINI, 50, seed=3) != prompts.training(MINI, 50, seed=4)
    assert prompts.training(MINI, 0, seed=3) == []


def test_swapped_names_the_objects_the_other_way_round():
    assert prompts.swapped(prompts.two_object("cat", "dog")) == prompts.two_object("dog", "cat")
    for relation, mirrored in zip(RELATIONS, ("right of", "left of", "below", "above"), strict=True):
        assert prompts.swapped(prompts.position("cat", relation, "dog")) == prompts.position("dog", mirrored, "cat")
    assert prompts.swapped(prompts.color_attr("cat", "red", "dog", "blue")) == prompts.color_attr("dog", "blue", "cat", "red")
    for record in prompts.official():
        assert prompts.swapped(prompts.swapped(record)) == record
        assert canonical(prompts.swapped(record)) == canonical(record)


@pytest.mark.parametrize(
    ("mix", "message"),
    [
        ({"single_object": 1}, "no training prompts of the tag single_object"),
        ({"colours": 1}, "unknown GenEval tag 'colours'"),
        ({"colors": 0}, "weights must be >= 0 and one above 0"),
        ({"colors": 2, "counting": -1}, "weights must be >= 0 and one above 0"),
        ({}, "weights must be >= 0 and one above 0"),
    ],
)
def test_impossible_mix_is_the_users_error(mix, message):
    with pytest.raises(UserError, match=message):
        prompts.training(MINI, 10, seed=0, mix=mix)
    with pytest.raises(UserError, match=message):
        prompts.training(MINI, 10, seed=0, mix=mix, distinct=True)
