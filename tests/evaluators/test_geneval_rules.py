from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from evaluators.geneval import prompts
from evaluators.geneval.rules import Detection, filter_detections, judge, relations

LEFT, RIGHT = (0, 20, 10, 30), (40, 20, 50, 30)


def seen(box=LEFT, color=None, score=0.95):
    return SimpleNamespace(box=box, score=score, color=color)


def dogs(n, **kwargs):
    return {"dog": [seen(**kwargs) for _ in range(n)]}


RED_DOG_AND_BLUE_CAT = prompts.color_attr("dog", "red", "cat", "blue")
DOG_LEFT_OF_CAT = prompts.position("dog", "left of", "cat")

# What no record of the benchmark asks for, but somebody's own may.
TWO_RED_DOGS_AND_A_CAT = {
    "tag": "any",
    "include": [{"class": "dog", "count": 2, "color": "red"}, {"class": "cat", "count": 1, "position": ["left of", 0]}],
}
COW_LEFT_OF_THE_DOG = {
    "tag": "any",
    "include": [
        *({"class": name, "count": 1} for name in ("cat", "dog")),
        {"class": "cow", "count": 1, "position": ["left of", 1]},
    ],
}

# Flow-GRPO's continuous score, case by case.
SCORES = [
    (prompts.single_object("dog"), dogs(0), 0),
    (prompts.single_object("dog"), dogs(1), 1),
    (prompts.single_object("dog"), dogs(2), 0),
    (prompts.single_object("dog"), dogs(3), -1),
    (prompts.single_object("dog"), dogs(5), -3),
    (prompts.two_object("dog", "cat"), {"dog": [seen()], "cat": [seen()]}, 1),
    (prompts.two_object("dog", "cat"), {"dog": [seen()]}, 0.5),
    (prompts.counting("dog", 4), dogs(4), 1),
    (prompts.counting("dog", 4), dogs(3), 0.75),
    (prompts.counting("dog", 4), dogs(9), -0.25),
    (prompts.colors("dog", "red"), dogs(1, color="red"), 1),
    (prompts.colors("dog", "red"), dogs(1, color="blue"), 0.5),
    (prompts.colors("dog", "red"), {}, 0),
    (DOG_LEFT_OF_CAT, {"dog": [seen(LEFT)], "cat": [seen(RIGHT)]}, 1),
    (DOG_LEFT_OF_CAT, {"dog": [seen(RIGHT)], "cat": [seen(LEFT)]}, 0.75),
    (DOG_LEFT_OF_CAT, {"cat": [seen(RIGHT)]}, 1 / 3),
    (DOG_LEFT_OF_CAT, {"dog": [seen(LEFT)]}, 1 / 3),
    (DOG_LEFT_OF_CAT, {"dog": [seen(LEFT), seen(LEFT)], "cat": [seen(RIGHT)]}, 1 / 3),
    (DOG_LEFT_OF_CAT, {"dog": [seen(LEFT)], "cat": [seen(RIGHT), seen(RIGHT)]}, 1 / 3),
    (DOG_LEFT_OF_CAT, {}, 0),
    (RED_DOG_AND_BLUE_CAT, {"dog": [seen(color="red")], "cat": [seen(color="blue")]}, 1),
    (RED_DOG_AND_BLUE_CAT, {"dog": [seen(color="red")], "cat": [seen(color="red")]}, 0.75),
    (RED_DOG_AND_BLUE_CAT, {"dog": [seen(color="red")]}, 0.5),
    (RED_DOG_AND_BLUE_CAT, {}, 0),
    # One of two dogs is red: they are no group that something could lie beside.
    (TWO_RED_DOGS_AND_A_CAT, {"dog": [seen(RIGHT, "red"), seen(RIGHT, "blue")], "cat": [seen(LEFT)]}, (1 + 0.5 + 1 + 0) / 4),
    (TWO_RED_DOGS_AND_A_CAT, {"dog": [seen(RIGHT, "red")] * 2, "cat": [seen(LEFT)]}, 1),
    # The reference is the second clause's, which is not met, and not the first's.
    (COW_LEFT_OF_THE_DOG, {"cat": [seen(RIGHT)], "cow": [seen(LEFT)]}, (1 + 0 + 1 + 0) / 4),
    (COW_LEFT_OF_THE_DOG, {"cat": [seen(LEFT)], "dog": [seen(RIGHT)], "cow": [seen(LEFT)]}, 1),
]


