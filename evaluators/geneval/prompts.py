"""GenEval's prompts as records: the official 553, training prompts, and the same grammar over any vocabulary.

A record is the dict that GenEval's metadata files hold, one per line::

    {"tag": "position",
     "include": [{"class": "dog", "count": 1}, {"class": "cat", "count": 1, "position": ["left of", 0]}],
     "prompt": "a photo of a cat left of a dog"}

``include`` lists what must be seen (``color`` and ``position`` are optional; a position is a relation to the clause
with that index), ``exclude`` (counting only) what must not. Grammar and drawing order follow djghosh13/geneval,
oddities such as "a scissors" and "benchs" included: the regenerated official file is byte-identical to the published
one (a test checks its sha256).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from star.common.errors import UserError

Record = dict

TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
RELATIONS = ("left of", "right of", "above", "below")
SEED = 43  # of the published evaluation prompts
MIRROR = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
COUNT_WORDS = {2: "two", 3: "three", 4: "four"}
# Relative numbers of training prompts per tag in Flow-GRPO (arXiv 2505.05470, appendix on GenEval).
TRAINING_MIX = {"position": 7, "counting": 5, "color_attr": 3, "colors": 1, "two_object": 1, "single_object": 0}
PALETTE = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")

# Rejected draws in a row after which a tag counts as having no training prompt left; one free prompt in 500 would be found.
MAX_REJECTIONS = 10_000

# The 80 classes of COCO in its order; a detector's class index is an index into this tuple.
COCO_NAMES = tuple(
    """person,bicycle,car,motorcycle,airplane,bus,train,truck,boat,traffic light,fire hydrant,stop sign,
    parking meter,bench,bird,cat,dog,horse,sheep,cow,elephant,bear,zebra,giraffe,backpack,umbrella,handbag,tie,
    suitcase,frisbee,skis,snowboard,sports ball,kite,baseball bat,baseball glove,skateboard,surfboard,
    tennis racket,bottle,wine glass,cup,fork,knife,spoon,bowl,banana,apple,sandwich,orange,broccoli,carrot,
    hot dog,pizza,donut,cake,chair,couch,potted plant,bed,dining table,toilet,tv,laptop,computer mouse,tv remote,
    computer keyboard,cell phone,microwave,oven,toaster,sink,refrigerator,book,clock,vase,scissors,teddy bear,
    hair drier,toothbrush""".replace("\n    ", "").split(",")
)


@dataclass(frozen=True)
class Vocabulary:
    """What prompts are made of.

    Attributes:
        names: object classes.
        colors: colour words, in the order in which a classifier breaks ties.
        draws: how many prompts to draw per tag, in the order of :data:`TAGS`, before duplicates are removed.
    """

    names: tuple[str, ...]
    colors: tuple[str, ...]
    draws: tuple[int, ...]

    @property
    def paintable(self) -> tuple[str, ...]:
        """The classes that may get a colour: all but ``person``, starting after it as the official draw does."""
        if "person" not in self.names:
            return self.names
        start = self.names.index("person") + 1
        return self.names[start:] + self.names[: start - 1]


OFFICIAL = Vocabulary(COCO_NAMES, PALETTE, draws=(100,) * 6)
MINI = Vocabulary(
    names=("circle", "square", "triangle", "diamond", "cross", "ring", "star", "heart"),
    colors=("red", "orange", "yellow", "green", "blue", "purple", "black", "white"),
    draws=(8, 22, 20, 44, 72, 64),  # half of the few two-object pairs are left for training
)


def article(word: str) -> str:
    """``word`` with "a" or "an" before it, by its first letter only."""
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


def plural(word: str) -> str:
    """GenEval's plural: "es" after an s, "s" after anything else."""
    return word + ("es" if word.endswith("s") else "s")


def single_object(name: str) -> Record:
    """The record of one object."""
    return _record("single_object", [_clause(name)], article(name))


def two_object(first: str, second: str) -> Record:
    """The record of two objects of different classes."""
    return _record("two_object", [_clause(first), _clause(second)], f"{article(first)} and {article(second)}")


def counting(name: str, count: int) -> Record:
    """The record of exactly ``count`` objects of a class."""
    text = f"{COUNT_WORDS[count]} {plural(name)}"
    return _record("counting", [_clause(name, count)], text, exclude=[_clause(name, count + 1)])


def colors(name: str, color: str) -> Record:
    """The record of one object in a colour."""
    return _record("colors", [_clause(name, color=color)], f"{article(color)} {name}")


def position(subject: str, relation: str, reference: str) -> Record:
    """``subject`` stands in ``relation`` to ``reference``; the reference is clause 0, as in the official file."""
    include = [_clause(reference), _clause(subject, position=[relation, 0])]
    return _record("position", include, f"{article(subject)} {relation} {article(reference)}")


def color_attr(first: str, first_color: str, second: str, second_color: str) -> Record:
    """The record of two objects, each in a colour of its own."""
    include = [_clause(first, color=first_color), _clause(second, color=second_color)]
    return _record("color_attr", include, f"{article(first_color)} {first} and {article(second_color)} {second}")


def _clause(name: str, count: int = 1, **extra) -> dict:
    return {"class": name, "count": count, **extra}


def _record(tag: str, include: list[dict], text: str, **extra) -> Record:
    return {"tag": tag, "include": include, **extra, "prompt": f"a photo of {text}"}


def draw(tag: str, vocabulary: Vocabulary, rng: np.random.Generator) -> Record:
    """One random record of a tag. The order of the draws is the official one."""
    names, paintable, palette = vocabulary.names, vocabulary.paintable, vocabulary.colors
    match tag:
        case "single_object":
            return single_object(names[rng.choice(len(names))])
        case "two_object":
            first, second = rng.choice(len(names), size=2, replace=False)
            return two_object(names[first], names[second])
        case "counting":
            name = names[rng.choice(len(names))]
            return counting(name, int(rng.integers(2, 4, endpoint=True)))
        case "colors":
            name = paintable[rng.choice(len(paintable))]
            return colors(name, palette[rng.choice(len(palette))])
        case "position":
            subject, reference = rng.choice(len(names), size=2, replace=False)
            return position(names[subject], RELATIONS[rng.choice(len(RELATIONS))], names[reference])
        case "color_attr":
            first, second = rng.choice(len(paintable), size=2, replace=False)
            one, other = rng.choice(len(palette), size=2, replace=False)
            return color_attr(paintable[first], palette[one], paintable[second], palette[other])
    raise ValueError(f"unknown GenEval tag {tag!r}; the tags are {', '.join(TAGS)}")


def generate(vocabulary: Vocabulary) -> list[Record]:
    """The evaluation records of a vocabulary: all single objects in random order, then draws per tag, no duplicates."""
    rng = np.random.default_rng(SEED)
    names = vocabulary.names
    count = min(vocabulary.draws[0], len(names))
    records = [single_object(names[i]) for i in rng.choice(len(names), size=count, replace=False)]
    for tag, draws in zip(TAGS[1:], vocabulary.draws[1:], strict=True):
        records += [draw(tag, vocabulary, rng) for _ in range(draws)]
    return list({_key(record): record for record in records}.values())  # a dict keeps the place of the first


def official() -> list[Record]:
    """The 553 published evaluation records in their order (djghosh13/geneval, ``evaluation_metadata.jsonl``)."""
    return generate(OFFICIAL)