@pytest.mark.parametrize(("record", "detections", "score"), SCORES)
def test_continuous_score(record, detections, score):
    verdict = judge(record, detections)
    assert verdict.score == pytest.approx(score)
    assert verdict.strict == (score == 1)


def test_official_rule_looks_at_the_most_confident_objects_only():
    record = prompts.colors("dog", "red")
    assert judge(record, {"dog": [seen(color="red"), seen(color="blue")]}).correct
    wrong = judge(record, {"dog": [seen(color="blue"), seen(color="red")]})
    assert not wrong.correct
    assert wrong.reason == "expected red dog>=1, found 0 red; and 1 blue"
    third_cat = {"dog": [seen(LEFT), seen(RIGHT)], "cat": [seen(RIGHT), seen(LEFT)]}
    assert judge(DOG_LEFT_OF_CAT, third_cat).correct


def test_surplus_objects_are_fine_officially_but_not_strictly():
    verdict = judge(prompts.two_object("dog", "cat"), {"dog": [seen()] * 3, "cat": [seen()]})
    assert verdict.correct and not verdict.strict and verdict.reason == ""


@pytest.mark.parametrize(
    ("found", "reason"),
    [(1, "expected dog>=2, found 1"), (2, ""), (3, "expected dog<3, found 3"), (16, "expected dog<3, found 16")],
)
def test_counting_is_exact_as_exclude_counts_all_objects(found, reason):
    verdict = judge(prompts.counting("dog", 2), dogs(found))
    assert (verdict.correct, verdict.strict, verdict.reason) == (found == 2, found == 2, reason)


def test_position_fails_with_its_reference():
    verdict = judge(DOG_LEFT_OF_CAT, {"dog": [seen(LEFT)]})
    assert not verdict.correct
    assert verdict.reason == "expected cat>=1, found 0\nno target for dog to be left of"


def test_position_fails_with_a_reference_of_the_wrong_color():
    record = {
        "tag": "position",
        "include": [
            {"class": "cat", "count": 1, "color": "red"},
            {"class": "dog", "count": 1, "position": ["left of", 0]},
        ],
        "prompt": "a photo of a dog left of a red cat",
    }
    verdict = judge(record, {"dog": [seen(LEFT)], "cat": [seen(RIGHT, "blue")]})
    assert not verdict.correct and not verdict.strict
    assert verdict.reason.endswith("no target for dog to be left of")
    assert verdict.score == pytest.approx((1 + 0 + 1 + 0) / 4)


def test_position_needs_every_pair_and_names_what_it_found():
    record = {
        "tag": "position",
        "include": [{"class": "cat", "count": 1}, {"class": "dog", "count": 2, "position": ["above", 0]}],
        "prompt": "a photo of two dogs above a cat",
    }
    above, below, cat = (20, 0, 30, 10), (20, 50, 30, 60), (20, 25, 30, 35)
    assert judge(record, {"cat": [seen(cat)], "dog": [seen(above), seen(above)]}).correct
    verdict = judge(record, {"cat": [seen(cat)], "dog": [seen(above), seen(below)]})
    assert verdict.reason == "expected dog above target, found below target"
    # Two dogs below still cost one zero: the score stops at the first wrong pair.
    verdict = judge(record, {"cat": [seen(cat)], "dog": [seen(below), seen(below)]})
    assert verdict.score == pytest.approx((1 + 1 + 0 + 1) / 4)