def training(
    vocabulary: Vocabulary, total: int, seed: int, mix: Mapping[str, float] = TRAINING_MIX, distinct: bool = False
) -> list[Record]:
    """Random training records in shuffled order, none of which asks for what an evaluation prompt asks for.

    Left out are the vocabulary's own evaluation prompts and their swapped twins (see :func:`swapped`), as in Flow-GRPO.

    Args:
        vocabulary: what the prompts are made of.
        total: number of records.
        seed: the same seed gives the same records.
        mix: relative number of records per tag; tags that are missing get none.
        distinct: repeat a tag's prompts only after all of them have come (a rare one may be missed). Of the published set only
            the number of different prompts is known, and such draws match it: 33,000 in 50,000.

    Raises:
        UserError: a tag or weight of the mix makes no sense, or the evaluation prompts leave nothing of a tag.
    """
    counts = _apportion(total, mix)
    rng = np.random.default_rng(seed)
    evaluation = generate(vocabulary)
    held_out = {record["prompt"] for record in evaluation} | {swapped(record)["prompt"] for record in evaluation}
    draws = _draw_distinct if distinct else _draw_any
    records = [record for tag, count in counts.items() for record in draws(held_out, tag, count, vocabulary, rng)]
    return [records[i] for i in rng.permutation(total)]


def swapped(record: Record) -> Record:
    """The record that asks for the same picture with its two objects in the other order.

    "a cat and a dog" becomes "a dog and a cat", "a cat left of a dog" becomes "a dog right of a cat"; records of the
    tags with one class come back unchanged.
    """
    match record["tag"], record["include"]:
        case "two_object", (first, second):
            return two_object(second["class"], first["class"])
        case "color_attr", (first, second):
            return color_attr(second["class"], second["color"], first["class"], first["color"])
        case "position", (reference, subject):
            return position(reference["class"], MIRROR[subject["position"][0]], subject["class"])
    return record


def _draw_any(held_out: set[str], tag: str, count: int, vocabulary: Vocabulary, rng: np.random.Generator) -> list[Record]:
    """Independent draws, so that prompts repeat by chance."""
    records: list[Record] = []
    while len(records) < count:
        record = _draw_unless(held_out, tag, vocabulary, rng)
        if record is None:
            raise _none_left(tag)
        records.append(record)
    return records


def _draw_distinct(held_out: set[str], tag: str, count: int, vocabulary: Vocabulary, rng: np.random.Generator) -> list[Record]:
    """Every prompt once before any repeats; then all of them again, in another order each time."""
    left_out = set(held_out)
    records: list[Record] = []
    while len(records) < count and (record := _draw_unless(left_out, tag, vocabulary, rng)):
        records.append(record)
        left_out.add(record["prompt"])
    if count and not records:
        raise _none_left(tag)
    each = records[:]
    while len(records) < count:
        records += [each[i] for i in rng.permutation(len(each))]
    return records[:count]


def _draw_unless(left_out: set[str], tag: str, vocabulary: Vocabulary, rng: np.random.Generator) -> Record | None:
    """A record whose prompt is not in ``left_out``; None if there seems to be none."""
    for _ in range(MAX_REJECTIONS):
        record = draw(tag, vocabulary, rng)
        if record["prompt"] not in left_out:
            return record
    return None


def _none_left(tag: str) -> UserError:
    return UserError(f"no training prompts of the tag {tag}: the evaluation set holds them all; set the tag to 0 in the mix")


def _apportion(total: int, mix: Mapping[str, float]) -> dict[str, int]:
    """Whole numbers that sum to ``total`` in the ratio of the mix: largest remainder, earlier tags first on ties."""
    if unknown := [tag for tag in mix if tag not in TAGS]:
        raise UserError(f"unknown GenEval tag {unknown[0]!r} in the training mix; the tags are {', '.join(TAGS)}")
    weight = sum(mix.values())
    if min(mix.values(), default=0) < 0 or weight <= 0 or total < 0:
        raise UserError(f"cannot draw {total} prompts in the mix {dict(mix)}: weights must be >= 0 and one above 0")
    shares = {tag: total * part / weight for tag, part in mix.items()}
    counts = {tag: int(share) for tag, share in shares.items()}
    most_short = sorted(shares, key=lambda tag: counts[tag] - shares[tag])
    for tag in most_short[: total - sum(counts.values())]:
        counts[tag] += 1
    return counts


def _key(record: Record) -> str:
    return json.dumps(record, sort_keys=True)