def test_color_reason_lists_the_palette_in_order():
    record = {"tag": "colors", "include": [{"class": "dog", "count": 4, "color": "red"}], "prompt": "a photo"}
    found = {"dog": [seen(color=c) for c in ("white", "blue", "red", "blue")]}
    assert judge(record, found).reason == "expected red dog>=4, found 1 red; and 1 red, 2 blue, 1 white"


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ((0, 0, 1, 1), (10, 0, 11, 1), {"left of"}),
        ((10, 0, 11, 1), (0, 0, 1, 1), {"right of"}),
        ((0, 0, 1, 1), (0, 10, 1, 11), {"above"}),
        ((0, 10, 1, 11), (0, 0, 1, 1), {"below"}),
        ((10, 10, 11, 11), (0, 0, 1, 1), {"right of", "below"}),  # two at once
        # Shrunk offset 10 - 0.1 * 60 = 4, divided by the full 10: below half. By the shrunk length it would be 1.
        ((10, 0, 40, 30), (0, 0, 30, 30), set()),
        ((13, 0, 43, 30), (0, 0, 30, 30), {"right of"}),  # 13 - 6 = 7 > 13 / 2
        ((5, 5, 9, 9), (5, 5, 9, 9), set()),
        ((0.0009, 0, 0.0009, 0), (0, 0, 0, 0), set()),  # the dead zone is 1e-3 wide
        ((0.0011, 0, 0.0011, 0), (0, 0, 0, 0), {"right of"}),
    ],
)
def test_relations(a, b, expected):
    assert relations(a, b) == expected


def test_relations_read_boxes_with_a_score_at_the_end():
    assert relations(np.array([0, 0, 1, 1, 0.9]), np.array([10, 0, 11, 1, 0.7])) == {"left of"}


def test_filter_thresholds_are_exclusive_and_higher_for_counting():
    raw = {"dog": [seen(score=s) for s in (0.3, 0.31, 0.9, 0.91)], "cat": [seen(score=0.3)], "cow": []}
    kept = filter_detections(raw, "colors")
    assert {name: [d.score for d in found] for name, found in kept.items()} == {"dog": [0.91, 0.9, 0.31]}
    assert [d.score for d in filter_detections(raw, "counting")["dog"]] == [0.91]


def test_filter_compares_in_float32():
    score = float(np.float32(0.3))  # above 0.3 as a float64
    assert score > 0.3 and not filter_detections({"dog": [seen(score=score)]}, "colors")


def test_filter_keeps_the_best_16_and_the_later_of_equals_first():
    raw = {"dog": [Detection((i, 0, i + 1, 1), 0.5 + 0.1 * (i % 2)) for i in range(20)]}
    kept = [int(d.box[0]) for d in filter_detections(raw, "colors")["dog"]]
    assert kept == [*range(19, 0, -2), 18, 16, 14, 12, 10, 8]


def test_detections_compare_without_their_masks():
    box = (0.0, 0.0, 2.0, 2.0)
    one, other = Detection(box, 0.5, mask=np.ones((2, 2), bool)), Detection(box, 0.5, mask=np.zeros((2, 2), bool))
    assert one == other and "mask" not in repr(one)


# An independent reading of the rules: plain float64 arithmetic, one function per verdict, nothing shared between them.


def naive_relations(a, b):
    centre = [((p[0] + p[2]) / 2, (p[1] + p[3]) / 2) for p in (a, b)]
    ox, oy = centre[0][0] - centre[1][0], centre[0][1] - centre[1][1]
    wide, high = a[2] - a[0] + b[2] - b[0], a[3] - a[1] + b[3] - b[1]
    rx = max(abs(ox) - 0.1 * wide, 0) * (1 if ox > 0 else -1)
    ry = max(abs(oy) - 0.1 * high, 0) * (1 if oy > 0 else -1)
    assume(all(abs(abs(r) - 1e-3) > 1e-4 for r in (rx, ry)))
    if abs(rx) < 1e-3 and abs(ry) < 1e-3:
        return []
    length = (ox * ox + oy * oy) ** 0.5
    dx, dy = rx / length, ry / length
    assume(all(abs(abs(d) - 0.5) > 1e-5 for d in (dx, dy)))  # float32 may fall on the other side
    found = ["left of"] if dx < -0.5 else []
    found += ["right of"] if dx > 0.5 else []
    found += ["above"] if dy < -0.5 else []
    found += ["below"] if dy > 0.5 else []
    return found


def naive_official(record, detections):
    correct, groups = True, []
    for clause in record["include"]:
        ok, k = True, clause["count"]
        found = detections.get(clause["class"], [])[:k]
        wrong_color = [d for d in found if "color" in clause and d.color != clause["color"]]
        if len(found) < k or wrong_color:
            ok = False
        elif "position" in clause:
            relation, target = clause["position"]
            if groups[target] is None:
                ok = False
            else:
                for d in found:
                    for t in groups[target]:
                        if relation not in naive_relations(d.box, t.box):
                            ok = False
        groups.append(found if ok else None)
        correct = correct and ok
    for clause in record.get("exclude", []):
        if len(detections.get(clause["class"], [])) >= clause["count"]:
            correct = False
    return correct


def naive_strict(record, detections):
    for clause in record["include"]:
        found, k = detections.get(clause["class"], []), clause["count"]
        if len(found) != k:
            return False
        if "color" in clause and sum(d.color == clause["color"] for d in found) != k:
            return False
        if "position" in clause:
            relation, target = clause["position"]
            for t in detections[record["include"][target]["class"]]:
                if any(relation not in naive_relations(d.box, t.box) for d in found):
                    return False
    return True


def naive_score(record, detections):
    rewards, groups = [], []
    for clause in record["include"]:
        found, k = detections.get(clause["class"], []), clause["count"]
        matched = True
        rewards.append(1 - abs(k - len(found)) / k)
        if len(found) != k:
            matched = False
            if "color" in clause or "position" in clause:
                rewards.append(0)
        else:
            if "color" in clause:
                m = len([d for d in found if d.color == clause["color"]])
                rewards.append(1 - abs(k - m) / k)
                matched = m == k
            if "position" in clause and matched:
                relation, target = clause["position"]
                if groups[target] is None:
                    matched = False
                    rewards.append(0)
                else:
                    pairs = [(d, t) for d in found for t in groups[target]]
                    if not all(relation in naive_relations(d.box, t.box) for d, t in pairs):
                        matched = False
                        rewards.append(0)
                    rewards.append(1)
        groups.append(found if matched else None)
    return sum(rewards) / len(rewards)


CLASSES, COLORS = ("dog", "cat", "cow"), ("red", "blue", None)
corner, size = st.integers(0, 60), st.integers(1, 40)
boxes = st.tuples(corner, corner, size, size).map(lambda p: (p[0], p[1], p[0] + p[2], p[1] + p[3]))
objects = st.builds(seen, box=boxes, color=st.sampled_from(COLORS))
counts = st.sampled_from((1, 1, 1, 2, 3))


@st.composite
def records(draw):
    include = []
    for name in draw(st.lists(st.sampled_from(CLASSES), min_size=1, max_size=3, unique=True)):
        clause = {"class": name, "count": draw(counts)}
        if draw(st.booleans()):
            clause["color"] = draw(st.sampled_from(("red", "blue")))
        if include and draw(st.booleans()):
            relation = draw(st.sampled_from(prompts.RELATIONS))
            clause["position"] = [relation, draw(st.integers(0, len(include) - 1))]
        include.append(clause)
    exclude = draw(st.lists(st.fixed_dictionaries({"class": st.sampled_from(CLASSES), "count": counts}), max_size=1))
    return {"tag": "any", "include": include, "exclude": exclude, "prompt": ""}


@given(boxes, boxes)
def test_relations_against_float64(a, b):
    assert relations(a, b) == set(naive_relations(a, b))


@given(records(), st.dictionaries(st.sampled_from(CLASSES), st.lists(objects, max_size=4)))
def test_verdicts_against_the_naive_reading(record, detections):
    verdict = judge(record, detections)
    assert verdict.correct == naive_official(record, detections)
    assert verdict.strict == naive_strict(record, detections)
    assert verdict.score == pytest.approx(naive_score(record, detections))
    assert verdict.correct == (verdict.reason == "")


@given(records(), st.data())
def test_a_strictly_right_image_scores_one(record, data):
    """Objects drawn to fit, so that the right side of every rule is met often."""
    detections = {
        clause["class"]: [
            seen(data.draw(boxes), clause.get("color"))
            for _ in range(clause["count"] + data.draw(st.sampled_from((0, 0, 0, 1))))
        ]
        for clause in record["include"]
    }
    verdict = judge(record, detections)
    assert verdict.strict == naive_strict(record, detections)
    assert verdict.correct == naive_official(record, detections)
    assert verdict.score == pytest.approx(naive_score(record, detections))
    if verdict.strict:
        assert verdict.score == 1
